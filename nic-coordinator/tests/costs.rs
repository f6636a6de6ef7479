//! What crosses the bus (docs/pcie.md): each row of the table is done here, on each request queue, and counted.

mod polled;

use std::fmt;

use nic_coordinator::latency::READS;
use polled::{Host, Process};
use ring::msg::{Addr, Completion, ConnId, Request, Status};
use ring::queue::Kind;

const TABLE: &str = include_str!("../../docs/pcie.md");

/// A row, without its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Costs {
    /// Lines that hosts store to across the bus.
    posted: u64,
    /// Lines that the card stores to across the bus.
    written: u64,
    /// Lines that the card reads across the bus.
    read: u64,
    interrupts: u64,
    /// If the card sleeps.
    doorbells: u64,
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Costs { posted, written, read, interrupts, doorbells } = self;
        write!(f, "{posted} | {written} | {read} | {interrupts} | {doorbells}")
    }
}

/// Two processes that know each other, one of which listens.
struct Scene {
    host: Host<'static>,
    client: Process,
    server: Process,
    listener: u32,
}

fn address(port: u16) -> Addr {
    Addr::v4([127, 0, 0, 1], port)
}

fn only(heard: Vec<(u32, Completion)>) -> Completion {
    match heard[..] {
        [(_, completion)] => completion,
        _ => panic!("not one completion: {heard:?}"),
    }
}

impl Scene {
    fn new(kind: Kind) -> Scene {
        let mut host = Host::new(kind);
        let (client, server) = (host.attach_as(1, 1), host.attach_as(2, 2));
        let mut scene = Scene { host, client, server, listener: 0 };
        scene.server.post(&Request::Listen { addr: address(80), backlog: 10, flags: 0 }.to_raw(7));
        scene.turn();
        let Completion::Done { status: Status::Ok, value } = only(scene.server.heard()) else {
            panic!("not listening")
        };
        scene.listener = value;
        // The memory that the two share is made once.
        let conn = scene.connect();
        scene.server.heard();
        scene.accept();
        scene.close(conn);
        // From here on the card says that it sleeps, and is rung for each request.
        scene.host.poller.set_doorbell_wanted(true);
        scene
    }

    fn turn(&mut self) {
        while self.host.poller.turn(0) {}
        let agent = self.host.agent.as_mut().unwrap();
        for (_, completion) in agent.heard() {
            if let Completion::MakeSegment { segment, .. } = completion {
                agent.post(&Request::SegmentMade { segment, ok: true }.to_raw(0));
            }
        }
        while self.host.poller.turn(0) {}
    }

    fn connect(&mut self) -> ConnId {
        self.client.post(&Request::Connect { dst: address(80), src: address(1000) }.to_raw(7));
        self.turn();
        match only(self.client.heard()) {
            Completion::Connected { status: Status::Ok, conn } => conn,
            other => panic!("{other:?}"),
        }
    }

    fn accept(&mut self) {
        self.server.post(&Request::Accept { listener: self.listener, flags: 0 }.to_raw(7));
        self.turn();
        assert!(matches!(only(self.server.heard()), Completion::Accepted { status: Status::Ok, .. }));
    }

    fn close(&mut self, conn: ConnId) {
        self.client.post(&Request::Close { conn, side: 0, finished: true }.to_raw(0));
        self.server.post(&Request::Close { conn, side: 1, finished: true }.to_raw(0));
        self.turn();
        assert_eq!([self.client.heard(), self.server.heard()], [vec![], vec![]]);
    }

    /// What `what` costs.
    fn costs<T>(&mut self, what: impl FnOnce(&mut Scene) -> T) -> (Costs, T) {
        let before = self.counted();
        let result = what(self);
        let after = self.counted();
        let [posted, written, read, interrupts, doorbells] =
            std::array::from_fn(|i| after[i].checked_sub(before[i]).unwrap());
        (Costs { posted, written, read, interrupts, doorbells }, result)
    }

    fn counted(&self) -> [u64; 5] {
        let count = |name| self.host.shown.sum(name);
        // In the shared ring `freed` is stored once for what one turn took.
        [
            count("requests") - count("requests_shared") + count("armed"),
            count("completions") + count("batches_shared"),
            READS * (count("requests_shared") + count("hints")),
            count("irqs"),
            self.client.doorbells + self.server.doorbells,
        ]
    }
}

fn rows() -> Vec<String> {
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let mut scene = Scene::new(kind);
        let (connect, conn) = scene.costs(Scene::connect);
        assert!(matches!(only(scene.server.heard()), Completion::Ready { waiting: true, .. }));
        let (accept, ()) = scene.costs(Scene::accept);
        let (close, ()) = scene.costs(|scene| scene.close(conn));
        // A thread of the server sleeps until somebody connects, and is woken.
        let (sleep, ()) = scene.costs(|scene| {
            scene.server.arm();
            scene.turn();
        });
        let (woken, conn) = scene.costs(Scene::connect);
        assert_eq!(scene.server.interrupts(0), 1);
        scene.server.heard();
        scene.accept();
        // A process goes that did not close: its peer is told.
        let (death, ()) = scene.costs(|scene| scene.host.poller.unmap(1, 0));
        assert_eq!(only(scene.server.heard()), Completion::PeerGone { conn, reset: false });
        assert_eq!(scene.server.interrupts(1), 1);
        let wake = Costs {
            posted: sleep.posted + woken.posted - connect.posted,
            written: sleep.written + woken.written - connect.written,
            read: sleep.read + woken.read - connect.read,
            interrupts: sleep.interrupts + woken.interrupts - connect.interrupts,
            doorbells: sleep.doorbells + woken.doorbells - connect.doorbells,
        };
        let done = [
            ("connect", connect),
            ("accept", accept),
            ("close, both ends", close),
            ("sleep and wake", wake),
            ("death of a peer", death),
        ];
        rows.extend(done.map(|(name, costs)| format!("| {name} | {kind} | {costs} |")));
    }
    rows
}

#[test]
fn the_table_is_what_is_done() {
    let rows = rows();
    let stale: Vec<_> = rows.iter().filter(|row| !TABLE.lines().any(|line| line == *row)).collect();
    assert!(
        stale.is_empty(),
        "docs/pcie.md is stale; these rows are not in it: {stale:#?}\nall rows: {rows:#?}"
    );
    // And nothing that is not done.
    let kinds = Kind::ALL.map(|kind| format!(" | {kind} | "));
    let said = TABLE.lines().filter(|line| kinds.iter().any(|kind| line.contains(kind))).count();
    assert_eq!(said, rows.len(), "docs/pcie.md has rows that nobody counts");
}
