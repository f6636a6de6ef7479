//! Client sockets: who is on the other end, and what they have become. And children that have none yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::SocketFlags;

/// A fresh client must have said what it wants after this long, and an attach be answered.
pub const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A forked child whose parent has ended must have attached after this long; the coordinator gives
/// up on it earlier.
pub const ORPHAN_MAX: Duration = Duration::from_secs(3);
/// Most client sockets.
const CLIENTS_MAX: usize = 8192;
/// Most client sockets of one user who is not the agent's own.
const CLIENTS_PER_UID_MAX: usize = 2048;

/// What a client has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Connected, nothing asked yet (or only reports).
    Fresh,
    /// Holds a lease.
    Lease,
    /// Becoming this function.
    Attaching(u32),
    /// This function.
    Attached(u32),
    /// The process has ended, but a fork of it, which may still attach, holds its socket; it keeps
    /// this group alive.
    Orphan(u32),
    /// A forked child that has not attached: instead of a socket there is a pipe that hangs up when it is gone.
    Born(Birth),
}

/// A child, by what its parent announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// Function of the parent.
    pub parent: u32,
    /// Secret of the two.
    pub nonce: u64,
    /// Fork family, which it keeps alive.
    pub group: u32,
}

/// One client socket.
#[derive(Debug)]
pub struct Client {
    /// Non-blocking; see [`Role::Born`].
    pub socket: OwnedFd,
    /// By the kernel.
    pub uid: u32,
    /// See [`Role`].
    pub role: Role,
    deadline: Option<Instant>,
}

/// All client sockets.
#[derive(Debug)]
pub struct Clients {
    last_id: u32,
    all: BTreeMap<u32, Client>,
    deadlines: BTreeSet<(Instant, u32)>,
    /// Given up for a moment when descriptors have run out, so that a connection can be accepted and
    /// closed: otherwise the listener would stay readable and the agent would spin.
    spare: Option<File>,
}

/// Outcome of accepting.
#[derive(Debug)]
pub enum Accepted {
    /// A client.
    Socket(OwnedFd),
    /// Nobody was there any more.
    Nobody,
    /// Descriptors have run out; somebody was turned away.
    TurnedAway,
}

impl Clients {
    /// No clients yet.
    ///
    /// # Errors
    /// /dev/null can't be opened.
    pub fn new() -> io::Result<Clients> {
        let spare = Some(File::open("/dev/null")?);
        Ok(Clients { last_id: 0, all: BTreeMap::new(), deadlines: BTreeSet::new(), spare })
    }

    /// Takes one connection from `listener`.
    pub fn accept(&mut self, listener: BorrowedFd<'_>) -> Accepted {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(listener, flags) {
            Ok(socket) => Accepted::Socket(socket),
            Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                self.spare = None;
                let turned_away = rustix::net::accept_with(listener, flags).is_ok();
                self.spare = File::open("/dev/null").ok();
                if turned_away { Accepted::TurnedAway } else { Accepted::Nobody }
            }
            Err(_) => Accepted::Nobody,
        }
    }

    /// True if `uid` has used up its sockets, or everybody has.
    #[must_use]
    pub fn full_for(&self, uid: u32, own_uid: u32) -> bool {
        self.all.len() >= CLIENTS_MAX
            || (uid != own_uid && self.all.values().filter(|c| c.uid == uid).count() >= CLIENTS_PER_UID_MAX)
    }

    /// Keeps a fresh client; its number.
    pub fn add(&mut self, socket: OwnedFd, uid: u32, now: Instant) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.all.contains_key(&self.last_id) {
                break;
            }
        }
        self.all.insert(self.last_id, Client { socket, uid, role: Role::Fresh, deadline: None });
        self.set(self.last_id, Role::Fresh, Some(now + ANSWER_MAX));
        self.last_id
    }

    /// A client.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&Client> {
        self.all.get(&id)
    }

    /// Changes what a client is, and by when it must have become something else.
    pub fn set(&mut self, id: u32, role: Role, deadline: Option<Instant>) {
        let Some(client) = self.all.get_mut(&id) else { return };
        client.role = role;
        if let Some(old) = std::mem::replace(&mut client.deadline, deadline) {
            self.deadlines.remove(&(old, id));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, id));
        }
    }

    /// Forgets a client.
    pub fn remove(&mut self, id: u32) -> Option<Client> {
        let client = self.all.remove(&id)?;
        if let Some(deadline) = client.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        Some(client)
    }

    /// Lets go of all leases: their sockets, and whose they are.
    pub fn take_leases(&mut self) -> Vec<(OwnedFd, u32)> {
        let (leases, others) =
            std::mem::take(&mut self.all).into_iter().partition(|(_, client)| client.role == Role::Lease);
        self.all = others;
        BTreeMap::into_values(leases).map(|client| (client.socket, client.uid)).collect()
    }

    /// The nearest deadline.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// A client whose deadline has passed.
    #[must_use]
    pub fn late(&self, now: Instant) -> Option<u32> {
        self.deadlines.first().filter(|(at, _)| *at <= now).map(|(_, id)| *id)
    }

    /// Number of leases.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.all.values().filter(|c| c.role == Role::Lease).count()
    }

    /// True while somebody needs the card who is not (only) a function.
    #[must_use]
    pub fn needed(&self) -> bool {
        self.all.values().any(|c| matches!(c.role, Role::Lease | Role::Orphan(_) | Role::Born(_)))
    }

    /// The child of `uid` whose parent has announced it like this, if it is known.
    #[must_use]
    pub fn born(&self, parent: u32, nonce: u64, uid: u32) -> Option<(u32, Birth)> {
        self.all.iter().filter(|(_, c)| c.uid == uid).find_map(|(id, c)| match c.role {
            Role::Born(birth) if (birth.parent, birth.nonce) == (parent, nonce) => Some((*id, birth)),
            _ => None,
        })
    }
}

impl Client {
    /// True when every process that held the other end has closed it.
    #[must_use]
    pub fn hung_up(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let fd = self.socket.as_fd();
        let mut fds = [PollFd::new(&fd, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::SocketType;

    #[test]
    fn deadlines_follow_the_role() {
        let mut clients = Clients::new().unwrap();
        let now = Instant::now();
        let (a, b) = emulator::packet::pair(SocketType::SEQPACKET).unwrap();
        let id = clients.add(a, 7, now);
        assert_eq!(clients.late(now), None);
        assert_eq!(clients.late(now + ANSWER_MAX), Some(id));
        clients.set(id, Role::Lease, None);
        assert_eq!((clients.next_deadline(), clients.leases(), clients.needed()), (None, 1, true));
        assert!(!clients.get(id).unwrap().hung_up());
        drop(b);
        assert!(clients.get(id).unwrap().hung_up());
        clients.set(id, Role::Orphan(3), Some(now));
        clients.remove(id);
        assert_eq!((clients.next_deadline(), clients.needed()), (None, false));
    }
}
