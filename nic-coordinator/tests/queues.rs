//! The shared ring and the hints (SPEC 2.8, 2.9) behind a poller whose clock the test holds.

mod polled;

use nic_coordinator::intake::{GAP_US, SCAN_EVERY_US};
use polled::Host;
use ring::atomic::Ordering;
use ring::queue::Kind;
use ring::queue::shared::Ticket;

/// SPEC 2.8.4.
const GAP_US_MAX: u64 = 10_000;

#[test]
fn s2_7_the_same_requests_get_the_same_answers_on_each_queue() {
    for kind in Kind::ALL {
        let mut host = Host::new(kind);
        let mut processes = [1, 2, 4095].map(|number| host.attach(number));
        let mut now_us = 0;
        for round in 0..300 {
            for process in &mut processes {
                process.ask(2 * round);
                process.ask(2 * round + 1);
            }
            while host.poller.turn(now_us) {
                now_us += 1;
            }
            for process in &mut processes {
                assert_eq!(process.answers(), [2 * round, 2 * round + 1], "{kind}");
            }
        }
        let hinted = host.shown.sum("hints") > 0;
        assert_eq!(hinted, kind == Kind::Hybrid, "{kind}");
    }
}

#[test]
fn s2_8_4_a_ticket_is_waited_for_and_passed_by_in_time() {
    let mut host = Host::new(Kind::Shared);
    let (mut dead, mut other) = (host.attach(1), host.attach(2));
    let mut poster = dead.poster(&host);
    let mut now_us = 5_000_000;
    for round in 0..100 {
        // Never published.
        let _: Ticket = poster.draw().unwrap();
        other.ask(round);
        let seen_us = now_us;
        while other.answers().is_empty() {
            assert!(now_us - seen_us < GAP_US_MAX, "round {round}: not passed by");
            host.poller.turn(now_us);
            // The card says when it wants to look again, should it sleep.
            let due_us = host.poller.next_deadline_us();
            assert!(due_us.is_none_or(|due_us| due_us <= seen_us + GAP_US), "{due_us:?}");
            now_us += 100;
        }
        assert!(now_us - seen_us >= GAP_US, "nobody is waited for");
        assert_eq!(host.shown.sum("gaps"), u64::from(round) + 1);
        // Its process is still seen in a push: as good as dead, and gone in the end.
        if round % 60 == 59 {
            host.poller.unmap(1, now_us);
            dead = host.attach(1);
            poster = dead.poster(&host);
        }
    }
}

#[test]
fn s2_9_5_who_is_left_out_of_the_hints_is_found_by_the_scan() {
    let mut host = Host::new(Kind::Hybrid);
    let mut process = host.attach(3);
    for round in 1..100u64 {
        let now_us = round * 10 * SCAN_EVERY_US;
        host.poller.turn(now_us);
        let mark = &host.common.unwrap().marks[3];
        let before = mark.load(Ordering::Relaxed);
        process.ask(7);
        // Somebody else takes the hint back.
        mark.store(before, Ordering::Relaxed);
        assert!(!host.poller.turn(now_us + SCAN_EVERY_US - 1));
        assert!(process.answers().is_empty());
        assert!(host.poller.turn(now_us + SCAN_EVERY_US));
        assert_eq!(process.answers(), [7]);
    }
}
