//! memcached's own tests, as `make test` of its source package runs them: a Perl program for each subject, which starts
//! servers and talks to them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use harness::{Outcome, bins};

use crate::compare::{Suite, Verdict, Verdicts, compare, in_user_space, with_its_end};
use crate::side::{Bounds, Side, run};
use crate::source;

/// Built without AF_UNIX, since its tests use TCP only then.
const BUILD: &str = "./configure --disable-unix-socket && make memcached-debug timedrun";
const BOUNDS: Bounds = Bounds { silence: Duration::from_secs(300), all: Duration::from_secs(600) };
/// Takes five minutes on each side, waiting for its storage; `binary.t` and `extstore.t` have the same calls.
const TOO_LONG: &str = "binary-extstore.t";

struct Programs {
    directory: PathBuf,
}

pub fn prove() -> Outcome {
    let directory = source::built("memcached", "memcached-debug", BUILD)?;
    in_user_space(compare(&Programs { directory })?, 500)
}

impl Suite for Programs {
    fn parts(&self) -> Vec<String> {
        let mut programs: Vec<_> = fs::read_dir(self.directory.join("t"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".t") && name != TOO_LONG)
            .collect();
        programs.sort();
        programs
    }

    /// They sleep most of the time.
    fn slots(&self) -> usize {
        6
    }

    fn run(&self, side: Side<'_>, _slot: usize, part: &str) -> Outcome<(Verdicts, String)> {
        let mut command = side.command(bins::program("perl")?);
        command.args(["-I", "t/lib"]).arg(format!("t/{part}")).current_dir(&self.directory);
        Ok(with_its_end(run(side, &mut command, None, BOUNDS)?, tap))
    }
}

/// Verdicts from lines of the Test Anything Protocol, `ok 3 - what`, by their number.
fn tap(said: &str) -> Verdicts {
    let mut all = BTreeMap::new();
    for line in said.lines() {
        let (verdict, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (Verdict::Pass, rest),
            (_, Some(rest)) => (Verdict::Fail, rest),
            _ => continue,
        };
        if let Some(number) = rest.split_whitespace().next() {
            all.insert(number.to_owned(), verdict);
        }
    }
    all
}
