//! Requests a second and latencies, by processes, idle processes and client threads.

use std::thread;
use std::time::{Duration, Instant};

use harness::{Outcome, fail};
use measure::rig::{Client, Rig, Turns, no_op};
use measure::stats::percentile;
use ring::queue::Kind;

use crate::figure::{Better, Figure};
use crate::sweep::{Effort, Run};

/// Processes in the comparison by idle share.
pub const CROWD: f64 = 512.0;

/// Names of the queues, in the order of [`Kind::ALL`].
pub fn names() -> [&'static str; 3] {
    Kind::ALL.map(Kind::name)
}

/// The queue of that number.
pub fn kind(place: usize) -> Outcome<Kind> {
    Kind::ALL.get(place).copied().map_or_else(|| fail("no such queue"), Ok)
}

/// A count out of the points of an axis.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small whole numbers
pub fn whole(x: f64) -> u32 {
    x as u32
}

/// For arithmetic.
#[allow(clippy::cast_precision_loss)] // counts stay far below 2^52
pub fn float(n: u64) -> f64 {
    n as f64
}

/// By how many processes.
pub fn many(effort: Effort) -> &'static [f64] {
    let full = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
    effort.points(full, &[1.0, 8.0, 64.0, 512.0])
}

/// Shares of idle processes, in %.
pub fn shares(effort: Effort) -> &'static [f64] {
    effort.points(&[0.0, 25.0, 50.0, 75.0, 90.0, 99.0], &[0.0, 50.0, 90.0, 99.0])
}

/// Client threads.
pub fn crowds(effort: Effort) -> &'static [f64] {
    effort.points(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0], &[1.0, 4.0, 16.0])
}

/// What a run of clients found.
#[derive(Debug, Default)]
pub struct Load {
    answers: u64,
    /// Round trips in ns.
    samples: Vec<u32>,
}

fn ns(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_nanos()).unwrap_or(u32::MAX)
}

/// One thread plays all clients, each of which has one request under way. The first one's round trips are timed.
fn drive(clients: &mut [Client], time: Duration) -> Outcome<Load> {
    let end = Instant::now() + time;
    let mut load = Load { answers: 0, samples: Vec::with_capacity(1 << 18) };
    for client in clients.iter_mut() {
        client.ask(no_op())?;
    }
    let mut asked = Instant::now();
    while Instant::now() < end {
        for _ in 0..16 {
            let before = load.answers;
            for (n, client) in clients.iter_mut().enumerate() {
                if client.take().is_some() {
                    load.answers += 1;
                    if n == 0 {
                        load.samples.push(ns(asked));
                        asked = Instant::now();
                    }
                    client.ask(no_op())?;
                }
            }
            if load.answers == before {
                thread::yield_now();
            }
        }
    }
    for client in clients {
        client.wait(false)?;
    }
    Ok(load)
}

/// One client asks and waits, over and over.
fn alone(client: &mut Client, time: Duration, crowded: bool) -> Outcome<Load> {
    let end = Instant::now() + time;
    let mut load = Load { answers: 0, samples: Vec::with_capacity(1 << 18) };
    while Instant::now() < end {
        for _ in 0..16 {
            let since = Instant::now();
            client.ask(no_op())?;
            client.wait(crowded)?;
            load.samples.push(ns(since));
        }
    }
    load.answers = load.samples.len() as u64;
    Ok(load)
}

impl Load {
    /// Answers a second; half of the round trips, and 99% of them, took at most this many ns.
    fn figures(mut self, time: Duration) -> [f64; 3] {
        self.samples.sort_unstable();
        let ns = |per_mille| f64::from(percentile(&self.samples, per_mille));
        [float(self.answers) / time.as_secs_f64(), ns(500), ns(990)]
    }
}

/// All clients busy: answers a second, and what the card's turns found.
pub fn busy(kind: Kind, processes: u32, time: Duration) -> Outcome<(f64, Turns)> {
    let (mut rig, mut clients) = Rig::new(kind, processes)?;
    let (load, turns) = rig.beside(|| drive(&mut clients, time))?;
    let [rate, ..] = load.figures(time);
    Ok((rate, turns))
}

