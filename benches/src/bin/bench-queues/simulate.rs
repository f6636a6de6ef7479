//! More cores and processes than this machine has, from the costs that this run measured on it.
//!
//! A core of the card is simulated turn by turn. Private rings are passed one after the other, and what is in
//! one then is taken; hybrid and shared
//! take what was there when the turn began. Each request is answered before the next is taken.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ring::queue::Kind;
use serde::Serialize;

use crate::figure::{Better, Figure};
use crate::plot::MEASURED;
use crate::rates::{float, names, whole};

/// One way of a store across the bus, and a read across it, in ns.
const STORE_NS: f64 = 500.0;
const READ_NS: f64 = 1000.0;
/// Reads for entries of the shared ring that are under way at once bring so many.
const ENTRIES_A_READ: f64 = 64.0;
/// Entries of the shared ring that one turn takes.
const SHARED_PER_TURN: usize = 256;
/// Functions whose marks share one count.
const GROUP: f64 = 256.0;
/// Hybrid and shared look at everybody so often.
const SCAN_EVERY_NS: f64 = 1e6;
/// Answers of one run, after as many that don't count.
const ANSWERS: usize = 20_000;
/// The light load.
const LIGHT_PER_S: f64 = 100_000.0;
/// More than this machine has.
const CORES: f64 = 16.0;
const PROCESSES: f64 = 10_000.0;

/// What one operation costs, in ns; by queue in the order of [`Kind::ALL`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Costs {
    /// A turn that finds nothing, without the rings that it looks at.
    pub turn_ns: [f64; 3],
    /// Each private ring that a turn looks at.
    pub ring_ns: f64,
    /// Each request: taken, decided, answered.
    pub request_ns: [f64; 3],
    /// A push by one of two processors that push at the same time.
    pub contended_push_ns: [f64; 3],
    /// A push into a private ring: what handing a request to another core is taken to cost.
    pub hand_on_ns: f64,
    /// Memory that both sides have in their caches: one way, fitted to the round trip of one process.
    pub line_ns: [f64; 3],
}

/// Where the line of a figure meets `x`, for each queue.
fn all(figure: &Figure, x: f64) -> Option<[f64; 3]> {
    let [a, b, c] = names().map(|name| figure.at(name, x).map(|point| point.median));
    Some([a?, b?, c?])
}

impl Costs {
    /// Out of the figures; `None` if one of those parts was not measured.
    pub fn of(figures: &[Figure]) -> Option<Costs> {
        let figure = |id: &str| figures.iter().find(|figure| figure.id == id);
        let (polling, push, card, p50) =
            (figure("polling")?, figure("push")?, figure("card")?, figure("p50")?);
        let ring_ns = {
            let [few, ..] = all(polling, 64.0)?;
            let [many, ..] = all(polling, 512.0)?;
            ((many - few) / (512.0 - 64.0)).max(0.0)
        };
        let mut turn_ns = all(polling, 1.0)?;
        let [private, ..] = &mut turn_ns;
        *private = (*private - ring_ns).max(1.0);
        let request_ns = all(card, 128.0)?;
        let [hand_on_ns, ..] = all(push, 1.0)?;
        let mut line_ns = all(p50, 1.0)?;
        for ((line, turn), request) in line_ns.iter_mut().zip(turn_ns).zip(request_ns) {
            *line = ((*line - 1.5 * turn - request) / 2.0).max(0.0);
        }
        // Found in passing, half a turn after it has come on average; the others only when the next turn has
        // looked.
        let ([private, ..], [turn, ..], [request, ..]) = (&mut line_ns, turn_ns, request_ns);
        let [round_trip, ..] = all(p50, 1.0)?;
        *private = ((round_trip - 0.5 * (turn + ring_ns) - request) / 2.0).max(0.0);
        Some(Costs { turn_ns, ring_ns, request_ns, contended_push_ns: all(push, 2.0)?, hand_on_ns, line_ns })
    }
}

/// What is taken for granted.
pub fn assumptions() -> Vec<String> {
    vec![
        "a core of the card does what a core of this machine does, in the same time (an Arm core of a card \
        may need 2 to 4 times as long: then all that is the card's is as much slower, the bus is \
        not)"
            .to_owned(),
        format!(
            "a read of host memory by the card takes {READ_NS} ns and its turn waits for it, a store \
        takes {STORE_NS} ns to arrive and nobody waits for it: typical of PCI Express, not measured here"
        ),
        format!(
            "hybrid reads the line of counts in each turn, and in one that finds something the marks \
        after that; shared reads the tail, then the entries, {ENTRIES_A_READ} at once; private rings are in \
        the card's memory, and one is looked at when a turn comes to it"
        ),
        "per-process and hybrid: processes are dealt evenly to the cores, and no decision needs another \
        core"
            .to_owned(),
        "shared: one core takes all entries out of the ring and hands each on for what a push into a \
        private ring costs; the others decide"
            .to_owned(),
        format!(
            "each {} ms hybrid and shared look at all functions: spread over all turns",
            SCAN_EVERY_NS / 1e6
        ),
        "two host processors that push at the same time set what all hosts together can push through one \
        word (the tail; a count of 256 functions): more processors are no slower and no faster"
            .to_owned(),
        format!(
            "light load: {LIGHT_PER_S} requests/s at random times (Poisson) from processes taken at \
        random; busy: each has one request under way, and posts the next when the answer has arrived"
        ),
    ]
}

