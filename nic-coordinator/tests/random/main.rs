//! Random requests of many functions, malformed and dead ones among them, against a small model of who holds what.

#[path = "../common/mod.rs"]
mod common;
mod model;

use common::lo;
use proptest::prelude::*;
use ring::msg::{Addr, ConnId, Request};
use ring::window::Raw;

use model::Model;

/// A step, in numbers that shrink well.
type Step = (u8, u8, u8, u8);

fn addr(n: u8) -> Addr {
    match n % 8 {
        0..=2 => lo(2000),
        3 => lo(80),
        4 => Addr::v4([0; 4], 2000),
        5 => Addr { ip: Addr::V6_ANY, port: 2000 },
        6 => Addr::v4([10, 0, 0, 1], 2000),
        _ => Addr { ip: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], port: 2000 },
    }
}

fn source(n: u8) -> Addr {
    match n % 8 {
        0..=3 => lo(40000),
        4 => Addr::v4([10, 0, 0, 1], 40000),
        5 => lo(1000),
        6 => lo(0),
        _ => Addr { ip: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], port: 40000 },
    }
}

fn pick<T: Copy>(all: &[T], n: u8, none: T) -> T {
    // The latest ones are the likeliest to be alive.
    if all.is_empty() { none } else { all[all.len() - 1 - usize::from(n) % all.len()] }
}

fn step(m: &mut Model, (kind, a, b, c): Step) {
    let f = u32::from(a % 6);
    let listener = pick(&m.listener_ids, b, 77);
    let conn = pick(&m.conn_ids, b, ConnId(77));
    match kind % 24 {
        0 | 1 => {
            let (uid, netns) = (u32::from(b % 3) * 500, 1 + u64::from(b % 5 == 4));
            m.ask(
                0,
                Request::Attach { function: f, group: f, parent: 0, nonce: 0, uid, pid: 100 + f, netns },
            );
        }
        2 => {
            let (parent, nonce) = pick(&m.forks.keys().copied().collect::<Vec<_>>(), b, (9, 9));
            let group = m.forks.get(&(parent, nonce)).map_or(9, |(group, _)| group + u32::from(c % 4 == 3));
            m.ask(0, Request::Attach { function: f, group, parent, nonce, uid: 0, pid: 100 + f, netns: 1 });
        }
        3 => m.ask(0, Request::Detach { function: f }),
        4 | 5 => m.ask(
            f,
            Request::Listen { addr: addr(b), backlog: u32::from(c % 4), flags: u32::from(c % 8 == 7) },
        ),
        6 => m.ask(f, Request::Unlisten { listener }),
        7..=10 => m.ask(f, Request::Connect { dst: addr(b), src: source(c) }),
        11..=13 => m.ask(f, Request::Accept { listener, flags: u32::from(c % 2) }),
        14 => {
            let accepts: Vec<_> = m.open.keys().copied().collect();
            let (f, token) = pick(&accepts, b, (f, 5));
            m.ask(f, Request::CancelAccept { listener, token });
        }
        15 | 16 => m.ask(f, Request::Close { conn, side: u32::from(c % 2), finished: c % 4 < 2 }),
        17 => {
            if c % 3 == 0 {
                m.ask(f, Request::Requeue { conn });
            } else {
                m.tick(u64::from(c) * 10_000);
            }
        }
        18 if c % 8 == 7 => {
            let (parent, nonce) = pick(&m.forks.keys().copied().collect::<Vec<_>>(), b, (9, 9));
            m.ask(0, Request::Child { parent, nonce, lives: c % 16 == 7 });
        }
        18 => match c % 4 {
            0 => m.ask(f, Request::ForkFailed { nonce: u64::from(b % 4) }),
            1 => m.ask(f, Request::Lend { nonce: u64::from(b % 4), conn, side: u32::from(b % 2) }),
            _ => m.ask(f, Request::Fork { nonce: u64::from(b % 4) }),
        },
        19 | 20 => {
            let (pid, uid) = m.processes.get(&u32::from(b % 6)).map_or((1, 0), |p| (p.pid, p.uid));
            m.ask(f, Request::Offer { serial: u32::from(c % 3), pid, uid, name: u64::from(b % 2) });
        }
        21 => {
            // Mostly an honest claim: the offer says who may make it, and the claimer who offers.
            let offers: Vec<_> = m.offers.iter().map(|(key, peer)| (*key, *peer)).collect();
            let ((function, serial), offered) = pick(&offers, b, ((f, 0), (1, 0, 0)));
            let claimer = m
                .processes
                .iter()
                .find(|(_, p)| (p.pid, p.uid) == (offered.0, offered.1))
                .map_or(f, |(n, _)| *n);
            let (pid, uid) = m.processes.get(&function).map_or((1, 0), |p| (p.pid, p.uid));
            let claimer = if c % 8 == 7 { f } else { claimer };
            m.ask(claimer, Request::Claim { function, serial, pid: pid + u32::from(c % 16 == 6), uid });
        }
        22 if c % 4 == 0 => m.ask(f, Request::Retract { serial: u32::from(b % 3) }),
        22 if c % 4 == 1 => {
            let (pid, uid) = m.processes.get(&u32::from(b % 6)).map_or((1, 0), |p| (p.pid, p.uid));
            m.ask(0, Request::StandsFor { function: f, pid, uid, name: u64::from(c / 4 % 2) });
        }
        _ => {
            let segment = pick(&m.making, b, 78);
            m.ask(0, Request::SegmentMade { segment, ok: c % 4 != 0 });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_model_says_holds(
        steps in prop::collection::vec(any::<Step>(), 1..250),
    ) {
        let mut model = Model::new();
        for s in steps {
            step(&mut model, s);
        }
        model.end();
    }

    /// Entries with any content, from any function: no panic, no answer to the wrong one, no leak.
    #[test]
    fn random_entries(
        steps in prop::collection::vec((any::<Step>(), any::<[u64; 6]>(), any::<u8>(), any::<bool>()), 1..150),
    ) {
        let mut model = Model::new();
        for (s, body, kind, small) in steps {
            if s.3 % 2 == 0 {
                step(&mut model, s);
                continue;
            }
            let body = if small { body.map(|w| w % 4) } else { body };
            let raw = Raw { kind: kind % 36, status: 0, token: 0, body };
            if let Ok(request) = Request::from_raw(&raw) {
                model.ask(u32::from(s.0 % 7), request);
            }
        }
        model.end();
    }
}
