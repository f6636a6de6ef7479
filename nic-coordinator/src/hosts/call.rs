//! One connection between hosts, at one of its ends, and what is said about it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use ring::hosts::{Ending, Path, Role};
use ring::msg::{Addr, Status};

/// First and longest wait before a message about a connection is repeated.
pub const REPEAT_US: (u64, u64) = (20_000, 500_000);
/// How long a connection may take to be set up.
pub const CONNECT_US_MAX: u64 = 2_000_000;
/// How long a callee remembers a number that is over, unless the caller says before that it does not speak of it any more. A peer that is up has
/// sent more datagrams in that time than its replay window is wide, so what it sent before is old by then (13.4).
pub const REMEMBER_US: u64 = 90_000_000;

/// How long a marked end is not said: mostly the other end comes soon, and the data path tells both hosts of both.
pub const CLOSE_LATER_US: u64 = 20_000;

/// How often an end that is known is said again while the other one is open: a host whose data path has told it of both says nothing,
/// and a link may end before it has told the other host.
pub const HALF_EVERY_US: u64 = 10_000_000;

/// Closes that are said to one peer and not known there: more wait, so that many at once don't drown each other's answers.
pub const CLOSES_MAX: usize = 128;

/// A connection as seen by the host that it is named on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallId {
    /// To another host, numbered by who asked for it.
    Out(u64),
    /// From another host, numbered here.
    In(u64),
}

/// Upper bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Credits: connections in set-up at one time, as many asked for here as asked for there, so that no two hosts wait for each other. Each
    /// may hold memory that is being registered.
    pub setups: usize,
    /// Connections that wait for a credit.
    pub waiting: usize,
    /// Connections from and to one peer.
    pub of_peer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { setups: 256, waiting: 4096, of_peer: 65_536 }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where to.
    pub dst: Addr,
    /// Who the client is.
    pub src: Addr,
    /// Of the caller's data path.
    pub path: Path,
}

/// What is to be known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Another host wants a connection: to be answered.
    Connect {
        /// Its name, always [`CallId::In`].
        id: CallId,
        /// Card of the host that asks.
        peer: Ipv4Addr,
        /// What it wants.
        wanted: Wanted,
    },
    /// The answer to what was asked for here: exactly one.
    Answered {
        /// Which.
        id: CallId,
        /// The callee's data path, or why not.
        answer: Result<Path, Status>,
    },
    /// The other end of a connection that was answered with yes is closed.
    Closed {
        /// Which.
        id: CallId,
        /// How; unmarked also when its host is gone. A caller's refused: it has had no answer when it gave up.
        ending: Ending,
    },
    /// Nothing that was agreed on with this host's card counts any more. Comes before the ends of its connections.
    Lost {
        /// Which.
        card: Ipv4Addr,
    },
    /// Nobody has answered for this address.
    Nobody {
        /// Which.
        address: [u8; 16],
    },
    /// A card that is up has named this address.
    Somebody {
        /// Which.
        address: [u8; 16],
    },
}

/// Which entry a message, or a time, is for.
pub(super) type Key = (Ipv4Addr, Role, u64);

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Caller: waits for a credit.
    Waits(Wanted),
    /// Caller: asks, and has no answer.
    Asks(Wanted),
    /// Callee: the answer is being made.
    Setup,
    /// Answered with yes.
    Open(Path),
    /// Callee: answered with no.
    Refused(Status),
    /// Callee: nothing is left of it but that there must be no second one of this number.
    Over,
}

/// One connection, at one of its ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) id: CallId,
    pub(super) stage: Stage,
    /// How our end was closed.
    pub(super) own: Option<Ending>,
    /// The other host knows that.
    pub(super) own_known: bool,
    /// The other end is closed.
    pub(super) other: bool,
    /// When to repeat what is not known there, or to give up asking.
    pub(super) due_us: Option<u64>,
    pub(super) repeat_us: u64,
    pub(super) deadline_us: u64,
}

impl Call {
    pub(super) fn new(id: CallId, stage: Stage, deadline_us: u64) -> Call {
        Call {
            id,
            stage,
            own: None,
            own_known: false,
            other: false,
            due_us: None,
            repeat_us: REPEAT_US.0,
            deadline_us,
        }
    }
}

/// All connections with one peer.
#[derive(Debug, Default)]
pub(super) struct Party {
    /// Ours to it, by our number.
    pub(super) out: BTreeMap<u64, Call>,
    /// Its to us, by its number.
    pub(super) incoming: BTreeMap<u64, Call>,
    /// It does not speak of lower numbers any more.
    pub(super) settled: u64,
    /// Calls whose ends here are said to it, and not known there.
    pub(super) closing: BTreeSet<(Role, u64)>,
    /// Those that wait for one of them.
    pub(super) closes: VecDeque<(Role, u64)>,
}

impl Party {
    pub(super) fn of(&self, role: Role) -> &BTreeMap<u64, Call> {
        match role {
            Role::Caller => &self.out,
            Role::Callee => &self.incoming,
        }
    }

    pub(super) fn of_mut(&mut self, role: Role) -> &mut BTreeMap<u64, Call> {
        match role {
            Role::Caller => &mut self.out,
            Role::Callee => &mut self.incoming,
        }
    }
}
