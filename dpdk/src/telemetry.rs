//! Commands of DPDK's telemetry socket.
//!
//! A command is a path like `/coordinator/stats`. Whoever connects to the socket in
//! [`Eal::runtime_dir`](crate::eal::Eal::runtime_dir), for example `dpdk-telemetry.py` (Debian: `dpdk-dev`), and
//! sends that path gets the handler's [`Reply`] as JSON: `{"/coordinator/stats": {...}}`.
//!
//! ```
//! use dpdk::telemetry::{self, Reply, Value};
//!
//! telemetry::register("/example/answer", "Returns the answer. Takes no parameters.", |_parameters| {
//!     Reply::Dict(vec![("answer".into(), Value::Number(42)), ("unit".into(), Value::Text("none".into()))])
//! })?;
//! # Ok::<(), telemetry::RegisterError>(())
//! ```
//!
//! DPDK cannot unregister a command nor pass a closure's data along, so handlers stay in a table of this module until the
//! process ends. Registering works before and after `Eal::init`; the socket exists while the EAL runs (and not with
//! `--no-telemetry`).
#![allow(unsafe_code)] // A C callback, and building the reply in DPDK's structure.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dpdk_sys as sys;
use thiserror::Error;

use crate::errno::RteError;

/// What a command answers.
///
/// DPDK's limits: 256 entries in a dict, 512 in an array, 127 bytes in a string inside a dict or array (longer ones
/// are cut), 8191 in a text, 16 KiB of JSON altogether. A reply with too many entries is answered by
/// `{"error": "..."}` instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// One string.
    Text(String),
    /// Names and values, in this order. Names consist of letters, digits, `_` and `/`.
    Dict(Vec<(String, Value)>),
    /// An array of numbers.
    Numbers(Vec<u64>),
    /// An array of strings.
    Texts(Vec<String>),
}

/// A value in a [`Reply::Dict`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// A string.
    Text(String),
    /// An array of numbers.
    Numbers(Vec<u64>),
    /// An array of strings.
    Texts(Vec<String>),
    /// A dict inside the dict.
    Dict(Vec<(String, Value)>),
}

/// Why a command could not be registered.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RegisterError {
    /// Not a command name for DPDK.
    #[error(
        "\"{0}\" cannot be a telemetry command: it must start with / and have at most 55 bytes, without comma or zero byte"
    )]
    Command(String),
    /// Not a help text for DPDK.
    #[error("the help text of telemetry command {0} is too long: at most 127 bytes, without zero byte")]
    Help(String),
    /// A command of this name was registered here before.
    #[error("telemetry command {0} is registered already")]
    Taken(String),
    /// DPDK has no room for more commands.
    #[error("DPDK does not take telemetry command {command}: {error}")]
    Refused {
        /// The command.
        command: String,
        /// DPDK's reason.
        error: RteError,
    },
}

type Handler = Arc<dyn Fn(&str) -> Reply + Send + Sync>;

/// All handlers by command. DPDK knows only [`answer`], which looks here.
static HANDLERS: Mutex<BTreeMap<String, Handler>> = Mutex::new(BTreeMap::new());

fn handlers() -> MutexGuard<'static, BTreeMap<String, Handler>> {
    HANDLERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// DPDK's sizes of the fields for command and help text, terminating zero included.
const COMMAND_BYTES: usize = 56;
const HELP_BYTES: usize = 128;

