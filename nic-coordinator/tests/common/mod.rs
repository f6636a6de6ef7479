//! A world around the logic: an agent that makes segments at once (unless told to wait), and short names.
#![allow(dead_code)] // Every test file uses its part of it.

use nic_coordinator::logic::{Impostor, Limits, Logic, Out};
use ring::msg::{ACCEPT_WAIT, Addr, Completion, ConnId, Request, Status};

pub const CLIENT: u32 = 0;
pub const SERVER: u32 = 1;

pub fn lo(port: u16) -> Addr {
    Addr::v4([127, 0, 0, 1], port)
}

pub struct World {
    pub logic: Logic,
    pub now_us: u64,
    pub token: u32,
    /// Segments are made only when `make` is called.
    pub slow_agent: bool,
    pub asked: Vec<u32>,
    pub dropped: Vec<u32>,
}

impl World {
    pub fn new() -> Self {
        World::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        World {
            logic: Logic::new(limits),
            now_us: 0,
            token: 0,
            slow_agent: false,
            asked: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// Posts a request, lets the agent do its part, and returns everything else that was said.
    pub fn ask(&mut self, function: u32, request: Request) -> Vec<Out> {
        self.token += 1;
        let mut out = Vec::new();
        self.logic.handle(function, self.token, request, self.now_us, &mut out).unwrap();
        if let Request::Unlisten { .. } = request {
            // Comes last, and says nothing.
            let done = out.pop().map(|o| (o.function, o.token, o.completion));
            assert_eq!(done, Some((function, self.token, Completion::Done { status: Status::Ok, value: 0 })));
        }
        self.agent(out)
    }

    pub fn ask_rudely(&mut self, function: u32, request: Request) -> Result<(), Impostor> {
        self.logic.handle(function, 0, request, self.now_us, &mut Vec::new())
    }

    fn agent(&mut self, out: Vec<Out>) -> Vec<Out> {
        let mut rest = Vec::new();
        for o in out {
            match o.completion {
                Completion::MakeSegment { segment, .. } => {
                    self.asked.push(segment);
                    if !self.slow_agent {
                        rest.extend(self.make(true));
                    }
                }
                Completion::DropSegment { segment } => self.dropped.push(segment),
                _ => rest.push(o),
            }
        }
        rest
    }

    /// The agent answers the oldest `MakeSegment`.
    pub fn make(&mut self, ok: bool) -> Vec<Out> {
        let segment = self.asked.remove(0);
        self.ask(0, Request::SegmentMade { segment, ok })
    }

    pub fn tick(&mut self, now_us: u64) -> Vec<Out> {
        self.now_us = now_us;
        let mut out = Vec::new();
        self.logic.tick(now_us, &mut out);
        self.agent(out)
    }

    /// A fresh process of its own group (the same number), root, in namespace 1.
    pub fn attach(&mut self, function: u32) {
        self.attach_as(function, 0, 1);
    }

    pub fn attach_as(&mut self, function: u32, uid: u32, netns: u64) {
        let request =
            Request::Attach { function, group: function, parent: 0, nonce: 0, uid, pid: function, netns };
        assert_eq!(status(&self.ask(0, request)), Status::Ok);
    }

    pub fn attach_child(&mut self, function: u32, parent: u32, nonce: u64, group: u32) -> Vec<Out> {
        self.ask(0, Request::Attach { function, group, parent, nonce, uid: 0, pid: function, netns: 1 })
    }

    pub fn detach(&mut self, function: u32) -> Vec<Out> {
        self.ask(0, Request::Detach { function })
    }

    pub fn listen(&mut self, function: u32, addr: Addr, backlog: u32) -> Result<u32, Status> {
        let out = self.ask(function, Request::Listen { addr, backlog, flags: 0 });
        // What it means to others is told first.
        match out.last().expect("an answer").completion {
            Completion::Done { status: Status::Ok, value } => Ok(value),
            Completion::Done { status, .. } => Err(status),
            other => panic!("{other:?}"),
        }
    }

    pub fn connect(&mut self, function: u32, dst: Addr) -> Result<ConnId, Status> {
        let out = self.ask(function, Request::Connect { dst, src: lo(40000) });
        out.iter().find_map(connected).expect("an answer")
    }

    pub fn accept(&mut self, function: u32, listener: u32) -> Result<ConnId, Status> {
        let out = self.ask(function, Request::Accept { listener, flags: 0 });
        out.iter().find_map(accepted).expect("an answer")
    }

    pub fn accept_wait(&mut self, function: u32, listener: u32) -> (u32, Vec<Out>) {
        let out = self.ask(function, Request::Accept { listener, flags: ACCEPT_WAIT });
        (self.token, out)
    }

    pub fn close(&mut self, function: u32, conn: ConnId, side: u32) -> Vec<Out> {
        self.ask(function, Request::Close { conn, side, finished: false })
    }

    /// Closes with the end marked in the stream.
    pub fn finish(&mut self, function: u32, conn: ConnId, side: u32) -> Vec<Out> {
        self.ask(function, Request::Close { conn, side, finished: true })
    }
}

pub fn connected(out: &Out) -> Option<Result<ConnId, Status>> {
    match out.completion {
        Completion::Connected { status: Status::Ok, conn } => Some(Ok(conn)),
        Completion::Connected { status, .. } => Some(Err(status)),
        _ => None,
    }
}

pub fn accepted(out: &Out) -> Option<Result<ConnId, Status>> {
    match out.completion {
        Completion::Accepted { status: Status::Ok, conn, .. } => Some(Ok(conn)),
        Completion::Accepted { status, .. } => Some(Err(status)),
        _ => None,
    }
}

/// The status of the only completion, a `Done`.
pub fn status(out: &[Out]) -> Status {
    match out[0].completion {
        Completion::Done { status, .. } => status,
        other => panic!("{other:?}"),
    }
}

/// Something arrived.
pub fn ready(function: u32, listener: u32) -> Out {
    let completion = Completion::Ready { listener, waiting: true };
    Out { function, token: 0, completion, listener: Some(listener) }
}

/// Others took all of it.
pub fn emptied(function: u32, listener: u32) -> Out {
    let completion = Completion::Ready { listener, waiting: false };
    Out { function, token: 0, completion, listener: Some(listener) }
}

pub fn gone(function: u32, conn: ConnId) -> Out {
    let completion = Completion::PeerGone { conn, reset: false };
    Out { function, token: 0, completion, listener: None }
}

/// Nobody accepted it, and nobody will.
pub fn refused(function: u32, conn: ConnId) -> Out {
    let completion = Completion::PeerGone { conn, reset: true };
    Out { function, token: 0, completion, listener: None }
}

/// Of the only `Accepted` with a connection: whether more wait.
pub fn more(out: &[Out]) -> bool {
    let mut all = out.iter().filter_map(|o| match o.completion {
        Completion::Accepted { status: Status::Ok, more, .. } => Some(more),
        _ => None,
    });
    let more = all.next().expect("a connection");
    assert_eq!(all.next(), None);
    more
}
