//! `make bench-queues`: the three request queues beside each other, and beside the kernel where several fight
//! for one thing.
//!
//! The coordinator's own polling loop and decisions run on one processor, the host's side of any number of
//! functions on the other: no part is
//! a stand-in. What two processors cannot show is simulated from the costs that were measured, and labelled.
//!
//! | module | what it does |
//! |---|---|
//! | [`sweep`] | the points of a figure, all competitors in turn |
//! | [`rates`], [`costs`], [`fights`], [`setups`] | the measurements |
//! | [`simulate`] | more cores and processes |
//! | [`figure`] | what is left of a measurement, and how two lines compare |
//! | [`findings`] | sentences out of figures |
//! | [`plot`], [`report`] | pictures, tables, the page, the JSON |
//! | [`watchdog`] | ends what stands still |

mod costs;
mod fights;
mod figure;
mod findings;
mod plot;
mod rates;
mod report;
mod setups;
mod simulate;
mod sweep;
mod watchdog;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use harness::{Failure, Outcome, fail};
use measure::machine::load;

use figure::Figure;
use findings::Figures;
use report::Report;
use simulate::Costs;
use sweep::{Effort, Run};
use watchdog::Watchdog;

/// A part that begins nothing new for so long has failed.
const STILL_MAX: Duration = Duration::from_secs(30);

/// Compare the three request queues; write report.json, report.html and a PNG for each plot
#[derive(Debug, Parser)]
struct Options {
    /// Parts by name; all without any. `--list` says which there are
    parts: Vec<String>,
    /// A look of about two minutes: fewer points, fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Rounds; each takes all competitors in turn [default: 7, with --quick 3]
    #[arg(long)]
    rounds: Option<usize>,
    /// Say what the parts are called, and measure nothing
    #[arg(long)]
    list: bool,
    /// Where the report goes
    #[arg(long, value_name = "DIR", default_value = "target/bench/queues")]
    out: PathBuf,
}

/// One part: its name, what it is about, how many points it has, and the measurement.
struct Part {
    name: &'static str,
    about: &'static str,
    points: fn(Effort) -> usize,
    measure: fn(&mut Run) -> Outcome<Vec<Figure>>,
}

fn parts() -> Vec<Part> {
    let part = |name, about, points, measure| Part { name, about, points, measure };
    vec![
        part(
            "processes",
            "requests a second by processes, all busy",
            |e| rates::many(e).len(),
            rates::processes,
        ),
        part("latency", "round trips of one busy process", |e| rates::many(e).len(), rates::latency),
        part("idle", "512 processes of which a share is idle", |e| rates::shares(e).len(), rates::idle),
        part("clients", "contending client threads", |e| rates::crowds(e).len(), rates::clients),
        part("polling", "turns over idle processes", |e| 2 * rates::many(e).len(), costs::polling),
        part(
            "operations",
            "a push, the card's part of a request",
            |_| 2 + costs::WAITING.len(),
            costs::operations,
        ),
        part("bus", "operations across the bus for a request", |e| rates::many(e).len(), costs::bus),
        part("port", "N that want one port", |e| fights::crowds(e).len(), fights::ports),
        part("lock", "N that want one lock", |e| fights::crowds(e).len(), fights::locks),
        part("accept", "N at one accept queue", |e| fights::crowds(e).len(), fights::accepts),
        part(
            "setup",
            "connection set-ups by the coordinator",
            |e| rates::many(e).len() - 1,
            setups::coordinator,
        ),
        part("setup-whole", "whole connection set-ups", |e| setups::beside(e).len(), setups::whole_ones),
    ]
}

