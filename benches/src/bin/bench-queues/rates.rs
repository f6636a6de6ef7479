//! Requests a second, latencies, and what polling costs, on each queue.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::Outcome;
use measure::stats::{median, percentile};
use ring::queue::Kind;

use crate::figure::Figure;
use crate::rig::{CARD_CPU, CLIENT_CPU, Client, Rig, no_op, pin};

/// How thorough.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Each point is measured so often, all queues in turn.
    pub rounds: usize,
    /// For so long each time.
    pub time: Duration,
}

/// What one operation costs, in ns: for the simulation.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Costs {
    /// A turn without functions to look at.
    pub turn_ns: f64,
    /// For each function that a turn of private rings looks at.
    pub ring_ns: f64,
    /// For each request: taken, decided, answered.
    pub request_ns: [f64; 3],
    /// A host's push, alone.
    pub push_ns: [f64; 3],
    /// A host's push, while another one pushes on another processor.
    pub contended_push_ns: [f64; 3],
}

#[allow(clippy::cast_precision_loss)] // counts stay far below 2^52
fn float(n: u64) -> f64 {
    n as f64
}

/// Each client has one request under way; the number of answers.
fn drive(clients: &mut [Client], time: Duration) -> u64 {
    let end = Instant::now() + time;
    let mut answers = 0;
    clients.iter_mut().for_each(|client| client.ask(no_op()));
    while Instant::now() < end {
        for _ in 0..16 {
            let before = answers;
            for client in clients.iter_mut() {
                if client.take().is_some() {
                    answers += 1;
                    client.ask(no_op());
                }
            }
            if answers == before {
                thread::yield_now();
            }
        }
    }
    clients.iter_mut().for_each(|client| drop(client.wait()));
    answers
}

fn rate(rig: &mut Rig, clients: &mut [Client], threads: usize, time: Duration) -> (f64, [u64; 2], u64) {
    let share = clients.len().div_ceil(threads).max(1);
    let (answers, turns) = rig.beside(|| {
        thread::scope(|scope| {
            let drivers: Vec<_> =
                clients.chunks_mut(share).map(|part| scope.spawn(move || drive(part, time))).collect();
            drivers.into_iter().map(|driver| driver.join().unwrap_or(0)).sum::<u64>()
        })
    });
    (float(answers) / time.as_secs_f64(), turns, answers)
}

/// Round trips of one client in ns, sorted.
fn round_trips(rig: &mut Rig, client: &mut Client, time: Duration) -> Vec<u32> {
    let (mut samples, _) = rig.beside(|| {
        let end = Instant::now() + time;
        let mut samples = Vec::with_capacity(1 << 20);
        while Instant::now() < end {
            for _ in 0..64 {
                let since = Instant::now();
                client.ask(no_op());
                client.wait();
                samples.push(u32::try_from(since.elapsed().as_nanos()).unwrap_or(u32::MAX));
            }
        }
        samples
    });
    samples.sort_unstable();
    samples
}

