//! Messages of the emulated bus (SPEC 8) between the agent's process, which owns host memory, and
//! the coordinator's process, which plays the card: what enumeration, BAR and DMA mapping and
//! MSI-X set-up are on PCIe. One `SOCK_SEQPACKET` datagram each, descriptors as `SCM_RIGHTS`.
//! Both ends are trusted; the version is checked all the same.

use crate::VERSION;

/// Length of every message in bytes.
pub const BYTES: usize = 16;
/// Descriptors with [`BusMsg::Hello`], at most: the doorbell eventfd that all functions share, and the common memory, unless the
/// requests go by private rings alone.
pub const HELLO_FDS: usize = 2;
/// Descriptors with [`BusMsg::Map`]: window, host memory, interrupt vectors 0 and 1.
pub const MAP_FDS: usize = 4;

/// Descriptors with [`BusMsg::Segment`]: the memory, and the card's end of the wire.
pub const SEGMENT_FDS: usize = 2;

/// The process group that stands for the card in a segment: what other hosts' processes have of it. No processes have this number.
pub const CARD_GROUP: u32 = u32::MAX;

/// Function number of the agent.
pub const AGENT_FUNCTION: u32 = 0;
/// Functions that a card offers, the agent's included.
pub const FUNCTIONS_MAX: u32 = 4096;

/// A message on the emulated bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusMsg {
    /// Agent to card, first.
    Hello,
    /// Card to agent: EAL is up, the rings are polled.
    Up {
        /// Random incarnation number.
        epoch: u32,
    },
    /// Agent to card: a function appears.
    Map {
        /// Its number.
        function: u32,
    },
    /// Card to agent: mapped and polled.
    Mapped {
        /// Its number.
        function: u32,
    },
    /// Card to agent: the function could not be mapped.
    MapFailed {
        /// Its number.
        function: u32,
    },
    /// Agent to card: the function is gone; unmap it.
    Unmap {
        /// Its number.
        function: u32,
    },
    /// Card to agent: unmapped; the card stores to its host memory no more. On a real card only ([`crate::card`]), where
    /// functions are few and their memory is used again.
    Unmapped {
        /// Its number.
        function: u32,
    },
    /// Agent to card: a segment whose one group is [`CARD_GROUP`].
    Segment {
        /// Its number.
        segment: u32,
    },
    /// Card to agent: the segment is mapped.
    SegmentMapped {
        /// Its number.
        segment: u32,
    },
    /// Card to agent: the segment could not be mapped.
    SegmentFailed {
        /// Its number.
        segment: u32,
    },
}

/// Not a message of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBusMsg;

impl BusMsg {
    /// Encodes.
    #[must_use]
    pub fn to_wire(self) -> [u8; BYTES] {
        let (kind, value) = match self {
            BusMsg::Hello => (1u32, 0),
            BusMsg::Up { epoch } => (2, epoch),
            BusMsg::Map { function } => (3, function),
            BusMsg::Mapped { function } => (4, function),
            BusMsg::MapFailed { function } => (5, function),
            BusMsg::Unmap { function } => (6, function),
            BusMsg::Unmapped { function } => (7, function),
            BusMsg::Segment { segment } => (8, segment),
            BusMsg::SegmentMapped { segment } => (9, segment),
            BusMsg::SegmentFailed { segment } => (10, segment),
        };
        let mut out = [0; BYTES];
        for (chunk, word) in out.chunks_exact_mut(4).zip([u32::from_le_bytes(*b"IPDB"), VERSION, kind, value])
        {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Validates.
    ///
    /// # Errors
    /// [`BadBusMsg`] for anything else.
    pub fn from_wire(bytes: &[u8]) -> Result<BusMsg, BadBusMsg> {
        let mut words = bytes.chunks_exact(4).filter_map(|c| c.try_into().ok()).map(u32::from_le_bytes);
        let (Some(magic), Some(version), Some(kind), Some(value)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(BadBusMsg);
        };
        if bytes.len() != BYTES || magic != u32::from_le_bytes(*b"IPDB") || version != VERSION {
            return Err(BadBusMsg);
        }
        match kind {
            1 => Ok(BusMsg::Hello),
            2 => Ok(BusMsg::Up { epoch: value }),
            3 if value < FUNCTIONS_MAX => Ok(BusMsg::Map { function: value }),
            4 if value < FUNCTIONS_MAX => Ok(BusMsg::Mapped { function: value }),
            5 if value < FUNCTIONS_MAX => Ok(BusMsg::MapFailed { function: value }),
            6 if value < FUNCTIONS_MAX => Ok(BusMsg::Unmap { function: value }),
            7 if value < FUNCTIONS_MAX => Ok(BusMsg::Unmapped { function: value }),
            8 => Ok(BusMsg::Segment { segment: value }),
            9 => Ok(BusMsg::SegmentMapped { segment: value }),
            10 => Ok(BusMsg::SegmentFailed { segment: value }),
            _ => Err(BadBusMsg),
        }
    }
}
