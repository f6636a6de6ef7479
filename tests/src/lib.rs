//! What the end-to-end suites share.
//!
//! | module | what it does |
//! |---|---|
//! | [`bins`] | finds the product's binaries and the system's programs |
//! | [`instance`] | an IPC-Direct of one's own: agent, emulated card, nobody else's clients |
//! | [`counters`] | what `ipc-direct ps --json` says |
//! | [`child`] | processes with a bound on every wait, killed by pid when dropped |
//! | [`census`] | what exists on the machine, to compare before and after |
//! | [`net`] | free ports, waiting for a listener |
//! | [`guest`] | machines of QEMU |
//! | [`hosts`] | what `ipc-direct status --json` says |
//! | [`lab`] | several hosts on this machine, of one's own |
//! | [`scratch`] | a directory of one's own |
//! | [`redis`] | redis servers of one's own |
//! | [`voice`] | programs of ours that say what they do |
//! | [`transfer`] | a transfer that runs until somebody dies |
//! | [`wire`] | one socket call as data, for the conformance workers |
//! | [`worker`] | starts those workers and talks to them |
//! | [`watchdog`] | ends a test that hangs, and prints why |
//! | [`suite`] | runs a list of tests and reports |

pub mod bins;
pub mod census;
pub mod child;
pub mod counters;
pub mod guest;
pub mod hosts;
pub mod instance;
pub mod lab;
pub mod net;
pub mod redis;
pub mod scratch;
pub mod suite;
pub mod transfer;
pub mod voice;
pub mod watchdog;
pub mod wire;
pub mod worker;

/// What went wrong in a test, as one text for people.
#[derive(Debug)]
pub struct Failure(pub String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(e: E) -> Self {
        Failure(e.to_string())
    }
}

/// Outcome of a test or a step of it.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Fails with a text.
///
/// # Errors
/// Always: that is its purpose.
pub fn fail<T>(text: impl Into<String>) -> Outcome<T> {
    Err(Failure(text.into()))
}

/// Fails with `text` unless `condition` holds.
///
/// # Errors
/// When `condition` is false.
pub fn ensure(condition: bool, text: impl FnOnce() -> String) -> Outcome {
    if condition { Ok(()) } else { Err(Failure(text())) }
}