/// All processes have a request under way.
pub fn processes(run: &mut Run) -> Outcome<Vec<Figure>> {
    let mut rate = Figure::new("rate", "All processes busy", ["processes", "requests/s"], Better::More).note(
        "Every process has one request under way. One thread plays all of them, on another processor than \
        the coordinator's, \
         so that no scheduler is measured.",
    );
    let mut batch =
        Figure::new("batch", "Requests that a turn finds", ["processes", "requests/turn"], Better::More)
            .note(
                "In the same runs: requests by turns of the polling loop that found some. What a turn \
            reads across the bus is shared by them.",
            );
    run.sweep(&mut [&mut rate, &mut batch], &names(), many(run.effort), |place, x, time| {
        let (rate, turns) = busy(kind(place)?, whole(x), time)?;
        Ok(vec![rate, float(turns.requests) / float(turns.worked.max(1))])
    })?;
    Ok(vec![rate, batch])
}

/// One process asks, the others are attached and quiet.
pub fn latency(run: &mut Run) -> Outcome<Vec<Figure>> {
    let note = "One process asks, waits for the answer by polling, and asks again; the others are attached \
    and do nothing.";
    let axes = ["processes", "ns"];
    let mut p50 = Figure::new("p50", "Round trip of one busy process, p50", axes, Better::Less).note(note);
    let mut p99 = Figure::new("p99", "Round trip of one busy process, p99", axes, Better::Less).note(note);
    run.sweep(&mut [&mut p50, &mut p99], &names(), many(run.effort), |place, x, time| {
        let (mut rig, mut clients) = Rig::new(kind(place)?, whole(x))?;
        let Some(client) = clients.first_mut() else { return fail("no client") };
        let (load, _) = rig.beside(|| alone(client, time, false))?;
        let [_, p50, p99] = load.figures(time);
        Ok(vec![p50, p99])
    })?;
    Ok(vec![p50, p99])
}

/// Of many processes a share does nothing.
pub fn idle(run: &mut Run) -> Outcome<Vec<Figure>> {
    let note = "Of 512 processes; the others have one request under way each, played by one thread.";
    let x = "idle processes, %";
    let mut rate =
        Figure::new("idle-rate", "Some of 512 processes idle", [x, "requests/s"], Better::More).note(note);
    let note = "In the same runs, of the first busy process. With many busy ones it waits for them, here \
    and in the thread that plays them.";
    let mut p50 =
        Figure::new("idle-p50", "Some of 512 processes idle, round trip p50", [x, "ns"], Better::Less)
            .note(note);
    let mut p99 =
        Figure::new("idle-p99", "Some of 512 processes idle, round trip p99", [x, "ns"], Better::Less)
            .note(note);
    run.sweep(&mut [&mut rate, &mut p50, &mut p99], &names(), shares(run.effort), |place, x, time| {
        let (mut rig, mut clients) = Rig::new(kind(place)?, whole(CROWD))?;
        let busy = whole((CROWD * (1.0 - x / 100.0)).round().max(1.0)) as usize;
        let some = clients.get_mut(..busy).unwrap_or_default();
        let (load, _) = rig.beside(|| drive(some, time))?;
        Ok(load.figures(time).to_vec())
    })?;
    Ok(vec![rate, p50, p99])
}

/// Threads that all want something of the card.
pub fn clients(run: &mut Run) -> Outcome<Vec<Figure>> {
    let note = "Each client is a thread with a function of its own, all on one processor, the coordinator \
    on the other; who finds no answer leaves \
                the processor to the next, as the shim does when others run. What contention there is in \
                the queue comes from preemption; two \
                that push at the same moment: see \"A push\".";
    let x = "client threads";
    let mut rate =
        Figure::new("clients-rate", "Contending clients", [x, "requests/s"], Better::More).note(note);
    let mut p50 = Figure::new("clients-p50", "Contending clients, round trip p50", [x, "ns"], Better::Less)
        .note("In the same runs.");
    let mut p99 = Figure::new("clients-p99", "Contending clients, round trip p99", [x, "ns"], Better::Less)
        .note("In the same runs.");
    run.sweep(&mut [&mut rate, &mut p50, &mut p99], &names(), crowds(run.effort), |place, x, time| {
        let (mut rig, mut clients) = Rig::new(kind(place)?, whole(x))?;
        let crowded = clients.len() > 1;
        let (load, _) = rig.beside(|| {
            thread::scope(|scope| {
                let all: Vec<_> = clients
                    .iter_mut()
                    .map(|client| scope.spawn(move || alone(client, time, crowded)))
                    .collect();
                let mut sum = Load::default();
                for one in all {
                    let load = one.join().unwrap_or_else(|_| fail("a client panicked"))?;
                    sum.answers += load.answers;
                    sum.samples.extend(load.samples);
                }
                Ok(sum)
            })
        })?;
        Ok(load.figures(time).to_vec())
    })?;
    Ok(vec![rate, p50, p99])
}