fn main() -> ExitCode {
    match bench(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(why)) => {
            eprintln!("bench-queues: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The parts that were asked for.
fn chosen(names: &[String]) -> Outcome<Vec<Part>> {
    let all = parts();
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|part| part.name != name.as_str())) {
        return fail(format!("no part is called {unknown:?}: `bench-queues --list` says what there is"));
    }
    let wanted = |part: &Part| names.is_empty() || names.iter().any(|name| name == part.name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// Refuses a place for the report now rather than after ten minutes.
fn writable(dir: &Path) -> Outcome {
    let probe = dir.join(".probe");
    let tried = std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&probe, ""))
        .and_then(|()| std::fs::remove_file(&probe));
    tried.map_err(|e| {
        Failure(format!("the report can't be written to {}: {e}: use another --out DIR", dir.display()))
    })
}

fn bench(options: &Options) -> Outcome {
    let parts = chosen(&options.parts)?;
    if options.list {
        parts.iter().for_each(|part| println!("{:12} {}", part.name, part.about));
        return Ok(());
    }
    measure::fonts::register()?;
    writable(&options.out)?;
    measure::rig::allow_descriptors();
    let (rounds, millis) = if options.quick { (3, 100) } else { (7, 200) };
    let rounds = options.rounds.unwrap_or(rounds).max(1);
    let effort = Effort { quick: options.quick, rounds, time: Duration::from_millis(millis) };
    let watchdog = Watchdog::start(STILL_MAX, |why| {
        eprintln!("\nbench-queues: {why}");
        watchdog::end_children();
        std::process::exit(1);
    });
    let (since, load_before) = (Instant::now(), load());
    let mut run = Run::new(effort, watchdog, parts.iter().map(|part| (part.points)(effort)).sum());
    let mut figures = Vec::new();
    for part in &parts {
        figures
            .extend((part.measure)(&mut run).map_err(|e| Failure(format!("part {}: {}", part.name, e.0)))?);
    }
    run.finish();
    let report = report(&run, &parts, figures, &load_before);
    report.print();
    report.write(&options.out)?;
    println!(
        "\nIn {} s. Plots and tables: {}",
        since.elapsed().as_secs(),
        options.out.join("report.html").display()
    );
    Ok(())
}

fn report(run: &Run, parts: &[Part], figures: Vec<Figure>, load_before: &str) -> Report {
    let costs = Costs::of(&figures);
    let p50 = figures.iter().find(|figure| figure.id == "p50");
    let simulated =
        costs.as_ref().zip(p50).map(|(costs, p50)| simulate::simulate(costs, p50)).unwrap_or_default();
    let advice = Figures(&figures).advice();
    let too_noisy = run.looks.too_noisy();
    let looks = run.looks.text();
    let noise = if too_noisy {
        format!(
            "TOO NOISY TO CONCLUDE: {looks}. What follows is what the figures say all the same; only large \
            factors mean something."
        )
    } else {
        format!("Quiet enough: {looks}. Where rounds disagree, the findings say so.")
    };
    let measured = Figures(&figures).measured();
    let start =
        if too_noisy { "This run is too noisy to conclude; what its tables say all the same: " } else { "" };
    let mut findings = vec![format!("{start}{measured} {}", advice.sentence)];
    let error = simulated.first().map_or(1.0, simulate::error);
    findings.extend(Figures(&simulated).simulated(error));
    let Effort { rounds, time, .. } = run.effort;
    Report {
        machine: machine(load_before),
        effort: format!(
            "Each point {rounds} times for {} ms or a part of that, all competitors in turn.",
            time.as_millis()
        ),
        noise,
        too_noisy,
        parts: parts.iter().map(|part| part.name).collect(),
        findings,
        default_queue: advice.kind.map(ring::queue::Kind::name),
        assumptions: if costs.is_some() { simulate::assumptions() } else { Vec::new() },
        costs,
        figures,
        simulated,
    }
}

fn machine(load_before: &str) -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let model = model.unwrap_or("unknown");
    format!(
        "{cpus} processors ({model}), Linux {}; load averages before {load_before}, after {}.",
        kernel.trim(),
        load()
    )
}