/// Adds a command for the rest of the process's life. `help` is what `/help,COMMAND` answers.
///
/// `handler` gets what follows the comma in `COMMAND,PARAMETERS`, or the empty string. It is called on telemetry
/// threads, several at once when several clients ask: it should read counters and return.
///
/// # Errors
/// [`RegisterError`]; nothing is registered then.
pub fn register(
    command: &str,
    help: &str,
    handler: impl Fn(&str) -> Reply + Send + Sync + 'static,
) -> Result<(), RegisterError> {
    let bad_command = || RegisterError::Command(command.to_owned());
    if !command.starts_with('/') || command.contains(',') || command.len() >= COMMAND_BYTES {
        return Err(bad_command());
    }
    let c_command = CString::new(command).map_err(|_| bad_command())?;
    let bad_help = || RegisterError::Help(command.to_owned());
    let c_help = CString::new(help).map_err(|_| bad_help())?;
    if help.len() >= HELP_BYTES {
        return Err(bad_help());
    }

    // Held over DPDK's call, so that a command is in both tables or in none. DPDK never calls `answer` with its own
    // lock held, so the two locks are always taken in this order.
    let mut table = handlers();
    if table.contains_key(command) {
        return Err(RegisterError::Taken(command.to_owned()));
    }
    // SAFETY: both strings are terminated and copied by DPDK; `answer` has the signature of a telemetry callback and
    // lives for ever. Needs no running EAL.
    let ret = unsafe { sys::rte_telemetry_register_cmd(c_command.as_ptr(), Some(answer), c_help.as_ptr()) };
    RteError::check(ret).map_err(|error| RegisterError::Refused { command: command.to_owned(), error })?;
    table.insert(command.to_owned(), Arc::new(handler));
    Ok(())
}

/// DPDK's callback for all commands. Returns 0, or a negative number for the answer `null`.
unsafe extern "C" fn answer(
    command: *const c_char,
    parameters: *const c_char,
    reply: *mut sys::rte_tel_data,
) -> c_int {
    let text = |pointer: *const c_char| match pointer.is_null() {
        true => String::new(),
        // SAFETY: DPDK passes null or a terminated string that is constant during the callback.
        false => unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned(),
    };
    let (command, parameters) = (text(command), text(parameters));
    let Some(handler) = handlers().get(&command).cloned() else {
        return -libc::ENOENT;
    };
    // Nothing may unwind into DPDK.
    let result = catch_unwind(AssertUnwindSafe(|| handler(&parameters)));
    let built = match result {
        // SAFETY: DPDK passes an empty structure that is ours until the callback returns.
        Ok(content) => unsafe { fill(reply, &content) },
        Err(_) => Err("the command's handler panicked".to_owned()),
    };
    let Err(reason) = built else { return 0 };
    let error = Reply::Dict(vec![("error".into(), Value::Text(reason))]);
    // SAFETY: as above; starting a dict discards what was begun.
    match unsafe { fill(reply, &error) } {
        Ok(()) => 0,
        Err(_) => -libc::EINVAL,
    }
}

/// Writes `content` into DPDK's structure, or says why it does not fit.
///
/// # Safety
/// `data` is a live structure from DPDK that nobody else uses meanwhile.
unsafe fn fill(data: *mut sys::rte_tel_data, content: &Reply) -> Result<(), String> {
    // SAFETY: passed on from the caller.
    unsafe {
        match content {
            Reply::Text(text) => added("a text", sys::rte_tel_data_string(data, c_string(text).as_ptr())),
            Reply::Dict(entries) => fill_dict(data, entries),
            Reply::Numbers(numbers) => fill_numbers(data, numbers),
            Reply::Texts(texts) => fill_texts(data, texts),
        }
    }
}

/// # Safety
/// As [`fill`].
unsafe fn fill_numbers(data: *mut sys::rte_tel_data, numbers: &[u64]) -> Result<(), String> {
    // SAFETY: passed on from the caller; the array's type is that of what is added.
    unsafe {
        added("an array", sys::rte_tel_data_start_array(data, sys::rte_tel_value_type_RTE_TEL_U64_VAL))?;
        numbers.iter().try_for_each(|&n| added("a number", sys::rte_tel_data_add_array_u64(data, n)))
    }
}

/// # Safety
/// As [`fill`].
unsafe fn fill_texts(data: *mut sys::rte_tel_data, texts: &[String]) -> Result<(), String> {
    // SAFETY: passed on from the caller; the array's type is that of what is added; strings are copied.
    unsafe {
        added("an array", sys::rte_tel_data_start_array(data, sys::rte_tel_value_type_RTE_TEL_STRING_VAL))?;
        texts.iter().try_for_each(|text| {
            added("a string", sys::rte_tel_data_add_array_string(data, c_string(text).as_ptr()))
        })
    }
}

