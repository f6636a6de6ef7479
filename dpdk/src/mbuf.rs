//! Packet buffers and the pools they come from.
//!
//! A [`PktPool`] is made once, at the start; buffers are taken from it without a system call and go back when the
//! [`Mbuf`] is dropped, or when a driver has sent it.
#![allow(unsafe_code)] // Owns buffers by raw pointer and makes slices of their data.

use std::ffi::{CString, NulError};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

use dpdk_sys as sys;
use thiserror::Error;

use crate::eal::Eal;
use crate::errno::RteError;

/// Why there is no such pool.
#[derive(Debug, Error)]
pub enum PoolError {
    /// The name holds a zero byte.
    #[error("a pool's name cannot contain a zero byte ({0})")]
    Name(#[from] NulError),
    /// More data bytes than the headroom leaves of 64 KiB.
    #[error("buffers of {0} bytes are too large: at most {max} fit", max = u16::MAX - headroom())]
    DataRoom(u16),
    /// DPDK's refusal: not enough memory (raise `-m`), a cache over 512 or over two thirds of the count, a name
    /// that is taken or too long.
    #[error("cannot make the pool \"{name}\" of {count} buffers: {error}")]
    Refused {
        /// The pool's name.
        name: String,
        /// The buffers asked for.
        count: u32,
        /// DPDK's reason.
        error: RteError,
    },
}

/// No buffer is left in the pool.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("the packet pool is empty: make it larger, or free buffers sooner")]
pub struct PoolEmpty;

/// The data does not fit behind what is already in the buffer.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("{wanted} bytes do not fit into the packet buffer: {free} are free")]
pub struct NoRoom {
    /// Bytes to be appended.
    pub wanted: usize,
    /// Bytes that would have fitted.
    pub free: usize,
}

/// A pool of packet buffers of one size. A handle to be copied around: the pool itself lives until the EAL ends,
/// as drivers may hold its buffers until then.
///
/// Any thread may use it. EAL threads go through a small cache of their own, others take every buffer from the
/// shared store, which is slower.
#[derive(Clone, Copy)]
pub struct PktPool<'eal> {
    raw: NonNull<sys::rte_mempool>,
    _eal: PhantomData<&'eal ()>,
}

// SAFETY: a pktmbuf pool is multi-producer and multi-consumer, its caches are per lcore, and it is freed by nobody
// before the EAL ends, which 'eal outlives.
unsafe impl Send for PktPool<'_> {}
// SAFETY: as above.
unsafe impl Sync for PktPool<'_> {}

impl<'eal> PktPool<'eal> {
    /// Makes a pool called `name` (at most 25 bytes, unique in the process) of `count` buffers, best one less than a
    /// power of two, of which every lcore caches up to `cache` (0: none; at most 512 and two thirds of `count`).
    /// Each buffer has `data_room` bytes for a packet: 2048 for Ethernet without jumbo frames. The memory is on the
    /// main lcore's NUMA node.
    ///
    /// # Errors
    /// [`PoolError`]; nothing is left behind.
    pub fn new(
        eal: &'eal Eal,
        name: &str,
        count: u32,
        cache: u32,
        data_room: u16,
    ) -> Result<PktPool<'eal>, PoolError> {
        let c_name = CString::new(name)?;
        let room = data_room.checked_add(headroom()).ok_or(PoolError::DataRoom(data_room))?;
        let node = i32::try_from(eal.main_lcore().numa_node).unwrap_or(SOCKET_ID_ANY);
        // SAFETY: the EAL runs; the name is copied by DPDK; the other arguments are checked by it.
        let raw = unsafe { sys::rte_pktmbuf_pool_create(c_name.as_ptr(), count, cache, 0, room, node) };
        match NonNull::new(raw) {
            Some(raw) => Ok(Self { raw, _eal: PhantomData }),
            None => Err(PoolError::Refused { name: name.to_owned(), count, error: RteError::last() }),
        }
    }

    /// Takes an empty buffer.
    ///
    /// # Errors
    /// [`PoolEmpty`] when all are in use or in other lcores' caches.
    pub fn alloc(&self) -> Result<Mbuf<'eal>, PoolEmpty> {
        // SAFETY: the pool is alive (see the struct); the buffer returned is owned by nobody else.
        let raw = unsafe { sys::shim_pktmbuf_alloc(self.raw.as_ptr()) };
        NonNull::new(raw).map(|raw| Mbuf { raw, _eal: PhantomData }).ok_or(PoolEmpty)
    }

    /// The buffers that are free now, caches included. Walks the caches of all lcores: not for the hot path, and
    /// only a hint while other threads use the pool.
    pub fn available(&self) -> u32 {
        // SAFETY: the pool is alive; the call only reads.
        unsafe { sys::rte_mempool_avail_count(self.raw.as_ptr()) }
    }

    /// The buffers that are not free now: owned as [`Mbuf`] or held by a driver. As [`PktPool::available`].
    pub fn in_use(&self) -> u32 {
        // SAFETY: the pool is alive; the call only reads.
        unsafe { sys::rte_mempool_in_use_count(self.raw.as_ptr()) }
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.raw.as_ptr()
    }
}

