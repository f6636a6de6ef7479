//! Names of `AF_UNIX` sockets, for people: asked of the kernel (proc(5)), since counters have no room for paths.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs;

/// Those of one process's network namespace, looked up at the first question.
pub struct Names {
    pid: u32,
    by_inode: OnceCell<HashMap<String, String>>,
}

impl Names {
    /// Of the namespace that `pid` is in.
    #[must_use]
    pub fn of(pid: u32) -> Names {
        Names { pid, by_inode: OnceCell::new() }
    }

    /// The name that `fd` of the process is bound to: a path, or `@` and an abstract name.
    #[must_use]
    pub fn get(&self, fd: i32) -> Option<String> {
        let link = fs::read_link(format!("/proc/{}/fd/{fd}", self.pid)).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
        let table = self
            .by_inode
            .get_or_init(|| parse(&fs::read(format!("/proc/{}/net/unix", self.pid)).unwrap_or_default()));
        // What the shim names its clients after is no name of theirs.
        table.get(&inode).filter(|name| !name.starts_with("@ipc-direct:")).cloned()
    }
}

/// `/proc/net/unix`: a head line, then number, references, protocol, flags, type, state, inode and, if it has one, the path.
fn parse(text: &[u8]) -> HashMap<String, String> {
    let text = String::from_utf8_lossy(text);
    let entry = |line: &str| {
        // The inode is padded on the left, so the path is what follows the seventh field.
        let mut rest = line;
        let mut inode = "";
        for _ in 0..7 {
            let field = rest.trim_start();
            (inode, rest) = field.split_once(' ')?;
        }
        Some((inode.to_owned(), rest.to_owned()))
    };
    text.lines().skip(1).filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    #[test]
    fn bound_sockets_have_names() {
        let name = format!("ipc-direct-names/{}", std::process::id());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let (unnamed, _peer) = UnixStream::pair().unwrap();
        let names = Names::of(std::process::id());
        assert_eq!(names.get(listener.as_raw_fd()), Some(format!("@{name}")));
        assert_eq!(names.get(unnamed.as_raw_fd()), None);
        assert_eq!(names.get(-1), None);
    }
}
