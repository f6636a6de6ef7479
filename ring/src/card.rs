//! The bus of a real card (SPEC 12): how agent and coordinator find each other when neither a socket nor a descriptor
//! reaches from one to the other, only function 0's window and memory that the card reaches by bus address.
//!
//! Behind the rings of function 0 there is a second pair of rings of the same kind, whose entries carry [`BusMsg`].
//! Nobody but the agent maps function 0: what a process can write never tells the card where to store.
//!
//! `unsafe` is allowed here for the `Shared` markers only.
#![allow(unsafe_code)]

use crate::VERSION;
use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::bus::{BYTES, BusMsg};
use crate::shared::{Region, Shared};
use crate::side::Far;
use crate::window::{ENTRIES, ENTRIES_OFFSET, Entry, HOST_BYTES, Raw, WINDOW_BYTES};

/// First entry of the bus ring: host to card in function 0's window, card to host in its host memory.
pub const BUS_OFFSET: usize = ENTRIES_OFFSET + ENTRIES as usize * 64;
/// [`Registers`] in function 0's window, [`Pulse`] in its host memory.
pub const REGISTERS_OFFSET: usize = BUS_OFFSET + ENTRIES as usize * 64;
/// "IPDC", in [`Registers::magic`] while a coordinator runs on the card.
pub const CARD_MAGIC: u32 = u32::from_le_bytes(*b"IPDC");
/// Kind of the bus rings' entries; no request or completion has it.
const KIND: u8 = 112;

/// In function 0's window: how a fresh agent makes itself known. The first line is stored by the host, the second by the
/// card; the host reads the second across the bus, while it starts.
#[repr(C, align(64))]
pub struct Registers {
    /// Bus address of function 0's host memory.
    pub address: AtomicU64,
    /// Random, never 0; stored after `address`. A new value: whatever was before has ended.
    pub incarnation: AtomicU64,
    pad: [AtomicU64; 6],
    /// [`CARD_MAGIC`].
    pub magic: AtomicU32,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// The incarnation whose rings are ready.
    pub answered: AtomicU64,
    pad2: [AtomicU64; 6],
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for Registers {}

/// In function 0's host memory: stored by the card.
#[repr(C, align(64))]
pub struct Pulse {
    /// Counts up as long as the coordinator runs.
    pub beat: AtomicU64,
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for Pulse {}

#[cfg(not(loom))]
const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Registers>() == 128 && size_of::<Pulse>() == 64);
    assert!(offset_of!(Registers, incarnation) == 8);
    assert!(offset_of!(Registers, magic) == 64 && offset_of!(Registers, answered) == 72);
    assert!(REGISTERS_OFFSET + size_of::<Registers>() <= WINDOW_BYTES);
    assert!(REGISTERS_OFFSET + size_of::<Pulse>() <= HOST_BYTES);
};

/// The part of function 0's window that is the bus.
#[derive(Clone, Copy)]
pub struct CardSide<'a> {
    /// Messages to the card.
    pub ring: &'a [Entry],
    /// Registers.
    pub registers: &'a Registers,
}

/// The part of function 0's host memory that is the bus.
#[derive(Clone, Copy)]
pub struct HostSide<'a> {
    /// Messages to the host.
    pub ring: &'a [Entry],
    /// The coordinator's pulse, as the host sees it.
    pub pulse: &'a Pulse,
    /// The same as the coordinator does: [`Pulse::beat`].
    pub beat: Far<'a, AtomicU64>,
}

impl<'a> CardSide<'a> {
    /// Views function 0's window; `None` if it is too small.
    #[must_use]
    pub fn over(window: Region) -> Option<Self> {
        Some(CardSide {
            ring: window.slice(BUS_OFFSET, ENTRIES as usize)?,
            registers: window.get(REGISTERS_OFFSET)?,
        })
    }

    /// Card: says that a coordinator is there, which takes up with the next incarnation.
    pub fn announce(&self) {
        self.registers.version.store(VERSION, Ordering::Relaxed);
        // Release: whoever sees the magic sees the version.
        self.registers.magic.store(CARD_MAGIC, Ordering::Release);
    }
}

impl<'a> HostSide<'a> {
    /// Views function 0's host memory; `None` if it is too small.
    #[must_use]
    pub fn over(host: Region) -> Option<Self> {
        let pulse: &Pulse = host.get(REGISTERS_OFFSET)?;
        Some(HostSide { ring: host.slice(BUS_OFFSET, ENTRIES as usize)?, pulse, beat: (&pulse.beat).into() })
    }
}

/// A message as an entry. `address`: with [`BusMsg::Map`], the bus address of the function's host memory.
#[must_use]
pub fn to_raw(message: BusMsg, address: u64) -> Raw {
    let wire = message.to_wire();
    let word =
        |at: usize| wire.iter().skip(at).take(8).rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    Raw { kind: KIND, body: [word(0), word(8), address, 0, 0, 0], ..Raw::default() }
}

/// Validates an entry: message and address.
///
/// # Errors
/// [`crate::bus::BadBusMsg`] for anything else.
pub fn from_raw(raw: &Raw) -> Result<(BusMsg, u64), crate::bus::BadBusMsg> {
    let [low, high, address, ..] = raw.body;
    let mut wire = [0; BYTES];
    for (to, from) in wire.iter_mut().zip(low.to_le_bytes().into_iter().chain(high.to_le_bytes())) {
        *to = from;
    }
    if raw.kind != KIND {
        return Err(crate::bus::BadBusMsg);
    }
    Ok((BusMsg::from_wire(&wire)?, address))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::bus::BadBusMsg;

    #[test]
    fn s12_2_messages_survive_the_ring() {
        for message in
            [BusMsg::Up { epoch: u32::MAX }, BusMsg::Map { function: 4095 }, BusMsg::Unmapped { function: 1 }]
        {
            assert_eq!(from_raw(&to_raw(message, 0xfe_dcba_9876_5000)), Ok((message, 0xfe_dcba_9876_5000)));
        }
        let good = to_raw(BusMsg::Hello, 0);
        assert_eq!(from_raw(&Raw { kind: 1, ..good }), Err(BadBusMsg));
        assert_eq!(from_raw(&Raw { body: [0; 6], ..good }), Err(BadBusMsg));
    }
}
