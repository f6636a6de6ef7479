//! Pipes over the kernel and under IPC-Direct, in turns: `bench-pipes` prints a table of medians.
//!
//! All processes are this same program: each row runs `bench-pipes measure SHAPE`, which executes its relatives with pipes as their
//! standard input and output, as a shell does. I/O is read(2) and write(2) of libc, one call a message on both sides.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use harness::child::run_ok;
use harness::instance::Instance;
use harness::{Failure, Outcome};
use measure::progress::Progress;
use measure::stats::{median, percentile};

/// Pipes over the kernel and under IPC-Direct, side by side
#[derive(Debug, Parser)]
struct Cli {
    /// Interleaved rounds; each figure is the median over them
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// One measurement
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Only rows whose name has this in it
    #[arg(default_value = "")]
    only: String,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What one process of a row does.
#[derive(Debug, Subcommand)]
enum Role {
    /// Start the others, and print one number
    #[command(hide = true)]
    Measure { shape: Shape, bytes: usize, seconds: f64 },
    /// Copy records from standard input to standard output
    #[command(hide = true)]
    Filter { bytes: usize },
    /// Write records to standard output
    #[command(hide = true)]
    Source { bytes: usize, seconds: f64 },
    /// Count records from standard input, and print how many came in a second
    #[command(hide = true)]
    Sink { bytes: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// There and back: the median in ns.
    PingPong,
    /// One writes, one reads: messages a second.
    Stream,
    /// Four programs in a row: records a second.
    Pipeline,
}

struct Row {
    name: &'static str,
    shape: Shape,
    bytes: usize,
    unit: &'static str,
}

const ROWS: &[Row] = &[
    Row { name: "ping-pong 8 B", shape: Shape::PingPong, bytes: 8, unit: "ns" },
    Row { name: "ping-pong 4 KiB", shape: Shape::PingPong, bytes: 4096, unit: "ns" },
    Row { name: "stream 8 B", shape: Shape::Stream, bytes: 8, unit: "messages/s" },
    Row { name: "stream 4 KiB", shape: Shape::Stream, bytes: 4096, unit: "messages/s" },
    Row { name: "stream 64 KiB", shape: Shape::Stream, bytes: 65_536, unit: "messages/s" },
    Row { name: "pipeline of 4 programs 64 B", shape: Shape::Pipeline, bytes: 64, unit: "records/s" },
];

/// Share of a ping-pong's time that is not measured.
const WARM_UP: f64 = 0.2;
/// Messages between two looks at the clock.
const BATCH: usize = 256;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.role {
        None => compare(&cli),
        Some(Role::Measure { shape: Shape::PingPong, bytes, seconds }) => ping_pong(bytes, seconds),
        Some(Role::Measure { shape, bytes, seconds }) => chain(shape, bytes, seconds),
        Some(Role::Filter { bytes }) => filter(bytes).map_err(Failure::from),
        Some(Role::Source { bytes, seconds }) => source(bytes, seconds).map_err(Failure::from),
        Some(Role::Sink { bytes }) => sink(bytes).map_err(Failure::from),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench-pipes: {}", e.0);
            ExitCode::FAILURE
        }
    }
}

fn compare(cli: &Cli) -> Outcome {
    let rows: Vec<&Row> = ROWS.iter().filter(|r| r.name.contains(&cli.only)).collect();
    let instance = Instance::start()?;
    let mut progress = Progress::new(rows.len() * cli.rounds * 2);
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["pipes", "unit", "kernel", "IPC-Direct", "times better", "least", "most"]);
    for row in rows {
        let (mut kernel, mut direct, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=cli.rounds {
            progress.step(&format!("{} over the kernel, round {round} of {}", row.name, cli.rounds));
            let k = measure(Command::new(std::env::current_exe()?), row, cli.seconds)?;
            progress.step(&format!("{} over IPC-Direct, round {round} of {}", row.name, cli.rounds));
            let d = measure(instance.shimmed(std::env::current_exe()?), row, cli.seconds)?;
            kernel.push(k);
            direct.push(d);
            ratios.push(if row.shape == Shape::PingPong { k / d } else { d / k });
        }
        table.add_row([
            row.name.to_owned(),
            row.unit.to_owned(),
            format!("{:.0}", median(kernel)),
            format!("{:.0}", median(direct)),
            format!("{:.2}", median(ratios.clone())),
            format!("{:.2}", ratios.iter().copied().fold(f64::INFINITY, f64::min)),
            format!("{:.2}", ratios.iter().copied().fold(0.0, f64::max)),
        ]);
    }
    progress.finish();
    instance.stop()?;
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    Ok(())
}

