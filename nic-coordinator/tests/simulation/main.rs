//! The coordinators' logic of many hosts, unchanged, on virtual time. `make simulate SECONDS=300` runs lives from fresh seeds, which are printed;
//! `SIMULATE_SEED=N` repeats one. `make scale` prints how things grow.

#[path = "../common/random.rs"]
mod random;

mod host;
mod oracle;
mod scale;
mod world;

use std::time::{Duration, Instant};

use nic_coordinator::hosts::calls::Limits;
use random::{Random, seed};
use world::World;

/// Credits so few that they run out.
const FEW: Limits = Limits { setups: 3, waiting: 8, of_peer: 40 };

/// The life that follows from a number.
fn life(seed: u64, hosts_max: usize) -> (usize, u64, u64, u64) {
    let mut random = Random(seed);
    let bound = 2 << random.index(10);
    let hosts = 2 + random.index(hosts_max.min(bound) - 1);
    let mesh = hosts <= 12;
    let limits = if random.percent(50) { FEW } else { Limits::default() };
    let failing = if random.percent(30) { 20 } else { 0 };
    let trouble_us = if hosts > 100 { 5_000_000 } else { 20_000_000 };
    let acts_each_s = (2_000 / hosts as u64).clamp(5, 100);
    let mut world = World::new(random.next(), hosts, mesh, failing, limits);
    world.live(trouble_us, acts_each_s);
    let oracle = &world.oracle;
    println!(
        "seed {seed}: {hosts} hosts, {} events, {} connected, {} accepted, {} refused",
        world.events_done, oracle.connected, oracle.accepted, oracle.refused
    );
    (hosts, world.events_done, oracle.connected, oracle.accepted)
}

/// A short run: part of every test run.
#[test]
fn whatever_happens() {
    let seed = seed("SIMULATE_SEED");
    println!("SIMULATE_SEED={seed}");
    let lives: Vec<_> = (0..3).map(|n| life(seed.wrapping_add(n), 6)).collect();
    assert!(lives.iter().any(|(_, _, connected, accepted)| *connected > 0 && *accepted > 0), "{lives:?}");
}

/// The same number is the same life.
#[test]
fn a_seed_repeats_a_life() {
    assert_eq!(life(1, 4), life(1, 4));
}

/// For as long as the environment says.
#[test]
fn for_a_while() {
    let Some(seconds) = std::env::var("SIMULATE_SECONDS").ok().and_then(|text| text.parse().ok()) else {
        return;
    };
    let start = seed("SIMULATE_SEED");
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut sums = (0, 0, 0, 0);
    for number in 0.. {
        if number > 0 && Instant::now() >= end {
            break;
        }
        println!("SIMULATE_SEED={}", start.wrapping_add(number));
        let (hosts, events, connected, accepted) = life(start.wrapping_add(number), 1000);
        sums = (sums.0 + 1, sums.1.max(hosts), sums.2 + events, sums.3 + connected.min(accepted));
    }
    println!("{} lives of up to {} hosts, {} events, {} connections", sums.0, sums.1, sums.2, sums.3);
}
