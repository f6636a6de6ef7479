//! A slow bus (`--pcie-profile`): nothing comes sooner than it may, nothing is lost, and the order stays.

mod polled;

use std::time::{Duration, Instant};

use polled::Host;
use ring::profile::Profile;
use ring::queue::Kind;

/// Times that no machine passes by accident.
const SLOW: &str =
    "custom,posted-write-ns=3000000,dma-write-ns=2000000,dma-read-ns=1500000,interrupt-ns=4000000";

fn slow() -> Profile {
    SLOW.parse().unwrap()
}

#[test]
fn an_answer_takes_its_way_there_and_back() {
    for kind in Kind::ALL {
        let mut host = Host::new(kind).behind(slow());
        let mut process = host.attach(1);
        let posted = Instant::now();
        process.ask(1);
        process.ask(2);
        let mut got = Vec::new();
        while got.is_empty() {
            // Whether or not anything is due: who has something under way does not sleep.
            assert!(host.poller.turn(0) || process.end.completions().ready(), "{kind}: it would sleep");
            got = process.answers();
        }
        // The request by a posted write, or fetched by two reads; the completion by a DMA write.
        assert!(posted.elapsed() >= Duration::from_millis(3 + 2), "{kind}");
        while got.len() < 2 {
            host.poller.turn(0);
            got.extend(process.answers());
        }
        assert_eq!(got, [1, 2], "{kind}");
    }
}

#[test]
fn an_interrupt_follows_its_completion() {
    for kind in Kind::ALL {
        let mut host = Host::new(kind).behind(slow());
        let mut process = host.attach(1);
        process.ask(1);
        process.arm();
        let mut seen = None;
        while process.interrupts(0) == 0 {
            host.poller.turn(0);
            if seen.is_none() && process.end.completions().ready() {
                seen = Some(Instant::now());
            }
        }
        let seen = seen.expect("the interrupt came first");
        assert!(seen.elapsed() >= Duration::from_millis(3), "{kind}: too soon");
        assert_eq!((process.answers(), process.interrupts(0)), (vec![1], 0));
    }
}

/// What a process asked for comes before what the agent says of it, however long the ways are.
#[test]
fn the_end_of_a_process_comes_after_its_requests() {
    for kind in Kind::ALL {
        let mut host = Host::new(kind).behind(slow());
        let mut process = host.attach(1);
        let before = host.shown.sum("requests");
        for token in 1..=40 {
            process.ask(token);
        }
        host.poller.unmap(1, 0);
        assert_eq!(host.shown.sum("requests") - before, 40, "{kind}");
    }
}
