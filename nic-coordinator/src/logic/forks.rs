//! Forks: between a parent's announcement and the child's attach, a fork holds what the child will hold.

use std::collections::{BTreeMap, BTreeSet};

use super::functions::Holdings;

/// How long a child has for attaching that holds connections, or whose parent is gone, in microseconds: as long may their other
/// sides wait for it.
pub const ATTACH_US_MAX: u64 = 2_000_000;
/// How long one has for whom nobody waits: it attaches when it has something to ask for, if ever.
pub const ATTACH_LATER_US_MAX: u64 = 600_000_000;

/// A child that has not attached yet.
#[derive(Debug)]
pub struct Fork {
    /// Function of the parent.
    pub parent: u32,
    /// Secret of parent and child.
    pub nonce: u64,
    /// Fork family.
    pub group: u32,
    /// When the child is given up.
    pub deadline_us: u64,
    /// What the child will hold.
    pub holdings: Holdings,
    /// The agent watches it, and has counted it.
    pub watched: bool,
}

/// All pending forks. Numbered in the order of their announcement.
#[derive(Debug, Default)]
pub struct Forks {
    by_id: BTreeMap<u64, Fork>,
    by_nonce: BTreeMap<(u32, u64), u64>,
    /// Each with its number.
    deadlines_us: BTreeSet<(u64, u64)>,
    /// For each parent: how many, and how much they hold together, without those that are watched.
    load: BTreeMap<u32, (usize, usize)>,
    last_id: u64,
}

impl Forks {
    /// How many are pending.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True when none is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
            && self.by_nonce.is_empty()
            && self.deadlines_us.is_empty()
            && self.load.is_empty()
    }

    /// Enters a fork; returns its number. `None` if this parent's nonce is in use.
    pub fn insert(&mut self, fork: Fork) -> Option<u64> {
        let key = (fork.parent, fork.nonce);
        if self.by_nonce.contains_key(&key) {
            return None;
        }
        self.last_id += 1;
        let (count, held) = self.load.entry(fork.parent).or_default();
        *count += 1;
        *held += size(&fork.holdings);
        self.by_nonce.insert(key, self.last_id);
        self.deadlines_us.insert((fork.deadline_us, self.last_id));
        self.by_id.insert(self.last_id, fork);
        Some(self.last_id)
    }

    /// The number of the fork that `parent` announced with `nonce`.
    #[must_use]
    pub fn find(&self, parent: u32, nonce: u64) -> Option<u64> {
        self.by_nonce.get(&(parent, nonce)).copied()
    }

    /// The fork with this number.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<&Fork> {
        self.by_id.get(&id)
    }

    /// The earliest pending fork of a parent that has more than `forks_max` of them, or whose forks hold more than
    /// `held_max` things together.
    #[must_use]
    pub fn excess(&self, parent: u32, forks_max: usize, held_max: usize) -> Option<u64> {
        let (count, held) = self.load.get(&parent)?;
        if *count <= forks_max && *held <= held_max {
            return None;
        }
        let counted = |(_, fork): &(&u64, &Fork)| fork.parent == parent && !fork.watched;
        self.by_id.iter().find(counted).map(|(id, _)| *id)
    }

    /// The child is watched from now on: there is no time for it to attach in, unless somebody waits for it ([`Forks::hasten`]).
    pub fn watch(&mut self, id: u64) {
        let Some(fork) = self.by_id.get_mut(&id).filter(|fork| !fork.watched) else { return };
        fork.watched = true;
        self.deadlines_us.remove(&(fork.deadline_us, id));
        fork.deadline_us = u64::MAX;
        let (parent, held) = (fork.parent, size(&fork.holdings));
        self.unload(parent, held);
    }

    /// The time of a watched child is over: what it does not hold any more. `None`: it is not watched.
    pub fn take_listeners(&mut self, id: u64) -> Option<BTreeSet<u32>> {
        let fork = self.by_id.get_mut(&id).filter(|fork| fork.watched)?;
        self.deadlines_us.remove(&(fork.deadline_us, id));
        fork.deadline_us = u64::MAX;
        Some(std::mem::take(&mut fork.holdings.listeners))
    }

    /// One less that counts for `parent`.
    fn unload(&mut self, parent: u32, holds: usize) {
        if let Some((count, held)) = self.load.get_mut(&parent) {
            *count -= 1;
            *held -= holds;
            if *count == 0 {
                self.load.remove(&parent);
            }
        }
    }

    /// Takes a fork out.
    pub fn remove(&mut self, id: u64) -> Option<Fork> {
        let fork = self.by_id.remove(&id)?;
        self.by_nonce.remove(&(fork.parent, fork.nonce));
        self.deadlines_us.remove(&(fork.deadline_us, id));
        if !fork.watched {
            self.unload(fork.parent, size(&fork.holdings));
        }
        Some(fork)
    }

    /// Those of one parent.
    pub fn of(&self, parent: u32) -> impl Iterator<Item = u64> {
        self.by_nonce.range((parent, 0)..=(parent, u64::MAX)).map(|(_, id)| *id)
    }

    /// The child has no longer than until `deadline_us`.
    pub fn hasten(&mut self, id: u64, deadline_us: u64) {
        let Some(fork) = self.by_id.get_mut(&id).filter(|fork| fork.deadline_us > deadline_us) else {
            return;
        };
        self.deadlines_us.remove(&(fork.deadline_us, id));
        self.deadlines_us.insert((deadline_us, id));
        fork.deadline_us = deadline_us;
    }

    /// The fork whose time is over first, and when.
    #[must_use]
    pub fn next_deadline(&self) -> Option<(u64, u64)> {
        self.deadlines_us.first().map(|(deadline_us, id)| (*id, *deadline_us))
    }
}

fn size(holdings: &Holdings) -> usize {
    holdings.listeners.len() + holdings.conns.len()
}
