//! Python 3.11's own tests of its socket and selectors modules (package libpython3.11-testsuite).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use harness::scratch::Scratch;
use harness::{Outcome, bins, ensure};

use crate::compare::{Suite, Verdict, Verdicts, compare, in_user_space};
use crate::side::{Bounds, Side, run};

/// The longest test takes some seconds; on machines with an AF_VSOCK device that nobody answers, one never ends.
const BOUNDS: Bounds = Bounds { silence: Duration::from_secs(30), all: Duration::from_secs(300) };

struct Modules;

pub fn socket_and_selectors() -> Outcome {
    let tests = Path::new("/usr/lib/python3.11/test/test_socket.py");
    ensure(tests.exists(), || format!("{} is not installed: run `make setup`", tests.display()))?;
    in_user_space(compare(&Modules)?, 200)
}

impl Suite for Modules {
    fn parts(&self) -> Vec<String> {
        ["test.test_socket", "test.test_selectors"].map(str::to_owned).to_vec()
    }

    /// `test_socket` looks for free ports that others must not take.
    fn slots(&self) -> usize {
        1
    }

    fn run(&self, side: Side<'_>, _slot: usize, part: &str) -> Outcome<(Verdicts, String)> {
        let scratch = Scratch::new()?;
        let path = scratch.path().join("notes");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("suites/unittests.py");
        let python = bins::program("python3.11")?;
        let mut said = String::new();
        loop {
            let before = fs::read(&path).unwrap_or_default().len();
            let mut command = side.command(&python);
            command.arg(&script).arg(&path).arg(part).current_dir(scratch.path());
            let ended = run(side, &mut command, Some(&path), BOUNDS)?;
            said.push_str(&ended.said);
            let notes = fs::read_to_string(&path).unwrap_or_default();
            if ended.status.is_some_and(|status| status.success()) {
                return Ok((verdicts(&notes), said));
            }
            // The test that was under way hangs, or ended the process. On behind it.
            ensure(notes.len() > before, || {
                format!("{part} {side} does not run: {:?}\n{said}", ended.status)
            })?;
            let current =
                notes.lines().last().and_then(|line| line.split_once(' ')).map_or("", |(_, test)| test);
            let outcome = if ended.status.is_none() { "hang" } else { "fail" };
            writeln!(OpenOptions::new().append(true).open(&path)?, "{outcome} {current}")?;
        }
    }
}

/// From the lines of `unittests.py`. A test that failed in its clean-up, after it had passed, has failed.
fn verdicts(notes: &str) -> Verdicts {
    let mut all = BTreeMap::new();
    for (outcome, test) in notes.lines().filter_map(|line| line.split_once(' ')) {
        let verdict = match outcome {
            "pass" => Verdict::Pass,
            "skip" => Verdict::Skip,
            "fail" => Verdict::Fail,
            "hang" => Verdict::Hang,
            _ => continue,
        };
        let place = all.entry(test.to_owned()).or_insert(verdict);
        if *place == Verdict::Pass {
            *place = verdict;
        }
    }
    all
}
