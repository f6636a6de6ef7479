//! What is special about the shared ring and the hints (SPEC 2.8, 2.9), with the real program.

use std::time::Instant;

use ring::atomic::Ordering;
use ring::msg::{Completion, Request, Status};
use ring::queue::shared::{Poster, Ticket};
use ring::queue::{Key, Kind};
use ring::window::{Consumer, Raw};

use crate::card::{Card, Process};
use crate::{Host, QUIET_PORT, listen, lo};

fn host(kind: Kind, options: &[&str]) -> Host {
    Host::over(|| Card::boot_with(kind, options, QUIET_PORT))
}

/// A function's poster, beside the one that `process` uses itself.
fn poster(process: &Process, key: Key) -> Poster<'static> {
    let function = u16::try_from(process.number).unwrap();
    Poster::new(process.common.unwrap().ring(), &process.host.header.pushing, function, key)
}

fn request() -> Raw {
    Request::Listen { addr: lo(99), backlog: 1, flags: 0 }.to_raw(4711)
}

/// Dies with a ticket, as by kill -9 between the two stores.
fn draw_and_die(host: &mut Host, function: u32) {
    let process = host.attach(function);
    let _: Ticket = poster(&process, process.key).draw().unwrap();
    host.detach(process);
}

/// How soon is printed; that the card's own clock is asked, `tests/queues.rs` shows.
#[test]
fn s2_8_a_dead_ticket_is_passed_by() {
    for options in [&["--idle", "sleep"][..], &["--idle", "poll"]] {
        let mut host = host(Kind::Shared, options);
        let mut process = host.attach(1);
        let mut waits = Vec::new();
        for round in 0..20 {
            // Alive, and never publishes.
            let dawdler = host.attach(2);
            let _: Ticket = poster(&dawdler, dawdler.key).draw().unwrap();
            let since = Instant::now();
            listen(&mut process, 100 + round);
            waits.push(since.elapsed());
            host.detach(dawdler);
        }
        waits.sort_unstable();
        println!("{options:?}: a request behind a dead ticket waited {:?} to {:?}", waits[0], waits[19]);
        assert_eq!(host.card.counter("gaps"), 20);
        host.end();
    }
}

#[test]
fn s2_8_a_late_publication_counts_and_the_slot_comes_back() {
    let mut host = host(Kind::Shared, &[]);
    let mut process = host.attach(1);
    let mut slow = host.attach(2);
    // Its own account does not know of what goes past it below, nor of the credit for that.
    let mut answers = Consumer::new(slow.host.completions, 0);
    for _ in 0..3 {
        let mut late = poster(&slow, slow.key);
        let ticket = late.draw().unwrap();
        let number = listen(&mut process, 80);
        process.tell(Request::Unlisten { listener: number });
        late.publish(ticket, &request(), 0);
        slow.ring();
        let since = Instant::now();
        let answer = loop {
            match answers.pop().unwrap() {
                Some((raw, _)) if raw.token == 4711 => break Completion::from_raw(&raw).unwrap(),
                _ => assert!(since.elapsed() < crate::card::PATIENCE, "what was late is lost"),
            }
        };
        let Completion::Done { status: Status::Ok, value } = answer else { panic!("{answer:?}") };
        slow.tell(Request::Unlisten { listener: value });
    }
    assert_eq!(host.card.counter("forged"), 0);
    host.end();
}

/// More dead tickets than the card can remember at once, and twice round the ring.
#[test]
fn s2_8_slots_of_dead_processes_are_used_again() {
    let mut host = host(Kind::Shared, &[]);
    let mut process = host.attach(1);
    for round in 0..100 {
        draw_and_die(&mut host, 2 + round % 3);
        for _ in 0..90 {
            process.tell(Request::Unlisten { listener: 1 });
        }
        if round % 10 == 0 {
            let listener = listen(&mut process, 80);
            process.tell(Request::Unlisten { listener });
        }
    }
    listen(&mut process, 80);
    let usable = &process.common.unwrap().usable;
    let lost = || usable.iter().filter(|from| from.load(Ordering::Relaxed) == u64::MAX).count();
    let since = Instant::now();
    while lost() > 0 {
        assert!(since.elapsed() < crate::card::PATIENCE, "{} slots stay out of use", lost());
        process.ring();
        listen(&mut process, 81);
    }
    host.end();
}

#[test]
fn s2_8_who_lacks_the_key_is_nobody() {
    let mut host = host(Kind::Shared, &[]);
    let (mut process, villain) = (host.attach(1), host.attach(2));
    // In another's name, with one's own key; and as the agent.
    let mut forger =
        Poster::new(villain.common.unwrap().ring(), &villain.host.header.pushing, 1, villain.key);
    forger.push(&request(), 0).unwrap();
    let mut impostor =
        Poster::new(villain.common.unwrap().ring(), &villain.host.header.pushing, 0, Key([0, 0x5eed]));
    impostor.push(&Request::Detach { function: 1 }.to_raw(0), 0).unwrap();
    // Random bytes in the slots that come next, with and without a ticket.
    let region = villain.common.unwrap();
    for i in 0..64u64 {
        region.groups[0].fetch_add(u32::try_from(i).unwrap(), Ordering::Relaxed);
        region.marks[usize::try_from(i).unwrap()].fetch_add(1, Ordering::Relaxed);
    }
    villain.ring();
    listen(&mut process, 80);
    assert!(process.news.is_empty(), "{:?}", process.news);
    assert_eq!(host.card.counter("forged"), 1);
    assert_eq!(host.card.counter("functions_dropped"), 0);
    // Its own name and an agent's request: that one is dropped, and nobody else.
    poster(&villain, villain.key).push(&Request::Detach { function: 1 }.to_raw(0), 0).unwrap();
    villain.ring();
    // The second answer comes from a later turn than the one that met the impostor.
    listen(&mut process, 81);
    listen(&mut process, 82);
    assert_eq!(host.card.counter("functions_dropped"), 1);
    host.end();
}

#[test]
fn s2_9_without_a_hint_a_request_is_found_by_the_scan() {
    for options in [&["--idle", "sleep"][..], &["--idle", "poll"]] {
        let mut host = host(Kind::Hybrid, options);
        let mut process = host.attach(1);
        let marks = &process.common.unwrap().marks[1];
        for port in 100..120 {
            let token = process.post(Request::Listen { addr: lo(port), backlog: 1, flags: 0 });
            // Somebody else takes the hint back.
            marks.fetch_sub(1, Ordering::Relaxed);
            assert!(matches!(process.answer(token), Completion::Done { status: Status::Ok, .. }));
        }
        host.end();
    }
}

#[test]
fn the_queue_that_was_asked_for_is_used() {
    for kind in Kind::ALL {
        let mut host = host(kind, &[]);
        let mut process = host.attach(1);
        for port in 1..50 {
            listen(&mut process, port);
        }
        let (requests, shared) = (host.card.counter("requests"), host.card.counter("requests_shared"));
        assert!(requests >= 50);
        assert_eq!(shared, if kind == Kind::Shared { 49 } else { 0 }, "{kind}");
        assert_eq!(host.card.counter("hints") > 0, kind == Kind::Hybrid, "{kind}");
        host.end();
    }
}
