//! Two of these on one or two machines show whether a libfabric provider does what a link needs: writes in both directions, each
//! checked when the message behind it arrives.
//!
//! ```text
//! fabric-check PROVIDER LOCAL serve PORT           port 0: one that is free, which is printed
//! fabric-check PROVIDER LOCAL connect PEER [ROUNDS]  without ROUNDS: until the other end is gone
//! ```
#![deny(unsafe_code)]

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fabric::endpoint::{Down, Endpoint, Event, Settings};
use fabric::provider::Fabric;

#[path = "../../tests/common/memory.rs"]
mod memory;
#[path = "../../tests/common/peer.rs"]
mod peer;

use peer::Peer;

const WAIT_MAX: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fabric-check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let usage = "usage: fabric-check PROVIDER LOCAL (serve PORT | connect PEER [ROUNDS])";
    let (provider, local, rest) = match args.as_slice() {
        [provider, local, rest @ ..] => (*provider, local.parse::<IpAddr>()?, rest),
        _ => return Err(usage.into()),
    };
    let fabric = Fabric::open(provider, local)?;
    let (endpoint, rounds) = match rest {
        ["serve", port] => (serve(&fabric, port.parse()?)?, u64::MAX),
        ["connect", peer] => (connect(&fabric, peer.parse()?)?, u64::MAX),
        ["connect", peer, rounds] => (connect(&fabric, peer.parse()?)?, rounds.parse()?),
        _ => return Err(usage.into()),
    };
    let mut peer = Peer::new(&fabric, endpoint)?;
    let start = Instant::now();
    println!("connected");
    let result = peer.run(rounds);
    println!("rounds {} bytes {} seconds {:.2}", peer.rounds, peer.bytes, start.elapsed().as_secs_f64());
    match result {
        Err(peer::Failure::Down(Down::Ended)) if rounds == u64::MAX => {
            println!("ended");
            Ok(())
        }
        other => Ok(other?),
    }
}

fn serve(fabric: &Fabric, port: u16) -> Result<Endpoint, Box<dyn Error>> {
    let mut listener = fabric.listen(port)?;
    println!("listening {}", listener.address()?);
    loop {
        if let Some(incoming) = listener.poll()? {
            return wait_connected(incoming.accept(&Settings::default(), b"welcome")?);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn connect(fabric: &Fabric, to: SocketAddr) -> Result<Endpoint, Box<dyn Error>> {
    wait_connected(fabric.connect(to, &Settings::default(), b"hello")?)
}

fn wait_connected(mut endpoint: Endpoint) -> Result<Endpoint, Box<dyn Error>> {
    let start = Instant::now();
    while start.elapsed() < WAIT_MAX {
        match endpoint.event()? {
            Some(Event::Connected(_)) => return Ok(endpoint),
            Some(other) => return Err(format!("no connection: {other:?}").into()),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Err("no connection within a minute".into())
}
