//! The one place that names atomics (SPEC 1.2), so that the shipped code is the model-checked code.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// The cheap half of the asymmetric barrier (SPEC 6.2): keeps the compiler from reordering, and
/// relies on the sleeper's [`Heavy`] half to order this core's earlier stores before its later
/// loads. Under loom, which knows no asymmetric barriers, it is a full fence.
#[inline(always)]
pub fn light_barrier() {
    #[cfg(not(loom))]
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// A plain store to a byte that another thread may read-modify-write at the same moment. loom 0.7 does not put
/// the two in an order (afterwards either value may be read), so under loom it is a swap.
#[inline(always)]
pub fn store_against_rmw(byte: &AtomicU8, value: u8, order: Ordering) {
    #[cfg(not(loom))]
    byte.store(value, order);
    #[cfg(loom)]
    byte.swap(value, order);
}

/// The expensive half of the asymmetric barrier: when [`Heavy::heavy_barrier`] returns, every
/// core that runs a registered process has passed a full fence (membarrier(2),
/// `MEMBARRIER_CMD_GLOBAL_EXPEDITED`).
pub trait Heavy {
    /// Runs the barrier.
    fn heavy_barrier(&self);
}
