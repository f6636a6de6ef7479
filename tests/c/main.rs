//! C programs over libc's own layers on top of system calls: stdio, cancellation, signals, `syscall`, splice. Each case runs
//! natively and under the shim, and both must print the same transcript; the counters must say that the traffic went
//! through user space.
//!
//! A case is a function in one of the programs here; `PROGRAM list` names them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::census::Census;
use harness::counters::Totals;
use harness::instance::Instance;
use harness::scratch::Scratch;
use harness::suite::trial;
use harness::{Outcome, bins, child, ensure, fail};
use libtest_mimic::Arguments;

/// Bound on one run of a case.
const BOUND: Duration = Duration::from_secs(30);

const PROGRAMS: &[(&str, &str)] = &[
    ("stdio", "stdio.c"),
    ("iostreams", "iostreams.cpp"),
    ("raw", "raw.c"),
    ("leaving", "leaving.c"),
    ("splice", "splice.c"),
    ("filters", "filters.c"),
    ("signals", "signals.c"),
    ("children", "children.c"),
    ("accepted", "accepted.c"),
    ("clients", "clients.c"),
    ("owners", "owners.c"),
    ("switches", "switches.c"),
    ("lent", "lent.c"),
    ("often", "often.c"),
    ("handlers", "handlers.c"),
];

/// One function of a program.
struct Case {
    program: PathBuf,
    name: String,
    in_user_space: bool,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    match prepare() {
        Ok((dir, cases)) => {
            let before = Census::take();
            let idle = Idle::default();
            let trials = cases.into_iter().map(|(name, case)| {
                let idle = Idle::clone(&idle);
                trial(name, move || compare(&idle, &case))
            });
            let conclusion = libtest_mimic::run(&arguments, trials.collect());
            drop(dir);
            let instance = idle.lock().ok().and_then(|mut i| i.take());
            let stopped = instance.map_or(Ok(()), Instance::stop);
            match stopped.and_then(|()| before.compare()) {
                Ok(()) => conclusion.exit_code(),
                Err(e) => failed(&e.0),
            }
        }
        Err(e) => failed(&e.0),
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}

/// Compiles the programs and asks them for their cases.
fn prepare() -> Outcome<(Scratch, Vec<(String, Case)>)> {
    let dir = Scratch::new()?;
    let mut cases = Vec::new();
    for (name, source) in PROGRAMS {
        let program = dir.path().join(name);
        compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("c").join(source), &program)?;
        let list = child::run_ok(Command::new(&program).arg("list"), BOUND)?;
        for line in list.lines() {
            let Some((case, path)) = line.split_once(' ') else {
                return fail(format!("{name} lists {line}"));
            };
            let in_user_space = path == "user";
            let what = Case { program: program.clone(), name: case.to_owned(), in_user_space };
            cases.push((format!("{name}::{case}"), what));
        }
    }
    Ok((dir, cases))
}

fn compile(source: &Path, program: &Path) -> Outcome {
    let compiler = if source.extension().is_some_and(|e| e == "cpp") { "g++" } else { "gcc" };
    let mut command = Command::new(bins::program(compiler)?);
    // Fortified, as Debian builds its programs: so the checked forms are called.
    command.args(["-O2", "-Wall", "-Wno-unused-result", "-D_FORTIFY_SOURCE=2", "-pthread", "-o"]);
    child::run_ok(command.arg(program).arg(source), Duration::from_secs(120)).map(drop)
}

/// An instance that no case uses at the moment: one that a case failed on is not used again.
type Idle = Arc<Mutex<Option<Instance>>>;

fn compare(idle: &Idle, case: &Case) -> Outcome {
    let native = child::run_ok(Command::new(&case.program).arg(&case.name), BOUND)?;
    if std::env::var_os("IPC_DIRECT_TEST_PRINT").is_some() {
        println!("{native}");
    }
    ensure(native.ends_with("done\n"), || format!("on the kernel it printed\n{native}"))?;
    let instance = match idle.lock().ok().and_then(|mut i| i.take()) {
        Some(instance) => instance,
        None => Instance::start()?,
    };
    if let Err(e) = compare_with(&instance, case, &native) {
        return fail(format!("{}\n{}", e.0, instance.describe()));
    }
    if let Ok(mut idle) = idle.lock() {
        *idle = Some(instance);
    }
    Ok(())
}

fn compare_with(instance: &Instance, case: &Case, native: &str) -> Outcome {
    let before = instance.totals()?;
    let shimmed = child::run_ok(instance.shimmed(&case.program).arg(&case.name), BOUND)?;
    ensure(native == shimmed, || format!("kernel:\n{native}\nshim:\n{shimmed}"))?;
    let moved: Totals = instance.totals()? - before;
    let user = moved.user.connections > 0 && moved.kernel.connections == 0 && moved.kernel.tx_bytes == 0;
    ensure(user || !case.in_user_space, || format!("not all of it went through user space: {moved:?}"))
}
