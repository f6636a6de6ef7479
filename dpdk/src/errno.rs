//! DPDK's error numbers.
//!
//! DPDK reports an error either as a negative return value or as a null pointer plus the thread-local `rte_errno`.
//! Both become an [`RteError`] here, which prints what `rte_strerror` says.
#![allow(unsafe_code)] // Calls rte_strerror and reads rte_errno.

use std::ffi::{CStr, c_int};
use std::fmt;

use dpdk_sys as sys;

/// An error number of DPDK: a positive `errno` value or one of DPDK's own (`E_RTE_*`, above 1000).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RteError(c_int);

impl RteError {
    /// What the last failed DPDK call of this thread left in `rte_errno`.
    pub fn last() -> Self {
        // SAFETY: reads a thread-local integer; allowed at any time, also before `rte_eal_init`.
        Self(unsafe { sys::shim_errno() })
    }

    /// A return value that is an error when negative: `-EINVAL` becomes `Err(EINVAL)`.
    pub(crate) fn check(ret: c_int) -> Result<c_int, Self> {
        if ret < 0 { Err(Self(ret.saturating_neg())) } else { Ok(ret) }
    }

    /// The number, positive. Zero when DPDK failed without saying why.
    pub fn code(self) -> i32 {
        self.0
    }
}

impl fmt::Display for RteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("DPDK gave no reason");
        }
        // SAFETY: rte_strerror takes any number and returns a terminated string in a buffer of this thread, which
        // stays as it is until this thread's next call; it is copied out before that.
        let text = unsafe { CStr::from_ptr(sys::rte_strerror(self.0)) };
        write!(f, "{} (error {})", text.to_string_lossy(), self.0)
    }
}

impl fmt::Debug for RteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RteError({}: {self})", self.0)
    }
}

impl std::error::Error for RteError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts() {
        assert_eq!(RteError::check(3), Ok(3));
        let error = RteError::check(-libc::ENODEV).unwrap_err();
        assert_eq!(error.code(), libc::ENODEV);
        assert_eq!(error.to_string(), format!("No such device (error {})", libc::ENODEV));
        assert_eq!(RteError(0).to_string(), "DPDK gave no reason");
        assert!(RteError::check(c_int::MIN).unwrap_err().code() > 0);
    }
}