/// What lies between host and card.
#[derive(Clone, Copy, Debug)]
enum Bus {
    Pcie,
    /// The emulated card: memory in common.
    Memory,
}

/// A card, and who uses it.
#[derive(Clone, Copy, Debug)]
struct Card<'a> {
    costs: &'a Costs,
    kind: Kind,
    bus: Bus,
    cores: f64,
    processes: f64,
    /// Of them, those that ask.
    busy: f64,
}

#[derive(Clone, Copy, Debug)]
enum Load {
    /// So many a second in all.
    Open(f64),
    /// Each busy process has one under way.
    Closed,
}

/// Answers a second in all; half of the round trips take at most this.
struct Found {
    per_s: f64,
    p50_ns: f64,
}

struct Random(u64);

impl Random {
    /// Above 0, at most 1.
    fn next(&mut self) -> f64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        float((z ^ (z >> 31)) >> 11) / float(1 << 53) + f64::MIN_POSITIVE
    }
}

/// A request on its way: when it arrives, and where in a turn its ring is passed, from 0 to 1.
#[derive(Clone, Copy)]
struct Arrival {
    ns: f64,
    place: f64,
}

/// Ordered by time; times are never negative, so that their bits are in their order.
#[derive(Default)]
struct Arrivals(BinaryHeap<Reverse<(u64, u64)>>);

impl Arrivals {
    fn push(&mut self, arrival: Arrival) {
        self.0.push(Reverse((arrival.ns.max(0.0).to_bits(), arrival.place.to_bits())));
    }
    fn first_ns(&self) -> Option<f64> {
        self.0.peek().map(|Reverse((ns, _))| f64::from_bits(*ns))
    }
    fn pop_until(&mut self, ns: f64) -> Option<Arrival> {
        self.first_ns().filter(|first| *first <= ns)?;
        let Reverse((ns, place)) = self.0.pop()?;
        Some(Arrival { ns: f64::from_bits(ns), place: f64::from_bits(place) })
    }
}

impl<'a> Card<'a> {
    fn of<T: Copy + Default>(&self, by_kind: [T; 3]) -> T {
        Kind::ALL
            .iter()
            .zip(by_kind)
            .find(|(kind, _)| **kind == self.kind)
            .map(|(_, v)| v)
            .unwrap_or_default()
    }

    /// Cores that look for requests themselves.
    fn takers(&self) -> f64 {
        if self.kind == Kind::Shared { 1.0 } else { self.cores }
    }

    /// What stores take to arrive, and what a read takes.
    fn bus_ns(&self) -> (f64, f64) {
        match self.bus {
            Bus::Pcie => (STORE_NS, READ_NS),
            Bus::Memory => (self.of(self.costs.line_ns), 0.0),
        }
    }

    /// What a turn that finds so many takes, without them.
    fn look_ns(&self, found: usize) -> f64 {
        let mine = self.processes / self.cores;
        let (_, read_ns) = self.bus_ns();
        let turn_ns = self.of(self.costs.turn_ns);
        let reads = match (self.kind, found) {
            (Kind::PerProcess, _) => return turn_ns + mine * self.costs.ring_ns,
            (_, 0) => 1.0,
            (Kind::Hybrid, _) => 2.0,
            (Kind::Shared, found) => 1.0 + (float(found as u64) / ENTRIES_A_READ).ceil(),
        };
        (turn_ns + reads * read_ns) * (1.0 + mine * self.costs.ring_ns / SCAN_EVERY_NS)
    }

    /// For each request a taker needs so long.
    fn each_ns(&self) -> f64 {
        if self.kind == Kind::Shared && self.cores > 1.0 {
            self.costs.hand_on_ns
        } else {
            self.of(self.costs.request_ns)
        }
    }

    /// What the hosts can push through the words that they share.
    fn hosts_per_s(&self) -> f64 {
        let one_word = 2e9 / self.of(self.costs.contended_push_ns).max(1.0);
        match self.kind {
            Kind::PerProcess => f64::INFINITY,
            Kind::Hybrid => one_word * (self.processes / GROUP).ceil(),
            Kind::Shared => one_word,
        }
    }

