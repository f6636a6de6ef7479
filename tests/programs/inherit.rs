//! Connections that other programs inherit or are sent: exec in all its forms, static programs, `SCM_RIGHTS`. What the
//! script says must be the same on the kernel.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::child::run_ok;
use harness::{Outcome, bins, ensure};

use crate::with_instance;

const BOUND: Duration = Duration::from_secs(60);

/// Ways that keep a connection in user space all the time, and so many bytes at least.
const ACCELERATED: &[(&str, u64)] = &[
    ("fork_exec", 1_000_000),
    ("spawn", 1_000_000),
    ("vfork", 1_000_000),
    ("exec_both_ends", 12),
    ("close_on_exec", 7),
    ("system", 20),
    ("listener", 20),
];

/// Ways in which a program without the shim takes part, or might: its side goes through a relay or the kernel.
const RELAYED: &[(&str, u64)] = &[
    ("static", 1_000_000),
    ("static_is_killed", 10),
    ("static_listener", 0),
    ("rights", 1_000_000),
    ("rights_of_a_listener", 0),
    ("fork_before_connect", 0),
];

pub fn by_programs_with_the_shim() -> Outcome {
    each(ACCELERATED)
}

pub fn by_programs_without() -> Outcome {
    each(RELAYED)
}

fn each(ways: &[(&str, u64)]) -> Outcome {
    with_instance(|instance| {
        for (way, bytes) in ways {
            let script = |mut command: Command| {
                let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/inherit.py");
                run_ok(command.arg(file).arg(way).arg(env!("STATIC_ANSWER")).stdin(Stdio::null()), BOUND)
            };
            let python = bins::program("python3")?;
            let expected = script(Command::new(&python))?;
            let before = instance.totals()?;
            let said = script(instance.shimmed(&python))?;
            ensure(said == expected, || format!("{way}: the kernel says {expected:?}, we say {said:?}"))?;
            let moved = instance.totals()? - before;
            ensure(moved.user.tx_bytes >= *bytes, || {
                format!("{way}: less than {bytes} bytes went through user space: {moved:?}")
            })?;
        }
        Ok(())
    })
}
