//! What each role costs (docs/decisions.md, "Several lcores"): a shard's idle look at a function, and a connection's four
//! requests (connect, accept, two closes) at the shard, at the logic, and back, and all of it on one lcore.
//!
//! `cargo bench -p nic-coordinator --bench lcores`; for instructions instead of time, which other programs do not disturb:
//! `valgrind --tool=callgrind target/release/deps/lcores-* --bench --profile-time 1`, and the functions called `role_*`.

#[path = "../tests/polled/mod.rs"]
mod polled;

use std::time::{Duration, Instant};

use criterion::{Criterion, black_box};
use dpdk::eal::Eal;
use dpdk::ring::{Receiver, Sender, ring};
use nic_coordinator::intake::Intake;
use nic_coordinator::link::{RING_WORDS, link};
use nic_coordinator::poll::Poller;
use nic_coordinator::shard::Shard;
use nic_coordinator::worker::Worker;
use polled::{Host, Process};
use ring::msg::{Addr, Completion, ConnId, Request, Status};
use ring::queue::Kind;

/// Connections under way at once.
const BATCH: u32 = 16;
/// Bytes of a message between lcores, about.
type Message = [u64; 9];

/// A turn, under a name of its own: the number keeps functions of one content from becoming one.
macro_rules! roles {
    ($($name:ident($who:ty) = $number:literal;)*) => {
        $(#[inline(never)]
        fn $name(who: &mut $who) {
            black_box($number);
            who.turn(0);
        })*
    };
}