impl fmt::Debug for PktPool<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PktPool").field("available", &self.available()).finish_non_exhaustive()
    }
}

/// DPDK's "no particular NUMA node".
const SOCKET_ID_ANY: i32 = -1;

/// The bytes before the data that DPDK keeps in every buffer for headers to come.
fn headroom() -> u16 {
    // SAFETY: a constant of the library shim.
    unsafe { sys::shim_mbuf_headroom }
}

/// A packet buffer, owned. Dropping it gives it back to its pool.
///
/// A packet that a driver received into several buffers is one `Mbuf` with several segments: [`Mbuf::data`] shows
/// the first, [`Mbuf::packet_len`] counts all. Queues made by this crate do not scatter.
#[repr(transparent)]
pub struct Mbuf<'eal> {
    raw: NonNull<sys::rte_mbuf>,
    _eal: PhantomData<&'eal ()>,
}

// SAFETY: the buffer belongs to this value alone (reference count 1, never cloned or attached here), and its pool
// takes it back from any thread.
unsafe impl Send for Mbuf<'_> {}
// SAFETY: shared access only reads.
unsafe impl Sync for Mbuf<'_> {}

impl Mbuf<'_> {
    /// The packet's bytes (of the first segment).
    pub fn data(&self) -> &[u8] {
        // SAFETY: data_len bytes from the data pointer are inside the buffer, initialised (DPDK's memory starts as
        // zeroes) and nobody else's; they are borrowed as long as `self`.
        unsafe { std::slice::from_raw_parts(sys::shim_pktmbuf_data(self.raw.as_ptr()), self.len()) }
    }

    /// The packet's bytes (of the first segment), to be changed.
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`; `self` is borrowed mutably, so there is no other slice.
        unsafe { std::slice::from_raw_parts_mut(sys::shim_pktmbuf_data(self.raw.as_ptr()), self.len()) }
    }

    /// Length of [`Mbuf::data`] in bytes.
    pub fn len(&self) -> usize {
        // SAFETY: reads a field of a buffer we own.
        usize::from(unsafe { sys::shim_pktmbuf_data_len(self.raw.as_ptr()) })
    }

    /// Whether there is no data in the first segment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole packet's length in bytes, all segments together.
    pub fn packet_len(&self) -> usize {
        // SAFETY: reads a field of a buffer we own. usize has at least 32 bits on every DPDK platform.
        (unsafe { sys::shim_pktmbuf_pkt_len(self.raw.as_ptr()) }) as usize
    }

    /// The number of segments, 1 unless a driver scattered the packet.
    pub fn segments(&self) -> u16 {
        // SAFETY: reads a field of a buffer we own.
        unsafe { sys::shim_pktmbuf_segments(self.raw.as_ptr()) }
    }

    /// The bytes that can still be appended.
    pub fn tailroom(&self) -> usize {
        // SAFETY: reads fields of the segments we own.
        usize::from(unsafe { sys::shim_pktmbuf_tailroom(self.raw.as_ptr()) })
    }

    /// Copies `bytes` behind the packet's last byte.
    ///
    /// # Errors
    /// [`NoRoom`] when they do not fit; the packet is unchanged then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), NoRoom> {
        let no_room = NoRoom { wanted: bytes.len(), free: self.tailroom() };
        let len = u16::try_from(bytes.len()).map_err(|_| no_room)?;
        // SAFETY: we own the buffer; DPDK checks the tailroom and returns null when it is too small.
        let start =
            NonNull::new(unsafe { sys::shim_pktmbuf_append(self.raw.as_ptr(), len) }).ok_or(no_room)?;
        // SAFETY: `start` begins `len` bytes inside a buffer that we own, so they do not overlap `bytes`, which
        // is borrowed from elsewhere: a borrow of this buffer would exclude `&mut self`.
        unsafe { start.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        Ok(())
    }
}

impl Drop for Mbuf<'_> {
    fn drop(&mut self) {
        // SAFETY: we own the buffer and give it up here; its pool lives as long as the EAL, which 'eal outlives.
        unsafe { sys::shim_pktmbuf_free(self.raw.as_ptr()) };
    }
}

impl fmt::Debug for Mbuf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mbuf")
            .field("packet_len", &self.packet_len())
            .field("segments", &self.segments())
            .finish_non_exhaustive()
    }
}
