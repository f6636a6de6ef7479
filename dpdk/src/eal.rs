//! The environment abstraction layer: DPDK's start and end.
//!
//! There is one EAL per process, started once. [`Eal`] owns it: everything else in this crate borrows from it
//! (`'eal`), so that nothing of DPDK is left in use when `rte_eal_cleanup` unmaps its memory.
#![allow(unsafe_code)] // Calls rte_eal_init, rte_eal_cleanup and getters that need a running EAL.

use std::ffi::{CStr, CString, NulError, OsStr, c_char, c_int};
use std::io;
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Mutex;

use dpdk_sys as sys;
use thiserror::Error;

use crate::affinity::Affinity;
use crate::errno::RteError;
use crate::ethdev;

/// Whether `rte_eal_init` was called in this process. DPDK cannot be started again, not even after a failure or
/// `rte_eal_cleanup`.
static STARTED: Mutex<bool> = Mutex::new(false);

/// Why the EAL did not start.
#[derive(Debug, Error)]
pub enum EalError {
    /// `Eal::init` was called before in this process, with whatever result.
    #[error("the EAL can be started only once per process: start another process")]
    AlreadyStarted,
    /// No argument at all.
    #[error("the EAL arguments are empty: the first one must be the program's name")]
    NoProgramName,
    /// An argument holds a zero byte, which C cannot pass on.
    #[error("an EAL argument contains a zero byte: remove it ({0})")]
    ZeroByte(#[from] NulError),
    /// More arguments than a C int counts.
    #[error("there are too many EAL arguments ({0})")]
    TooMany(usize),
    /// The CPU affinity before the start could not be read.
    #[error("cannot read this thread's CPU affinity: {0}")]
    Affinity(#[source] io::Error),
    /// DPDK refused. It has written its reason to stderr.
    #[error(
        "DPDK's EAL did not start: {0}; see the lines starting with EAL: above, and check the EAL options"
    )]
    Refused(#[source] RteError),
}

/// The running EAL. Dropping it closes all Ethernet ports and ends DPDK in this process.
///
/// It stays on the thread that made it (DPDK's main lcore); pools, ports and queues may go to others:
///
/// ```compile_fail,E0277
/// # let (eal, _) = dpdk::eal::Eal::init(["prog"]).unwrap();
/// std::thread::spawn(move || drop(eal));
/// ```
///
/// Drop it last, right before the process ends: DPDK's telemetry threads cannot be stopped, and a client who asks for
/// one of DPDK's own commands that look into its memory (`/mempool/list`) after the EAL's end crashes the process (seen
/// with 22.11.11). Commands of [`telemetry`](crate::telemetry) go on being answered.
///
/// Nothing of DPDK outlives it:
///
/// ```compile_fail,E0505
/// # let (eal, _) = dpdk::eal::Eal::init(["prog"]).unwrap();
/// let pool = dpdk::mbuf::PktPool::new(&eal, "packets", 1023, 32, 2048).unwrap();
/// let packet = pool.alloc().unwrap();
/// drop(eal);
/// drop(packet);
/// ```
#[derive(Debug)]
pub struct Eal {
    original_affinity: Affinity,
    /// Not `Send`, not `Sync`: cleanup and launching belong to the main lcore.
    _main_lcore_only: PhantomData<*mut ()>,
}

impl Eal {
    /// Starts DPDK with `args`, as a C program does with its `argv`: the program's name first, then EAL options,
    /// then perhaps `--` and the program's own arguments.
    ///
    /// Returns the EAL and how many of `args` it has taken: `args[consumed]` is the `--` (or the last EAL option),
    /// which takes the place of the program's name for whoever parses the rest with `args.skip(consumed)`.
    ///
    /// The calling thread is pinned to the main lcore's CPU, and threads started from it inherit that: see
    /// [`Eal::original_affinity`]. DPDK writes its messages to stderr, and with `--help` it prints its options and
    /// ends the process.
    ///
    /// A device whose probe fails (`--vdev=net_af_packet0,iface=missing`) is not an error here, only a driver that
    /// does not exist is: look ports up by name.
    ///
    /// # Errors
    /// [`EalError`]; after any failure of DPDK itself the process cannot try again.
    pub fn init<A: Into<String>>(args: impl IntoIterator<Item = A>) -> Result<(Self, usize), EalError> {
        let args = args.into_iter().map(|arg| CString::new(arg.into())).collect::<Result<Vec<_>, _>>()?;
        if args.is_empty() {
            return Err(EalError::NoProgramName);
        }
        let argc = c_int::try_from(args.len()).map_err(|_| EalError::TooMany(args.len()))?;
        let original_affinity = Affinity::of_this_thread().map_err(EalError::Affinity)?;

        let mut started = STARTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if std::mem::replace(&mut *started, true) {
            return Err(EalError::AlreadyStarted);
        }
        // DPDK keeps pointers into argv for the life of the process, and permutes the array: both are leaked, once.
        let mut argv: Vec<*mut c_char> = args.into_iter().map(CString::into_raw).collect();
        argv.push(std::ptr::null_mut());
        let argv = Vec::leak(argv);
        // SAFETY: argv holds argc writable, terminated strings and a null, all of which live for ever; STARTED makes
        // this the only call in this process.
        let taken = unsafe { sys::rte_eal_init(argc, argv.as_mut_ptr()) };
        match usize::try_from(taken) {
            Ok(consumed) => Ok((Self { original_affinity, _main_lcore_only: PhantomData }, consumed)),
            Err(_) => {
                // A refused start leaves the caller's thread pinned; undoing that is a courtesy that may fail.
                let error = RteError::last();
                let _ = original_affinity.apply_to_this_thread();
                Err(EalError::Refused(error))
            }
        }
    }

