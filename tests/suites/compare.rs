//! Runs the parts of a suite under the shim, those with something else than success on the kernel, too, and judges the differences.
//!
//! What fails on the kernel, too, is no failure of ours, and which tests that are is found by running them, not kept in
//! a list. A test that passes on the kernel and not under the shim gets its part repeated on both sides: it is our
//! failure if it fails under the shim again and on the kernel never. What does not come again is shown, but
//! doesn't count: these suites have tests that depend on the time.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use harness::census::Census;
use harness::counters::Totals;
use harness::instance::Instance;
use harness::{Failure, Outcome, ensure};

use crate::side::{Ended, Side};

/// Repetitions of a part in which the sides differ.
const ROUNDS: usize = 3;

/// What became of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Pass,
    /// It chose not to run.
    Skip,
    /// It failed.
    Fail,
    /// It did not end.
    Hang,
}

/// Verdicts by the tests' names.
pub type Verdicts = BTreeMap<String, Verdict>;

/// What a part that was one process came to: the verdicts of its tests as it told them, and one on its end.
pub fn with_its_end(ended: Ended, verdicts: impl Fn(&str) -> Verdicts) -> (Verdicts, String) {
    let mut all = verdicts(&ended.said);
    let whole = match ended.status {
        None => Verdict::Hang,
        Some(status) if status.success() => Verdict::Pass,
        Some(_) => Verdict::Fail,
    };
    all.insert("its end".to_owned(), whole);
    (all, ended.said)
}

/// A suite: parts that can run by themselves, several at a time.
pub trait Suite: Sync {
    /// The parts' names.
    fn parts(&self) -> Vec<String>;

    /// How many parts may run at a time.
    fn slots(&self) -> usize;

    /// Runs a part in a slot (no other part runs there meanwhile). The second value is what it said.
    ///
    /// # Errors
    /// When it can't be run at all. Failures of its tests are verdicts.
    fn run(&self, side: Side<'_>, slot: usize, part: &str) -> Outcome<(Verdicts, String)>;
}

/// Runs all of `suite` on both sides, and shows the totals of the traffic under the shim.
///
/// # Errors
/// With what fails under the shim only, and what was said about it.
pub fn compare(suite: &impl Suite) -> Outcome<Totals> {
    let before = Census::take();
    let instance = Instance::start()?;
    let parts = suite.parts();
    let next = AtomicUsize::new(0);
    let (failures, passed) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    // Relaxed, both: each number is taken once, and counted once; the threads' end orders the rest.
    let work = |slot| -> Outcome {
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (count, failed) = judge(suite, &instance, slot, part)?;
            passed.fetch_add(count, Ordering::Relaxed);
            collect(&failures, failed);
        }
        Ok(())
    };
    let work = |slot| work(slot).unwrap_or_else(|e| collect(&failures, vec![e.0]));
    thread::scope(|scope| {
        for slot in 0..suite.slots() {
            let work = &work;
            scope.spawn(move || work(slot));
        }
    });
    let totals = instance.totals()?;
    println!("{} tests passed; under the shim: {totals:?}", passed.into_inner());
    instance.stop()?;
    let failures = failures.into_inner().unwrap_or_default();
    ensure(failures.is_empty(), || failures.join("\n"))?;
    before.compare()?;
    Ok(totals)
}

fn collect(failures: &Mutex<Vec<String>>, mut new: Vec<String>) {
    if let Ok(mut failures) = failures.lock() {
        failures.append(&mut new);
    }
}

/// One part: how many tests passed, and a text for each that fails under the shim only.
fn judge(suite: &impl Suite, instance: &Instance, slot: usize, part: &str) -> Outcome<(usize, Vec<String>)> {
    let (shim, mut said) = suite.run(Side::Shim(instance), slot, part)?;
    if shim.values().all(|verdict| *verdict == Verdict::Pass) {
        println!("{part}: {} passed, none differ", shim.len());
        return Ok((shim.len(), Vec::new()));
    }
    let (kernel, _) = suite.run(Side::Kernel, slot, part)?;
    for (test, verdict) in kernel.iter().filter(|(_, v)| matches!(v, Verdict::Fail | Verdict::Hang)) {
        println!("{part}: {test}: {verdict:?} on the kernel, {:?} under the shim", shim.get(test));
    }
    let mut suspects = worse(&kernel, &shim);
    let passed = kernel.iter().filter(|(test, v)| **v == Verdict::Pass && !suspects.contains(test)).count();
    println!("{part}: {passed} passed, {} differ", suspects.len());
    if suspects.is_empty() {
        return Ok((passed, Vec::new()));
    }
    println!("{part}: {suspects:?} pass on the kernel and not under the shim: again\n{said}");
    let mut again = Vec::new();
    for _ in 0..ROUNDS {
        let (kernel, _) = suite.run(Side::Kernel, slot, part)?;
        let (shim, text) = suite.run(Side::Shim(instance), slot, part)?;
        suspects.retain(|test| kernel.get(test) == Some(&Verdict::Pass));
        let worse = worse(&kernel, &shim);
        if worse.iter().any(|test| suspects.contains(test)) {
            said = text;
        }
        again.extend(worse);
    }
    let failed: Vec<_> = suspects
        .into_iter()
        .filter(|test| again.contains(test))
        .map(|test| format!("{part}: {test} fails under the shim and not on the kernel"))
        .collect();
    if failed.is_empty() {
        println!("{part}: not again in {ROUNDS} repetitions, or on the kernel, too");
        return Ok((passed, failed));
    }
    Ok((passed, vec![failed.join("\n"), format!("the last time, {part} said:\n{said}")]))
}

/// The tests that pass on the kernel and not under the shim; one that did not run there does not pass.
fn worse(kernel: &Verdicts, shim: &Verdicts) -> Vec<String> {
    kernel
        .iter()
        .filter(|(test, verdict)| **verdict == Verdict::Pass && shim.get(*test) != Some(&Verdict::Pass))
        .map(|(test, _)| test.clone())
        .collect()
}

/// What a suite moved must have gone through user space for the most part.
///
/// # Errors
/// When fewer than `connections` ends were there, or more bytes went through the kernel.
pub fn in_user_space(totals: Totals, connections: u64) -> Outcome {
    let enough = totals.user.connections >= connections && totals.user.tx_bytes > totals.kernel.tx_bytes;
    enough.then_some(()).ok_or_else(|| {
        Failure(format!("{connections} connection ends and most bytes should be in user space: {totals:?}"))
    })
}
