//! Rings between two lcores (`rte_ring` with elements): one end sends, the other receives, both in bursts, neither waits.
//!
//! Elements move: what is sent belongs to the receiver, and what nobody received is dropped with the ring. Each end is
//! an owned handle with `&mut self` bursts, which is what makes "single producer, single consumer" true.
//!
//! ```no_run
//! # let (eal, _) = dpdk::eal::Eal::init(["prog", "-l", "0-1", "--no-pci"]).unwrap();
//! let (mut sender, mut receiver) = dpdk::ring::ring::<u64>(&eal, "numbers", 255)?;
//! let mut numbers = vec![1, 2, 3];
//! assert_eq!(sender.burst(&mut numbers), 3);
//! receiver.burst(&mut numbers, 32);
//! assert_eq!(numbers, [1, 2, 3]);
//! # Ok::<(), dpdk::ring::RingError>(())
//! ```
#![allow(unsafe_code)] // Moves owned elements through DPDK's memory, and frees the ring.

use std::ffi::{CString, NulError};
use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use dpdk_sys as sys;
use thiserror::Error;

use crate::eal::Eal;
use crate::errno::RteError;

/// Why there is no such ring.
#[derive(Debug, Error)]
pub enum RingError {
    /// The name holds a zero byte.
    #[error("a ring's name cannot contain a zero byte ({0})")]
    Name(#[from] NulError),
    /// None, or more than DPDK counts.
    #[error("a ring cannot hold {0} elements: 1 to {COUNT_MAX} are possible")]
    Count(u32),
    /// DPDK's refusal: not enough memory (raise `-m`), a name that is taken or too long.
    #[error("cannot make the ring \"{name}\" of {count} elements: {error}")]
    Refused {
        /// The ring's name.
        name: String,
        /// The elements asked for.
        count: u32,
        /// DPDK's reason.
        error: RteError,
    },
}

/// Elements that a ring can hold at most.
pub const COUNT_MAX: u32 = 1 << 30;
/// Elements that one burst moves at most; larger ones are cut.
pub const BURST_MAX: usize = 1 << 16;

/// Makes a ring called `name` (at most 25 bytes, unique in the process) that holds `count` elements. Its memory is on the
/// main lcore's NUMA node, and is given back when both ends are dropped.
///
/// # Errors
/// [`RingError`]; nothing is left behind.
pub fn ring<'eal, T: Send>(
    eal: &'eal Eal,
    name: &str,
    count: u32,
) -> Result<(Sender<'eal, T>, Receiver<'eal, T>), RingError> {
    // DPDK copies elements as arrays of 32-bit words.
    const { assert!(size_of::<T>() > 0 && size_of::<T>().is_multiple_of(4) && align_of::<T>() >= 4) };
    // DPDK 22.11 does not check a sum of its own that overflows.
    if !(1..=COUNT_MAX).contains(&count) {
        return Err(RingError::Count(count));
    }
    let c_name = CString::new(name)?;
    let node = i32::try_from(eal.main_lcore().numa_node).unwrap_or(SOCKET_ID_ANY);
    let flags = sys::RING_F_SP_ENQ | sys::RING_F_SC_DEQ | sys::RING_F_EXACT_SZ;
    // SAFETY: the EAL runs, the name is terminated; the rest are numbers that DPDK checks.
    let raw = unsafe { sys::rte_ring_create_elem(c_name.as_ptr(), Owner::<T>::BYTES, count, node, flags) };
    let Some(raw) = NonNull::new(raw) else {
        return Err(RingError::Refused { name: name.to_owned(), count, error: RteError::last() });
    };
    let owner = Arc::new(Owner { raw, _elements: PhantomData, _eal: PhantomData });
    Ok((Sender(Arc::clone(&owner)), Receiver(owner)))
}

/// `SOCKET_ID_ANY` of DPDK: no preference.
const SOCKET_ID_ANY: i32 = -1;

/// The ring, as long as one of its ends is there.
struct Owner<'eal, T> {
    raw: NonNull<sys::rte_ring>,
    _elements: PhantomData<T>,
    _eal: PhantomData<&'eal ()>,
}

