//! What single operations cost, and how many of them cross the bus.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Failure, Outcome, ensure, fail};
use measure::rig::{CARD_CPU, CLIENT_CPU, Client, Rig, Turns, no_op, pin};
use measure::stats::median;
use ring::queue::Kind;

use crate::figure::{Better, Figure};
use crate::rates::{busy, float, kind, many, names, whole};
use crate::sweep::Run;

/// Functions that each pushing thread goes round, and what it pushes into each before the card is let at it.
const FUNCTIONS: u32 = 8;
const EACH: u32 = 64;
/// Times that two threads push together.
const TOGETHER: usize = 40;
/// Functions whose marks share one count (SPEC 2.9.1).
const GROUP: u32 = 256;
/// Entries of the shared ring that one read of 512 bytes brings.
const ENTRIES_A_READ: u64 = 8;

/// Requests that wait when the card's work is timed.
pub const WAITING: [f64; 3] = [1.0, 16.0, 128.0];

/// A turn that finds nothing.
pub fn polling(run: &mut Run) -> Outcome<Vec<Figure>> {
    let axes = ["processes", "ns/turn"];
    let mut turn = Figure::new("polling", "A turn over idle processes", axes, Better::Less).note(
        "Nobody asks for anything. Hybrid and shared look at one line of counts, and each ms at all \
        functions besides: see the next plot.",
    );
    run.sweep(&mut [&mut turn], &names(), many(run.effort), |place, x, time| {
        let (mut rig, _clients) = Rig::new(kind(place)?, whole(x))?;
        Ok(vec![on_card_cpu(|| rig.idle_turn_ns(time / 4))?])
    })?;
    let mut scan = Figure::new("scan", "A look at all of many idle processes", axes, Better::Less).note(
        "What per-process does in each turn, hybrid and shared once in a ms: at 512 processes that is what \
        they have left of it.",
    );
    run.sweep(&mut [&mut scan], &names(), many(run.effort), |place, x, time| {
        let (mut rig, _clients) = Rig::new(kind(place)?, whole(x))?;
        Ok(vec![on_card_cpu(|| rig.scan_ns(time / 4))?])
    })?;
    Ok(vec![turn, scan])
}

fn on_card_cpu<T: Send>(body: impl FnOnce() -> T + Send) -> Outcome<T> {
    let pinned = || {
        pin(CARD_CPU);
        body()
    };
    thread::scope(|scope| scope.spawn(pinned).join()).map_err(|_| Failure("the card panicked".to_owned()))
}

/// Pushes, alone and beside another processor; and the card's part.
pub fn operations(run: &mut Run) -> Outcome<Vec<Figure>> {
    let mut push = Figure::new("push", "A push", ["processors that push", "ns/push"], Better::Less).note(
        "The host's part of a request, without the answer: threads on so many processors push 512 requests \
        each at the same time, while the card stands \
         still. Into the shared ring that is a ticket and a seal (SipHash) besides the entry, in hybrid a \
         mark and a count.",
    );
    run.sweep(&mut [&mut push], &names(), &[1.0, 2.0], |place, x, _| {
        Ok(vec![pushes(kind(place)?, whole(x))?])
    })?;
    let mut card = Figure::new(
        "card",
        "The card's part of a request",
        ["requests that wait", "ns/request"],
        Better::Less,
    )
    .note(
        "Taken, checked, decided, answered, by turns until nothing is left, of one function, on one \
                thread: no cache line comes from another \
                 processor, as on a card, whose memory the entries are in.",
    );
    run.sweep(&mut [&mut card], &names(), &WAITING, |place, x, time| {
        let kind = kind(place)?;
        Ok(vec![on_card_cpu(|| card_ns(kind, whole(x), time / 4))??])
    })?;
    Ok(vec![push, card])
}

/// Answers that must be there, since the card has nothing left to do.
fn answers(client: &mut Client, count: u32) -> Outcome {
    let taken = std::iter::from_fn(|| client.take()).count();
    ensure(taken == count as usize, || format!("{taken} answers instead of {count}"))
}

fn card_ns(kind: Kind, waiting: u32, time: Duration) -> Outcome<f64> {
    let (mut rig, mut clients) = Rig::new(kind, 1)?;
    let Some(client) = clients.first_mut() else { return fail("no client") };
    let (end, mut spent) = (Instant::now() + time, Vec::new());
    while Instant::now() < end {
        for _ in 0..waiting {
            client.ask(no_op())?;
        }
        let since = Instant::now();
        rig.work()?;
        spent.push(since.elapsed().as_secs_f64() * 1e9 / f64::from(waiting));
        answers(client, waiting)?;
    }
    Ok(median(spent))
}

