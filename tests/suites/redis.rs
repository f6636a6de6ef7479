//! Redis's own tests (`runtest` of its source package), with Debian's binaries of the same version: a Tcl program for
//! each subject, which starts servers and talks to them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::child::run_ok;
use harness::scratch::Scratch;
use harness::{Outcome, bins, ensure};

use crate::compare::{Suite, Verdict, Verdicts, compare, in_user_space, with_its_end};
use crate::side::{Bounds, Side, run};
use crate::source;

/// Some tests are silent for minutes, while they load data or wait for a replica to give up.
const BOUNDS: Bounds = Bounds { silence: Duration::from_secs(300), all: Duration::from_secs(900) };
/// Makes its payloads up at random, so that two runs do not compare; it is about parsing files, not about sockets.
const NOT_COMPARABLE: &str = "integration/corrupt-dump-fuzzer";
/// What the tests call as `src/NAME`.
const BINARIES: [&str; 5] =
    ["redis-server", "redis-cli", "redis-benchmark", "redis-check-aof", "redis-check-rdb"];
/// Ports: below the ephemeral ones, also with the 10,000 that cluster nodes add for their bus.
const PORT_FIRST: usize = 12_000;
const PORTS_PER_SLOT: usize = 1_500;
const SLOTS: usize = 6;

struct Units {
    names: Vec<String>,
    /// A tree for each slot, since the tests write into their own.
    trees: Vec<PathBuf>,
}

pub fn runtest() -> Outcome {
    let source = source::fetched("redis")?;
    let scratch = Scratch::new()?;
    let mut trees = Vec::new();
    for slot in 0..SLOTS {
        trees.push(tree(&source, scratch.path().join(slot.to_string()))?);
    }
    let names = names(&fs::read_to_string(source.join("tests/test_helper.tcl"))?);
    ensure(names.len() > 50, || format!("only {} units found in test_helper.tcl", names.len()))?;
    in_user_space(compare(&Units { names, trees })?, 10_000)
}

/// What `runtest` needs of the source, in a directory of its own, with Debian's binaries.
fn tree(source: &Path, place: PathBuf) -> Outcome<PathBuf> {
    fs::create_dir_all(place.join("src"))?;
    for part in ["runtest", "redis.conf", "tests", "utils"] {
        run_ok(Command::new("cp").arg("-a").arg(source.join(part)).arg(&place), Duration::from_secs(60))?;
    }
    for name in BINARIES {
        symlink(bins::program(name)?, place.join("src").join(name))?;
    }
    Ok(place)
}

/// The words of `set ::all_tests {...}`.
fn names(helper: &str) -> Vec<String> {
    let list = helper.split("set ::all_tests {").nth(1).and_then(|rest| rest.split('}').next()).unwrap_or("");
    list.split_whitespace().filter(|name| *name != NOT_COMPARABLE).map(str::to_owned).collect()
}

impl Suite for Units {
    fn parts(&self) -> Vec<String> {
        self.names.clone()
    }

    /// They sleep most of the time.
    fn slots(&self) -> usize {
        SLOTS
    }

    fn run(&self, side: Side<'_>, slot: usize, part: &str) -> Outcome<(Verdicts, String)> {
        let tree = self.trees.get(slot).map_or(Path::new("."), PathBuf::as_path);
        let port = PORT_FIRST + slot * PORTS_PER_SLOT;
        let mut command = side.command(tree.join("runtest"));
        command.args(["--single", part, "--clients", "1"]).current_dir(tree);
        command.args(["--baseport", &port.to_string(), "--portcount", &PORTS_PER_SLOT.to_string()]);
        Ok(with_its_end(run(side, &mut command, None, BOUNDS)?, verdicts))
    }
}

/// From lines like `[ok]: name (12 ms)` and `[err]: name in tests/unit/x.tcl`, without their colours. Numbers are cut out
/// of the names, since some are made up at random; of tests of one name, all must pass.
fn verdicts(said: &str) -> Verdicts {
    let mut all = BTreeMap::new();
    for line in said.lines().map(plain) {
        let (verdict, name) = if let Some(rest) = line.strip_prefix("[ok]: ") {
            (Verdict::Pass, rest.rsplit_once(" (").map_or(rest, |(name, _)| name))
        } else if let Some(rest) = line.strip_prefix("[err]: ") {
            (Verdict::Fail, rest.rsplit_once(" in tests/").map_or(rest, |(name, _)| name))
        } else {
            continue;
        };
        let name = name.chars().filter(|c| !c.is_ascii_digit()).collect();
        let place = all.entry(name).or_insert(verdict);
        if verdict == Verdict::Fail {
            *place = verdict;
        }
    }
    all
}

/// A line without the terminal's colours (ESC [ ... m).
fn plain(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let mut text = parts.next().unwrap_or("").to_owned();
    for part in parts {
        text.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    text
}
