//! Every row: what is run, over which ways, and the goal that it has. One list.

use measure::job::{Idle, Over, Shape, Wait};
use measure::path::Path;
use measure::redis::Load;
use measure::row::{Experiment, Value, one, row, size};

/// What is run.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// A server and a client, each on a processor of its own.
    Two(Shape),
    /// The same over AF_UNIX.
    TwoUnix(Shape),
    /// Both on the same processor.
    OneCore(Shape),
    /// A process and its child.
    Family(Over, Shape),
    /// So many servers and clients at the same time.
    Many(usize, Shape),
    /// Connections that are kept.
    Memory(Shape),
    /// Four programs behind each other.
    Pipeline,
    /// redis-benchmark: its setting.
    Redis(Load),
    /// A row of `measure::services`, by name.
    Service(&'static str),
}

const SOCKETS: &[Path] = &[Path::Tcp, Path::Unix, Path::Sockmap, Path::Ring, Path::Direct];
const TCP_UNIX: &[Path] = &[Path::Tcp, Path::Unix, Path::Direct];
const TCP: &[Path] = &[Path::Tcp, Path::Direct];
const UNIX: &[Path] = &[Path::Unix, Path::Direct];
const PIPE: &[Path] = &[Path::Pipe, Path::Direct];
const PAIR: &[Path] = &[Path::Socketpair, Path::Direct];
const ONE_CORE: &[Path] = &[Path::Tcp, Path::Unix, Path::Ring, Path::Direct];

/// All of them, in the order of the report.
pub fn all() -> Vec<Experiment<What>> {
    let mut all = ping_pongs();
    all.extend(streams());
    all.extend(connections());
    all.extend(relatives());
    all.extend(services());
    all
}

fn ping_pongs() -> Vec<Experiment<What>> {
    let waiting = |wait, idle| Shape::PingPong { bytes: 8, wait, idle, pause_us: 0 };
    let mut all = vec![
        Experiment {
            what: What::Two(Shape::ping_pong(8, Wait::Blocking)),
            paths: SOCKETS,
            rows: vec![
                row("ping-pong 8 B, p50", Value::P50, 80.0).of_limit(1.6),
                row("ping-pong 8 B, p99", Value::P99, 50.0),
            ],
        },
        one(
            What::Two(Shape::ping_pong(8, Wait::Epoll)),
            TCP_UNIX,
            row("ping-pong 8 B, epoll", Value::P50, 50.0),
        ),
        one(
            What::Two(waiting(Wait::Poll, Idle::Connections(100))),
            TCP_UNIX,
            row("ping-pong 8 B, poll with 100 idle connections", Value::P50, 30.0),
        ),
        one(
            What::Two(waiting(Wait::Poll, Idle::Eventfds(100))),
            TCP_UNIX,
            row("ping-pong 8 B, poll with 100 idle eventfds", Value::P50, 30.0),
        ),
    ];
    for (bytes, goal) in [(64, 50.0), (1024, 40.0), (16 << 10, 8.0), (64 << 10, 4.0), (1 << 20, 2.5)] {
        let shape = Shape::ping_pong(bytes, Wait::Blocking);
        let name = format!("ping-pong {}", size(bytes));
        all.push(one(What::Two(shape), SOCKETS, row(name, Value::P50, goal).of_limit(1.5)));
    }
    all.push(one(
        What::OneCore(Shape::ping_pong(8, Wait::Blocking)),
        ONE_CORE,
        row("ping-pong 8 B, one core", Value::P50, 4.0),
    ));
    all.push(Experiment {
        what: What::Two(Shape::PingPong {
            bytes: 8,
            wait: Wait::Blocking,
            idle: Idle::Connections(0),
            pause_us: 1000,
        }),
        paths: TCP_UNIX,
        rows: vec![
            row("a message each ms, latency", Value::P50, 1.3),
            row("a message each ms, CPU time", Value::Cpu, 1.0),
        ],
    });
    all.push(one(
        What::Many(8, Shape::ping_pong(8, Wait::Blocking)),
        TCP_UNIX,
        row("8 busy pairs", Value::Rate, 2.0),
    ));
    all
}

