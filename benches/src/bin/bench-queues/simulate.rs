//! More cores and processes than this machine has, from the costs that were measured on it.
//!
//! Each core of the card is simulated by itself, turn by turn: what has arrived when a turn looks is taken by it, and answered one after the
//! other. Arrivals are a Poisson process, from a generator with a fixed seed.

use ring::queue::Kind;

use crate::figure::Figure;
use crate::rates::Costs;

/// What is taken for granted.
pub const ASSUMPTIONS: &[&str] = &[
    "a core of the card does what a core of this machine does, in the same time (an Arm core of a card may need 2 to 4 times as long)",
    "per-process and hybrid: processes are dealt to the cores evenly; decisions need no word between cores",
    "shared: one core takes all entries out of the ring and hands them on, for a tenth of a request's cost each; the others decide",
    "a read of host memory by DMA takes 1 µs, and a turn waits for it (hybrid: the counts, and the marks of groups with news; shared: the tail and the entries); stores don't wait",
    "a posted store of the host takes 0.5 µs to arrive, and one of the card as long",
    "requests come at random (Poisson), from processes taken at random",
];

/// One way of a store across the bus.
const STORE_NS: f64 = 500.0;
/// A read across the bus.
const READ_NS: f64 = 1000.0;
/// Entries that one read brings.
const ENTRIES_A_READ: f64 = 8.0;
/// Of the cost of a request: what taking it out of the shared ring and handing it to another core costs.
const HAND_ON: f64 = 0.1;
/// Requests of a run.
const REQUESTS: usize = 20_000;

struct Random(u64);

impl Random {
    /// Above 0, at most 1.
    #[allow(clippy::cast_precision_loss)]
    fn next(&mut self) -> f64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + f64::MIN_POSITIVE
    }
}

/// A card.
#[derive(Clone, Copy)]
struct Card {
    kind: Kind,
    cores: f64,
    processes: f64,
}

impl Card {
    /// What a turn costs that finds `found` requests.
    fn turn_ns(&self, costs: &Costs, found: f64) -> f64 {
        let [private, shared, hybrid] = costs.request_ns;
        let mine = self.processes / self.cores;
        match self.kind {
            Kind::PerProcess => costs.turn_ns + mine * costs.ring_ns + found * private,
            Kind::Hybrid => {
                let marks = if found > 0.0 { READ_NS } else { 0.0 };
                costs.turn_ns + READ_NS + marks + found * (hybrid + costs.ring_ns)
            }
            // With several cores this is the one that takes entries out.
            Kind::Shared => {
                let each = if self.cores > 1.0 { shared * HAND_ON } else { shared };
                costs.turn_ns + READ_NS + (found / ENTRIES_A_READ).ceil() * READ_NS + found * each
            }
        }
    }

    /// Requests that a core sees each second, if the whole card gets `per_s`.
    fn share(&self, per_s: f64) -> f64 {
        if self.kind == Kind::Shared { per_s } else { per_s / self.cores }
    }

    /// Half of the requests are answered within so many ns; infinite if the card can't keep up.
    fn p50_ns(&self, costs: &Costs, per_s: f64) -> f64 {
        let mut random = Random(7);
        let gap_ns = 1e9 / self.share(per_s);
        let mut next = -random.next().ln() * gap_ns;
        let (mut now, mut waiting, mut latencies) = (0.0, Vec::new(), Vec::new());
        let decide = match self.kind {
            Kind::Shared if self.cores > 1.0 => costs.request_ns[1],
            _ => 0.0,
        };
        while latencies.len() < REQUESTS {
            while next + STORE_NS <= now {
                waiting.push(next);
                next -= random.next().ln() * gap_ns;
            }
            if waiting.len() > REQUESTS {
                return f64::INFINITY;
            }
            let idle_ns = self.turn_ns(costs, 0.0);
            let mut found = 0.0;
            let before = now;
            for arrived in waiting.drain(..) {
                found += 1.0;
                latencies.push(before + self.turn_ns(costs, found) + decide + STORE_NS - arrived);
            }
            now = before + if found > 0.0 { self.turn_ns(costs, found) } else { idle_ns };
        }
        latencies.sort_by(f64::total_cmp);
        latencies.get(latencies.len() / 2).copied().unwrap_or(0.0)
    }

    /// Requests that the card can answer each second, if all processes have one under way always.
    fn capacity(&self, costs: &Costs) -> f64 {
        let one_way = 2.0 * STORE_NS;
        if self.kind == Kind::Shared {
            let found = self.processes;
            let taken = found / (self.turn_ns(costs, found) + one_way);
            let decided =
                if self.cores > 1.0 { (self.cores - 1.0) / costs.request_ns[1] } else { f64::INFINITY };
            return 1e9 * taken.min(decided);
        }
        let found = (self.processes / self.cores).max(1.0);
        1e9 * self.cores.min(self.processes) * found / (self.turn_ns(costs, found) + one_way)
    }
}

/// Latency by processes at a light load; capacity by cores.
pub fn simulate(costs: &Costs) -> Vec<Figure> {
    let mut latency = Figure::new(
        "simulated-latency",
        "Round trip p50 with 16 cores, 100,000 requests/s",
        "processes",
        "ns",
        "A light load from any of the processes, on a card with 16 cores.",
    );
    let mut one = Figure::new(
        "simulated-latency-1",
        "Round trip p50 with 1 core, 100,000 requests/s",
        "processes",
        "ns",
        "The same on one core. A line ends where the card can't keep up.",
    );
    let mut capacity = Figure::new(
        "simulated-capacity",
        "Requests a second, 10,000 processes, all busy",
        "cores of the card",
        "requests/s",
        "Every process has one request under way. For the shared ring one of several cores takes entries out, which bounds the rest.",
    );
    let mut mostly_idle = Figure::new(
        "simulated-idle",
        "Requests a second, 10,000 processes, 1% busy",
        "cores of the card",
        "requests/s",
        "A hundred processes have one request under way each, the others are looked at in vain, where they are looked at.",
    );
    for figure in [&mut latency, &mut one, &mut capacity, &mut mostly_idle] {
        figure.simulated = true;
    }
    for kind in Kind::ALL {
        for processes in [1.0, 16.0, 64.0, 256.0, 1000.0, 3000.0, 10_000.0] {
            for (figure, cores) in [(&mut latency, 16.0), (&mut one, 1.0)] {
                let p50 = Card { kind, cores, processes }.p50_ns(costs, 100_000.0);
                if p50.is_finite() {
                    figure.add(kind.name(), processes, p50);
                }
            }
        }
        for cores in [1.0, 2.0, 4.0, 8.0, 16.0] {
            let all = Card { kind, cores, processes: 10_000.0 };
            capacity.add(kind.name(), cores, all.capacity(costs));
            let busy = Card { kind, cores, processes: 100.0 }.capacity(costs);
            // Private rings of the idle ones are looked at in each turn, too.
            let idle_ns = if kind == Kind::PerProcess { 9900.0 / cores * costs.ring_ns } else { 0.0 };
            let found = (100.0_f64 / cores).max(1.0);
            let rate = if idle_ns > 0.0 {
                1e9 * cores * found / (1e9 * cores * found / busy + idle_ns)
            } else {
                busy
            };
            mostly_idle.add(kind.name(), cores, rate);
        }
    }
    vec![latency, one, capacity, mostly_idle]
}
