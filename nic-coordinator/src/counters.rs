//! What the coordinator counts and shows, for the telemetry thread to read while the lcores go on.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ring::msg::{Completion, Status};

use crate::logic::Logic;

/// Functions and listeners in a [`Snapshot`], at most: DPDK's telemetry replies have 16 KiB.
pub const LISTED_MAX: usize = 64;

/// A counter that one thread writes and any may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. For one thread only.
    pub fn add(&self, n: u64) {
        // Relaxed, and no read-modify-write: there is one writer, and nothing else is read on the strength of it.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        // Relaxed: a figure for people.
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// All counters of one lcore since the start, on lines of their own.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// Names and values, in a fixed order.
            #[must_use]
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Requests taken out of rings.
    requests,
    /// Of those, taken out of the shared ring.
    requests_shared,
    /// Times that this was told to the hosts: a store for all that one turn took.
    batches_shared,
    /// Functions looked at because of a hint.
    hints,
    /// Tickets of the shared ring that were not published in time.
    gaps,
    /// Entries of the shared ring that were not made by whom they name.
    forged,
    /// Times that a host was found to have asked for an interrupt, or given credit so.
    armed,
    /// Completions, credits included.
    completions,
    /// Completions that carry nothing but credit.
    credits,
    /// Connections made.
    connects,
    /// Of those, such as were granted ahead.
    connects_ahead,
    /// Connections given to who accepts them.
    accepts,
    /// Requests refused: nobody listens.
    refused_no_listener,
    /// Requests refused: accept queue full.
    refused_backlog_full,
    /// Requests refused: policy.
    refused_denied,
    /// Requests refused: quota.
    refused_quota,
    /// Requests refused: they made no sense.
    refused_bad_request,
    /// Requests refused: the agent could not make a segment.
    refused_no_segment,
    /// Connects refused: the address is another host's, without a coordinator.
    refused_no_host,
    /// Accepts that found nothing.
    accepts_empty,
    /// Connections whose other side went, told to a holder.
    peers_gone,
    /// Functions dropped because they broke the rules.
    functions_dropped,
    /// Times gone to sleep.
    sleeps,
    /// Times woken by the doorbell.
    doorbells,
    /// Interrupts sent to functions.
    irqs,
    /// Packets received on the Ethernet port.
    port_rx,
    /// Packets sent there.
    port_tx,
}

impl Counters {
    /// Counts one completion by what it says.
    pub fn count(&self, completion: &Completion) {
        self.completions.add(1);
        let status = match *completion {
            Completion::Credit => return self.credits.add(1),
            Completion::PeerGone { .. } => return self.peers_gone.add(1),
            Completion::Connected { status: Status::Ok, .. } => return self.connects.add(1),
            Completion::Accepted { status: Status::Ok, .. } => return self.accepts.add(1),
            Completion::Claimed { status: Status::Ok, .. } => return self.connects.add(1),
            Completion::Paired { .. } => return self.accepts.add(1),
            Completion::Connected { status, .. }
            | Completion::Accepted { status, .. }
            | Completion::Claimed { status, .. }
            | Completion::Done { status, .. } => status,
            Completion::Ready { .. }
            | Completion::Shut { .. }
            | Completion::Granted { .. }
            | Completion::MakeSegment { .. }
            | Completion::DropSegment { .. } => {
                return;
            }
        };
        match status {
            Status::Ok => {}
            Status::NoListener => self.refused_no_listener.add(1),
            Status::BacklogFull => self.refused_backlog_full.add(1),
            Status::Denied => self.refused_denied.add(1),
            Status::Quota => self.refused_quota.add(1),
            Status::Empty => self.accepts_empty.add(1),
            Status::BadRequest => self.refused_bad_request.add(1),
            Status::NoSegment => self.refused_no_segment.add(1),
            Status::NoHost => self.refused_no_host.add(1),
        }
    }
}

/// How the tables looked a moment ago, in words.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Sizes of the tables, by name.
    pub totals: Vec<(&'static str, u64)>,
    /// Function numbers and what they are; at most [`LISTED_MAX`].
    pub functions: Vec<(u32, String)>,
    /// Listener numbers and what they are; at most [`LISTED_MAX`].
    pub listeners: Vec<(u32, String)>,
}

