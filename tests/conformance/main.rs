//! Socket semantics: every case runs natively and under the shim, and the transcripts must be equal.
//!
//! A case is a script of calls by a client and a server ([`driver`]). Linux is the oracle: no case states what
//! should come out. Each runs with both sides shimmed (in two processes, and in one), with only the client and
//! with only the server shimmed; and the counters must say that the traffic took the path it should have.
//!
//! `IPC_DIRECT_TEST_ORACLE=1` compares the kernel with itself instead, which shows what a case leaves to
//! chance; with `IPC_DIRECT_TEST_PRINT=1` the transcripts are printed.

mod accept;
mod arrivals;
mod connect;
mod descriptors;
mod driver;
mod end;
mod epoll;
mod families;
mod figures;
mod forks;
mod inherit;
mod io;
mod lifecycle;
mod names;
mod opening;
mod options;
mod pipes;
mod polling;
mod reading;
mod signals;
mod threads;
mod transcript;
mod transfers;
mod udp;
mod unix_messages;
mod unix_stream;
mod urgent;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use driver::{Duo, Mode};
use harness::census::Census;
use harness::counters::Totals;
use harness::instance::Instance;
use harness::suite::trial;
use harness::{Outcome, ensure, fail};
use libtest_mimic::Arguments;

/// Where the traffic of a case must go when both sides are shimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Through user space, all of it.
    User,
    /// No connection comes about, or some of the traffic is the kernel's by the case's design.
    Any,
}

