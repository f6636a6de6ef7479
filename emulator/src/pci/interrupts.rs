//! What MSI-X would do (SPEC 12.7): a thread that looks at completion rings, in host memory, and raises eventfds.
//!
//! It sleeps between looks, the longer the less there was: 50 µs to 2 ms while processes are attached, 20 ms otherwise.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering as Flag};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ring::atomic::Ordering;
use ring::card::HostSide;
use ring::msg::Completion;
use ring::window::{Consumer, Entry, HOST_BYTES, HostMemory, Progress};

use super::dma::DmaMemory;
use crate::function::{FunctionMemory, eventfd};
use crate::memory::Mapping;

const LOOK_MIN: Duration = Duration::from_micros(50);
const LOOK_MAX: Duration = Duration::from_millis(2);
const LOOK_IDLE: Duration = Duration::from_millis(20);
/// A pulse that stands still for so long has stopped.
const PULSE_MAX: Duration = Duration::from_secs(3);

/// An onlooker of one ring. The 'static of these is a lie that stays here: they are valid as long as `_memory`.
struct Onlooker {
    entries: &'static [Entry],
    next: Consumer<'static>,
    _memory: Mapping,
}

/// What an onlooker saw since the last look.
#[derive(Clone, Copy, Default)]
struct Seen {
    any: bool,
    event: bool,
}

impl Onlooker {
    fn new(entries: &'static [Entry], memory: Mapping) -> Onlooker {
        Onlooker { entries, next: Consumer::new(entries, 0), _memory: memory }
    }

    fn look(&mut self) -> Seen {
        let mut seen = Seen::default();
        // Bounded: one turn of the ring.
        for _ in 0..self.entries.len() {
            match self.next.pop() {
                Ok(Some((raw, _))) => {
                    seen.any = true;
                    seen.event |= Completion::from_raw(&raw).is_ok_and(|c| c.is_event());
                }
                Ok(None) if self.overtaken() => {
                    // The owner took what we had not looked at: whatever that was, wake everybody.
                    let pushed = u64::from(Progress::of(self.entries).pushed);
                    self.next = Consumer::new(self.entries, pushed);
                    return Seen { any: true, event: true };
                }
                Ok(None) => break,
                // Not ours to judge: the owner will.
                Err(_) => seen = Seen { any: true, event: true },
            }
        }
        seen
    }

    /// Where the next entry should be, there is a later one.
    fn overtaken(&self) -> bool {
        self.next.next_header().is_some_and(|(header, expected)| {
            // Relaxed: a comparison, after which everything is looked at afresh.
            let ahead = u32::try_from(header.load(Ordering::Relaxed) & 0xffff_ffff)
                .unwrap_or(0)
                .wrapping_sub(expected);
            ahead != 0 && ahead < u32::MAX / 2
        })
    }
}

/// One function: its ring and its vectors.
struct Watched {
    ring: Onlooker,
    vectors: [OwnedFd; 2],
}

type Functions = Arc<Mutex<BTreeMap<u32, Watched>>>;

/// The thread, and what it raises.
pub(super) struct Interrupts {
    functions: Functions,
    bus: OwnedFd,
    death: OwnedFd,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn lock(functions: &Functions) -> MutexGuard<'_, BTreeMap<u32, Watched>> {
    functions.lock().unwrap_or_else(PoisonError::into_inner)
}

fn raise(eventfd: &OwnedFd) {
    // A full counter is readable just as well.
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}

impl Interrupts {
    /// Starts looking at the bus in function 0's memory.
    pub fn new(own: &DmaMemory) -> io::Result<Interrupts> {
        let memory = Mapping::new(own.fd(), HOST_BYTES)?;
        let side = HostSide::over(memory.region()).ok_or(io::ErrorKind::InvalidData)?;
        let (functions, stop) = (Functions::default(), Arc::new(AtomicBool::new(false)));
        let (bus, death) = (eventfd()?, eventfd()?);
        let mut looker = Looker {
            bus: Onlooker::new(side.ring, memory),
            pulse: side.pulse,
            beat: 0,
            beaten: Instant::now(),
            functions: Arc::clone(&functions),
            raise_bus: bus.try_clone()?,
            raise_death: death.try_clone()?,
        };
        let stopped = Arc::clone(&stop);
        let name = std::thread::Builder::new().name("interrupts".into());
        let thread = name.spawn(move || looker.run(&stopped))?;
        Ok(Interrupts { functions, bus, death, stop, thread: Some(thread) })
    }

