//! How control traffic, memory and the time of a set-up grow with hosts and connections.

use nic_coordinator::hosts::calls::Limits;

use crate::random::Random;
use crate::world::World;

/// Time in which hosts find each other, and in which they are counted.
const MEET_US: u64 = 3_000_000;
const COUNT_US: u64 = 5_000_000;

/// Memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split_whitespace().nth(1).and_then(|p| p.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0)
}

fn row(hosts: usize, connections: u64) {
    let before = resident_bytes();
    let mut world = World::new(7, hosts, true, 0, Limits::default());
    world.run(MEET_US);
    let met = resident_bytes();
    let (datagrams, bytes) = (world.datagrams, world.bytes);
    world.run(MEET_US + COUNT_US);
    let idle_s = COUNT_US as f64 / 1e6 * hosts as f64;
    let each = (world.datagrams - datagrams) as f64 / idle_s;
    let each_bytes = (world.bytes - bytes) as f64 / idle_s;
    for host in 0..hosts {
        let mut out = Vec::new();
        world.hosts[host].spawn(world.now_us, true, &mut out);
        world.hosts[host].listen_all(world.now_us, &mut out);
        world.settle(host, out);
    }
    let (mut random, before_calls, began_us) = (Random(1), world.of_calls, world.now_us);
    let held = resident_bytes();
    for n in 0..connections {
        let (from, to) = (random.index(hosts), random.index(hosts));
        let to = if from == to { (to + 1) % hosts } else { to };
        let mut out = Vec::new();
        let now_us = world.now_us;
        world.hosts[from].connect_to(now_us, to, &mut world.oracle, &mut out);
        world.settle(from, out);
        // Ten thousand a second altogether.
        world.run(began_us + (n + 1) * 100);
    }
    world.run(world.now_us + 1_000_000);
    let of_calls = (world.of_calls - before_calls) as f64;
    let mut latencies = std::mem::take(&mut world.oracle.latencies_us);
    latencies.sort_unstable();
    println!(
        "{hosts:5} {connections:7} {each:10.1} {each_bytes:10.0} {:9.1} {:9} {:9} {:9} {:10.2} {:9}",
        (met.saturating_sub(before)) as f64 / 1024.0 / hosts as f64,
        latencies.len(),
        percentile(&latencies, 50),
        percentile(&latencies, 99),
        of_calls / latencies.len().max(1) as f64,
        (resident_bytes().saturating_sub(held)) / connections.max(1),
    );
}

/// `make scale`: a table.
#[test]
fn table() {
    let Some(most) = std::env::var("SIMULATE_SCALE").ok().and_then(|text| text.parse::<usize>().ok()) else {
        return;
    };
    println!("hosts connects datagr./s   bytes/s  KiB/host connected  p50/us   p99/us  datagr./c   bytes/c");
    for hosts in [2, 10, 30, 100, 300, 1000].into_iter().filter(|n| *n <= most) {
        // As many for each host, so that as many of them are a host's first, which waits for its segments.
        row(hosts, 2_000.max(20 * hosts as u64));
    }
    for connections in [200, 20_000] {
        row(10, connections);
    }
}
