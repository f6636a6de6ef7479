//! The same requests have the same outcomes on one lcore and on several: the poller that has all functions itself is the oracle.
//! Runs the EAL in the test's own process, for real rings, and so has one test. The lcores' turns are taken by the test, in
//! random order, over rings that are often too small.

mod polled;

use std::collections::BTreeMap;

use dpdk::eal::Eal;
use nic_coordinator::counters::Snapshot;
use nic_coordinator::intake::Intake;
use nic_coordinator::link::link;
use nic_coordinator::shard::Shard;
use nic_coordinator::worker::Worker;
use polled::{Host, Process};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use ring::msg::{ACCEPT_WAIT, Addr, Completion, ConnId, Request, Status};
use ring::queue::Kind;
use ring::window::Raw;

/// Functions of processes.
const PROCESSES: u32 = 5;
/// Names that they listen on.
const PORTS: u16 = 3;
/// More than a turn takes, less than there is credit for.
const BATCH_MAX: usize = 100;

/// What one process does while the others do nothing, by numbers that pick among what there is.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Listen(u16),
    Unlisten(usize),
    Connect(u16),
    Accept(usize, bool),
    Close(usize, u32, bool),
    Requeue(usize),
}

/// Why a process is dropped.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Malformed,
    Impostor(u32),
}

#[derive(Clone, Debug)]
enum Step {
    /// One process asks.
    Asks(u32, Vec<Deed>),
    /// All ask, for what has the same answer in any order.
    All(Vec<usize>),
    /// One asks, forks and ends, and its child attaches before any of that is read.
    Daemon(u32, Vec<Deed>),
    /// One asks, and is gone before it is read; the agent says so before or after.
    Leaves(u32, Vec<Deed>, bool),
    /// One asks, does wrong, and asks more.
    Wrong(u32, Vec<Deed>, Wrong),
}

fn step() -> impl Strategy<Value = Step> {
    let deed = prop_oneof![
        2 => (0..PORTS).prop_map(Deed::Listen),
        1 => any::<usize>().prop_map(Deed::Unlisten),
        6 => (0..PORTS).prop_map(Deed::Connect),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(which, wait)| Deed::Accept(which, wait)),
        3 => (any::<usize>(), 0..2u32, any::<bool>()).prop_map(|(which, side, end)| Deed::Close(which, side, end)),
        1 => any::<usize>().prop_map(Deed::Requeue),
    ];
    let deeds = || proptest::collection::vec(deed.clone(), 0..BATCH_MAX);
    let who = 1..=PROCESSES;
    let wrong = prop_oneof![Just(Wrong::Malformed), (0..=PROCESSES).prop_map(Wrong::Impostor)];
    let counts = proptest::collection::vec(0..BATCH_MAX, PROCESSES as usize);
    prop_oneof![
        8 => (who.clone(), deeds()).prop_map(|(who, deeds)| Step::Asks(who, deeds)),
        2 => counts.prop_map(Step::All),
        2 => (who.clone(), deeds()).prop_map(|(who, deeds)| Step::Daemon(who, deeds)),
        1 => (who.clone(), deeds(), any::<bool>()).prop_map(|(who, deeds, first)| Step::Leaves(who, deeds, first)),
        1 => (who, deeds(), wrong).prop_map(|(who, deeds, wrong)| Step::Wrong(who, deeds, wrong)),
    ]
}

/// What everybody heard, by function.
type Heard = BTreeMap<u32, Vec<(u32, Completion)>>;

/// A coordinator and its processes.
struct System<'r> {
    host: Host<'r>,
    workers: Vec<Worker<'r>>,
    processes: BTreeMap<u32, Process>,
    now_us: u64,
    /// Whose turn is next: xorshift64.
    dice: u64,
}

