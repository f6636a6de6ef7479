//! A function as a client, the agent's own function 0 above all: requests out, completions in, never blocking.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring::atomic::{Ordering, fence};
use ring::msg::{Completion, Request};
use ring::queue::{COMMON_BYTES, CommonMemory, Requests};
use ring::window::{HOST_BYTES, HostEnd, HostMemory, WINDOW_BYTES, Window};

use crate::function::FunctionMemory;
use crate::memory::Mapping;

/// Requests in a row that the card is not woken for (SPEC 2.6.6).
const QUIET_MAX: u32 = 32;

/// The coordinator wrote something that is not a completion: it is broken.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator wrote an impossible completion; restart ipc-direct with files of one release")]
pub struct RingFault;

/// Requests and completions of one function.
///
/// The `'static` references point into the mappings beside them; none is handed out, and the
/// mappings live as long as the struct.
pub struct AgentRing {
    end: HostEnd<'static>,
    /// Requests since the doorbell was last looked at ([`AgentRing::post_quietly`]).
    quiet: u32,
    /// Requests that found the ring full, oldest first.
    outbox: VecDeque<(u32, Request)>,
    doorbell: OwnedFd,
    interrupt: OwnedFd,
    _mappings: [Mapping; 2],
    _common: Option<Mapping>,
}

