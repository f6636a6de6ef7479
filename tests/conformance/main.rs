//! Socket semantics: every case runs natively and under the shim, and the transcripts must be equal.
//!
//! A case is a script of calls by a client and a server ([`driver`]). Linux is the oracle: no case states what
//! should come out. Each runs with both sides shimmed (in two processes, and in one), with only the client and
//! with only the server shimmed; and the counters must say that the traffic took the path it should have.
//!
//! `IPC_DIRECT_TEST_HOSTS=good` (or `lossy`) runs the TCP cases between two hosts of a lab instead ([`across`]).
//!
//! `IPC_DIRECT_TEST_ORACLE=1` compares the kernel with itself instead, which shows what a case leaves to
//! chance; with `IPC_DIRECT_TEST_PRINT=1` the transcripts are printed.

mod accept;
mod across;
mod alike;
mod arrivals;
mod clients;
mod connect;
mod crowds;
mod descriptors;
mod driver;
mod end;
mod epoll;
mod families;
mod fifos;
mod figures;
mod forks;
mod inherit;
mod io;
mod lifecycle;
mod matrix;
mod names;
mod opening;
mod options;
mod pipe_children;
mod pipes;
mod polling;
mod programs;
mod reading;
mod sets;
mod shared_sets;
mod signals;
mod socketpairs;
mod stamps;
mod symbols;
mod threads;
mod together;
mod transcript;
mod transfers;
mod udp;
mod unix_lives;
mod unix_messages;
mod unix_names;
mod unix_rights;
mod unix_stream;
mod unix_switch;
mod urgent;
mod watches;
mod zerocopy;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use driver::{Duo, Mode, Stage};
use harness::census::Census;
use harness::counters::Totals;
use harness::instance::Instance;
use harness::suite::trial_within;
use harness::{Outcome, ensure, fail};
use libtest_mimic::Arguments;
use matrix::{Family, Matrix, Shown};

/// Where the traffic of a case must go when both sides are shimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Through user space, all of it.
    User,
    /// Connections in user space, next to some of the kernel's.
    Mixed,
    /// No connection comes about, or some of the traffic is the kernel's by the case's design.
    Any,
}

