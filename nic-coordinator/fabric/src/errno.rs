//! libfabric's error numbers: those of the C library, and its own from 256 on.
#![allow(unsafe_code)] // Calls fi_strerror.

use std::ffi::{CStr, c_int};
use std::fmt;

use fabric_sys as sys;

/// An error number of libfabric, positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FiError(c_int);

impl FiError {
    /// Try again later: a queue is full, or there is nothing to read.
    pub const AGAIN: FiError = FiError(sys::FI_EAGAIN.cast_signed());
    /// The queue's next entry is an error.
    pub(crate) const AVAILABLE: FiError = FiError(sys::FI_EAVAIL.cast_signed());
    /// The peer said no, or nobody listens there.
    pub const REFUSED: FiError = FiError(libc::ECONNREFUSED);
    /// The operation was still waiting when its endpoint ended.
    pub const CANCELLED: FiError = FiError(libc::ECANCELED);

    /// A return value that is an error when negative.
    pub(crate) fn check(ret: impl Into<i64>) -> Result<usize, Self> {
        let ret = ret.into();
        usize::try_from(ret).map_err(|_| FiError(c_int::try_from(ret.saturating_neg()).unwrap_or(c_int::MAX)))
    }

    /// The error number of a completion or event, which is positive already.
    pub(crate) fn of_entry(err: c_int) -> Self {
        FiError(err.saturating_abs())
    }

    /// The number, positive.
    #[must_use]
    pub fn code(self) -> i32 {
        self.0
    }
}

impl fmt::Display for FiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: fi_strerror takes any number and returns a terminated string that stays as it is until this thread's next
        // call; it is copied out before that.
        let text = unsafe { CStr::from_ptr(sys::fi_strerror(self.0)) };
        write!(f, "{} (error {})", text.to_string_lossy(), self.0)
    }
}

impl fmt::Debug for FiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FiError({}: {self})", self.0)
    }
}

impl std::error::Error for FiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts() {
        assert_eq!(FiError::check(3), Ok(3));
        let error = FiError::check(-libc::ENODEV).unwrap_err();
        assert_eq!(error.code(), libc::ENODEV);
        assert_eq!(error.to_string(), format!("No such device (error {})", libc::ENODEV));
        assert_eq!(FiError::check(-libc::EAGAIN), Err(FiError::AGAIN));
        assert!(FiError::check(i64::MIN).unwrap_err().code() > 0);
    }
}