impl AgentRing {
    /// A client over fresh memory of function `number`. `common` and `doorbell` are the card's.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn new(
        number: u32,
        memory: &FunctionMemory,
        common: Option<BorrowedFd<'_>>,
        doorbell: OwnedFd,
    ) -> io::Result<AgentRing> {
        let common = common.map(|fd| Mapping::new(fd, COMMON_BYTES)).transpose()?;
        let mappings = [Mapping::new(&memory.window, WINDOW_BYTES)?, Mapping::new(&memory.host, HOST_BYTES)?];
        let [window, host] = &mappings;
        let (Some(window), Some(host)) = (Window::over(window.region()), HostMemory::over(host.region()))
        else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let shared = common.as_ref().and_then(|common| CommonMemory::over(common.region()));
        let window = window.far();
        let requests = Requests::over(number, &window, &host, shared).ok_or(io::ErrorKind::InvalidData)?;
        Ok(AgentRing {
            end: HostEnd::new(requests, &window, &host.near()),
            quiet: 0,
            outbox: VecDeque::new(),
            doorbell,
            interrupt: memory.interrupts[0].try_clone()?,
            _mappings: mappings,
            _common: common,
        })
    }

    /// Readable when completions may have come (after [`AgentRing::rearm`] returned true).
    #[must_use]
    pub fn interrupt(&self) -> BorrowedFd<'_> {
        self.interrupt.as_fd()
    }

    /// Posts a request, or keeps it until the card has given credit.
    pub fn post(&mut self, token: u32, request: Request) {
        self.outbox.push_back((token, request));
        self.flush();
    }

    /// As [`AgentRing::post`], for what nobody waits for: a card that sleeps does it when something else wakes it (SPEC 2.6.6).
    pub fn post_quietly(&mut self, token: u32, request: Request) {
        let quiet = self.outbox.is_empty()
            && self.quiet < QUIET_MAX
            && self.end.post_quietly(&request.to_raw(token)).is_ok();
        if quiet {
            self.quiet += 1;
        } else {
            self.post(token, request);
        }
    }

    fn flush(&mut self) {
        let mut tried = false;
        while let Some((token, request)) = self.outbox.front() {
            tried = true;
            if self.end.post(&request.to_raw(*token)).is_err() {
                break;
            }
            self.outbox.pop_front();
        }
        if tried {
            self.quiet = 0;
            self.ring_doorbell();
        }
    }

    fn ring_doorbell(&self) {
        // SeqCst: pairs with the fence of the card that goes to sleep (SPEC 2.6.3): we see the word, or it sees the request.
        if self.end.doorbell_wanted(|| fence(Ordering::SeqCst)) {
            self.write_doorbell();
        }
    }

    fn write_doorbell(&self) {
        // A full counter (EAGAIN) wakes the card just as well.
        let _ = rustix::io::write(&self.doorbell, &1u64.to_ne_bytes());
    }

    /// The next completion with its token, if one is there. Credit is taken along the way.
    ///
    /// # Errors
    /// [`RingFault`]: the card is not to be used any more.
    pub fn take(&mut self) -> Result<Option<(u32, Completion)>, RingFault> {
        while let Some(raw) = self.end.take().map_err(|_| RingFault)? {
            self.flush();
            match Completion::from_raw(&raw).map_err(|_| RingFault)? {
                Completion::Credit => {}
                completion => return Ok(Some((raw.token, completion))),
            }
        }
        Ok(None)
    }

    /// Clears the interrupt and asks for the next one. False: more completions are there already,
    /// take them first.
    pub fn rearm(&mut self) -> bool {
        let mut count = [0; 8];
        // EAGAIN: it was clear.
        let _ = rustix::io::read(&self.interrupt, &mut count);
        // SeqCst: pairs with the fence of the card that goes to sleep (SPEC 2.5.3): we see the completion, or it sees `armed`.
        let armed = self.end.arm(|| fence(Ordering::SeqCst));
        if armed.ring {
            self.write_doorbell();
        }
        !armed.ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::eventfd;
    use ring::msg::Status;
    use ring::queue::Kind;
    use ring::window::{Consumer, ENTRIES, IrqGate, Producer};

    /// The card's half, played by hand.
    struct Played {
        window: Mapping,
        host: Mapping,
    }

    #[test]
    fn more_requests_than_entries_wait_for_credit() {
        let memory = FunctionMemory::new(0, Kind::PerProcess).unwrap();
        let card = Played {
            window: Mapping::new(&memory.window, WINDOW_BYTES).unwrap(),
            host: Mapping::new(&memory.host, HOST_BYTES).unwrap(),
        };
        let window = Window::over(card.window.region()).unwrap();
        let host = HostMemory::over(card.host.region()).unwrap();
        let (mut requests, mut completions) =
            (Consumer::new(window.requests, 0), Producer::new(host.completions, 0));
        let mut ring = AgentRing::new(0, &memory, None, eventfd().unwrap()).unwrap();
        let total = ENTRIES * 2 + 7;
        for n in 0..total {
            ring.post(n, Request::Detach { function: n % 4096 });
        }
        let mut seen = 0;
        while seen < total {
            while let Some((raw, _)) = requests.pop().unwrap() {
                assert_eq!(raw.token, seen);
                assert_eq!(Request::from_raw(&raw), Ok(Request::Detach { function: seen % 4096 }));
                seen += 1;
            }
            completions.push(&Completion::Credit.to_raw(0), requests.credit()).unwrap();
            assert_eq!(ring.take().unwrap(), None);
        }
        assert!(ring.outbox.is_empty());
    }

    #[test]
    fn an_interrupt_is_asked_for_and_comes() {
        let memory = FunctionMemory::new(0, Kind::PerProcess).unwrap();
        let host = Mapping::new(&memory.host, HOST_BYTES).unwrap();
        let window = Mapping::new(&memory.window, WINDOW_BYTES).unwrap();
        let host = HostMemory::over(host.region()).unwrap();
        let window = Window::over(window.region()).unwrap();
        let mut completions = Producer::new(host.completions, 0);
        let mut gate = IrqGate::default();
        let mut ring = AgentRing::new(0, &memory, None, eventfd().unwrap()).unwrap();
        assert!(ring.rearm());
        let done = Completion::Done { status: Status::Ok, value: 3 };
        completions.push(&done.to_raw(9), 0).unwrap();
        assert!(gate.should_fire(window.header.armed.load(Ordering::Acquire), completions.pushed()));
        assert!(!ring.rearm(), "a completion that is there forbids sleeping");
        assert_eq!(ring.take().unwrap(), Some((9, done)));
        assert!(ring.rearm());
    }

    #[test]
    fn nonsense_is_a_fault() {
        let memory = FunctionMemory::new(0, Kind::PerProcess).unwrap();
        let host = Mapping::new(&memory.host, HOST_BYTES).unwrap();
        let host = HostMemory::over(host.region()).unwrap();
        let mut completions = Producer::new(host.completions, 0);
        let mut ring = AgentRing::new(0, &memory, None, eventfd().unwrap()).unwrap();
        // Credit for requests that were never made.
        completions.push(&Completion::Credit.to_raw(0), 5).unwrap();
        assert!(ring.take().is_err());
    }
}