/// A case: its name, its path and its script.
pub type Case = (&'static str, Expect, fn(&Duo));

/// Cases of one kind.
#[derive(Clone, Copy)]
struct Group {
    family: Family,
    modes: &'static [Mode],
    cases: &'static [Case],
}

/// A client and a server.
const fn two(family: Family, cases: &'static [Case]) -> Group {
    Group { family, modes: &[Mode::Both, Mode::Alone, Mode::ClientOnly, Mode::ServerOnly], cases }
}

/// Cases that only the client takes part in, with its children.
const fn one(family: Family, cases: &'static [Case]) -> Group {
    Group { family, modes: &[Mode::Alone], cases }
}

const GROUPS: &[Group] = &[
    two(Family::Tcp, accept::CASES),
    two(Family::Tcp, arrivals::CASES),
    two(Family::Tcp, clients::CASES),
    two(Family::Tcp, connect::CASES),
    two(Family::Tcp, crowds::CASES),
    two(Family::Tcp, descriptors::CASES),
    two(Family::Tcp, end::CASES),
    two(Family::Tcp, epoll::CASES),
    two(Family::Tcp, families::CASES),
    two(Family::Tcp, figures::CASES),
    two(Family::Tcp, forks::CASES),
    two(Family::Tcp, inherit::CASES),
    two(Family::Tcp, io::CASES),
    two(Family::Tcp, lifecycle::CASES),
    one(Family::Tcp, lifecycle::ALONE),
    two(Family::Tcp, names::CASES),
    two(Family::Tcp, opening::CASES),
    two(Family::Tcp, options::CASES),
    two(Family::Tcp, polling::CASES),
    two(Family::Tcp, reading::CASES),
    two(Family::Tcp, programs::CASES),
    two(Family::Tcp, sets::CASES),
    two(Family::Tcp, signals::CASES),
    two(Family::Tcp, stamps::CASES),
    two(Family::Tcp, threads::CASES),
    two(Family::Tcp, together::CASES),
    two(Family::Tcp, transfers::CASES),
    two(Family::Udp, udp::CASES),
    two(Family::UnixStream, unix_lives::CASES),
    two(Family::UnixStream, unix_names::CASES),
    two(Family::UnixStream, unix_switch::CASES),
    two(Family::UnixStream, unix_rights::CASES),
    two(Family::UnixStream, unix_stream::CASES),
    two(Family::UnixSeqpacket, unix_messages::SEQPACKET),
    two(Family::UnixDgram, unix_messages::DGRAM),
    two(Family::Tcp, urgent::CASES),
    two(Family::Tcp, watches::CASES),
    two(Family::Tcp, shared_sets::CASES),
    two(Family::Tcp, zerocopy::CASES),
    one(Family::Tcp, alike::TCP),
    one(Family::UnixStream, alike::UNIX_STREAM),
    one(Family::UnixSeqpacket, alike::UNIX_SEQPACKET),
    one(Family::UnixDgram, alike::UNIX_DGRAM),
    one(Family::Socketpair, alike::SOCKETPAIR),
    one(Family::Pipe, alike::PIPE),
    one(Family::Fifo, alike::FIFO),
    one(Family::Udp, alike::UDP),
    one(Family::Pipe, pipes::CASES),
    one(Family::Pipe, pipe_children::CASES),
    one(Family::Fifo, fifos::CASES),
    one(Family::Socketpair, socketpairs::CASES),
    one(Family::Socketpair, unix_switch::PAIRS),
];

const WORKER: &str = env!("CARGO_BIN_EXE_case-worker");

/// Longest time of a case in all its modes; every call in it has a bound of its own.
const CASE_MAX: Duration = Duration::from_secs(5 * 60);

/// Instances that no case uses at the moment: one per test thread.
type Pool = Arc<Mutex<Vec<Instance>>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(2));
    if let Some(network) = std::env::var_os("IPC_DIRECT_TEST_HOSTS") {
        return across::main(&arguments, &network);
    }
    let oracle = std::env::var_os("IPC_DIRECT_TEST_ORACLE").is_some();
    let before = Census::take();
    let pool = Pool::default();
    let matrix = Arc::new(Matrix::default());
    let trials = GROUPS.iter().flat_map(|group| group.cases.iter().map(|case| (*group, *case)));
    let trials = trials.map(|(group, (name, expect, script))| {
        let (pool, matrix) = (Arc::clone(&pool), Arc::clone(&matrix));
        trial_within(name.to_owned(), CASE_MAX, move || {
            if oracle {
                return oracle_only(group.modes, script);
            }
            let subject = name.split("::").next().unwrap_or(name);
            matrix.add(differential(&pool, group, subject, expect, script)?);
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let instances = pool.lock().map(|mut p| std::mem::take(&mut *p)).unwrap_or_default();
    let stopped: Outcome = instances.into_iter().try_for_each(Instance::stop);
    let complete = conclusion.num_filtered_out == 0 && !conclusion.has_failed() && !oracle && !arguments.list;
    let settled = if complete { matrix.settle() } else { Ok(()) };
    match stopped.and_then(|()| before.compare()).and(settled) {
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
        let run = || {
            driver::run(Path::new(WORKER), Stage::Here(None), mode, script, || Ok(()))
                .map(|(run, ())| run.lines)
        };
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
fn differential(
    pool: &Pool,
    group: Group,
    subject: &'static str,
    expect: Expect,
    script: fn(&Duo),
) -> Outcome<Shown> {
    let free = pool.lock().ok().and_then(|mut p| p.pop());
    let instance = match free {
        Some(instance) => instance,
        None => Instance::start()?,
    };
    let outcome = all_modes(&instance, group, subject, expect, script);
    match outcome {
        Ok(shown) => {
            if let Ok(mut pool) = pool.lock() {
                pool.push(instance);
            }
            Ok(shown)
        }
        // It may not be good any more: the next case gets another.
        Err(e) => Err(e),
    }
}

fn all_modes(
    instance: &Instance,
    group: Group,
    subject: &'static str,
    expect: Expect,
    script: fn(&Duo),
) -> Outcome<Shown> {
    let worker = Path::new(WORKER);
    let mut oracles: Vec<(Mode, Vec<String>)> = Vec::new();
    let mut shown = Shown { family: group.family, subject, ..Shown::default() };
    for mode in group.modes {
        let oracle = match oracles.iter().position(|(of, _)| *of == mode.oracle()) {
            Some(at) => at,
            None => {
                let (run, ()) = driver::run(worker, Stage::Here(None), mode.oracle(), script, || Ok(()))?;
                oracles.push((mode.oracle(), run.lines));
                oracles.len() - 1
            }
        };
        let before = instance.totals()?;
        let stage = Stage::Here(Some(instance));
        let (run, after) = driver::run(worker, stage, *mode, script, || instance.totals())?;
        same(*mode, oracles.get(oracle).map_or(&[], |(_, lines)| lines), &run.lines)?;
        let moved = after - before;
        if !run.skipped {
            path(*mode, expect, moved)?;
        }
        if matches!(mode, Mode::Both | Mode::Alone) {
            shown.calls.extend(run.calls);
            shown.user |= moved.user.tx_ops + moved.user.rx_ops > 0;
        }
    }
    Ok(shown)
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
        (Mode::Both | Mode::Alone, Expect::Mixed) => ensure(moved.user.connections > 0, || {
            format!("{mode:?}: none of it went through user space: {moved:?}")
        }),
        (Mode::ClientOnly | Mode::ServerOnly, _) => ensure(
            moved.user.connections == 0 && moved.user.tx_bytes == 0 && moved.user.rx_bytes == 0,
            || format!("{mode:?}: one side has no shim, and yet: {moved:?}"),
        ),
        _ => Ok(()),
    }
}
