//! Shell pipelines: each program is executed by a shell, inherits its ends, and finds the ring on them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::census::Census;
use harness::child::run_ok;
use harness::instance::Instance;
use harness::scratch::Scratch;
use harness::{Outcome, bins, ensure, fail};

const BOUND: Duration = Duration::from_secs(120);
/// Bytes of the file that goes through the pipes.
const BYTES: usize = 16_000_000;

/// A script with `$FILE`, and the bytes that must at least be sent through user space.
type Pipeline = (&'static str, &'static str, u64);

/// By name.
pub const PIPELINES: &[Pipeline] = &[
    ("cat-tr-md5sum", "cat $FILE | tr a-m n-z | md5sum", 2 * BYTES as u64 / 4),
    ("four-cats", "cat $FILE | cat | cat | cat | cksum", BYTES as u64 / 2),
    ("stdio-of-seq-and-sort", "seq 400000 | sort -n | tail -n 3", 0),
    (
        "sed-awk-grep",
        "cat $FILE | tr -dc '0-9\\n' | sed s/1/one/g | grep one | awk '{ n += length($0) } END { print n }'",
        1_000_000,
    ),
    ("head-ends-first", "cat $FILE | head -c 1000000 | md5sum; echo ${PIPESTATUS[@]:1}", 0),
    ("static-reader", "cat $FILE | $STATIC 0 1 | md5sum", 0),
    ("builtins-between-programs", "(echo one; cat $FILE; echo two; seq 1000; echo three) | md5sum", 0),
    ("loop-reads-lines", "seq 20000 | while read -r n; do echo $((n + 1)); done | md5sum", 0),
    ("wide-characters", "seq 100000 | rev | md5sum", 0),
    ("substitution", "n=$(cat $FILE | wc -c); echo $n; diff <(cat $FILE) <(cat $FILE | cat) && echo same", 0),
    (
        "python",
        "cat $FILE | python3 -c 'import sys,hashlib; print(hashlib.md5(sys.stdin.buffer.read()).hexdigest())'",
        0,
    ),
];

/// Runs the script natively and under the shim, and compares.
pub fn run(script: &str, least: u64) -> Outcome {
    let before = Census::take();
    let scratch = Scratch::new()?;
    let file = scratch.path().join("file");
    std::fs::write(&file, text())?;
    let expected = run_ok(&mut shell(Command::new(bins::program("bash")?), script, &file), BOUND)?;
    let instance = Instance::start()?;
    let outcome = under_the_shim(&instance, script, least, &file, &expected);
    if let Err(e) = outcome {
        return fail(format!("{}\n{}", e.0, instance.describe()));
    }
    instance.stop()?;
    drop(scratch);
    before.compare()
}

fn under_the_shim(instance: &Instance, script: &str, least: u64, file: &Path, expected: &str) -> Outcome {
    let mut most = 0;
    for _ in 0..super::TRIES {
        let before = instance.totals()?;
        let got = run_ok(&mut shell(instance.shimmed(bins::program("bash")?), script, file), BOUND)?;
        ensure(got == expected, || format!("the kernel says\n{expected}and the shim\n{got}"))?;
        most = most.max(super::moved_since(instance, before, least)?);
        if most >= least {
            return Ok(());
        }
    }
    fail(format!("at most {most} of {least} bytes went through user space"))
}

fn shell(mut command: Command, script: &str, file: &Path) -> Command {
    command
        .args(["-c", script])
        .env("FILE", file)
        .env("STATIC", env!("STATIC_ECHO"))
        .env("LC_ALL", "C.UTF-8");
    command
}

/// Lines of varying lengths.
fn text() -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 57) as u8
    };
    (0..BYTES).map(|_| if next() < 3 { b'\n' } else { b' ' + next() % 95 }).collect()
}
