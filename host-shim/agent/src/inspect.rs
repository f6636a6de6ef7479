//! `ipc-direct ps --verbose`: where all rings are, who sleeps on what, what each side waits for. For whoever looks
//! at a hang.
//!
//! The agent maps what it has made itself and reads words that processes write at any time: every one is data for a
//! table, and the whole is not a snapshot.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;

use emulator::memory::Mapping;
use ring::atomic::Ordering;
use ring::msg::ConnId;
use ring::queue::Kind;
use ring::segment::{
    Direction, RINGS_OFFSET, SIDE_STRIDE, SIDES_OFFSET, SLOTS, SLOTS_OFFSET, Side, Slot, state,
};
use ring::stats::{Sleep, SocketState, Stats};
use ring::wake;
use ring::window::{HostMemory, Progress, Window};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Connections that one report lists.
pub const CONNECTIONS_MAX: usize = 16_384;

/// Rings and sleepers of one process.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProcessRings {
    /// Requests that the process has posted, modulo 2^32.
    pub requests_posted: u32,
    /// Requests that the coordinator has said it has taken, modulo 2^32.
    pub requests_taken: u32,
    /// Completions that the coordinator has sent, modulo 2^32.
    pub completions_sent: u32,
    /// Completions that the process has said it has taken, modulo 2^32.
    pub completions_taken: u32,
    /// Completions beyond which the process has asked for an interrupt; absent: it never has.
    pub armed_at: Option<u64>,
    /// The coordinator sleeps and wants a doorbell.
    pub doorbell_wanted: bool,
    /// Times that the agent told the process to look around.
    pub notices: u32,
    /// Threads that sleep in the shim.
    pub sleepers: Vec<SleeperReport>,
}

/// A thread that sleeps in the shim.
#[derive(Debug, Serialize, Deserialize)]
pub struct SleeperReport {
    /// Thread id, in the process's pid namespace.
    pub tid: u32,
    /// `stream`, `answer`, `poll` or `epoll`.
    pub sleeps_on: String,
    /// Descriptor that it waits for, or -1.
    pub fd: i32,
    /// For how long, in milliseconds.
    pub since_ms: u64,
}

/// One segment.
#[derive(Debug, Serialize, Deserialize)]
pub struct SegmentReport {
    /// Its number.
    pub segment: u32,
    /// Groups of the client's and the server's side.
    pub groups: [u32; 2],
    /// Whether the agent still holds the wires of both sides: not once a side's group is gone.
    pub wires: [bool; 2],
    /// Lanes of each side on which an epoll instance sleeps.
    pub lanes_asleep: [Vec<usize>; 2],
    /// News that nobody has taken yet, `lane/slot`, for each side.
    pub news: [Vec<String>; 2],
    /// Slots in use.
    pub connections: Vec<ConnectionReport>,
}

/// One connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConnectionReport {
    /// Slot in the segment.
    pub slot: u16,
    /// Its generation.
    pub generation: u32,
    /// Client to server, and back.
    pub directions: [DirectionReport; 2],
}

/// One direction of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct DirectionReport {
    /// Generation for which the writer has opened it; not the connection's: nothing was written yet.
    pub generation: u32,
    /// `open`, `fin`, `rst`, or a number.
    pub state: String,
    /// Writer's position in bytes, as its process shows it; absent when no attached process does.
    pub tail: Option<u64>,
    /// Reader's position in bytes.
    pub head: u64,
    /// Bytes in the ring, headers included.
    pub fill: Option<u64>,
    /// How the reader sleeps for data: `-`, `futex`, `wire`, `futex+wire`.
    pub reader_sleeps: String,
    /// How the writer sleeps for space.
    pub writer_sleeps: String,
    /// Position at which the writer wants to be woken.
    pub writer_wakes_at: u64,
    /// Lane by which an epoll instance watches for data, plus one; 0: none.
    pub reader_lane: u32,
    /// Lane by which an epoll instance watches for space, plus one; 0: none.
    pub writer_lane: u32,
    /// Nobody will ever read.
    pub reader_closed: bool,
}

