//! Random programs: several processes make random socket calls, on the kernel and under the shim, and everything
//! observable must be equal.
//!
//! A program is made up from a seed while it runs on the kernel ([`generate`]), one step at a time in one process
//! ([`runner`]); then it runs on the kernel once more (a program that gives something else is dropped: Linux itself leaves
//! it to chance), with all processes shimmed, and with some of them. A program that differs is made smaller
//! ([`compare`]) and printed with its seed; such a text in `corpus/` is run every time.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `RANDOM_SEED` | first seed; the next programs count on from it | from the clock, printed |
//! | `RANDOM_SECONDS` | how long new programs are tried; 0: the corpus alone | 60 |
//! | `RANDOM_STEPS` | steps in each | 40 |
//! | `RANDOM_FAILURES` | how many programs may differ before it stops | 1 |
//! | `RANDOM_LANES` | programs that run at the same time | 2 |
//! | `RANDOM_PRINT` | if set, each program is printed, with what the kernel gave | |

mod compare;
mod generate;
mod program;
mod runner;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use compare::{MODES, Verdict};
use harness::census::Census;
use harness::counters::Totals;
use harness::instance::Instance;
use harness::{Failure, Outcome, ensure};
use program::Program;

/// What the environment asks for.
struct Settings {
    seed: u64,
    time: Duration,
    steps: usize,
    failures: usize,
    lanes: usize,
    print: bool,
}

/// What came of it so far.
#[derive(Default)]
struct Score {
    programs: usize,
    steps: usize,
    undetermined: usize,
    late: usize,
    differing: usize,
    moved: Totals,
}

/// What the lanes share.
struct Work {
    settings: Settings,
    next: AtomicU64,
    end: Instant,
    score: Mutex<Score>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}", e.0);
            ExitCode::FAILURE
        }
    }
}

fn number(name: &str, default: u64) -> Outcome<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|e| Failure(format!("{name}={text} is not a number: {e}"))),
        Err(_) => Ok(default),
    }
}

fn run() -> Outcome {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs());
    let settings = Settings {
        // Apart from each other by more than a run can try.
        seed: number("RANDOM_SEED", clock * 1_000_000)?,
        time: Duration::from_secs(number("RANDOM_SECONDS", 60)?),
        steps: usize::try_from(number("RANDOM_STEPS", 40)?)?,
        failures: usize::try_from(number("RANDOM_FAILURES", 1)?)?,
        lanes: usize::try_from(number("RANDOM_LANES", 2)?)?,
        print: std::env::var_os("RANDOM_PRINT").is_some(),
    };
    let before = Census::take();
    corpus()?;
    if settings.time.is_zero() {
        return before.compare();
    }
    println!("random programs from seed {} for {} s", settings.seed, settings.time.as_secs());
    let work = Work {
        next: AtomicU64::new(settings.seed),
        end: Instant::now() + settings.time,
        settings,
        score: Mutex::default(),
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..work.settings.lanes).map(|_| scope.spawn(|| lane(&work))).collect();
        lanes.into_iter().try_for_each(|l| l.join().unwrap_or_else(|_| harness::fail("a lane panicked")))
    })?;
    let score = work.score.into_inner().map_err(|_| Failure("a lane panicked".to_owned()))?;
    let user = score.moved.user;
    println!(
        "{} programs, {} steps; {} differ from the kernel; left to chance by Linux: {}, right but late: {}\n\
         with all processes shimmed: {} connection ends and {} bytes sent through user space, {} and {} through the kernel",
        score.programs,
        score.steps,
        score.differing,
        score.undetermined,
        score.late,
        user.connections,
        user.tx_bytes,
        score.moved.kernel.connections,
        score.moved.kernel.tx_bytes,
    );
    before.compare()?;
    ensure(score.differing == 0, || format!("{} programs differ from the kernel", score.differing))?;
    ensure(user.connections > 0 && user.tx_bytes > 0, || {
        "no program sent anything through user space".to_owned()
    })
}

/// Programs that once differed.
fn corpus() -> Outcome {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("random/corpus");
    let instance = Instance::start()?;
    let mut files: Vec<_> =
        std::fs::read_dir(&dir)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.sort();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "txt")) {
        let program = Program::parse(&std::fs::read_to_string(file)?)?;
        let name = file.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let verdict = compare::verify(&program, &instance);
        println!("corpus: {name}: {}", word(&verdict));
        if let Verdict::Differs(difference) = verdict {
            report(&name, &program, &difference);
            return harness::fail(format!("{} differs from the kernel", file.display()));
        }
    }
    instance.stop()
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Same => "ok",
        Verdict::Undetermined(_) => "left to chance by Linux",
        Verdict::Late => "right but late",
        Verdict::Differs(_) => "differs",
    }
}

/// Tries programs until the time is over.
fn lane(work: &Work) -> Outcome {
    let mut instance = Instance::start()?;
    while Instant::now() < work.end {
        // Relaxed: each number is taken once, and nothing else goes with it.
        let seed = work.next.fetch_add(1, Ordering::Relaxed);
        let settings = &work.settings;
        let Ok((program, oracle)) = compare::generate(seed, settings.steps) else {
            note(work, |score| score.undetermined += 1);
            continue;
        };
        if settings.print {
            println!("seed {seed}");
            for (step, record) in program.0.iter().zip(&oracle) {
                println!("{step}\n        {}", compare::show(record));
            }
        }
        let before = instance.totals()?;
        let mut verdict = compare::judge(&program, &oracle, &instance, &MODES[..1]);
        let moved = instance.totals()? - before;
        if matches!(verdict, Verdict::Same | Verdict::Late) {
            verdict = match compare::judge(&program, &oracle, &instance, &MODES[1..]) {
                Verdict::Same => verdict,
                other => other,
            };
        }
        if let (true, Verdict::Undetermined(difference)) = (settings.print, &verdict) {
            report(&format!("seed {seed} is left to chance"), &program, difference);
        }
        let differing = note(work, |score| {
            score.programs += 1;
            score.steps += program.0.len();
            score.moved = score.moved + moved;
            match verdict {
                Verdict::Same => {}
                Verdict::Undetermined(_) => score.undetermined += 1,
                Verdict::Late => score.late += 1,
                Verdict::Differs(_) => score.differing += 1,
            }
        });
        if let Verdict::Differs(found) = verdict {
            println!("seed {seed} differs; making it smaller");
            let (small, difference) = compare::shrink(&program, &found, &instance);
            report(&format!("seed {seed}"), &small, &difference);
            // Nobody knows what state that left behind.
            std::mem::replace(&mut instance, Instance::start()?).stop()?;
            if differing >= settings.failures {
                break;
            }
        }
    }
    instance.stop()
}

/// Changes the score; the number of programs that have differed.
fn note(work: &Work, change: impl FnOnce(&mut Score)) -> usize {
    let Ok(mut score) = work.score.lock() else { return 0 };
    change(&mut score);
    score.differing
}

/// Prints a program that differs, ready for the corpus.
fn report(name: &str, program: &Program, difference: &compare::Difference) {
    println!(
        "--- {name}: shimmed {:?}, step {} differs\n{program}{}\n---",
        difference.mode.0, difference.at, difference.text
    );
}