/// # Safety
/// As [`fill`].
unsafe fn fill_dict(data: *mut sys::rte_tel_data, entries: &[(String, Value)]) -> Result<(), String> {
    // SAFETY: passed on from the caller; names and strings are copied.
    unsafe {
        added("a dict", sys::rte_tel_data_start_dict(data))?;
        for (name, value) in entries {
            let c_name = c_string(name);
            let key = c_name.as_ptr();
            match value {
                Value::Number(n) => added(name, sys::rte_tel_data_add_dict_u64(data, key, *n))?,
                Value::Text(text) => {
                    added(name, sys::rte_tel_data_add_dict_string(data, key, c_string(text).as_ptr()))?;
                }
                Value::Numbers(numbers) => add_inner(data, key, name, |inner| fill_numbers(inner, numbers))?,
                Value::Texts(texts) => add_inner(data, key, name, |inner| fill_texts(inner, texts))?,
                Value::Dict(inner_entries) => {
                    add_inner(data, key, name, |inner| fill_dict(inner, inner_entries))?;
                }
            }
        }
    }
    Ok(())
}

/// Builds an inner container with `build` and adds it to the dict `data` under `key`.
///
/// # Safety
/// As [`fill`]; `key` is a terminated string.
unsafe fn add_inner(
    data: *mut sys::rte_tel_data,
    key: *const c_char,
    name: &str,
    build: impl FnOnce(*mut sys::rte_tel_data) -> Result<(), String>,
) -> Result<(), String> {
    // SAFETY: needs nothing; null means out of memory.
    let inner = unsafe { sys::rte_tel_data_alloc() };
    if inner.is_null() {
        return Err(format!("out of memory at \"{name}\""));
    }
    let result = build(inner).and_then(|()| {
        // SAFETY: `inner` is complete; with keep = 0 DPDK frees it after the answer, if it takes it.
        added(name, unsafe { sys::rte_tel_data_add_dict_container(data, key, inner, 0) })
    });
    if result.is_err() {
        // SAFETY: DPDK did not take it, so it is still ours.
        unsafe { sys::rte_tel_data_free(inner) };
    }
    result
}

/// What DPDK's add functions return, with a cut string (`E2BIG`) counted as success.
fn added(what: &str, ret: c_int) -> Result<(), String> {
    match RteError::check(ret) {
        Ok(_) => Ok(()),
        Err(error) if error.code() == libc::E2BIG => Ok(()),
        Err(error) => Err(format!("cannot answer with \"{what}\": {error}")),
    }
}

/// Up to the first zero byte.
fn c_string(text: &str) -> CString {
    let end = text.find('\0').unwrap_or(text.len());
    CString::new(&text[..end]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &str) -> Reply {
        Reply::Numbers(Vec::new())
    }

    #[test]
    fn names_and_help_are_checked() {
        let long = format!("/{}", "x".repeat(COMMAND_BYTES - 1));
        for bad in ["", "no_slash", "/with,comma", "/zero\0", long.as_str()] {
            assert_eq!(register(bad, "help", nothing), Err(RegisterError::Command(bad.to_owned())));
        }
        let help = "x".repeat(HELP_BYTES);
        assert_eq!(register("/unit/help", &help, nothing), Err(RegisterError::Help("/unit/help".into())));
        assert_eq!(register("/unit/help", &help[1..], nothing), Ok(()));
        assert_eq!(register(&long[1..].replacen('x', "/", 1), "", nothing), Ok(()));
    }

    #[test]
    fn a_command_is_registered_once() {
        assert_eq!(register("/unit/once", "", nothing), Ok(()));
        assert_eq!(register("/unit/once", "", nothing), Err(RegisterError::Taken("/unit/once".into())));
    }
}