impl ProcessRings {
    /// Looks at one process's window, host memory and counters.
    #[must_use]
    pub fn of(window: &Window<'_>, host: &HostMemory<'_>, stats: &Stats<'_>) -> ProcessRings {
        let requests = Progress::of(window.requests);
        let completions = Progress::of(host.completions);
        // Relaxed, here and below: words for people, of which nothing is concluded.
        let armed_at = window.header.armed.load(Ordering::Relaxed).checked_sub(1);
        let now = clock_gettime(ClockId::Monotonic);
        let now_ns = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
        let sleepers = stats.sleepers.iter().filter(|s| s.tid.load(Ordering::Relaxed) != 0);
        // In the shared ring nobody's requests stand apart; the process counts its pushes, by two.
        let shared = host.header.queue.load(Ordering::Relaxed) == Kind::Shared.to_wire();
        let pushes = (host.header.pushing.load(Ordering::Relaxed) / 2) & u64::from(u32::MAX);
        ProcessRings {
            requests_posted: if shared { u32::try_from(pushes).unwrap_or(0) } else { requests.pushed },
            requests_taken: completions.credit,
            completions_sent: completions.pushed,
            completions_taken: requests.credit,
            armed_at,
            doorbell_wanted: host.header.doorbell_wanted.load(Ordering::Relaxed) != 0,
            notices: host.header.notice.load(Ordering::Relaxed),
            sleepers: sleepers
                .map(|s| SleeperReport {
                    tid: s.tid.load(Ordering::Relaxed),
                    sleeps_on: Sleep::name_of(s.what.load(Ordering::Relaxed)).into(),
                    fd: s.fd.load(Ordering::Relaxed).cast_signed(),
                    since_ms: now_ns.saturating_sub(s.since_ns.load(Ordering::Relaxed)) / 1_000_000,
                })
                .collect(),
        }
    }
}

/// Writers' positions by connection and side, as the processes show them.
#[derive(Debug, Default)]
pub struct Tails(BTreeMap<(u64, u32), u64>);

impl Tails {
    /// Adds what one process shows. Of relatives who share a connection the furthest counts.
    pub fn add(&mut self, stats: &Stats<'_>) {
        let user =
            |s: &&ring::stats::SocketStats| s.state.load(Ordering::Relaxed) == SocketState::User as u32;
        for socket in crate::report::used(stats).iter().filter(user) {
            let key = (socket.conn.load(Ordering::Relaxed), socket.side.load(Ordering::Relaxed));
            let tail = self.0.entry(key).or_default();
            *tail = (*tail).max(socket.tail.load(Ordering::Relaxed));
        }
    }
}

impl SegmentReport {
    /// Looks at a segment; `room`: how many connections may still be listed.
    ///
    /// # Errors
    /// It can't be mapped.
    pub fn of(
        segment: u32,
        (groups, wires): ([u32; 2], [bool; 2]),
        memory: BorrowedFd<'_>,
        tails: &Tails,
        room: usize,
    ) -> io::Result<SegmentReport> {
        let mapping = Mapping::new(memory, RINGS_OFFSET)?;
        let region = mapping.region();
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        let sides: [&Side; 2] = [
            region.get(SIDES_OFFSET).ok_or_else(wrong)?,
            region.get(SIDES_OFFSET + SIDE_STRIDE).ok_or_else(wrong)?,
        ];
        let slots: &[Slot] = region.slice(SLOTS_OFFSET, usize::from(SLOTS)).ok_or_else(wrong)?;
        let connection = |(slot, s): (u16, &Slot)| ConnectionReport::of(segment, slot, s, tails);
        Ok(SegmentReport {
            segment,
            groups,
            wires,
            lanes_asleep: sides.map(lanes_asleep),
            news: sides.map(news),
            connections: (0..).zip(slots).filter_map(connection).take(room).collect(),
        })
    }
}

fn lanes_asleep(side: &Side) -> Vec<usize> {
    let asleep = |i: &usize| side.lanes.get(*i).is_some_and(|lane| lane.sleeping.is_sleeping());
    (0..side.lanes.len()).filter(asleep).collect()
}

fn news(side: &Side) -> Vec<String> {
    let lanes = side.news.iter().enumerate();
    let flags =
        lanes.flat_map(|(lane, slots)| slots.iter().enumerate().map(move |(slot, n)| (lane, slot, n)));
    let set = flags.filter(|(_, _, n)| n.load(Ordering::Relaxed) != 0);
    set.map(|(lane, slot, _)| format!("{lane}/{slot}")).collect()
}