fn streams() -> Vec<Experiment<What>> {
    let mut all = vec![one(
        What::Two(Shape::Stream { bytes: 8 }),
        SOCKETS,
        row("stream 8 B", Value::Rate, 60.0).of_limit(0.65),
    )];
    for (bytes, goal) in [(1024, 15.0), (8192, 10.0), (64 << 10, 6.0), (1 << 20, 4.0)] {
        let name = format!("stream {}", size(bytes));
        let row = row(name, Value::Throughput(bytes), goal).of_limit(0.8);
        all.push(one(What::Two(Shape::Stream { bytes }), SOCKETS, row));
    }
    all
}

fn connections() -> Vec<Experiment<What>> {
    let mut all = Vec::new();
    for (exchange, name) in [(false, "connect, accept, close"), (true, "connect, 8 B there and back, close")]
    {
        all.push(one(What::Two(Shape::Connect { exchange }), TCP_UNIX, row(name, Value::Rate, 15.0)));
    }
    for (connections, active, goal) in [(10, 10, None), (1000, 10, Some(10.0)), (10_000, 100, Some(10.0))] {
        let latency = row(format!("{connections} in epoll, latency"), Value::P50, goal);
        let rate = row(format!("{connections} in epoll, messages"), Value::Rate, goal);
        let rows = if goal.is_some() {
            vec![latency.beside("10 in epoll, latency", 1.5), rate.beside("10 in epoll, messages", 1.5)]
        } else {
            vec![latency, rate]
        };
        all.push(Experiment { what: What::Two(Shape::Crowd { connections, active }), paths: TCP, rows });
    }
    for (exchange, name) in [(false, "memory a connection, unused"), (true, "memory a connection, used once")]
    {
        let shape = Shape::Keep { connections: 10_000, exchange };
        all.push(one(What::Memory(shape), TCP, row(name, Value::Memory, 1.0)));
    }
    all
}

/// What joins two programs: its name, its paths, and how it is measured.
type Kind = (&'static str, &'static [Path], fn(Shape) -> What);

fn relatives() -> Vec<Experiment<What>> {
    let ping = Shape::ping_pong(8, Wait::Blocking);
    let (small, large) = (Shape::Stream { bytes: 8 }, Shape::Stream { bytes: 64 << 10 });
    let mut all = Vec::new();
    let kinds: [Kind; 3] = [
        ("pipe", PIPE, |shape| What::Family(Over::Pipe, shape)),
        ("socketpair", PAIR, |shape| What::Family(Over::Socketpair, shape)),
        ("AF_UNIX", UNIX, What::TwoUnix),
    ];
    for (kind, paths, what) in kinds {
        all.push(one(what(ping), paths, row(format!("{kind} ping-pong 8 B"), Value::P50, 8.0)));
        all.push(one(what(small), paths, row(format!("{kind} stream 8 B"), Value::Rate, 5.0)));
        let name = format!("{kind} stream 64 KiB");
        all.push(one(what(large), paths, row(name, Value::Throughput(64 << 10), None::<f64>)));
    }
    all.push(one(What::Pipeline, PIPE, row("pipeline of 4 programs, 64 B records", Value::Rate, 15.0)));
    all
}

fn services() -> Vec<Experiment<What>> {
    let mut all = Vec::new();
    for (clients, pipeline, goal) in [(1, 1, 6.0), (50, 1, 4.0), (50, 16, 1.5)] {
        let plural = if clients == 1 { "" } else { "s" };
        let name = |operation| format!("redis {operation}, {clients} client{plural}, pipeline {pipeline}");
        let mut rows = vec![row(name("SET"), Value::Rate, goal), row(name("GET"), Value::Rate, goal)];
        if clients == 1 {
            rows.push(row("redis GET, 1 client, p50", Value::P50, 6.0));
        }
        all.push(Experiment { what: What::Redis(Load { clients, pipeline }), paths: TCP_UNIX, rows });
    }
    for (name, goal) in [
        ("nginx, 1 connection", 4.0),
        ("nginx, 32 connections", 2.5),
        ("nginx, a connection each", 4.0),
        ("nginx proxy, 32 connections", 3.0),
        ("memcached, 32 connections", 4.0),
        ("pgbench, read only, 1 client", 1.5),
    ] {
        all.push(one(What::Service(name), TCP, row(name, Value::Rate, goal)));
    }
    // Without a goal of their own, but never slower than the kernel.
    for name in
        ["nginx proxy, a connection each", "pgbench, read only, 8 clients", "gunicorn threads, 8 clients"]
    {
        all.push(one(What::Service(name), TCP, row(name, Value::Rate, 1.0)));
    }
    all
}