    /// Looks at a function's fresh completion ring, too.
    pub fn add(&mut self, number: u32, memory: &FunctionMemory) -> io::Result<()> {
        let mapping = Mapping::new(&memory.host, HOST_BYTES)?;
        let host = HostMemory::over(mapping.region()).ok_or(io::ErrorKind::InvalidData)?;
        let [answers, events] = &memory.interrupts;
        let vectors = [answers.try_clone()?, events.try_clone()?];
        let watched = Watched { ring: Onlooker::new(host.completions, mapping), vectors };
        lock(&self.functions).insert(number, watched);
        Ok(())
    }

    /// Looks at it no more.
    pub fn remove(&mut self, number: u32) {
        lock(&self.functions).remove(&number);
    }

    /// Raised when there may be messages.
    pub fn bus(&self) -> BorrowedFd<'_> {
        self.bus.as_fd()
    }

    /// To be called before the last look at the messages.
    pub fn clear_bus(&self) {
        let _ = rustix::io::read(&self.bus, &mut [0; 8]);
    }

    /// Raised once the pulse has stopped.
    pub fn death(&self) -> BorrowedFd<'_> {
        self.death.as_fd()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // Relaxed: nothing else is read on the strength of it.
        self.stop.store(true, Flag::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Looker {
    bus: Onlooker,
    pulse: &'static ring::card::Pulse,
    beat: u64,
    beaten: Instant,
    functions: Functions,
    raise_bus: OwnedFd,
    raise_death: OwnedFd,
}

impl Looker {
    fn run(&mut self, stop: &AtomicBool) {
        let mut pause = LOOK_MIN;
        while !stop.load(Flag::Relaxed) {
            let (news, attached) = self.look();
            let most = if attached { LOOK_MAX } else { LOOK_IDLE };
            pause = if news { LOOK_MIN } else { (pause * 2).min(most) };
            std::thread::sleep(pause);
        }
    }

    /// Whether there was something, and whether anybody but the agent is attached.
    fn look(&mut self) -> (bool, bool) {
        let mut news = self.bus.look().any;
        if news {
            raise(&self.raise_bus);
        }
        let mut functions = lock(&self.functions);
        for watched in functions.values_mut() {
            let seen = watched.ring.look();
            let [answers, events] = &watched.vectors;
            for (raised, vector) in [(seen.any, answers), (seen.event, events)] {
                if raised {
                    raise(vector);
                    news = true;
                }
            }
        }
        let attached = functions.len() > 1;
        drop(functions);
        // Relaxed: a sign of life, ordered with nothing.
        let beat = self.pulse.beat.load(Ordering::Relaxed);
        if beat != self.beat {
            (self.beat, self.beaten) = (beat, Instant::now());
        } else if self.beaten.elapsed() >= PULSE_MAX {
            raise(&self.raise_death);
        }
        (news, attached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::msg::{ConnId, Status};
    use ring::window::{ENTRIES, Producer};

    fn ring() -> (Onlooker, Producer<'static>) {
        let memory = FunctionMemory::new(1, ring::queue::Kind::PerProcess).unwrap();
        let map = || Mapping::new(&memory.host, HOST_BYTES).unwrap();
        let (ours, cards) = (map(), map());
        let entries = HostMemory::over(ours.region()).unwrap().completions;
        let producer = Producer::new(HostMemory::over(cards.region()).unwrap().completions, 0);
        std::mem::forget(cards);
        (Onlooker::new(entries, ours), producer)
    }

    fn push(card: &mut Producer<'_>, completion: Completion) {
        card.push(&completion.to_raw(0), 0).unwrap();
    }

    #[test]
    fn s12_7_answers_and_events_are_told_apart() {
        let (mut onlooker, mut card) = ring();
        assert!(!onlooker.look().any);
        push(&mut card, Completion::Done { status: Status::Ok, value: 1 });
        let seen = onlooker.look();
        assert!(seen.any && !seen.event);
        push(&mut card, Completion::PeerGone { conn: ConnId(1 << 40 | 1), reset: false });
        assert!(onlooker.look().event);
        assert!(!onlooker.look().any);
    }

    #[test]
    fn s12_7_one_that_was_overtaken_raises_everything_and_goes_on() {
        let (mut onlooker, mut card) = ring();
        for n in 0..ENTRIES * 2 + 3 {
            assert!(card.take_credit(n));
            push(&mut card, Completion::Credit);
        }
        assert!(onlooker.look().event);
        assert!(!onlooker.look().any, "it has caught up");
        assert!(card.take_credit(ENTRIES * 2 + 3));
        push(&mut card, Completion::Credit);
        let seen = onlooker.look();
        assert!(seen.any && !seen.event);
    }
}
