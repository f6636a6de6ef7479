//! libfabric alone, between two hosts: what a link of coordinators can reach at best.
//!
//! `fabric-worker PROVIDER LOCAL serve JOB` prints where it listens and serves one client, `fabric-worker PROVIDER LOCAL load ADDRESS JOB` is that
//! client; PROVIDER is `tcp` or `verbs`, LOCAL an address of this host. JOB and what each prints are JSON ([`measure::job`]), as with
//! `bench-worker`. Ping-pongs are messages, streams are writes into the other's memory, and both ends poll. With `--behind-a-thread` a
//! ping-pong's messages are another thread's: see [`desk`].

mod desk;
#[path = "../../../../nic-coordinator/fabric/tests/common/memory.rs"]
mod memory;
mod talk;

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fabric::endpoint::Settings;
use fabric::provider::Fabric;
use measure::clock;
use measure::job::{Figures, Job, Shape};

use crate::talk::End;

/// Two processes that measure each other over libfabric
#[derive(Debug, Parser)]
struct Cli {
    /// libfabric's name of it
    provider: String,
    /// An address of this host
    local: IpAddr,
    /// The messages of a ping-pong are another thread's
    #[arg(long)]
    behind_a_thread: bool,
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Listen, and serve one client
    Serve {
        /// What to do
        job: String,
    },
    /// Connect, and measure
    Load {
        /// Where the server listens, as it printed it
        connect: SocketAddr,
        /// What to do
        job: String,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("fabric-worker: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Box<dyn Error>> {
    let fabric = Fabric::open(&cli.provider, cli.local)?;
    let behind = cli.behind_a_thread;
    let figures = match cli.role {
        Role::Serve { job } => serve(&fabric, &serde_json::from_str(&job)?, behind)?,
        Role::Load { connect, job } => load(&fabric, connect, &serde_json::from_str(&job)?, behind)?,
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// Room for the longest message, and as little as needed of everything else.
fn settings(shape: &Shape) -> Settings {
    match *shape {
        Shape::PingPong { bytes, .. } => {
            Settings { message_bytes: bytes, receives: 4, ..Settings::default() }
        }
        Shape::Connect { .. } => Settings { message_bytes: 64, receives: 1, sends: 1, writes: 1 },
        _ => Settings::default(),
    }
}

fn serve(fabric: &Fabric, job: &Job, behind_a_thread: bool) -> Result<Figures, Box<dyn Error>> {
    clock::pin(job.cpus.map(|[server, _]| server))?;
    let mut listener = fabric.listen(0)?;
    println!("{}", listener.address()?);
    let start_s = clock::cpu_s();
    let mut accept = || -> Result<End, Box<dyn Error>> {
        loop {
            if let Some(incoming) = listener.poll()? {
                return End::connected(incoming.accept(&settings(&job.shape), b"")?);
            }
            std::thread::yield_now();
        }
    };
    match job.shape {
        Shape::Connect { .. } => while accept()?.answer_one()? {},
        Shape::PingPong { bytes, .. } if behind_a_thread => desk::answer(&mut accept()?, bytes)?,
        shape => accept()?.answer(fabric, &shape)?,
    }
    Ok(Figures { cpu_s: clock::cpu_s() - start_s, ..Figures::default() })
}

fn load(
    fabric: &Fabric,
    peer: SocketAddr,
    job: &Job,
    behind_a_thread: bool,
) -> Result<Figures, Box<dyn Error>> {
    clock::pin(job.cpus.map(|[_, client]| client))?;
    let connect = || End::connected(fabric.connect(peer, &settings(&job.shape), b"")?);
    match job.shape {
        Shape::Connect { .. } => talk::connect_all(connect, job),
        Shape::PingPong { bytes, .. } if behind_a_thread => desk::ask(&mut connect()?, bytes, job),
        _ => connect()?.ask(fabric, job),
    }
}
