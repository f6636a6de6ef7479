//! One PCI function, emulated: its window, its host memory, its two interrupt vectors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring::queue::{COMMON_BYTES, CommonMemory, Key, Kind};
use ring::window::{HOST_BYTES, HostMemory, WINDOW_BYTES, Window};
use rustix::event::EventfdFlags;

use crate::memory::{Mapping, sealed_memfd};

/// What a function consists of. The descriptors go to the process that owns the function and, by the
/// bus, to the card; dropping this takes nothing away from either.
#[derive(Debug)]
pub struct FunctionMemory {
    /// Device memory: header and request ring ([`ring::window::Window`]), [`WINDOW_BYTES`] bytes.
    pub window: OwnedFd,
    /// Host memory: header and completion ring ([`ring::window::HostMemory`]), [`HOST_BYTES`] bytes.
    pub host: OwnedFd,
    /// Eventfds: vector 0 for answers, vector 1 for events.
    pub interrupts: [OwnedFd; 2],
}

/// The memory that all functions and the card share, made and formatted; `None` when `queue` needs none.
///
/// # Errors
/// Out of descriptors or memory.
pub fn common_memory(queue: Kind) -> io::Result<Option<OwnedFd>> {
    if queue == Kind::PerProcess {
        return Ok(None);
    }
    let fd = sealed_memfd("ipc-direct-common", COMMON_BYTES)?;
    let mapped = Mapping::new(&fd, COMMON_BYTES)?;
    CommonMemory::over(mapped.region()).ok_or(io::ErrorKind::InvalidData)?.format();
    Ok(Some(fd))
}

fn random_key() -> io::Result<Key> {
    let mut key = [[0; 8]; 2];
    for word in &mut key {
        rustix::rand::getrandom(word, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(Key(key.map(u64::from_ne_bytes)))
}

/// A non-blocking, close-on-exec eventfd that starts at 0.
///
/// # Errors
/// Those of eventfd(2).
pub fn eventfd() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

impl FunctionMemory {
    /// Makes and formats the memory of function `number`, whose requests go by `queue`.
    ///
    /// # Errors
    /// Out of descriptors, memory or random numbers.
    pub fn new(number: u32, queue: Kind) -> io::Result<FunctionMemory> {
        let window = sealed_memfd("ipc-direct-window", WINDOW_BYTES)?;
        let host = sealed_memfd("ipc-direct-host", HOST_BYTES)?;
        let (mapped_window, mapped_host) =
            (Mapping::new(&window, WINDOW_BYTES)?, Mapping::new(&host, HOST_BYTES)?);
        let too_small = || io::Error::from(io::ErrorKind::InvalidData);
        Window::over(mapped_window.region()).ok_or_else(too_small)?.format(number);
        HostMemory::over(mapped_host.region()).ok_or_else(too_small)?.format(queue, random_key()?);
        Ok(FunctionMemory { window, host, interrupts: [eventfd()?, eventfd()?] })
    }

    /// The descriptors as [`ring::bus::BusMsg::Map`] carries them.
    #[must_use]
    pub fn bus_fds(&self) -> [BorrowedFd<'_>; ring::bus::MAP_FDS] {
        let [answers, events] = &self.interrupts;
        [self.window.as_fd(), self.host.as_fd(), answers.as_fd(), events.as_fd()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::atomic::Ordering;

    #[test]
    fn a_fresh_function_is_formatted() {
        let f = FunctionMemory::new(17, Kind::Hybrid).unwrap();
        let window = Mapping::new(&f.window, WINDOW_BYTES).unwrap();
        let view = Window::over(window.region()).unwrap();
        assert!(view.valid());
        assert_eq!(view.header.function.load(Ordering::Relaxed), 17);
        let host = Mapping::new(&f.host, HOST_BYTES).unwrap();
        let view = HostMemory::over(host.region()).unwrap();
        assert!(view.valid());
        assert_eq!(Kind::from_wire(view.header.queue.load(Ordering::Relaxed)), Some(Kind::Hybrid));
        let other = FunctionMemory::new(18, Kind::Hybrid).unwrap();
        let other = Mapping::new(&other.host, HOST_BYTES).unwrap();
        assert_ne!(view.key(), HostMemory::over(other.region()).unwrap().key());
    }
}
