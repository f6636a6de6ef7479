//! Pipes between relatives: each scenario of `pipe-worker` prints the same on the kernel and under the shim, and the counters say
//! that bytes went through user space where they should.

mod pipelines;

use std::process::{Command, ExitCode};
use std::time::Duration;

use harness::census::Census;
use harness::child::{run_ok, wait_for};
use harness::counters::{Totals, Traffic};
use harness::instance::Instance;
use harness::suite::trial;
use harness::{Outcome, ensure, fail};
use libtest_mimic::Arguments;

const WORKER: &str = env!("CARGO_BIN_EXE_pipe-worker");
const BOUND: Duration = Duration::from_secs(120);
/// A scenario that may go through the kernel by chance (a crowded machine) has so many tries to show that it need not.
const TRIES: u32 = 5;

/// Scenario, and whether bytes must go through user space. Where the writer is always ahead with writes of kilobytes, the
/// kernel's pipe is hardly ever empty and left alone by both, so the ring is entered by chance only.
const SCENARIOS: &[(&str, bool)] = &[
    ("stream", false),
    ("ping-pong", true),
    ("vectors", true),
    ("records-of-three-writers", false),
    ("two-readers", true),
    ("fork-in-the-middle", false),
    ("threads", false),
    ("slow-reader", true),
    ("capacity", true),
    ("writer-is-killed", false),
    ("reader-is-killed", true),
    ("reader-closes", true),
    ("polls-in-between", true),
    ("bytes-that-wait", false),
    ("libc-writes-too", false),
    ("exec-with-bytes-in-flight", false),
    ("many-pipes", false),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = SCENARIOS
        .iter()
        .map(|(name, in_user_space)| trial((*name).to_owned(), move || scenario(name, *in_user_space)));
    let pipelines = pipelines::PIPELINES.iter().map(|(name, script, least)| {
        trial(format!("pipeline::{name}"), move || pipelines::run(script, *least))
    });
    libtest_mimic::run(&arguments, trials.chain(pipelines).collect()).exit_code()
}

fn scenario(name: &str, in_user_space: bool) -> Outcome {
    let before = Census::take();
    let expected = run_ok(Command::new(WORKER).arg(name), BOUND)?;
    let instance = Instance::start()?;
    let outcome = under_the_shim(&instance, name, &expected, in_user_space);
    if let Err(e) = outcome {
        return fail(format!("{}\n{}", e.0, instance.describe()));
    }
    instance.stop()?;
    before.compare()
}

fn under_the_shim(instance: &Instance, name: &str, expected: &str, in_user_space: bool) -> Outcome {
    let least = u64::from(in_user_space);
    for _ in 0..TRIES {
        let before = instance.totals()?;
        let got = run_ok(instance.shimmed(WORKER).arg(name), BOUND)?;
        ensure(got == expected, || format!("the kernel says\n{expected}and the shim\n{got}"))?;
        if moved_since(instance, before, least)? >= least {
            return Ok(());
        }
    }
    fail(format!("nothing went through user space in {TRIES} runs"))
}

/// Bytes sent through user space since `before`. The agent adds up a process's counters when it hears of its end, so this
/// waits a moment for `least`.
fn moved_since(instance: &Instance, before: Totals, least: u64) -> Outcome<u64> {
    let now = || -> Outcome<Traffic> { Ok((instance.totals()? - before).user) };
    let enough = || Ok(Some(now()?).filter(|m| m.tx_bytes >= least && m.rx_bytes >= least));
    wait_for(Duration::from_secs(1), enough)?;
    let moved = now()?;
    Ok(moved.tx_bytes.min(moved.rx_bytes))
}