impl<'r> System<'r> {
    fn new(eal: &'r Eal, kind: Kind, shards: usize, words: u32, dice: u64) -> System<'r> {
        let mut workers = Vec::new();
        let host = Host::with(kind, |shown, common| {
            let one = |index| {
                let (end, logic) = link(eal, index, words).unwrap();
                let intake = Intake::new(kind, common.map(|fd| fd.try_clone().unwrap())).unwrap();
                workers.push(Worker::new(Shard::new(intake, shown.lcore(index + 1)), logic));
                end
            };
            (0..shards).map(one).collect()
        });
        let mut system = System { host, workers, processes: BTreeMap::new(), now_us: 0, dice: dice | 1 };
        for number in 1..=PROCESSES {
            system.comes(number, None);
        }
        system.run();
        system
    }

    fn random(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice
    }

    fn agent(&mut self, request: Request) {
        self.host.agent.as_mut().unwrap().post(&request.to_raw(1));
    }

    /// A process is mapped and attached. `parent`: whose child it is.
    fn comes(&mut self, number: u32, parent: Option<(u32, u64)>) {
        let process = self.host.map(number);
        self.processes.insert(number, process);
        let (parent, nonce) = parent.unwrap_or_default();
        let group = if parent == 0 { number } else { parent };
        self.agent(Request::Attach { function: number, group, parent, nonce, uid: 0, pid: number, netns: 1 });
    }

    /// Turns of the lcores until nobody has anything to do any more; then the processes hear. Again, if that makes room for more.
    fn run(&mut self) -> Heard {
        let mut heard = Heard::new();
        loop {
            self.settle();
            let mut some = false;
            for (number, process) in &mut self.processes {
                let news = process.heard();
                process.arm();
                some |= !news.is_empty();
                heard.entry(*number).or_default().extend(news);
            }
            for (token, completion) in self.host.agent.as_mut().unwrap().heard() {
                some = true;
                if let Completion::MakeSegment { segment, .. } = completion {
                    self.agent(Request::SegmentMade { segment, ok: segment % 5 != 0 });
                }
                heard.entry(0).or_default().push((token, completion));
            }
            if !some {
                return heard;
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..self.random() % 64 {
            self.now_us += 10;
            match usize::try_from(self.random()).unwrap() % (self.workers.len() + 1) {
                0 => self.host.poller.turn(self.now_us),
                worker => self.workers[worker - 1].turn(self.now_us),
            };
        }
        // Whoever has no hint for it is found within 1 ms.
        let mut quiet = 0;
        while quiet < 3 {
            self.now_us += 500;
            let mut worked = self.host.poller.turn(self.now_us);
            for worker in &mut self.workers {
                worked |= worker.turn(self.now_us);
            }
            quiet = if worked { 0 } else { quiet + 1 };
        }
        assert!(!self.host.poller.is_unmapping());
        while self.host.poller.next_unmapped().is_some() {}
    }

    fn post(&mut self, who: u32, raws: &[Raw]) {
        let process = self.processes.get_mut(&who).unwrap();
        raws.iter().for_each(|raw| process.post(raw));
    }

    fn unmap(&mut self, who: u32) {
        self.host.poller.unmap(who, self.now_us);
        self.processes.remove(&who);
    }

    /// Does a step, and returns what was heard.
    fn step(&mut self, step: &Step, known: &Known, nonce: u64) -> Heard {
        let (who, heard) = match step {
            Step::Asks(who, deeds) => {
                self.post(*who, &known.requests(deeds));
                return self.run();
            }
            Step::All(counts) => {
                let nobody = Request::Connect { dst: lo(PORTS), src: lo(40000) };
                for (who, count) in (1..).zip(counts) {
                    let raws: Vec<Raw> = (1..).take(*count).map(|token| nobody.to_raw(token)).collect();
                    self.post(who, &raws);
                }
                return self.run();
            }
            Step::Daemon(who, deeds) => {
                self.post(*who, &known.requests(deeds));
                self.post(*who, &[Request::Fork { nonce }.to_raw(0)]);
                let child = PROCESSES + who;
                self.comes(child, Some((*who, nonce)));
                self.unmap(*who);
                self.agent(Request::Detach { function: *who });
                let mut heard = self.run();
                self.unmap(child);
                for (number, more) in self.run() {
                    heard.entry(number).or_default().extend(more);
                }
                (who, heard)
            }
            Step::Leaves(who, deeds, detached_first) => {
                self.post(*who, &known.requests(deeds));
                self.agent(Request::Detach { function: *who });
                if *detached_first {
                    self.run();
                }
                self.unmap(*who);
                (who, self.run())
            }
            Step::Wrong(who, deeds, wrong) => {
                self.post(*who, &known.requests(deeds));
                let wrong = match wrong {
                    Wrong::Malformed => Raw { kind: 200, ..Raw::default() },
                    Wrong::Impostor(function) => Request::Detach { function: *function }.to_raw(0),
                };
                self.post(*who, &[wrong]);
                // These have no effect.
                self.post(*who, &known.requests(deeds));
                let mut heard = self.run();
                // What it hears itself before it is found out is a matter of time.
                heard.remove(who);
                self.unmap(*who);
                self.run();
                (who, heard)
            }
        };
        self.comes(*who, None);
        self.run();
        heard
    }

    /// The coordinator's tables, in words.
    fn tables(&self) -> String {
        format!("{:?}", Snapshot::of(self.host.poller.logic()))
    }
}

fn lo(port: u16) -> Addr {
    Addr::v4([127, 0, 0, 1], 8000 + port)
}

/// What there is to pick from.
#[derive(Default)]
struct Known {
    listeners: Vec<u32>,
    conns: Vec<ConnId>,
}

impl Known {
    fn learn(&mut self, heard: &Heard) {
        for (_, completion) in heard.values().flatten() {
            match *completion {
                Completion::Done { status: Status::Ok, value } if value != 0 => self.listeners.push(value),
                Completion::Connected { status: Status::Ok, conn } => self.conns.push(conn),
                _ => {}
            }
        }
    }

    fn requests(&self, deeds: &[Deed]) -> Vec<Raw> {
        let listener =
            |which: usize| self.listeners.get(which % self.listeners.len().max(1)).copied().unwrap_or(0);
        let conn =
            |which: usize| self.conns.get(which % self.conns.len().max(1)).copied().unwrap_or(ConnId(0));
        let request = |deed: &Deed| match *deed {
            Deed::Listen(port) => Request::Listen { addr: lo(port), backlog: 40, flags: 0 },
            Deed::Unlisten(which) => Request::Unlisten { listener: listener(which) },
            Deed::Connect(port) => Request::Connect { dst: lo(port), src: lo(40000) },
            Deed::Accept(which, wait) => {
                Request::Accept { listener: listener(which), flags: if wait { ACCEPT_WAIT } else { 0 } }
            }
            Deed::Close(which, side, finished) => Request::Close { conn: conn(which), side, finished },
            Deed::Requeue(which) => Request::Requeue { conn: conn(which) },
        };
        // A connection's number may be none, which is malformed: it is left out.
        let parses = |raw: &Raw| Request::from_raw(raw).is_ok();
        (1..).zip(deeds).map(|(token, deed)| request(deed).to_raw(token)).filter(parses).collect()
    }
}

/// What one function heard: in order, and the last word of each listener.
type Comparable = (Vec<(u32, Completion)>, BTreeMap<u32, bool>);

/// All but `Ready`, in order; and of those the last word about each listener. How many there are depends on what was said together
/// (see [`nic_coordinator::outbox`]).
fn comparable(heard: &Heard) -> BTreeMap<u32, Comparable> {
    let mut all = BTreeMap::new();
    for (number, news) in heard {
        let (mut rest, mut ready) = (Vec::new(), BTreeMap::new());
        for (token, completion) in news {
            match *completion {
                Completion::Ready { listener, waiting } => {
                    ready.insert(listener, waiting);
                }
                other => rest.push((*token, other)),
            }
        }
        if !rest.is_empty() || !ready.is_empty() {
            all.insert(*number, (rest, ready));
        }
    }
    all
}

fn compare(eal: &Eal, kind: Kind, shards: usize, words: u32, dice: u64, steps: &[Step]) {
    let mut oracle = System::new(eal, kind, 0, words, dice);
    let mut known = Known::default();
    let mut sharded = System::new(eal, kind, shards, words, dice);
    for (nonce, step) in (1..).zip(steps) {
        let expected = oracle.step(step, &known, nonce);
        let heard = sharded.step(step, &known, nonce);
        assert_eq!(comparable(&heard), comparable(&expected), "{kind}, step {nonce}");
        assert_eq!(sharded.tables(), oracle.tables(), "{kind}, after step {nonce}");
        known.learn(&expected);
    }
    let dropped = |system: &System<'_>| system.host.shown.sum("functions_dropped");
    assert_eq!(dropped(&sharded), dropped(&oracle));
}

#[test]
fn one_lcore_and_several_have_the_same_outcomes() {
    let prefix = format!("ipcd-shards-{}", std::process::id());
    let options =
        ["shards", "--lcores=0@0", "--no-pci", "--no-huge", "-m", "64", "--no-shconf", "--no-telemetry"];
    let options = options.into_iter().map(str::to_owned).chain([format!("--file-prefix={prefix}")]);
    let (eal, _) = Eal::init(options).unwrap();
    let dir = eal.runtime_dir();

    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(48);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let words = prop_oneof![Just(1), 2..40u32, Just(1023)];
    let case = (
        proptest::sample::select(Kind::ALL.to_vec()),
        proptest::sample::select(vec![1usize, 2, 4]),
        words,
        any::<u64>(),
        proptest::collection::vec(step(), 1..24),
    );
    let outcome = TestRunner::new(config).run(&case, |(kind, shards, words, dice, steps)| {
        compare(&eal, kind, shards, words, dice, &steps);
        Ok(())
    });
    drop(eal);
    let _ = std::fs::remove_dir_all(dir);
    outcome.unwrap();
}
