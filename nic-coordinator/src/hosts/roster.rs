//! All peers, and whose time comes next: what is due is found without looking at everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::peer::Peer;

/// A peer, and the time that it is filed under.
#[derive(Debug)]
struct Entry {
    peer: Peer,
    due_us: u64,
}

/// Peers by the address of their card. Whoever changes one files it again.
#[derive(Debug, Default)]
pub(super) struct Roster {
    entries: BTreeMap<Ipv4Addr, Entry>,
    /// All of them, by [`Entry::due_us`].
    due: BTreeSet<(u64, Ipv4Addr)>,
}

impl Roster {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, address: Ipv4Addr) -> Option<&Peer> {
        self.entries.get(&address).map(|entry| &entry.peer)
    }

    /// To be changed; then [`Roster::file`].
    pub(super) fn get_mut(&mut self, address: Ipv4Addr) -> Option<&mut Peer> {
        self.entries.get_mut(&address).map(|entry| &mut entry.peer)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, &Peer)> {
        self.entries.iter().map(|(address, entry)| (*address, &entry.peer))
    }

    pub(super) fn insert(&mut self, address: Ipv4Addr, peer: Peer) {
        let due_us = peer.next_us();
        if let Some(old) = self.entries.insert(address, Entry { peer, due_us }) {
            self.due.remove(&(old.due_us, address));
        }
        self.due.insert((due_us, address));
    }

    pub(super) fn remove(&mut self, address: Ipv4Addr) {
        if let Some(old) = self.entries.remove(&address) {
            self.due.remove(&(old.due_us, address));
        }
    }

    /// The peer has changed, if there is one: from now on it is due when it says so now.
    pub(super) fn file(&mut self, address: Ipv4Addr) {
        let Some(entry) = self.entries.get_mut(&address) else { return };
        let due_us = entry.peer.next_us();
        if due_us != entry.due_us {
            self.due.remove(&(entry.due_us, address));
            entry.due_us = due_us;
            self.due.insert((due_us, address));
        }
    }

    /// Changes all of them.
    pub(super) fn change_all(&mut self, mut change: impl FnMut(&mut Peer)) {
        for entry in self.entries.values_mut() {
            change(&mut entry.peer);
            entry.due_us = entry.peer.next_us();
        }
        self.due = self.entries.iter().map(|(address, entry)| (entry.due_us, *address)).collect();
    }

    /// Those whose time has come. Each is to be changed so that it has not, or removed.
    pub(super) fn due(&self, now_us: u64) -> Vec<Ipv4Addr> {
        self.due.iter().take_while(|(at, _)| *at <= now_us).map(|(_, address)| *address).collect()
    }

    /// When the next one is due.
    pub(super) fn next_us(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::RETRY_US;
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    #[test]
    fn who_is_due_first_is_found_first() {
        let mut roster = Roster::default();
        assert_eq!(roster.next_us(), None);
        roster.insert(A, Peer::configured(500, 1));
        roster.insert(B, Peer::configured(300, 2));
        assert_eq!((roster.next_us(), roster.due(299)), (Some(300), vec![]));
        assert_eq!((roster.due(300), roster.due(500)), (vec![B], vec![B, A]));
        // Whoever is greeted waits for an answer.
        assert!(roster.get_mut(B).unwrap().is_due(300));
        roster.file(B);
        assert_eq!((roster.next_us(), roster.due(500)), (Some(500), vec![A]));
        roster.remove(A);
        assert_eq!(roster.next_us(), Some(300 + RETRY_US.0));
        roster.change_all(|peer| peer.seek(400));
        assert_eq!((roster.next_us(), roster.len()), (Some(400), 1));
    }

    #[test]
    fn another_peer_of_the_same_address_takes_its_place() {
        let mut roster = Roster::default();
        roster.insert(A, Peer::configured(500, 1));
        roster.insert(A, Peer::met(500, 2));
        assert_eq!((roster.len(), roster.due(500)), (1, vec![]));
        assert_eq!(roster.due(u64::MAX), [A]);
        // Nobody is there to be filed.
        roster.file(B);
        assert!(roster.get(B).is_none() && roster.due(u64::MAX) == [A]);
    }
}
