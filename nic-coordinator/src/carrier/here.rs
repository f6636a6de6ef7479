//! What a bridge does to processes of this machine: futexes, bells, wires.
//!
//! `unsafe` is allowed here for the address of a futex word.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use ring::atomic::{AtomicU32, Heavy as _};
use ring::wake::{self, SleepWord};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, send, sendto, socket_with,
};
use rustix::thread::{MembarrierCommand, futex, membarrier};

use super::CarrierError;
use crate::bridge::{Outside, SegmentMemory};
use crate::sleep::Membarrier;

/// See the module.
#[derive(Debug)]
pub(super) struct Here {
    heavy: Membarrier,
    /// Our ends of the segments' wires.
    pub(super) wires: BTreeMap<u32, OwnedFd>,
    /// What bells are rung with.
    ringer: OwnedFd,
}

impl Here {
    pub(super) fn new() -> Result<Here, CarrierError> {
        let heavy = Membarrier::new()?;
        // Who wakes others takes part in their barriers (SPEC 6.2).
        membarrier(MembarrierCommand::RegisterGlobalExpedited).map_err(CarrierError::Kernel)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let ringer = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
        let ringer = ringer.map_err(CarrierError::Kernel)?;
        Ok(Here { heavy, wires: BTreeMap::new(), ringer })
    }

    fn send(&self, segment: &SegmentMemory, flags: SendFlags) {
        if let Some(wire) = self.wires.get(&segment.number()) {
            // Its processes take old rings out before it is full (SPEC 6.6); one that is hung up has nobody to wake.
            let _ = send(wire, &[1], flags | SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }
}

impl Outside for Here {
    fn wake(&mut self, _: &SegmentMemory, word: &SleepWord) {
        // SAFETY: a part of `word`, which lives as long as this call; other processes change it by atomic operations.
        let half: &AtomicU32 = unsafe { &*word.futex_address().cast() };
        let _ = futex::wake(half, futex::Flags::empty(), i32::MAX.cast_unsigned());
    }

    fn ring(&mut self, segment: &SegmentMemory, _: u32, bell: u32) {
        let rung = bell != wake::EVERYBODY
            && SocketAddrUnix::new_abstract_name(&wake::bell_name(bell)).is_ok_and(|name| {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                sendto(self.ringer.as_fd(), &[1], flags, &name).is_ok()
            });
        if !rung {
            self.send(segment, SendFlags::empty());
        }
    }

    fn ring_urgent(&mut self, segment: &SegmentMemory, _: u32) {
        self.send(segment, SendFlags::OOB);
    }

    fn heavy_barrier(&mut self) {
        self.heavy.heavy_barrier();
    }
}