impl ConnectionReport {
    /// `None` for a slot that nobody uses (any more).
    fn of(segment: u32, slot: u16, s: &Slot, tails: &Tails) -> Option<ConnectionReport> {
        let [there, back] = &s.directions;
        let generations = [there, back].map(|d| d.generation.load(Ordering::Relaxed));
        let closed = [there, back].map(|d| d.reader_closed.load(Ordering::Relaxed));
        let generation = generations.into_iter().max().filter(|g| *g != 0)?;
        if closed == [generation; 2] {
            return None;
        }
        let conn = ConnId::new(segment, slot, generation);
        let direction =
            |d: &Direction, side| DirectionReport::of(d, generation, tails.0.get(&(conn.0, side)).copied());
        Some(ConnectionReport { slot, generation, directions: [direction(there, 0), direction(back, 1)] })
    }
}

impl DirectionReport {
    fn of(d: &Direction, generation: u32, tail: Option<u64>) -> DirectionReport {
        let head = d.consumed.load(Ordering::Relaxed);
        DirectionReport {
            generation: d.generation.load(Ordering::Relaxed),
            state: match d.state.load(Ordering::Relaxed) {
                state::OPEN => "open".into(),
                state::FIN => "fin".into(),
                state::RST => "rst".into(),
                state::FIN_RST => "fin,rst".into(),
                other => other.to_string(),
            },
            tail,
            head,
            fill: tail.map(|t| t.saturating_sub(head)),
            reader_sleeps: sleeps(d.rx_wait.bits()),
            writer_sleeps: sleeps(d.tx_wait.bits()),
            writer_wakes_at: d.tx_wake_at.load(Ordering::Relaxed),
            reader_lane: wake::lane(d.rx_watch.load(Ordering::Relaxed)),
            writer_lane: wake::lane(d.tx_watch.load(Ordering::Relaxed)),
            reader_closed: d.reader_closed.load(Ordering::Relaxed) == generation,
        }
    }
}

fn sleeps(word: u32) -> String {
    let how = match (word & wake::FUTEX != 0, word & wake::WIRE != 0) {
        (false, false) => "-",
        (true, false) => "futex",
        (false, true) => "wire",
        (true, true) => "futex+wire",
    };
    how.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use emulator::memory::sealed_memfd;
    use ring::segment::SEGMENT_BYTES;
    use std::os::fd::AsFd;

    #[test]
    fn a_connection_with_a_sleeping_reader_is_shown() {
        let fd = sealed_memfd("ipc-direct-test", SEGMENT_BYTES).unwrap();
        let map = Mapping::new(&fd, RINGS_OFFSET).unwrap();
        let slots: &[Slot] = map.region().slice(SLOTS_OFFSET, usize::from(SLOTS)).unwrap();
        let there = &slots[3].directions[0];
        there.generation.store(9, Ordering::Relaxed);
        there.consumed.store(100, Ordering::Relaxed);
        there.rx_wait.announce(wake::FUTEX, wake::EVERYBODY);
        let side: &Side = map.region().get(SIDES_OFFSET + SIDE_STRIDE).unwrap();
        side.news[2][3].store(1, Ordering::Relaxed);
        side.lanes[2].sleeping.announce(wake::WIRE, wake::EVERYBODY);
        let tails = Tails([((ConnId::new(7, 3, 9).0, 0), 164)].into());
        let seen = SegmentReport::of(7, ([1, 2], [true; 2]), fd.as_fd(), &tails, 10).unwrap();
        assert_eq!((&seen.news[1], &seen.lanes_asleep[1]), (&vec!["2/3".to_owned()], &vec![2]));
        let [connection] = &seen.connections[..] else { panic!("{seen:?}") };
        let direction = &connection.directions[0];
        assert_eq!((connection.slot, connection.generation, direction.fill), (3, 9, Some(64)));
        assert_eq!(direction.reader_sleeps, "futex");
        for d in &slots[3].directions {
            d.reader_closed.store(9, Ordering::Relaxed);
        }
        assert!(
            SegmentReport::of(7, ([1, 2], [true; 2]), fd.as_fd(), &tails, 10).unwrap().connections.is_empty()
        );
    }
}