    /// The CPUs this thread was allowed before [`Eal::init`] pinned it. Apply it in helper threads, which inherit
    /// the pinning otherwise.
    pub fn original_affinity(&self) -> Affinity {
        self.original_affinity
    }

    /// Whether DPDK's memory is on huge pages (false with `--no-huge`).
    pub fn has_hugepages(&self) -> bool {
        // SAFETY: reads a setting of the running EAL.
        unsafe { sys::rte_eal_has_hugepages() != 0 }
    }

    /// Where this instance keeps its sockets, for example `/var/run/dpdk/rte`: the telemetry socket is
    /// `dpdk_telemetry.v2` in it, or `dpdk_telemetry.v2:1` and so on when another instance has that name already.
    ///
    /// For root it is `/var/run/dpdk/PREFIX`, for others `$XDG_RUNTIME_DIR/dpdk/PREFIX`, with PREFIX from
    /// `--file-prefix` (`rte` without). Without `XDG_RUNTIME_DIR` it is `/tmp/dpdk/PREFIX`, where `/tmp/dpdk` belongs
    /// to the first user who came: set the variable.
    pub fn runtime_dir(&self) -> PathBuf {
        // SAFETY: the EAL runs, so the string is set, terminated and constant until the process ends.
        let dir = unsafe { CStr::from_ptr(sys::rte_eal_get_runtime_dir()) };
        PathBuf::from(OsStr::from_bytes(dir.to_bytes()))
    }
}

impl Drop for Eal {
    fn drop(&mut self) {
        ethdev::close_all();
        // SAFETY: this is the main lcore's thread (Eal is not Send), no lcore runs a job (LcoreScope waits for all),
        // and nothing that borrows from the EAL is left.
        unsafe { sys::rte_eal_cleanup() };
    }
}

/// The version of the DPDK that is linked, for example `DPDK 22.11.11`.
pub fn version() -> String {
    // SAFETY: returns a constant, terminated string.
    unsafe { CStr::from_ptr(sys::rte_version()) }.to_string_lossy().into_owned()
}