impl Snapshot {
    /// Describes `logic`.
    #[must_use]
    pub fn of(logic: &Logic) -> Self {
        let (functions, listeners) = (logic.functions(), logic.listeners());
        let count = |n: usize| n as u64;
        Snapshot {
            totals: vec![
                ("functions", count(functions.len())),
                ("groups", count(functions.groups())),
                ("listeners", count(listeners.len())),
                ("connections", count(logic.segments().conns())),
                ("segments", count(logic.segments().len())),
                ("forks_pending", count(logic.forks().len())),
            ],
            functions: functions
                .iter()
                .take(LISTED_MAX)
                .map(|(number, function)| {
                    let (who, held) = (&function.identity, &function.holdings);
                    let text = format!(
                        "pid {} uid {} group {} netns {} listeners {} connections {}",
                        who.pid,
                        who.uid,
                        who.group,
                        who.netns,
                        held.listeners.len(),
                        held.conns.len()
                    );
                    (number, text)
                })
                .collect(),
            listeners: listeners
                .iter()
                .take(LISTED_MAX)
                .map(|(id, listener)| {
                    let text = format!(
                        "{} netns {} group {} holders {} queued {} of {} waiting {}",
                        listener.addr,
                        listener.netns,
                        listener.group,
                        listener.holders.len(),
                        listener.queue.len(),
                        u64::from(listener.backlog) + 1,
                        listener.waiters.len()
                    );
                    (id, text)
                })
                .collect(),
        }
    }
}

/// Another host's coordinator, as it was a moment ago.
#[derive(Clone, Debug)]
pub struct PeerShown {
    /// Address of its card.
    pub card: Ipv4Addr,
    /// `sought`, `up` or `lost`.
    pub state: &'static str,
    /// Epoch of its coordinator.
    pub epoch: Option<u32>,
    /// How long ago it was last heard, in milliseconds.
    pub heard_ms_ago: Option<u64>,
    /// Addresses that reach its host.
    pub addresses: Vec<Ipv6Addr>,
}

/// What is known of other hosts.
#[derive(Clone, Debug, Default)]
pub struct HostsShown {
    /// Their coordinators.
    pub peers: Vec<PeerShown>,
    /// Datagrams, by what became of them. None: this coordinator does not meet others.
    pub datagrams: Vec<(&'static str, u64)>,
    /// Links and connections with other hosts. None: there is nothing to carry them.
    pub carried: Vec<(&'static str, u64)>,
}

/// What the lcores write and telemetry reads.
#[derive(Debug, Default)]
pub struct Shown {
    /// By lcore: the logic's first, then the shards'. Locked when one starts or somebody asks, not to count.
    counters: Mutex<Vec<Arc<Counters>>>,
    snapshot: Mutex<Snapshot>,
    hosts: Mutex<HostsShown>,
}

impl Shown {
    /// The counters of an lcore, which go on where they were. For one lcore at a time.
    #[must_use]
    pub fn lcore(&self, index: usize) -> Arc<Counters> {
        let mut all = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        while all.len() <= index {
            all.push(Arc::default());
        }
        all.get(index).cloned().unwrap_or_default()
    }

    /// The counters of each lcore.
    #[must_use]
    pub fn by_lcore(&self) -> Vec<Vec<(&'static str, u64)>> {
        let all = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|counters| counters.read()).collect()
    }

    /// The counters of all lcores together.
    #[must_use]
    pub fn sums(&self) -> Vec<(&'static str, u64)> {
        let mut sums = Counters::default().read();
        for lcore in self.by_lcore() {
            for ((_, sum), (_, n)) in sums.iter_mut().zip(lcore) {
                *sum = sum.wrapping_add(n);
            }
        }
        sums
    }

    /// One counter of all lcores together; 0 if there is none of this name.
    #[must_use]
    pub fn sum(&self, name: &str) -> u64 {
        self.sums().into_iter().find(|(known, _)| *known == name).map_or(0, |(_, n)| n)
    }

    /// Replaces the snapshot, unless somebody reads it at this moment: never waits. False if it did not.
    pub fn publish(&self, logic: &Logic) -> bool {
        let Ok(mut place) = self.snapshot.try_lock() else { return false };
        *place = Snapshot::of(logic);
        true
    }

    /// Replaces what is shown of other hosts, unless somebody reads it at this moment: never waits.
    pub fn publish_hosts(&self, hosts: HostsShown) {
        if let Ok(mut place) = self.hosts.try_lock() {
            *place = hosts;
        }
    }

    /// What was last shown of other hosts.
    #[must_use]
    pub fn hosts(&self) -> HostsShown {
        self.hosts.lock().map(|h| h.clone()).unwrap_or_default()
    }

    /// The last snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.lock().map(|s| s.clone()).unwrap_or_default()
    }
}