/// A case: its name, its path and its script.
pub type Case = (&'static str, Expect, fn(&Duo));

/// Cases of one kind.
#[derive(Clone, Copy)]
struct Group {
    modes: &'static [Mode],
    cases: &'static [Case],
}

/// A client and a server.
const fn two(cases: &'static [Case]) -> Group {
    Group { modes: &[Mode::Both, Mode::Alone, Mode::ClientOnly, Mode::ServerOnly], cases }
}

/// Cases that only the client takes part in, with its children.
const fn one(cases: &'static [Case]) -> Group {
    Group { modes: &[Mode::Alone], cases }
}

const GROUPS: &[Group] = &[
    two(accept::CASES),
    two(arrivals::CASES),
    two(connect::CASES),
    two(descriptors::CASES),
    two(end::CASES),
    two(epoll::CASES),
    two(families::CASES),
    two(figures::CASES),
    two(forks::CASES),
    two(inherit::CASES),
    two(io::CASES),
    two(lifecycle::CASES),
    one(lifecycle::ALONE),
    two(names::CASES),
    two(opening::CASES),
    two(options::CASES),
    two(polling::CASES),
    two(reading::CASES),
    two(signals::CASES),
    two(threads::CASES),
    two(transfers::CASES),
    two(udp::CASES),
    two(unix_stream::CASES),
    two(unix_messages::SEQPACKET),
    two(unix_messages::DGRAM),
    two(urgent::CASES),
    one(pipes::PIPES),
    one(pipes::SOCKETPAIRS),
];

const WORKER: &str = env!("CARGO_BIN_EXE_case-worker");

/// Instances that no case uses at the moment: one per test thread.
type Pool = Arc<Mutex<Vec<Instance>>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let oracle = std::env::var_os("IPC_DIRECT_TEST_ORACLE").is_some();
    let before = Census::take();
    let pool = Pool::default();
    let trials = GROUPS.iter().flat_map(|group| group.cases.iter().map(|case| (*group, *case)));
    let trials = trials.map(|(group, (name, expect, script))| {
        let pool = Arc::clone(&pool);
        trial(name.to_owned(), move || match oracle {
            true => oracle_only(group.modes, script),
            false => differential(&pool, group.modes, expect, script),
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let instances = pool.lock().map(|mut p| std::mem::take(&mut *p)).unwrap_or_default();
    let stopped: Outcome = instances.into_iter().try_for_each(Instance::stop);
    match stopped.and_then(|()| before.compare()) {
        Ok(()) => conclusion.exit_code(),
        Err(e) => {
            eprintln!("after all cases: {}", e.0);
            ExitCode::FAILURE
        }
    }
}

/// Compares the kernel with itself: what a case leaves to chance shows up here, without the product.
fn oracle_only(modes: &[Mode], script: fn(&Duo)) -> Outcome {
    for mode in
        [Mode::Native, Mode::NativeAlone].into_iter().filter(|o| modes.iter().any(|m| m.oracle() == *o))
    {
        let run = || driver::run(Path::new(WORKER), None, mode, script, || Ok(())).map(|(run, ())| run.lines);
        let first = run()?;
        for _ in 0..3 {
            same(mode, &first, &run()?)?;
        }
        if std::env::var_os("IPC_DIRECT_TEST_PRINT").is_some() {
            println!("{mode:?}\n  {}", first.join("\n  "));
        }
    }
    Ok(())
}

/// Takes an instance, runs the case, and puts the instance back if it is still good.
fn differential(pool: &Pool, modes: &[Mode], expect: Expect, script: fn(&Duo)) -> Outcome {
    let free = pool.lock().ok().and_then(|mut p| p.pop());
    let instance = match free {
        Some(instance) => instance,
        None => Instance::start()?,
    };
    let outcome = all_modes(&instance, modes, expect, script);
    match outcome {
        Ok(()) => {
            if let Ok(mut pool) = pool.lock() {
                pool.push(instance);
            }
            Ok(())
        }
        Err(e) => fail(format!("{}\n{}", e.0, instance.describe())),
    }
}

fn all_modes(instance: &Instance, modes: &[Mode], expect: Expect, script: fn(&Duo)) -> Outcome {
    let worker = Path::new(WORKER);
    let mut oracles: Vec<(Mode, Vec<String>)> = Vec::new();
    for mode in modes {
        let oracle = match oracles.iter().position(|(of, _)| *of == mode.oracle()) {
            Some(at) => at,
            None => {
                let (run, ()) = driver::run(worker, None, mode.oracle(), script, || Ok(()))?;
                oracles.push((mode.oracle(), run.lines));
                oracles.len() - 1
            }
        };
        let before = instance.totals()?;
        let (run, after) = driver::run(worker, Some(instance), *mode, script, || instance.totals())?;
        same(*mode, oracles.get(oracle).map_or(&[], |(_, lines)| lines), &run.lines)?;
        if !run.skipped {
            path(*mode, expect, after - before)?;
        }
    }
    Ok(())
}

/// The transcripts must be equal.
fn same(mode: Mode, oracle: &[String], lines: &[String]) -> Outcome {
    let differs = (0..oracle.len().max(lines.len())).find(|i| oracle.get(*i) != lines.get(*i));
    let Some(at) = differs else { return Ok(()) };
    let context = lines.get(..at).unwrap_or(&[]).join("\n  ");
    let line = |list: &[String]| list.get(at).cloned().unwrap_or_else(|| "(nothing)".to_owned());
    fail(format!(
        "{mode:?} differs from the kernel after\n  {context}\nkernel: {}\nshim:   {}",
        line(oracle),
        line(lines)
    ))
}

/// The counters must say that the traffic took the path it should have.
fn path(mode: Mode, expect: Expect, moved: Totals) -> Outcome {
    match (mode, expect) {
        (Mode::Both | Mode::Alone, Expect::User) => ensure(
            moved.user.connections > 0 && moved.kernel.connections == 0 && moved.kernel.tx_bytes == 0,
            || format!("{mode:?}: not all of it went through user space: {moved:?}"),
        ),
        (Mode::ClientOnly | Mode::ServerOnly, _) => ensure(
            moved.user.connections == 0 && moved.user.tx_bytes == 0 && moved.user.rx_bytes == 0,
            || format!("{mode:?}: one side has no shim, and yet: {moved:?}"),
        ),
        _ => Ok(()),
    }
}
