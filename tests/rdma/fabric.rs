//! The crate `fabric` over verbs: the program that checks it over tcp on one machine, `fabric-check`, and nothing else than the
//! provider's name is different.

use std::time::{Duration, Instant};

use harness::guest::Guest;
use harness::{Failure, Outcome, ensure};

use crate::pair::{BOUND, Pair, on_pair};

const PORT: u16 = 7777;
/// Writes each way in turn: each of the program's sizes twice, up to 1 MiB.
const ROUNDS: u64 = 16;
/// How long a transfer goes on before somebody is killed.
const TRANSFER: Duration = Duration::from_secs(2);
/// A process's end is said by its kernel.
const PROCESS_BOUND: Duration = Duration::from_secs(20);

/// Writes and the messages behind them, in both directions, each compared.
pub fn writes() -> Outcome {
    on_pair(|pair| {
        serve(&mut pair.first)?;
        let client = pair.second.run(&connect(&ROUNDS.to_string()), BOUND)?;
        ensure(rounds(&client)? == ROUNDS, || client.clone())?;
        let server = pair.first.finish("serve", BOUND)?;
        ensure(rounds(&server)? > 0 && server.contains("ended"), || server.clone())
    })
}

/// The client is killed in the middle of a transfer: the server hears of it.
pub fn process_killed() -> Outcome {
    on_pair(|pair| {
        transfer(pair)?;
        let killed = Instant::now();
        pair.second.run("kill -9 $connect", BOUND)?;
        let server = pair.first.finish("serve", BOUND)?;
        let took = killed.elapsed();
        ensure(took < PROCESS_BOUND && rounds(&server)? > 0 && server.contains("ended"), || {
            format!("after {took:?}: {server}")
        })
    })
}

/// Starts a server, and waits until it listens.
fn serve(host: &mut Guest) -> Outcome {
    host.start("serve", &format!("/opt/fabric-check verbs 10.7.0.1 serve {PORT}"))?;
    host.until("grep -q listening /tmp/serve", BOUND)
}

/// The client's command.
fn connect(rounds: &str) -> String {
    format!("/opt/fabric-check verbs 10.7.0.2 connect 10.7.0.1:{PORT} {rounds}")
}

/// Starts both ends, and has them transfer for a while.
fn transfer(pair: &mut Pair) -> Outcome {
    serve(&mut pair.first)?;
    pair.second.start("connect", &connect(""))?;
    pair.second.until("grep -q connected /tmp/connect", BOUND)?;
    std::thread::sleep(TRANSFER);
    Ok(())
}

/// How many rounds an end says that it had.
fn rounds(said: &str) -> Outcome<u64> {
    let number = said.lines().find_map(|line| line.strip_prefix("rounds ")?.split(' ').next()?.parse().ok());
    number.ok_or_else(|| Failure(format!("no rounds: {said}")))
}
