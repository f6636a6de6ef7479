//! Functions (attached processes), what they hold, and the groups (fork families) they belong to.

use std::collections::{BTreeMap, BTreeSet};

use ring::msg::ConnId;

use super::claims::Offer;
use crate::hosts::calls::CallId;

/// Which end of a connection: 0 is the client's, 1 the server's.
pub type Side = usize;
/// The client's end.
pub const CLIENT: Side = 0;
/// The server's end.
pub const SERVER: Side = 1;

/// Somebody on whose behalf a listener or one side of a connection stays open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// An attached process, by function number.
    Function(u32),
    /// A forked child that has not attached yet, by the number of the fork.
    Fork(u64),
    /// Another host's coordinator.
    Remote(CallId),
}

impl Holder {
    /// The function that it is.
    #[must_use]
    pub fn function(&self) -> Option<u32> {
        match self {
            Holder::Function(function) => Some(*function),
            Holder::Fork(_) | Holder::Remote(_) => None,
        }
    }
}

/// What one holder holds: the reverse of the holder lists in listeners and connections.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// Listeners.
    pub listeners: BTreeSet<u32>,
    /// Sides of connections.
    pub conns: BTreeSet<(ConnId, Side)>,
}

/// Who a process is, by the kernel (through the agent), never by its own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Fork family.
    pub group: u32,
    /// Real user id at attach.
    pub uid: u32,
    /// Process id, as the agent sees it.
    pub pid: u32,
    /// Inode of the network namespace.
    pub netns: u64,
}

/// Who has called listen(2) for a listener, by process and user id, and its name.
pub type Stand = (u32, u32, u64);

/// Listeners of others that a process may stand for.
const STANDS_MAX: usize = 64;

/// An attached process.
#[derive(Debug)]
pub struct Function {
    /// Who it is.
    pub identity: Identity,
    /// What it holds.
    pub holdings: Holdings,
    /// Connects and claims that wait for their segment, or for another host's answer.
    pub connecting: usize,
    /// Connections that it may open: the client's side of each is its own, and nobody else's ([`super::Logic::grant`]).
    pub granted: BTreeSet<ConnId>,
    /// Listeners of others that it accepts on.
    pub stands_for: BTreeSet<Stand>,
    /// Ends of connections that may be claimed, by the process's number for them.
    pub offers: BTreeMap<u32, Offer>,
}

impl Function {
    /// Sides of connections that it holds, may open or has under way.
    #[must_use]
    pub fn conns(&self) -> usize {
        self.holdings.conns.len() + self.granted.len() + self.connecting
    }
}

/// All attached processes, and how many members each group has.
#[derive(Debug, Default)]
pub struct Functions {
    by_number: BTreeMap<u32, Function>,
    members: BTreeMap<u32, usize>,
}

impl Functions {
    /// The process attached as `number`.
    #[must_use]
    pub fn get(&self, number: u32) -> Option<&Function> {
        self.by_number.get(&number)
    }

    /// As [`Functions::get`], to change it.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut Function> {
        self.by_number.get_mut(&number)
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Function)> {
        self.by_number.iter().map(|(number, function)| (*number, function))
    }

    /// The group of the process that the kernel knows by this id, if it is attached. The user tells it from one that died before; one that
    /// was root may be anybody by now, as servers' workers are.
    #[must_use]
    pub fn family_of(&self, pid: u32, uid: u32) -> Option<u32> {
        let as_user = |uid| {
            let process = move |f: &&Function| f.identity.pid == pid && f.identity.uid == uid;
            self.by_number.values().find(process).map(|f| f.identity.group)
        };
        as_user(uid).or_else(|| as_user(0))
    }

    /// The process accepts on that listener.
    pub fn stand_for(&mut self, number: u32, stand: Stand) {
        if let Some(function) = self.by_number.get_mut(&number)
            && function.stands_for.len() < STANDS_MAX
        {
            function.stands_for.insert(stand);
        }
    }

    /// The groups of those who accept on that listener.
    pub fn groups_for(&self, stand: Stand) -> impl Iterator<Item = u32> {
        let holders = self.by_number.values().filter(move |f| f.stands_for.contains(&stand));
        holders.map(|f| f.identity.group)
    }

    /// How many are attached.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_number.len()
    }

    /// True when none is attached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    /// Adds a process, which joins its group. The number must be free.
    pub fn insert(&mut self, number: u32, identity: Identity, holdings: Holdings) {
        self.join(identity.group);
        let (granted, stands_for, offers) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        let function = Function { identity, holdings, connecting: 0, granted, stands_for, offers };
        self.by_number.insert(number, function);
    }

    /// Takes a process out. It still counts as a member of its group until [`Functions::leave`].
    pub fn remove(&mut self, number: u32) -> Option<Function> {
        self.by_number.remove(&number)
    }

    /// One more member (a process or a pending fork) of `group`.
    pub fn join(&mut self, group: u32) {
        *self.members.entry(group).or_default() += 1;
    }

    /// One member less. True when it was the last one.
    pub fn leave(&mut self, group: u32) -> bool {
        let Some(count) = self.members.get_mut(&group) else { return false };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.members.remove(&group);
        }
        last
    }

    /// True while a group has members.
    #[must_use]
    pub fn group_lives(&self, group: u32) -> bool {
        self.members.contains_key(&group)
    }

    /// How many groups have members.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.members.len()
    }
}