/// One measurement of a row, by a process of its own.
fn measure(mut command: Command, row: &Row, seconds: f64) -> Outcome<f64> {
    let Some(shape) = row.shape.to_possible_value() else {
        return Err(Failure("a shape without a name".to_owned()));
    };
    command.arg("measure").arg(shape.get_name()).arg(row.bytes.to_string()).arg(seconds.to_string());
    let text = run_ok(&mut command, Duration::from_secs(20) + Duration::from_secs_f64(seconds))?;
    text.trim().parse().map_err(|e| Failure(format!("{} printed {text:?}: {e}", row.name)))
}

/// This program in another role.
fn relative(role: &[&str], input: Stdio, output: Stdio) -> io::Result<Child> {
    Command::new(std::env::current_exe()?).args(role).stdin(input).stdout(output).spawn()
}

fn ping_pong(bytes: usize, seconds: f64) -> Outcome {
    let (there_end, mut there): (PipeReader, PipeWriter) = pipe()?;
    let (mut back, back_end) = pipe()?;
    let mut echo = relative(&["filter", &bytes.to_string()], there_end.into(), back_end.into())?;
    let mut message = vec![b'x'; bytes];
    let start = Instant::now();
    let measured_from = start + Duration::from_secs_f64(seconds * WARM_UP);
    let end = start + Duration::from_secs_f64(seconds);
    let mut samples = Vec::new();
    let mut before = start;
    while before < end {
        there.write_all(&message)?;
        back.read_exact(&mut message)?;
        let now = Instant::now();
        if before > measured_from {
            samples.push(u32::try_from((now - before).as_nanos()).unwrap_or(u32::MAX));
        }
        before = now;
    }
    drop(there);
    echo.wait()?;
    samples.sort_unstable();
    println!("{}", percentile(&samples, 500));
    Ok(())
}

/// Source, filters and sink, each a program.
fn chain(shape: Shape, bytes: usize, seconds: f64) -> Outcome {
    let bytes = bytes.to_string();
    let filters = if shape == Shape::Pipeline { 2 } else { 0 };
    let (mut from, to) = pipe()?;
    let mut all = vec![relative(&["source", &bytes, &seconds.to_string()], Stdio::null(), to.into())?];
    for _ in 0..filters {
        let (next, to) = pipe()?;
        all.push(relative(&["filter", &bytes], from.into(), to.into())?);
        from = next;
    }
    all.push(relative(&["sink", &bytes], from.into(), Stdio::inherit())?);
    for mut child in all {
        child.wait()?;
    }
    Ok(())
}

/// A standard stream without a buffer.
fn unbuffered(stream: &impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}

fn filter(bytes: usize) -> io::Result<()> {
    let (mut input, mut output) = (unbuffered(&io::stdin())?, unbuffered(&io::stdout())?);
    let mut record = vec![0; bytes];
    while input.read_exact(&mut record).is_ok() {
        output.write_all(&record)?;
    }
    Ok(())
}

fn source(bytes: usize, seconds: f64) -> io::Result<()> {
    let mut output = unbuffered(&io::stdout())?;
    let record = vec![b'x'; bytes];
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < end {
        for _ in 0..BATCH {
            output.write_all(&record)?;
        }
    }
    Ok(())
}

fn sink(bytes: usize) -> io::Result<()> {
    let mut input = unbuffered(&io::stdin())?;
    let mut record = vec![0; bytes];
    input.read_exact(&mut record)?;
    let start = Instant::now();
    let mut n = 0u32;
    while input.read_exact(&mut record).is_ok() {
        n += 1;
    }
    println!("{}", f64::from(n) / start.elapsed().as_secs_f64());
    Ok(())
}