/// Measures `value` for each kind and each x, in turns, and adds the medians.
fn fill(
    figures: &mut [(&mut Figure, &str)],
    xs: &[f64],
    rounds: usize,
    mut value: impl FnMut(Kind, f64) -> Outcome<Vec<f64>>,
) -> Outcome {
    for x in xs {
        eprintln!("{}: {x}", figures.first().map_or("", |(figure, _)| figure.title));
        let mut rows: Vec<[Vec<f64>; 3]> = vec![Default::default(); figures.len()];
        for _ in 0..rounds {
            for (kind, place) in Kind::ALL.into_iter().zip(0..) {
                for (row, value) in rows.iter_mut().zip(value(kind, *x)?) {
                    row.get_mut(place).into_iter().for_each(|values: &mut Vec<f64>| values.push(value));
                }
            }
        }
        for ((figure, suffix), row) in figures.iter_mut().zip(rows) {
            for (kind, values) in Kind::ALL.into_iter().zip(row) {
                figure.add(&format!("{kind}{suffix}"), *x, median(values));
            }
        }
    }
    Ok(())
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small whole numbers
fn whole(x: f64) -> u32 {
    x as u32
}

/// Rates and latencies by the number of processes, idle ones, and threads that post.
pub fn rates(effort: Effort) -> Outcome<Vec<Figure>> {
    let mut all = Vec::new();
    let many: &[f64] = &[1.0, 8.0, 64.0, 256.0, 512.0];

    let note = "All processes have one request under way each; one thread plays them all, on another processor than the coordinator.";
    let mut by_processes =
        Figure::new("rate", "Requests a second by processes, all busy", "processes", "requests/s", note);
    let note = "Of the turns of the poll loop that found work. With more at once, what a turn reads across the bus is shared by more.";
    let mut batch =
        Figure::new("batch", "Requests that a turn finds, all busy", "processes", "requests/turn", note);
    fill(&mut [(&mut by_processes, ""), (&mut batch, "")], many, effort.rounds, |kind, x| {
        let (mut rig, mut clients) = Rig::new(kind, whole(x))?;
        let (rate, turns, answers) = rate(&mut rig, &mut clients, 1, effort.time);
        Ok(vec![rate, float(answers) / float(turns[1].max(1))])
    })?;
    all.extend([by_processes, batch]);

    let note = "One process asks and waits for the answer, the others do nothing.";
    let mut p50 = Figure::new("p50", "Round trip of one busy process, p50", "processes", "ns", note);
    let mut p99 = Figure::new("p99", "Round trip of one busy process, p99", "processes", "ns", note);
    fill(&mut [(&mut p50, ""), (&mut p99, "")], many, effort.rounds, |kind, x| {
        let (mut rig, mut clients) = Rig::new(kind, whole(x))?;
        let Some(client) = clients.first_mut() else { return Ok(vec![]) };
        let samples = round_trips(&mut rig, client, effort.time);
        Ok(vec![f64::from(percentile(&samples, 500)), f64::from(percentile(&samples, 990))])
    })?;
    all.extend([p50, p99]);

    let note = "512 processes, of which the others have one request under way each.";
    let mut idle = Figure::new(
        "idle",
        "Requests a second by share of idle processes",
        "idle processes, %",
        "requests/s",
        note,
    );
    fill(&mut [(&mut idle, "")], &[0.0, 50.0, 90.0, 99.0], effort.rounds, |kind, x| {
        let (mut rig, mut clients) = Rig::new(kind, 512)?;
        let busy = whole((512.0 * (1.0 - x / 100.0)).round().max(1.0)) as usize;
        Ok(vec![rate(&mut rig, clients.get_mut(..busy).unwrap_or_default(), 1, effort.time).0])
    })?;
    all.push(idle);

    let note = "Each on a thread of its own, all on one processor: what contention there is comes from preemption. Two at the same time: see the costs.";
    let mut threads =
        Figure::new("threads", "Requests a second by client threads", "client threads", "requests/s", note);
    fill(&mut [(&mut threads, "")], &[1.0, 2.0, 4.0, 8.0, 16.0], effort.rounds, |kind, x| {
        let (mut rig, mut clients) = Rig::new(kind, whole(x))?;
        Ok(vec![rate(&mut rig, &mut clients, whole(x) as usize, effort.time).0])
    })?;
    all.push(threads);

    let note = "Nobody asks for anything. Without the look at all functions every ms that hybrid and shared do besides.";
    let mut polling = Figure::new("polling", "A turn over idle processes", "processes", "ns/turn", note);
    fill(&mut [(&mut polling, "")], many, effort.rounds, |kind, x| {
        let (mut rig, _clients) = Rig::new(kind, whole(x))?;
        Ok(vec![idle_turn(&mut rig, effort.time / 4)])
    })?;
    all.push(polling);
    Ok(all)
}

/// A turn without work, in ns. The clock stands still, so that no scan is due.
fn idle_turn(rig: &mut Rig, time: Duration) -> f64 {
    let now_us = rig.now_us();
    rig.poller.turn(now_us);
    let (since, mut turns) = (Instant::now(), 0);
    while since.elapsed() < time {
        for _ in 0..64 {
            rig.poller.turn(now_us);
        }
        turns += 64;
    }
    since.elapsed().as_secs_f64() * 1e9 / float(turns)
}

/// Requests that one function may have outstanding (SPEC 2.4).
const BATCH: u32 = 128;

/// What the operations cost, each alone.
pub fn costs(effort: Effort, polling: &Figure) -> Outcome<Costs> {
    eprintln!("costs of the operations");
    let at = |x| polling.at(Kind::PerProcess.name(), x).unwrap_or(0.0);
    let ring_ns = (at(512.0) - at(64.0)) / (512.0 - 64.0);
    let mut costs = Costs { turn_ns: (at(1.0) - ring_ns).max(0.0), ring_ns, ..Costs::default() };
    for (place, kind) in Kind::ALL.into_iter().enumerate() {
        let (mut pushes, mut requests, mut contended) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds.max(3) {
            let (push_ns, request_ns) = alone(kind, effort.time / 4)?;
            pushes.push(push_ns);
            requests.push(request_ns);
            contended.push(together(kind)?);
        }
        let all = [&mut costs.push_ns, &mut costs.request_ns, &mut costs.contended_push_ns];
        for (cost, values) in all.into_iter().zip([pushes, requests, contended]) {
            cost.get_mut(place).into_iter().for_each(|cost| *cost = median(values.clone()));
        }
    }
    Ok(costs)
}

/// On one thread, in turns: pushes; the card's turns. In ns for each request.
fn alone(kind: Kind, time: Duration) -> Outcome<(f64, f64)> {
    pin(CLIENT_CPU);
    let (mut rig, mut clients) = Rig::new(kind, 1)?;
    let Some(client) = clients.first_mut() else { return Ok((0.0, 0.0)) };
    let (mut push, mut card, mut count) = (Duration::ZERO, Duration::ZERO, 0);
    let end = Instant::now() + time;
    while Instant::now() < end {
        let since = Instant::now();
        (0..BATCH).for_each(|_| client.ask(no_op()));
        push += since.elapsed();
        let since = Instant::now();
        while rig.turn() {}
        card += since.elapsed();
        (0..BATCH).for_each(|_| drop(client.wait()));
        count += u64::from(BATCH);
    }
    let each = |time: Duration| time.as_secs_f64() * 1e9 / float(count);
    Ok((each(push), each(card)))
}

/// Two threads on two processors push at the same time. In ns for each push.
fn together(kind: Kind) -> Outcome<f64> {
    let (mut rig, mut clients) = Rig::new(kind, 2)?;
    let mut spent = Vec::new();
    for _ in 0..400 {
        let there = AtomicU32::new(0);
        thread::scope(|scope| {
            let both: Vec<_> = clients
                .iter_mut()
                .zip([CLIENT_CPU, CARD_CPU])
                .map(|(client, cpu)| {
                    let there = &there;
                    scope.spawn(move || {
                        pin(cpu);
                        there.fetch_add(1, Ordering::AcqRel);
                        while there.load(Ordering::Acquire) < 2 {
                            std::hint::spin_loop();
                        }
                        let since = Instant::now();
                        (0..BATCH).for_each(|_| client.ask(no_op()));
                        since.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH)
                    })
                })
                .collect();
            spent.extend(both.into_iter().filter_map(|thread| thread.join().ok()));
        });
        while rig.turn() {}
        for client in &mut clients {
            (0..BATCH).for_each(|_| drop(client.wait()));
        }
    }
    Ok(median(spent))
}
