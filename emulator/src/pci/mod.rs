//! A real card (SPEC 12): PCI functions whose BARs are the windows, host memory that the card reaches by bus address.
//!
//! | module | what it holds |
//! |---|---|
//! | [`sysfs`] | finds the functions; their BARs as files; who else has one open |
//! | [`dma`] | host memory with a bus address |
//! | [`interrupts`] | eventfds, raised by looking at completion rings |

mod dma;
mod interrupts;
mod sysfs;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use ring::atomic::Ordering;
use ring::bus::{AGENT_FUNCTION, BusMsg, FUNCTIONS_MAX};
use ring::card::{CARD_MAGIC, CardSide, HostSide, from_raw, to_raw};
use ring::window::{Consumer, HOST_BYTES, Producer, WINDOW_BYTES};

use crate::card::{CardEvent, CardGone};
use crate::function::{FunctionMemory, eventfd};
use crate::launch::BootError;
use crate::memory::Mapping;
use dma::DmaMemory;
use interrupts::Interrupts;
pub use sysfs::PciId;
use sysfs::{Bar, Taken};

/// Between two looks at the card while it starts.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Why a card can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// No such device.
    #[error("no PCI function {0} with that BAR: `lspci -nn` lists what there is")]
    NoCard(PciId),
    /// The agent needs one, and each process another.
    #[error(
        "the card shows one PCI function, which is the agent's: set it up to show one more for each process"
    )]
    OneFunction,
    /// Another agent runs.
    #[error("function 0 of the card ({0}) is in use: another agent may be running")]
    InUse(String),
    /// A file of sysfs, or another kernel interface.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// Host memory needs pages that stay in place.
    #[error(
        "no free hugepages for the card to store to: reserve one for each process (echo 64 > /proc/sys/vm/nr_hugepages): {0}"
    )]
    NoHugepages(#[source] io::Error),
    /// Physical addresses would mean something else.
    #[error("an IOMMU translates what {0} stores: boot with iommu=pt")]
    Translated(String),
    /// No coordinator there.
    #[error("no coordinator runs on the card: start nic-coordinator there")]
    NobodyThere,
    /// One of another version.
    #[error("the coordinator on the card speaks version {0}: use files of one release")]
    Version(u32),
    /// It does not answer.
    #[error("the coordinator on the card did not answer within {0:?}: is it running?")]
    Silent(Duration),
    /// It can't use our memory.
    #[error("the coordinator on the card could not map the agent's own function: see its log")]
    NoFunction,
}

#[derive(Debug)]
struct Place {
    bar: Bar,
    /// Where the card stores for the process that has the function, or had it: the card may still.
    host: Option<DmaMemory>,
}

/// What ties us to a card.
pub(crate) struct PciLink {
    places: Vec<Place>,
    messages: Producer<'static>,
    answers: Consumer<'static>,
    interrupts: Interrupts,
    /// Function 0's, for the rings above.
    _memory: (Mapping, Mapping, DmaMemory),
}

/// A card that has answered.
pub(crate) struct Booted {
    pub link: PciLink,
    pub epoch: u32,
    pub memory: FunctionMemory,
}

impl PciLink {
    /// Makes ourselves known to the coordinator on the card, and waits until it serves function 0.
    pub fn boot(id: PciId, up_timeout: Duration) -> Result<Booted, BootError> {
        let deadline = Instant::now() + up_timeout;
        let mut places: Vec<Place> =
            sysfs::functions(id)?.into_iter().map(|bar| Place { bar, host: None }).collect();
        places.truncate(FUNCTIONS_MAX as usize);
        let (Some(own), true) = (places.first(), places.len() > 1) else {
            return Err(PciError::OneFunction.into());
        };
        let window_fd = own.bar.open_alone().map_err(|_| PciError::InUse(own.bar.name()))?;
        let dma = DmaMemory::new()?;
        let (window, host) = (Mapping::new(&window_fd, WINDOW_BYTES)?, Mapping::new(dma.fd(), HOST_BYTES)?);
        let none = || io::Error::from(io::ErrorKind::InvalidData);
        let CardSide { ring: messages, registers } = CardSide::over(window.region()).ok_or_else(none)?;
        let HostSide { ring: answers, .. } = HostSide::over(host.region()).ok_or_else(none)?;

        if registers.magic.load(Ordering::Acquire) != CARD_MAGIC {
            return Err(PciError::NobodyThere.into());
        }
        let version = registers.version.load(Ordering::Relaxed);
        if version != ring::VERSION {
            return Err(PciError::Version(version).into());
        }
        let incarnation = random()?;
        registers.address.store(dma.address(), Ordering::Relaxed);
        // Release: the card that sees it sees the address.
        registers.incarnation.store(incarnation, Ordering::Release);
        // Acquire: pairs with the card's Release; its clearing of the ring comes before our first entry.
        while registers.answered.load(Ordering::Acquire) != incarnation {
            wait(deadline, up_timeout)?;
        }
        let interrupts = Interrupts::new(&dma)?;
        let (messages, answers) = (Producer::new(messages, 0), Consumer::new(answers, 0));
        let address = dma.address();
        let memory = FunctionMemory {
            window: window_fd,
            host: dma.fd().try_clone_to_owned()?,
            interrupts: [eventfd()?, eventfd()?],
        };
        let mut link = PciLink { places, messages, answers, interrupts, _memory: (window, host, dma) };
        let BusMsg::Up { epoch } = link.expect(deadline, up_timeout)? else { return Err(BootError::Version) };
        link.send(BusMsg::Map { function: AGENT_FUNCTION }, address)?;
        match link.expect(deadline, up_timeout)? {
            BusMsg::Mapped { function: AGENT_FUNCTION } => {}
            _ => return Err(PciError::NoFunction.into()),
        }
        link.interrupts.add(AGENT_FUNCTION, &memory)?;
        Ok(Booted { link, epoch, memory })
    }

