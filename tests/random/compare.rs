//! Runs a program on the kernel and under the shim, and makes a program that differs smaller.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::instance::Instance;
use harness::{Outcome, ensure};

use crate::generate::Generator;
use crate::program::Program;
use crate::runner::{Answer, Mode, NATIVE, Record, Runner};

/// How long a step's consequences are given to arrive in another process.
const SETTLE: Duration = Duration::from_micros(700);
/// The same when a run has differed: what then is as on the kernel was only late.
const LONG_SETTLE: Duration = Duration::from_millis(15);
/// How long a program is made smaller.
const SHRINK_BOUND: Duration = Duration::from_secs(150);

const WORKER: &str = env!("CARGO_BIN_EXE_case-worker");

/// Every mixture of shimmed and plain processes.
pub const MODES: [Mode; 3] = [Mode([true, true]), Mode([true, false]), Mode([false, true])];

/// The first difference of a run.
#[derive(Clone, Debug)]
pub struct Difference {
    pub mode: Mode,
    /// Number of the step.
    pub at: usize,
    /// What happened, for people.
    pub text: String,
}

/// What came of a program.
#[derive(Clone, Debug)]
pub enum Verdict {
    Same,
    /// Two runs on the kernel differ: it says nothing.
    Undetermined(Difference),
    /// As on the kernel, but later than the first look.
    Late,
    Differs(Difference),
}

/// Makes up the program of `seed` on the kernel; also what each step gave.
///
/// # Errors
/// When its run broke down.
pub fn generate(seed: u64, steps: usize) -> Outcome<(Program, Vec<Record>)> {
    let mut runner = Runner::new(Path::new(WORKER), None, NATIVE, SETTLE)?;
    let made = Generator::new(seed).run(&mut runner, steps)?;
    runner.finish()?;
    Ok(made)
}

/// Runs `program` on the kernel once more, without knowing what will come.
fn record(program: &Program, settle: Duration) -> Outcome<Vec<Record>> {
    let mut runner = Runner::new(Path::new(WORKER), None, NATIVE, settle)?;
    let mut records = Vec::new();
    for step in &program.0 {
        ensure(runner.is_determined(step.p, &step.act), || format!("{step}: nobody knows its number"))?;
        records.push(runner.step(step, None)?);
    }
    runner.finish()?;
    Ok(records)
}

/// Runs `program` in `mode` and stops at the first difference from `oracle`.
fn replay(
    program: &Program,
    oracle: &[Record],
    instance: Option<&Instance>,
    mode: Mode,
    settle: Duration,
) -> Option<Difference> {
    let broken = |at, text| Some(Difference { mode, at, text });
    let mut runner = match Runner::new(Path::new(WORKER), instance, mode, settle) {
        Ok(runner) => runner,
        Err(e) => return broken(0, e.0),
    };
    for (at, (step, expected)) in program.0.iter().zip(oracle).enumerate() {
        match runner.step(step, Some(expected)) {
            Ok(record) if record == *expected => {}
            Ok(record) => {
                let mut text = format!("expected: {}\ncame:     {}", show(expected), show(&record));
                if let Some(instance) = instance {
                    let _ = write!(text, "\n{}{}", instance.describe(), runner.describe());
                }
                return broken(at, text);
            }
            Err(e) => {
                let state = instance.map(Instance::describe).unwrap_or_default();
                return broken(at, format!("{}\n{state}", e.0));
            }
        }
    }
    match runner.finish() {
        Ok(()) => None,
        Err(e) => broken(program.0.len(), e.0),
    }
}

/// A record for people.
pub fn show(record: &Record) -> String {
    let mut text = match &record.answer {
        Answer::Returned(out) => format!("{out:?}"),
        other => format!("{other:?}"),
    };
    for (step, out) in &record.released {
        let _ = write!(text, "; step {step} returns {out:?}");
    }
    text
}

/// Compares the kernel with itself, then with the shim in each of `modes`.
pub fn judge(program: &Program, oracle: &[Record], instance: &Instance, modes: &[Mode]) -> Verdict {
    if let Some(difference) = replay(program, oracle, None, NATIVE, SETTLE) {
        return Verdict::Undetermined(difference);
    }
    let mut verdict = Verdict::Same;
    for mode in modes.iter().filter(|mode| !program.mixes_clients(mode.0)) {
        if replay(program, oracle, Some(instance), *mode, SETTLE).is_none() {
            continue;
        }
        match slowly(program, instance, *mode) {
            Verdict::Same => verdict = Verdict::Late,
            other => return other,
        }
    }
    verdict
}

/// Compares a program of the corpus with the kernel in every mode.
pub fn verify(program: &Program, instance: &Instance) -> Verdict {
    match record(program, SETTLE) {
        Ok(oracle) => judge(program, &oracle, instance, &MODES),
        Err(e) => Verdict::Undetermined(Difference { mode: NATIVE, at: 0, text: e.0 }),
    }
}

/// As [`judge`], from the start, with more time for everything.
fn slowly(program: &Program, instance: &Instance, mode: Mode) -> Verdict {
    let oracle = match record(program, LONG_SETTLE) {
        Ok(oracle) => oracle,
        Err(e) => return Verdict::Undetermined(Difference { mode: NATIVE, at: 0, text: e.0 }),
    };
    if let Some(difference) = replay(program, &oracle, None, NATIVE, LONG_SETTLE) {
        return Verdict::Undetermined(difference);
    }
    match replay(program, &oracle, Some(instance), mode, LONG_SETTLE) {
        None => Verdict::Same,
        Some(difference) => Verdict::Differs(difference),
    }
}

/// The smallest program found that still differs in the same mode, and how.
pub fn shrink(program: &Program, found: &Difference, instance: &Instance) -> (Program, Difference) {
    let end = Instant::now() + SHRINK_BOUND;
    let mut best = (Program(program.0.iter().take(found.at + 1).cloned().collect()), found.clone());
    let mut chunk = best.0.0.len().div_ceil(2);
    while chunk > 0 {
        let mut from = 0;
        let before = best.0.0.len();
        while from < best.0.0.len() && Instant::now() < end {
            let outside = |(at, step)| (at < from || at >= from + chunk).then_some(step);
            let kept = best.0.0.iter().cloned().enumerate().filter_map(outside).collect();
            let smaller = Program(kept).tidy();
            match slowly(&smaller, instance, found.mode) {
                Verdict::Differs(difference) => {
                    let kept = smaller.0.into_iter().take(difference.at + 1).collect();
                    best = (Program(kept), difference);
                }
                _ => from += chunk,
            }
        }
        // Single steps are tried until none of them can go.
        chunk = match chunk {
            1 if best.0.0.len() < before && Instant::now() < end => 1,
            1 => 0,
            more => more / 2,
        };
    }
    best
}
