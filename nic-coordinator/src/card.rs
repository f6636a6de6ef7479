//! The card's side of a card's bus (SPEC 12): windows in the card's own memory, the host's memory by bus address.
//!
//! Both are files here: each window is one, `function-N` in a directory, as the software that shows the functions on PCIe
//! leaves them; the host's memory is another, in which a bus address is an offset.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ring::atomic::Ordering;
use ring::bus::{AGENT_FUNCTION, BusMsg};
use ring::card::{CardSide, HostSide, from_raw, to_raw};
use ring::window::{Consumer, HOST_BYTES, Producer, WINDOW_BYTES};

use crate::bus::{BusError, Incoming, Payload};
use crate::mapping::{CardMemory, FunctionMemory, MapError};

/// How often the pulse goes to the host.
const BEAT_EVERY: Duration = Duration::from_millis(100);

/// The bus of one card.
#[derive(Debug)]
pub struct CardBus {
    directory: PathBuf,
    host_memory: File,
    /// Function 0's.
    window: CardMemory,
    host: Option<Host>,
}

/// The agent that we serve.
#[derive(Debug)]
struct Host {
    incarnation: u64,
    // The 'static of these is a lie that stays here: they are valid as long as `CardBus::window` and `memory`.
    messages: Consumer<'static>,
    answers: Producer<'static>,
    /// Function 0's host memory.
    memory: CardMemory,
    beat: u64,
    beaten: Instant,
}

fn open(path: &Path, what: &'static str) -> Result<File, MapError> {
    OpenOptions::new().read(true).write(true).open(path).map_err(|e| {
        let name = path.display();
        MapError::Kernel(what, std::io::Error::new(e.kind(), format!("{name}: {e}")))
    })
}

impl CardBus {
    /// Takes function 0's window in `directory`, and lets hosts see that somebody is there.
    ///
    /// # Errors
    /// One of the files is missing or too small.
    pub fn open(directory: &Path, host_memory: &Path) -> Result<Self, MapError> {
        let host_memory = open(host_memory, "host's memory")?;
        let window = map_window(directory, AGENT_FUNCTION)?;
        side(&window)?.announce();
        Ok(CardBus { directory: directory.to_owned(), host_memory, window, host: None })
    }

    /// True once an agent is there that nobody has served before.
    ///
    /// # Errors
    /// The agent's memory is not where it says.
    pub fn greet(&mut self) -> Result<bool, BusError> {
        self.host = None;
        let CardSide { ring, registers } = side(&self.window)?;
        // Acquire: pairs with the agent's Release; the address was stored before.
        let incarnation = registers.incarnation.load(Ordering::Acquire);
        if incarnation == 0 || incarnation == registers.answered.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let address = registers.address.load(Ordering::Relaxed);
        let memory = CardMemory::map(&self.host_memory, address, HOST_BYTES, "agent's memory")?;
        let HostSide { ring: answers, .. } =
            HostSide::over(memory.region()).ok_or(MapError::Header("agent's memory"))?;
        self.window.clear(ring::card::BUS_OFFSET, ring::card::REGISTERS_OFFSET);
        let (messages, answers) = (Consumer::new(ring, 0), Producer::new(answers, 0));
        self.host = Some(Host { incarnation, messages, answers, memory, beat: 0, beaten: Instant::now() });
        // Release: the ring is clear before the agent stores to it.
        registers.answered.store(incarnation, Ordering::Release);
        Ok(true)
    }

    /// Takes the next message, and keeps the pulse going.
    ///
    /// # Errors
    /// [`BusError`]: another agent has come, or this one is of another version.
    pub fn receive(&mut self) -> Result<Option<Incoming>, BusError> {
        let host = self.host.as_mut().ok_or(BusError::HungUp)?;
        if side(&self.window)?.registers.incarnation.load(Ordering::Relaxed) != host.incarnation {
            return Err(BusError::HungUp);
        }
        if host.beat == 0 || host.beaten.elapsed() >= BEAT_EVERY {
            host.beat += 1;
            host.beaten = Instant::now();
            let HostSide { beat, .. } = HostSide::over(host.memory.region()).ok_or(BusError::NotOurs)?;
            beat.publish(host.beat);
        }
        let Some((raw, credit)) = host.messages.pop().map_err(|_| BusError::NotOurs)? else {
            return Ok(None);
        };
        let (message, address) = from_raw(&raw).map_err(|_| BusError::NotOurs)?;
        if !host.answers.take_credit(credit) {
            return Err(BusError::NotOurs);
        }
        Ok(Some(Incoming { message, payload: Payload::Address(address) }))
    }

    /// Sends a message, with an address where it needs one.
    ///
    /// # Errors
    /// [`BusError`]: the agent is gone, or takes no answers.
    pub fn send(&mut self, message: BusMsg, address: u64) -> Result<(), BusError> {
        let host = self.host.as_mut().ok_or(BusError::HungUp)?;
        let credit = host.messages.credit();
        host.answers.push(&to_raw(message, address), credit).map_err(|_| BusError::Full)
    }

    /// The memories of function `number`.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn function(&self, number: u32, address: u64) -> Result<FunctionMemory, MapError> {
        let window = map_window(&self.directory, number)?;
        let host = CardMemory::map(&self.host_memory, address, HOST_BYTES, "host memory")?;
        FunctionMemory::of_card(number, window, host)
    }
}

fn map_window(directory: &Path, number: u32) -> Result<CardMemory, MapError> {
    let file = open(&directory.join(format!("function-{number}")), "window")?;
    CardMemory::map(file, 0, WINDOW_BYTES, "window")
}

fn side(window: &CardMemory) -> Result<CardSide<'static>, MapError> {
    CardSide::over(window.region()).ok_or(MapError::Header("window"))
}