// SAFETY: the ring is memory that any thread may use, by one sender and one receiver at a time; elements change threads.
unsafe impl<T: Send> Send for Owner<'_, T> {}
// SAFETY: shared by the two ends only, each of which does its own half (`&mut self`), which DPDK's algorithm allows.
unsafe impl<T: Send> Sync for Owner<'_, T> {}

impl<T> Owner<'_, T> {
    /// Bytes of an element.
    #[allow(clippy::cast_possible_truncation)] // checked by the assertion
    const BYTES: u32 = {
        assert!(size_of::<T>() <= 1 << 16);
        size_of::<T>() as u32
    };

    /// Moves up to `max` elements to the end of `into`. For one caller at a time.
    fn receive(&self, into: &mut Vec<T>, max: usize) -> usize {
        let max = max.min(BURST_MAX);
        into.reserve(max);
        let room = into.spare_capacity_mut().as_mut_ptr();
        let wanted = u32::try_from(max).unwrap_or(0);
        // SAFETY: the ring is alive and has elements of this size; the caller sees to it that nobody else receives. DPDK
        // writes at most `wanted` elements, for which there is room.
        let count =
            unsafe { sys::shim_ring_sc_dequeue_burst(self.raw.as_ptr(), room.cast(), Self::BYTES, wanted) };
        // SAFETY: so many more elements are there, each one moved out of the ring, which forgets it.
        unsafe { into.set_len(into.len() + count as usize) };
        count as usize
    }
}

impl<T> Drop for Owner<'_, T> {
    fn drop(&mut self) {
        let mut left = Vec::new();
        while self.receive(&mut left, 64) > 0 {
            left.clear();
        }
        // SAFETY: both ends are gone, so nobody uses the ring, and the EAL still runs ('eal).
        unsafe { sys::rte_ring_free(self.raw.as_ptr()) };
    }
}

/// The only end that sends.
pub struct Sender<'eal, T: Send>(Arc<Owner<'eal, T>>);

/// The only end that receives.
pub struct Receiver<'eal, T: Send>(Arc<Owner<'eal, T>>);

impl<T: Send> Sender<'_, T> {
    /// Moves elements from the front of `elements` into the ring, as many as it has room for, and returns how many. The
    /// others stay in their order.
    #[inline]
    pub fn burst(&mut self, elements: &mut Vec<T>) -> usize {
        let total = elements.len();
        let start = elements.as_mut_ptr();
        let wanted = u32::try_from(total.min(BURST_MAX)).unwrap_or(0);
        let (ring, bytes) = (self.0.raw.as_ptr(), Owner::<T>::BYTES);
        // SAFETY: the ring is alive and has elements of this size; `&mut self` of the only sender makes this the only send.
        // DPDK reads `wanted` elements that we own, and the ring owns those that it says it took, which are the first ones.
        let sent = unsafe { sys::shim_ring_sp_enqueue_burst(ring, start.cast_const().cast(), bytes, wanted) }
            as usize;
        // SAFETY: the first `sent` elements are moved out: the rest goes to the front and the length leaves them out.
        unsafe {
            std::ptr::copy(start.add(sent), start, total - sent);
            elements.set_len(total - sent);
        }
        sent
    }
}

impl<T: Send> Receiver<'_, T> {
    /// Moves up to `max` elements from the ring to the end of `into` and returns how many.
    #[inline]
    pub fn burst(&mut self, into: &mut Vec<T>, max: usize) -> usize {
        self.0.receive(into, max)
    }

    /// Whether the sender is gone: what [`Receiver::burst`] finds after that is the last.
    pub fn is_closed(&self) -> bool {
        let alone = Arc::strong_count(&self.0) == 1;
        if alone {
            // The count was read relaxed. Acquire: pairs with the Release by which the sender's handle has left; what it sent
            // before that is there for our next burst.
            fence(Ordering::Acquire);
        }
        alone
    }
}

impl<T: Send> fmt::Debug for Sender<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.0.raw).finish()
    }
}

impl<T: Send> fmt::Debug for Receiver<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&self.0.raw).finish()
    }
}
