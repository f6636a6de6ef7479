//! Where the agent listens: an abstract socket of the user by default, so that a killed agent leaves
//! no file behind, and binding it is the lock that keeps a second agent away.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Names the agent's socket: `@name` is an abstract name, anything else a path.
pub const SOCKET_VARIABLE: &str = "IPC_DIRECT_SOCKET";

/// An agent's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Abstract unix socket, without the leading NUL. Scoped by network namespace.
    Abstract(String),
    /// Socket file.
    Path(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Abstract(name) => write!(f, "@{name}"),
            Address::Path(path) => path.display().fmt(f),
        }
    }
}

/// Why an agent could not take its address.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent, or somebody else.
    #[error("the address {0} is taken: an agent is running there already (see: ipc-direct ps)")]
    Taken(Address),
    /// Anything else.
    #[error("the agent's socket {0} could not be made: {1}")]
    Failed(Address, #[source] Errno),
}

impl Address {
    /// Parses what the user wrote (an option or the variable); relative paths are made absolute.
    #[must_use]
    pub fn parse(text: &str) -> Address {
        match text.strip_prefix('@') {
            Some(name) => Address::Abstract(name.to_owned()),
            None => Address::Path(std::path::absolute(text).unwrap_or_else(|_| PathBuf::from(text))),
        }
    }

    /// By option, by [`SOCKET_VARIABLE`], or this user's default `@ipc-direct/UID`.
    #[must_use]
    pub fn choose(option: Option<&str>) -> Address {
        let variable = std::env::var(SOCKET_VARIABLE).ok().filter(|v| !v.is_empty());
        match option.map(str::to_owned).or(variable) {
            Some(text) => Address::parse(&text),
            None => Address::Abstract(format!("ipc-direct/{}", rustix::process::geteuid().as_raw())),
        }
    }

    /// For connect(2) and bind(2).
    ///
    /// # Errors
    /// `NAMETOOLONG`, `INVAL`: not expressible as a unix address.
    pub fn to_unix(&self) -> Result<SocketAddrUnix, Errno> {
        match self {
            Address::Abstract(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
            Address::Path(path) => SocketAddrUnix::new(path.as_os_str().as_bytes()),
        }
    }

    /// A fresh socket to connect or bind.
    pub(crate) fn socket(nonblocking: bool) -> Result<OwnedFd, Errno> {
        let mut flags = SocketFlags::CLOEXEC;
        flags.set(SocketFlags::NONBLOCK, nonblocking);
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
    }

    /// Binds and listens. A socket file that nobody answers on is replaced, by one starter at a time: its directory is locked
    /// meanwhile.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(&self) -> Result<Bound, BindError> {
        let failed = |e| match e {
            Errno::ADDRINUSE => BindError::Taken(self.clone()),
            e => BindError::Failed(self.clone(), e),
        };
        let address = self.to_unix().map_err(failed)?;
        let socket = Self::socket(true).map_err(failed)?;
        let _one_at_a_time = self.lock_directory().map_err(failed)?;
        let mut bound = rustix::net::bind(&socket, &address);
        if let (Err(Errno::ADDRINUSE), Address::Path(path)) = (&bound, self) {
            let probe = Self::socket(true).map_err(failed)?;
            if rustix::net::connect(&probe, &address) == Err(Errno::CONNREFUSED) {
                let _ = std::fs::remove_file(path);
                bound = rustix::net::bind(&socket, &address);
            }
        }
        bound.map_err(failed)?;
        let file = match self {
            Address::Path(path) => Some(path.clone()),
            Address::Abstract(_) => None,
        };
        let bound = Bound { socket, file };
        if let Some(path) = &bound.file {
            // Root's agent serves everybody; who may do what is decided by the peer's credentials.
            let mode = if rustix::process::geteuid().is_root() { 0o666 } else { 0o600 };
            rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(failed)?;
        }
        // Before the lock goes: a bound socket that does not listen looks like a stale file.
        rustix::net::listen(&bound.socket, 1024).map_err(failed)?;
        Ok(bound)
    }

    /// Of a socket file.
    fn lock_directory(&self) -> Result<Option<OwnedFd>, Errno> {
        let Address::Path(path) = self else { return Ok(None) };
        let directory = path.parent().unwrap_or(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(directory, flags, Mode::empty())?;
        rustix::fs::flock(&fd, FlockOperation::LockExclusive)?;
        Ok(Some(fd))
    }
}

/// A listening socket; its file, if it has one, goes away with it.
#[derive(Debug)]
pub struct Bound {
    /// Non-blocking, `SOCK_SEQPACKET`.
    pub socket: OwnedFd,
    file: Option<PathBuf>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(path) = &self.file {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_print() {
        assert_eq!(Address::parse("@x/1"), Address::Abstract("x/1".into()));
        assert_eq!(Address::parse("/run/a").to_string(), "/run/a");
        assert!(matches!(Address::parse("a"), Address::Path(p) if p.is_absolute()));
    }

    #[test]
    fn only_one_binds_and_stale_files_are_replaced() {
        let name = Address::Abstract(format!("ipc-direct-test/{}", std::process::id()));
        let first = name.bind().unwrap();
        assert!(matches!(name.bind(), Err(BindError::Taken(_))));
        drop(first);
        name.bind().unwrap();

        let path = std::env::temp_dir().join(format!("ipc-direct-bind-{}", std::process::id()));
        let file = Address::Path(path.clone());
        let mut stale = file.bind().unwrap();
        assert!(matches!(file.bind(), Err(BindError::Taken(_))));
        stale.file = None;
        drop(stale);
        assert!(path.exists());
        drop(file.bind().unwrap());
        assert!(!path.exists());
    }
}