/// Median of what a push took, in ns.
fn pushes(kind: Kind, processors: u32) -> Outcome<f64> {
    let (mut rig, mut clients) = Rig::new(kind, processors * FUNCTIONS)?;
    let mut spent = Vec::new();
    for _ in 0..TOGETHER {
        let there = AtomicUsize::new(0);
        let parts = clients.chunks_mut(FUNCTIONS as usize).zip([CLIENT_CPU, CARD_CPU]);
        let found: Vec<Outcome<f64>> = thread::scope(|scope| {
            let all: Vec<_> = parts
                .map(|(part, cpu)| {
                    let there = &there;
                    scope.spawn(move || {
                        pin(cpu);
                        // Relaxed: it is only about starting at the same time.
                        there.fetch_add(1, Ordering::Relaxed);
                        while there.load(Ordering::Relaxed) < processors as usize {
                            std::hint::spin_loop();
                        }
                        push_all(part)
                    })
                })
                .collect();
            all.into_iter().map(|one| one.join().unwrap_or_else(|_| fail("a client panicked"))).collect()
        });
        for ns in found {
            spent.push(ns?);
        }
        rig.work()?;
        for client in &mut clients {
            answers(client, EACH)?;
        }
    }
    Ok(median(spent))
}

fn push_all(clients: &mut [Client]) -> Outcome<f64> {
    let since = Instant::now();
    for _ in 0..EACH {
        for client in clients.iter_mut() {
            client.ask(no_op())?;
        }
    }
    Ok(since.elapsed().as_secs_f64() * 1e9 / f64::from(EACH * FUNCTIONS))
}

/// What crosses the bus for a request and its answer: card's reads, stores of both.
fn crossings(kind: Kind, processes: u32, turns: Turns) -> [f64; 2] {
    let Turns { worked, requests, completions, .. } = turns;
    let per_turn = requests.div_ceil(worked.max(1));
    let (reads, stores) = match kind {
        Kind::PerProcess => (0, requests + completions),
        // The line of counts, then the marks of each group that changed, 512 bytes.
        Kind::Hybrid => {
            let groups = u64::from((processes + 1).div_ceil(GROUP));
            (worked * (1 + groups.min(per_turn)), requests + completions)
        }
        // `tail`, the counts for `armed`, the entries; `freed`.
        Kind::Shared => (worked * (2 + per_turn.div_ceil(ENTRIES_A_READ)), completions + worked),
    };
    [float(reads) / float(requests.max(1)), float(stores) / float(requests.max(1))]
}

/// Bus operations a request.
pub fn bus(run: &mut Run) -> Outcome<Vec<Figure>> {
    let axes = ["processes, all busy", "operations/request"];
    let mut reads = Figure::new("bus-reads", "Reads across the bus", axes, Better::Less).note(
        "Counted by the protocol (SPEC 2.7 to 2.9), with the requests and turns of runs on this machine, \
        where a turn takes less time than the bus would: a \
         turn that finds work reads, in hybrid, the line of counts and the marks of each group that changed \
         (512 bytes); in shared, the tail, the line of \
         counts, and the entries (8 a read). Private rings need none: the requests are in the card's \
         memory. A turn that finds nothing costs hybrid 1 read \
         and shared 2.",
    );
    let mut stores = Figure::new("bus-stores", "Stores across the bus", axes, Better::Less).note(
        "Of entries of 64 bytes, by the host into the window and by the card into host memory, and of the \
        word that says how far the shared ring is free. Nobody waits for \
         a store. (A window that is mapped uncached takes an entry as eight stores of 8 bytes.) Shared \
         requests stay in host memory until the card reads them. What \
         hybrid adds on the host's side, a mark and a locked addition, is in host memory, too.",
    );
    run.sweep(&mut [&mut reads, &mut stores], &names(), many(run.effort), |place, x, time| {
        let kind = kind(place)?;
        let (_, turns) = busy(kind, whole(x), time / 2)?;
        Ok(crossings(kind, whole(x), turns).to_vec())
    })?;
    Ok(vec![reads, stores])
}

#[cfg(test)]
mod tests {
    use measure::rig::Turns;
    use ring::queue::Kind;

    use super::crossings;

    #[test]
    fn one_request_a_turn() {
        let turns = Turns { all: 900, worked: 100, requests: 100, completions: 100 };
        assert_eq!(crossings(Kind::PerProcess, 8, turns), [0.0, 2.0]);
        assert_eq!(crossings(Kind::Hybrid, 8, turns), [2.0, 2.0]);
        assert_eq!(crossings(Kind::Shared, 8, turns), [3.0, 2.0]);
    }

    #[test]
    fn many_requests_share_a_turns_reads() {
        let turns = Turns { all: 10, worked: 10, requests: 1000, completions: 1000 };
        assert_eq!(crossings(Kind::Hybrid, 512, turns), [0.04, 2.0]);
        assert_eq!(crossings(Kind::Shared, 512, turns), [0.15, 1.01]);
    }
}
