//! Forked children that have not attached: the agent watches them, so that others hear of their ends as of a process's.
//!
//! A child says that it was born on its parent's socket, and gives one end of a pipe, of which it alone has the other. Nothing is made for
//! it, and nobody waits: most such children serve one connection and end (PostgreSQL's).

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use emulator::packet;
use ring::attach::{BYTES, Call};
use ring::msg::Request;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};

use crate::clients::{Birth, Role};
use crate::serve::{Agent, Watch};

impl Agent {
    /// `Born`, on the socket of a client of that user and role.
    pub(crate) fn born(
        &mut self,
        (uid, role): (u32, Role),
        (parent, nonce): (u32, u64),
        fds: impl IntoIterator<Item = OwnedFd>,
    ) {
        let group = match role {
            Role::Attached(function) if function == parent => self.functions.get(&function).map(|f| f.group),
            Role::Orphan(group) => {
                self.departed.group_of(parent, uid, Instant::now()).filter(|of_parent| *of_parent == group)
            }
            _ => None,
        };
        let Some((group, pipe)) = group.zip(fds.into_iter().find(hangs_up)) else { return };
        if self.clients.full_for(uid, self.own_uid) {
            tracing::error!("a child of function {parent} is not watched: too many clients");
            return;
        }
        let id = self.clients.add(pipe, uid, Instant::now());
        let watched = self.clients.get(id).map(|c| self.poller.watch(c.socket.as_fd(), Watch::Client(id)));
        if let Some(Err(e)) = watched {
            tracing::error!("a child of function {parent} can't be watched: {e}");
            self.clients.remove(id);
            return;
        }
        self.groups.hold(group);
        self.clients.set(id, Role::Born(Birth { parent, nonce, group }), None);
        self.card.ring().post_quietly(0, Request::Child { parent, nonce, lives: true });
    }

    /// It has never attached.
    pub(crate) fn child_ended(&mut self, Birth { parent, nonce, group }: Birth) {
        self.card.ring().post(0, Request::Child { parent, nonce, lives: false });
        self.groups.release(group);
        self.notice_neighbours(group);
    }

    /// The child has attached, and is watched as a function.
    pub(crate) fn child_attached(&mut self, parent: u32, nonce: u64, uid: u32) {
        if let Some((id, birth)) = self.clients.born(parent, nonce, uid)
            && let Some(client) = self.clients.remove(id)
        {
            self.poller.forget(client.socket.as_fd());
            self.groups.release(birth.group);
        }
    }

    /// The process that had this socket has ended: what its children have said on it, before it is closed.
    pub(crate) fn hear_of_children(&mut self, id: u32) {
        let mut buffer = [0; BYTES + 1];
        while let Some(client) = self.clients.get(id)
            && let Ok((n @ 1.., fds)) = packet::receive_now(&client.socket, &mut buffer)
        {
            let client = (client.uid, client.role);
            if let Ok(Call::Born { parent, nonce }) = Call::from_wire(buffer.get(..n).unwrap_or(&[])) {
                self.born(client, (parent, nonce), fds);
            }
        }
    }
}

/// The reading end of a pipe, and of nothing that would keep it open by itself.
fn hangs_up(fd: &OwnedFd) -> bool {
    let is_pipe = |mode| FileType::from_raw_mode(mode) == FileType::Fifo;
    let reads = |flags: OFlags| flags & OFlags::RWMODE == OFlags::RDONLY && !flags.contains(OFlags::PATH);
    fstat(fd).is_ok_and(|s| is_pipe(s.st_mode)) && fcntl_getfl(fd).is_ok_and(reads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reading_end_of_a_pipe_hangs_up_by_itself() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        assert!(hangs_up(&read) && !hangs_up(&write));
        // Opened for both, it would be its own other end.
        let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd));
        let open = |flags| rustix::fs::open(path(&read), flags, rustix::fs::Mode::empty()).unwrap();
        assert!(!hangs_up(&open(OFlags::RDWR)) && !hangs_up(&open(OFlags::PATH)));
        let (socket, _) = packet::pair(rustix::net::SocketType::STREAM).unwrap();
        assert!(!hangs_up(&socket));
    }
}
