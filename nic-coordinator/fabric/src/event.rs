//! Event queues: what happens to connections.
#![allow(unsafe_code)] // Reads events.

use std::mem::{offset_of, zeroed};
use std::ptr::NonNull;

use fabric_sys as sys;

use crate::errno::FiError;
use crate::provider::{Domain, Info, Opened, check};

/// Bytes of private data that any provider may deliver.
const DATA_MAX: usize = 512;

/// What an event queue had.
pub(crate) enum Entry {
    /// An event of libfabric's, the endpoint that it would be for, and its private data.
    Event { event: u32, info: Option<Info>, data: Vec<u8> },
    /// Something failed; a peer that refused may have sent private data.
    Error { error: FiError, data: Vec<u8> },
}

pub(crate) fn open(domain: &Domain) -> Result<Opened<sys::fid_eq>, FiError> {
    // SAFETY: all zero is a valid description; it is completed below.
    let mut attr: sys::fi_eq_attr = unsafe { zeroed() };
    attr.size = 16;
    attr.wait_obj = sys::FI_WAIT_FD;
    let mut eq = std::ptr::null_mut();
    // SAFETY: an open fabric.
    check(unsafe { sys::shim_eq_open(domain.fabric.as_ptr(), &raw mut attr, &raw mut eq) })?;
    Opened::new(eq).ok_or(FiError::of_entry(0))
}

/// The next event, without waiting.
pub(crate) fn read(eq: NonNull<sys::fid_eq>) -> Result<Option<Entry>, FiError> {
    const DATA_AT: usize = offset_of!(sys::fi_eq_cm_entry, data);
    // Words, so that the entry at its start is aligned.
    let mut room = [0_u64; (DATA_AT + DATA_MAX) / 8];
    let mut event = 0;
    // SAFETY: an open queue, and room of that size.
    let got = unsafe {
        sys::shim_eq_read(eq.as_ptr(), &raw mut event, room.as_mut_ptr().cast(), size_of_val(&room))
    };
    match FiError::check(i64::try_from(got).unwrap_or(-1)) {
        Ok(bytes) => {
            let room = room.as_mut_ptr();
            // SAFETY: an entry begins there; of events without a description the pointer is null.
            let info = unsafe { Info::from_raw((*room.cast::<sys::fi_eq_cm_entry>()).info) };
            let len = bytes.min(DATA_AT + DATA_MAX).saturating_sub(DATA_AT);
            // SAFETY: inside of the room, which is initialised.
            let data = unsafe { std::slice::from_raw_parts(room.cast::<u8>().add(DATA_AT), len) }.to_vec();
            Ok(Some(Entry::Event { event, info, data }))
        }
        Err(FiError::AGAIN) => Ok(None),
        Err(FiError::AVAILABLE) => read_error(eq).map(Some),
        Err(error) => Err(error),
    }
}

fn read_error(eq: NonNull<sys::fid_eq>) -> Result<Entry, FiError> {
    let mut data = [0_u8; DATA_MAX];
    // SAFETY: all zero is a valid entry.
    let mut entry: sys::fi_eq_err_entry = unsafe { zeroed() };
    entry.err_data = data.as_mut_ptr().cast();
    entry.err_data_size = data.len();
    // SAFETY: an open queue; the provider copies private data into the room that the entry names.
    FiError::check(unsafe { sys::shim_eq_readerr(eq.as_ptr(), &raw mut entry) } as i64)?;
    let len = entry.err_data_size.min(data.len());
    Ok(Entry::Error { error: FiError::of_entry(entry.err), data: data[..len].to_vec() })
}