roles! {
    role_shard_in(Worker<'_>) = 1;
    role_logic(Poller<'_>) = 2;
    role_shard_out(Worker<'_>) = 3;
    role_all(Poller<'_>) = 4;
    role_idle_0(Poller<'_>) = 5;
    role_idle_512(Poller<'_>) = 6;
}

#[inline(never)]
fn role_message(to: &mut Sender<'_, Message>, from: &mut Receiver<'_, Message>, messages: &mut Vec<Message>) {
    to.burst(messages);
    from.burst(messages, 32);
}

/// A card without interrupts (SPEC 12.7), a client and a server with a listener.
struct Scene<'r> {
    host: Host<'r>,
    worker: Option<Worker<'r>>,
    client: Process,
    server: Process,
    listener: u32,
    /// Time at the shard, the logic, and the shard again; all of it in the second if there is no other lcore.
    spent: [Duration; 3],
}

impl<'r> Scene<'r> {
    fn new(eal: &'r Eal, shards: bool) -> Scene<'r> {
        let mut worker = None;
        let mut host = Host::with(Kind::PerProcess, |shown, _| {
            let links = shards.then(|| link(eal, 0, RING_WORDS).unwrap());
            let (end, logic) = links.unzip();
            let shard = || Shard::new(Intake::new(Kind::PerProcess, None).unwrap(), shown.lcore(1));
            worker = logic.map(|logic| Worker::new(shard(), logic));
            end.into_iter().collect()
        });
        host.interrupts = false;
        let mut process = |number| {
            let process = host.map(number);
            let (uid, pid, netns) = (0, number, 1);
            let attach =
                Request::Attach { function: number, group: number, parent: 0, nonce: 0, uid, pid, netns };
            host.agent.as_mut().unwrap().post(&attach.to_raw(1));
            process
        };
        let (client, server) = (process(1), process(2));
        let mut scene = Scene { host, worker, client, server, listener: 0, spent: [Duration::ZERO; 3] };
        let listen = Request::Listen { addr: name(), backlog: 4096, flags: 0 };
        scene.server.post(&listen.to_raw(1));
        scene.turns();
        let answer = scene.server.heard();
        let Completion::Done { status: Status::Ok, value } = answer[0].1 else { panic!("{answer:?}") };
        scene.listener = value;
        // The first connection brings the segment.
        scene.client.post(&Request::Connect { dst: name(), src: name() }.to_raw(1));
        scene.turns();
        let asked = scene.host.agent.as_mut().unwrap().heard();
        let segment = asked.iter().find_map(|(_, c)| match c {
            Completion::MakeSegment { segment, .. } => Some(*segment),
            _ => None,
        });
        let made = Request::SegmentMade { segment: segment.unwrap(), ok: true };
        scene.host.agent.as_mut().unwrap().post(&made.to_raw(1));
        scene.turns();
        assert_eq!(conns(&mut scene.client).len(), 1);
        scene
    }

    /// Until there is nothing to do any more.
    fn turns(&mut self) {
        (0..4).for_each(|_| self.turn());
    }

    /// Each role has a turn, the shard two.
    fn turn(&mut self) {
        let start = Instant::now();
        let Some(worker) = &mut self.worker else {
            role_all(&mut self.host.poller);
            self.spent[1] += start.elapsed();
            return;
        };
        role_shard_in(worker);
        let said = Instant::now();
        role_logic(&mut self.host.poller);
        let decided = Instant::now();
        role_shard_out(worker);
        self.spent[0] += said - start;
        self.spent[1] += decided - said;
        self.spent[2] += decided.elapsed();
    }

    /// So many connections, from connect to close.
    fn connections(&mut self) {
        for token in 1..=BATCH {
            self.client.post(&Request::Connect { dst: name(), src: name() }.to_raw(token));
        }
        self.turn();
        let conns = conns(&mut self.client);
        assert_eq!(conns.len(), BATCH as usize);
        for token in 1..=BATCH {
            self.server.post(&Request::Accept { listener: self.listener, flags: 0 }.to_raw(token));
        }
        self.turn();
        for (process, side) in [(&mut self.client, 0), (&mut self.server, 1)] {
            for conn in &conns {
                process.post(&Request::Close { conn: *conn, side, finished: true }.to_raw(0));
            }
        }
        self.turn();
        self.server.heard();
        self.client.arm();
        self.server.arm();
    }
}

fn conns(process: &mut Process) -> Vec<ConnId> {
    let made = |(_, completion)| match completion {
        Completion::Connected { status: Status::Ok, conn } => Some(conn),
        _ => None,
    };
    process.heard().into_iter().filter_map(made).collect()
}

fn name() -> Addr {
    Addr::v4([127, 0, 0, 1], 80)
}

fn main() {
    let prefix = format!("ipcd-bench-{}", std::process::id());
    let options =
        ["lcores", "--lcores=0", "--no-pci", "--no-huge", "-m", "64", "--no-shconf", "--no-telemetry"];
    let options = options.into_iter().map(str::to_owned).chain([format!("--file-prefix={prefix}")]);
    let (eal, _) = Eal::init(options).unwrap();
    let dir = eal.runtime_dir();
    let mut criterion = Criterion::default().configure_from_args();
    measure(&eal, &mut criterion);
    drop(eal);
    let _ = std::fs::remove_dir_all(dir);
    criterion.final_summary();
}

fn measure(eal: &Eal, criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lcores");
    let mut idle = Host::new(Kind::PerProcess);
    group.bench_function("a turn over no functions but the agent's", |b| {
        b.iter(|| role_idle_0(&mut idle.poller))
    });
    let _processes: Vec<Process> = (1..=512).map(|number| idle.map(number)).collect();
    group.bench_function("a turn over 512 idle functions", |b| b.iter(|| role_idle_512(&mut idle.poller)));

    let (mut to, mut from) = ring::<Message>(eal, "messages", RING_WORDS).unwrap();
    for burst in [1, 32] {
        let mut messages = vec![[7; 9]; burst];
        group.bench_function(format!("{burst} messages over a ring, there and out"), |b| {
            b.iter(|| role_message(&mut to, &mut from, &mut messages));
        });
    }

    let mut one = Scene::new(eal, false);
    group.bench_function("16 connections on one lcore", |b| b.iter_custom(|n| spent(&mut one, n)[1]));
    let mut two = Scene::new(eal, true);
    for (role, name) in ["the shard, requests", "the logic", "the shard, completions"].into_iter().enumerate()
    {
        let name = format!("16 connections: {name}");
        group.bench_function(name, |b| b.iter_custom(|n| spent(&mut two, n)[role]));
    }
    group.finish();
}

fn spent(scene: &mut Scene<'_>, rounds: u64) -> [Duration; 3] {
    scene.spent = [Duration::ZERO; 3];
    (0..rounds).for_each(|_| scene.connections());
    scene.spent
}