    fn run(self, load: Load) -> Found {
        Core::new(self, load).run()
    }
}

/// One taker, and the cores that decide for it if it does not itself.
struct Core<'a> {
    card: Card<'a>,
    closed: bool,
    now: f64,
    random: Random,
    /// Of an open load: when the next request arrives, and the mean time between two.
    next: f64,
    gap_ns: f64,
    arrivals: Arrivals,
    /// When each decider is free.
    deciders: Arrivals,
    /// Round trips in ns, and when the last answer was made.
    answered: Vec<f64>,
    last: f64,
}

impl<'a> Core<'a> {
    fn new(card: Card<'a>, load: Load) -> Core<'a> {
        let mut random = Random(7);
        let (mut arrivals, mut deciders) = (Arrivals::default(), Arrivals::default());
        if card.kind == Kind::Shared {
            (1..whole(card.cores)).for_each(|_| deciders.push(Arrival { ns: 0.0, place: 0.0 }));
        }
        let (closed, next, gap_ns) = match load {
            Load::Open(per_s) => (false, 0.0, 1e9 * card.takers() / per_s),
            Load::Closed => {
                let mine = (card.busy / card.takers()).max(1.0).round();
                for _ in 0..whole(mine) {
                    arrivals.push(Arrival { ns: 10_000.0 * random.next(), place: random.next() });
                }
                (true, f64::INFINITY, 0.0)
            }
        };
        let answered = Vec::with_capacity(2 * ANSWERS);
        Core { card, closed, now: 0.0, random, next, gap_ns, arrivals, deciders, answered, last: 0.0 }
    }

    fn run(mut self) -> Found {
        let (mut warm, mut pending) = (None, Vec::new());
        while self.answered.len() < 2 * ANSWERS {
            if self.arrivals.0.len() + pending.len() > ANSWERS + whole(self.card.busy) as usize {
                return Found { per_s: f64::NAN, p50_ns: f64::INFINITY };
            }
            self.turn(&mut pending);
            if warm.is_none() && self.answered.len() >= ANSWERS {
                warm = Some((self.answered.len(), self.last));
            }
        }
        let (skip, since) = warm.unwrap_or((0, 0.0));
        let mut rest = self.answered.split_off(skip);
        let takers = self.card.takers().min(self.card.busy);
        let per_s = takers * float(rest.len() as u64) * 1e9 / (self.last - since).max(1.0);
        rest.sort_by(f64::total_cmp);
        let p50_ns = rest.get(rest.len() / 2).copied().unwrap_or(0.0);
        Found { per_s: per_s.min(self.card.hosts_per_s()), p50_ns }
    }

    /// One turn, or as many as find nothing. `pending`: what arrived behind the place where a turn was.
    fn turn(&mut self, pending: &mut Vec<Arrival>) {
        let private = self.card.kind == Kind::PerProcess;
        let idle_ns = self.card.look_ns(0);
        // What comes while private rings are passed may still be met.
        let until = if private { self.now + idle_ns } else { self.now };
        while self.next <= until {
            self.arrivals.push(Arrival { ns: self.next, place: self.random.next() });
            self.next -= self.random.next().ln() * self.gap_ns;
        }
        let most = if self.card.kind == Kind::Shared { SHARED_PER_TURN } else { usize::MAX };
        while pending.len() < most
            && let Some(arrival) = self.arrivals.pop_until(until)
        {
            pending.push(arrival);
        }
        if pending.is_empty() {
            let first = self.arrivals.first_ns().unwrap_or(self.next).min(self.next);
            self.now += ((first - self.now) / idle_ns).floor().max(1.0) * idle_ns;
            return;
        }
        let (start, look_ns) = (self.now, self.card.look_ns(pending.len()));
        let mut served_ns = 0.0;
        if private {
            pending.sort_by(|a, b| a.place.total_cmp(&b.place));
        }
        pending.retain(|arrival| {
            let passed = start + served_ns + look_ns * if private { arrival.place } else { 1.0 };
            if arrival.ns > passed {
                return true;
            }
            served_ns += self.card.each_ns();
            self.serve(*arrival, passed + self.card.each_ns());
            false
        });
        self.now = start + look_ns + served_ns;
    }

    /// A request was taken, at `taken`.
    fn serve(&mut self, arrival: Arrival, taken: f64) {
        let (store_ns, _) = self.card.bus_ns();
        let mut done = taken;
        if let Some(free) = self.deciders.pop_until(f64::INFINITY) {
            done = free.ns.max(taken) + self.card.of(self.card.costs.request_ns);
            self.deciders.push(Arrival { ns: done, place: 0.0 });
        }
        self.answered.push(done + 2.0 * store_ns - arrival.ns);
        self.last = self.last.max(done);
        if self.closed {
            self.arrivals.push(Arrival { ns: done + 2.0 * store_ns, ..arrival });
        }
    }
}

/// Round trips at a light load by processes.
fn latency(id: &'static str, title: String, costs: &Costs, bus: Bus, cores: f64) -> Figure {
    let mut figure = Figure::new(id, title, ["processes", "ns"], Better::Less).simulated();
    for kind in Kind::ALL {
        for processes in [1.0, 4.0, 16.0, 64.0, 256.0, 1000.0, 3000.0, PROCESSES] {
            let card = Card { costs, kind, bus, cores, processes, busy: processes };
            let p50_ns = card.run(Load::Open(LIGHT_PER_S)).p50_ns;
            if p50_ns.is_finite() {
                figure.add(kind.name(), processes, vec![p50_ns]);
            }
        }
    }
    figure
}

/// Requests by cores, with a share of the processes idle.
fn by_cores(id: &'static str, title: String, costs: &Costs, idle: f64) -> Figure {
    let axes = ["cores of the card", "requests/s"];
    let mut figure = Figure::new(id, title, axes, Better::More).simulated();
    for kind in Kind::ALL {
        for cores in [1.0, 2.0, 4.0, 8.0, CORES] {
            let busy = PROCESSES * (1.0 - idle);
            let card = Card { costs, kind, bus: Bus::Pcie, cores, processes: PROCESSES, busy };
            figure.add(kind.name(), cores, vec![card.run(Load::Closed).per_s]);
        }
    }
    figure
}

/// How well the simulation tells what was measured here: its round trip by the measured one.
fn check(costs: &Costs, p50: &Figure) -> Figure {
    let title = "Check: one core, no bus, as on this machine";
    let mut figure = Figure::new("sim-check", title, ["processes", "ns"], Better::Less).simulated().note(
        "The simulation with memory in common instead of a bus, beside the round trips that were measured \
        in this run (p50 of one busy process). Fitted at 1 process, foretold at the others.",
    );
    for kind in Kind::ALL {
        for x in p50.xs() {
            let card = Card { costs, kind, bus: Bus::Memory, cores: 1.0, processes: x, busy: 1.0 };
            figure.add(&format!("{kind}, simulated"), x, vec![card.run(Load::Closed).p50_ns]);
            let measured = p50.at(kind.name(), x).map(|point| point.median);
            measured.into_iter().for_each(|ns| figure.add(&format!("{kind}{MEASURED}"), x, vec![ns]));
        }
    }
    figure
}

/// By which factor the simulation misses what was measured, at worst.
pub fn error(check: &Figure) -> f64 {
    let mut worst = 1.0f64;
    for name in names() {
        for x in check.xs() {
            let at = |what| check.at(&format!("{name}{what}"), x).map(|point| point.median);
            if let (Some(simulated), Some(measured)) = (at(", simulated"), at(MEASURED)) {
                worst = worst.max(simulated / measured).max(measured / simulated);
            }
        }
    }
    worst
}

/// All curves.
pub fn simulate(costs: &Costs, p50: &Figure) -> Vec<Figure> {
    let note = "A line ends where the card can't keep up.";
    let mut idle = Figure::new(
        "sim-idle",
        "Requests a second by idle share: 16 cores, 10,000 processes",
        ["idle processes, %", "requests/s"],
        Better::More,
    )
    .simulated()
    .note("The busy ones have one request under way each.");
    for kind in Kind::ALL {
        for share in [0.0, 50.0, 90.0, 99.0] {
            let busy = PROCESSES * (1.0 - share / 100.0);
            let card = Card { costs, kind, bus: Bus::Pcie, cores: CORES, processes: PROCESSES, busy };
            idle.add(kind.name(), share, vec![card.run(Load::Closed).per_s]);
        }
    }
    let light = |what: &str| format!("Round trip p50 at 100,000 requests/s: {what}");
    vec![
        check(costs, p50),
        latency("sim-memory-1", light("an emulated card, 1 core"), costs, Bus::Memory, 1.0).note(note),
        latency("sim-pcie-1", light("a card, 1 core"), costs, Bus::Pcie, 1.0).note(note),
        latency("sim-pcie-16", light("a card, 16 cores"), costs, Bus::Pcie, CORES).note(note),
        by_cores("sim-busy", "Requests a second: 10,000 processes, all busy".to_owned(), costs, 0.0)
            .note("For the shared ring one of several cores takes entries out, which bounds the rest."),
        by_cores("sim-quiet", "Requests a second: 10,000 processes, 1% busy".to_owned(), costs, 0.99)
            .note("The others are looked at in vain, where they are looked at."),
        idle,
    ]
}