    fn expect(&mut self, deadline: Instant, up_timeout: Duration) -> Result<BusMsg, BootError> {
        loop {
            if let Some(message) = self.receive().map_err(|_| BootError::Version)? {
                return Ok(message);
            }
            wait(deadline, up_timeout)?;
        }
    }

    fn send(&mut self, message: BusMsg, address: u64) -> io::Result<()> {
        let credit = self.answers.credit();
        self.messages.push(&to_raw(message, address), credit).map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    fn receive(&mut self) -> Result<Option<BusMsg>, CardGone> {
        let Some((raw, credit)) = self.answers.pop().map_err(|_| CardGone::Nonsense)? else {
            return Ok(None);
        };
        if !self.messages.take_credit(credit) {
            return Err(CardGone::Nonsense);
        }
        from_raw(&raw).map(|(message, _)| Some(message)).map_err(|_| CardGone::Nonsense)
    }

    /// Numbers that the card has, function 0 included.
    pub fn numbers(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(FUNCTIONS_MAX)
    }

    fn place(&mut self, number: u32) -> Option<&mut Place> {
        self.places.get_mut(usize::try_from(number).ok()?)
    }

    /// True if nobody has the function, or its window, any more.
    pub fn is_free(&self, number: u32) -> bool {
        let place = usize::try_from(number).ok().and_then(|n| self.places.get(n));
        number != AGENT_FUNCTION && place.is_some_and(|p| p.host.is_none() && p.bar.open_alone().is_ok())
    }

    pub fn map_function(&mut self, number: u32) -> io::Result<FunctionMemory> {
        let place = self.place(number).ok_or(io::ErrorKind::NotFound)?;
        let window = place.bar.open_alone().map_err(|taken| match taken {
            Taken::InUse => io::Error::other("another process still maps the function's window"),
            Taken::Io(e) => e,
        })?;
        let dma = DmaMemory::new().map_err(io::Error::other)?;
        let address = dma.address();
        let host = dma.fd().try_clone_to_owned()?;
        let memory = FunctionMemory { window, host, interrupts: [eventfd()?, eventfd()?] };
        self.interrupts.add(number, &memory)?;
        if let Err(full) = self.send(BusMsg::Map { function: number }, address) {
            self.interrupts.remove(number);
            return Err(full);
        }
        // From here on the memory has to stay until the card says that it is done with it.
        if let Some(place) = self.place(number) {
            place.host = Some(dma);
        }
        Ok(memory)
    }

    pub fn unmap_function(&mut self, number: u32) -> io::Result<()> {
        self.interrupts.remove(number);
        self.send(BusMsg::Unmap { function: number }, 0)
    }

    /// Raised when messages may have come.
    pub fn bus(&self) -> BorrowedFd<'_> {
        self.interrupts.bus()
    }

    /// Raised when the card's pulse has stopped.
    pub fn death(&self) -> BorrowedFd<'_> {
        self.interrupts.death()
    }

    pub fn next_event(&mut self) -> Result<Option<CardEvent>, CardGone> {
        loop {
            let Some(message) = self.receive()? else {
                self.interrupts.clear_bus();
                // What came before that is taken now; what comes later raises it again.
                let Some(message) = self.receive()? else { return Ok(None) };
                if let Some(event) = self.event(message)? {
                    return Ok(Some(event));
                }
                continue;
            };
            if let Some(event) = self.event(message)? {
                return Ok(Some(event));
            }
        }
    }

    fn event(&mut self, message: BusMsg) -> Result<Option<CardEvent>, CardGone> {
        match message {
            BusMsg::Mapped { function } => Ok(Some(CardEvent::Mapped(function))),
            BusMsg::MapFailed { function } => Ok(Some(CardEvent::MapFailed(function))),
            BusMsg::Unmapped { function } => {
                if let Some(place) = self.place(function) {
                    place.host = None;
                }
                Ok(None)
            }
            _ => Err(CardGone::Nonsense),
        }
    }
}

fn wait(deadline: Instant, up_timeout: Duration) -> Result<(), PciError> {
    if Instant::now() >= deadline {
        return Err(PciError::Silent(up_timeout));
    }
    std::thread::sleep(LOOK_EVERY);
    Ok(())
}

/// Not 0.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}

impl From<PciError> for io::Error {
    fn from(error: PciError) -> io::Error {
        io::Error::other(error)
    }
}
