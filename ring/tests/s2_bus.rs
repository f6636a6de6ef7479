//! SPEC 2.10: the protocol's own code over a model of the bus that delays and reorders whatever a bus may. Nothing is lost, doubled,
//! torn or out of order within a ring, no honest credit is refused, and who sleeps is woken.
//!
//! `BUS_SEEDS=N` tries so many seeds instead of the usual number. A failure names its seed.
#![cfg(not(loom))]

#[path = "bus/model.rs"]
mod model;
#[path = "bus/parties.rs"]
mod parties;

use std::panic::catch_unwind;

use model::{Faults, Way};
use parties::{Mistakes, run};

const WAYS: [Way; 3] = [Way::InOrder, Way::Lines, Way::Combining];

fn seeds() -> u64 {
    std::env::var("BUS_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

/// The first failure, if there is one.
fn explore(ways: [Way; 2], faults: Faults, mistakes: Mistakes) -> Result<(), String> {
    for seed in 0..seeds() {
        let result = catch_unwind(|| run(seed, ways, faults, mistakes));
        if let Err(panic) = result {
            let why = panic.downcast::<String>().map_or_else(|_| "?".to_owned(), |s| *s);
            return Err(format!("seed {seed}, {ways:?}: {why}"));
        }
    }
    Ok(())
}

#[test]
fn s2_10_the_protocol_holds_over_every_kind_of_bus() {
    for to_card in WAYS {
        for to_host in WAYS {
            let found = explore([to_card, to_host], Faults::default(), Mistakes::default());
            found.unwrap_or_else(|why| panic!("{why}"));
        }
    }
}

/// A twin that is not found proves that nothing is looked for. `signs`: how it shows, one of them.
fn is_found(way: Way, faults: Faults, mistakes: Mistakes, signs: &[&str]) {
    let found = explore([way; 2], faults, mistakes);
    let why = found.expect_err("the mistake was not found");
    assert!(signs.iter().any(|sign| why.contains(sign)), "found as something else: {why}");
    eprintln!("{faults:?} {mistakes:?}: {why}");
}

#[test]
fn s2_10_twin_that_says_so_before_the_content_is_there() {
    for way in WAYS {
        is_found(way, Faults { header_first: true, ..Faults::default() }, Mistakes::default(), &["torn"]);
    }
}

#[test]
fn s2_10_twin_that_does_not_flush() {
    let faults = Faults { no_flush: true, ..Faults::default() };
    is_found(Way::Combining, faults, Mistakes::default(), &["torn", "lost", "stuck", "missed wake"]);
    // Where nothing is gathered there is nothing to flush.
    explore([Way::InOrder; 2], faults, Mistakes::default()).unwrap();
    explore([Way::Lines; 2], faults, Mistakes::default()).unwrap();
}

#[test]
fn s2_10_twin_that_loads_without_acquire() {
    is_found(Way::Lines, Faults { no_acquire: true, ..Faults::default() }, Mistakes::default(), &["torn"]);
}

#[test]
fn s2_10_twin_that_looks_at_armed_only_before_it_pushes() {
    let mistakes = Mistakes { armed_before_push: true, ..Mistakes::default() };
    for way in WAYS {
        is_found(way, Faults::default(), mistakes, &["missed wake", "stuck"]);
    }
}

#[test]
fn s2_10_twin_whose_interrupt_passes_its_completions() {
    let faults = Faults { interrupt_passes: true, ..Faults::default() };
    is_found(Way::InOrder, faults, Mistakes::default(), &["missed wake", "stuck"]);
}

#[test]
fn s2_10_twin_that_sleeps_without_a_look() {
    let mistakes = Mistakes { no_look_after_arm: true, ..Mistakes::default() };
    is_found(Way::InOrder, Faults::default(), mistakes, &["missed wake", "stuck"]);
}

#[test]
fn s2_10_twins_of_the_doorbell() {
    let silent = Mistakes { no_doorbell: true, ..Mistakes::default() };
    let hasty = Mistakes { no_fence: true, ..Mistakes::default() };
    let stingy = Mistakes { no_credit_doorbell: true, ..Mistakes::default() };
    for mistakes in [silent, hasty, stingy] {
        is_found(Way::InOrder, Faults::default(), mistakes, &["lost", "stuck", "missed wake"]);
    }
}
