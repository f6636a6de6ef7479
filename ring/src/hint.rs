//! Which lines are wanted soon: what nobody has asked for yet comes over while something else is done. Hints change nothing, and are no
//! access: any address will do.
//!
//! `unsafe` is allowed here for the instructions.
#![allow(unsafe_code)]

/// The line of `place` will be read.
#[inline(always)]
pub fn will_read<T>(place: *const T) {
    // SAFETY: a hint, which faults at no address.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("prefetcht0 [{}]", in(reg) place, options(nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        core::arch::asm!("prfm pldl1keep, [{}]", in(reg) place, options(nostack, preserves_flags));
    }
    let _ = place;
}

/// The line of `place` will be written.
#[inline(always)]
pub fn will_write<T>(place: *const T) {
    // SAFETY: as above.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        core::arch::asm!("prfm pstl1keep, [{}]", in(reg) place, options(nostack, preserves_flags));
    }
    let _ = place;
}
