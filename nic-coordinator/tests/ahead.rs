//! Connections granted ahead (SPEC 3.11).

mod common;

use std::collections::BTreeSet;

use common::{CLIENT, SERVER, World, accepted, gone, lo, ready, refused};
use nic_coordinator::logic::{Limits, Out};
use proptest::prelude::*;
use ring::msg::{Addr, Completion, ConnId, LISTEN_V6ONLY, Request, Status};

fn granted(out: &[Out]) -> Vec<ConnId> {
    let conn = |o: &Out| match o.completion {
        Completion::Granted { conn, .. } => Some(conn),
        _ => None,
    };
    out.iter().filter_map(conn).collect()
}

fn grant(w: &mut World, f: u32, count: u32) -> Vec<ConnId> {
    granted(&w.ask(f, Request::Ahead { dst: lo(80), count }))
}

fn open(w: &mut World, f: u32, conn: ConnId) -> Vec<Out> {
    w.ask(f, Request::Open { conn, src: lo(41000) })
}

/// Functions 1 (client) and 2 (server, listening on port 80 with `backlog`), which have met.
fn pair(backlog: u32) -> (World, u32) {
    let mut w = World::new();
    w.attach(1);
    w.attach(2);
    let listener = w.listen(2, lo(80), backlog).unwrap();
    let conn = w.connect(1, lo(80)).unwrap();
    w.accept(2, listener).unwrap();
    w.close(1, conn, CLIENT);
    w.close(2, conn, SERVER);
    (w, listener)
}

/// Nothing is left when everybody is gone.
fn end(mut w: World) {
    for f in 1..=4 {
        w.detach(f);
    }
    w.tick(u64::MAX);
    assert!(w.logic.is_empty());
}

#[test]
fn it_is_nothing_to_the_server_until_it_is_opened() {
    let (mut w, listener) = pair(8);
    let out = w.ask(1, Request::Ahead { dst: lo(80), count: 3 });
    let conns = granted(&out);
    assert_eq!((conns.len(), out.len()), (3, 3));
    assert_eq!(w.accept(2, listener), Err(Status::Empty));
    assert_eq!(open(&mut w, 1, conns[1]), [ready(2, listener)]);
    let out = w.ask(2, Request::Accept { listener, flags: 0 });
    let expected = Completion::Accepted {
        status: Status::Ok,
        conn: conns[1],
        peer: lo(41000),
        local: lo(80),
        more: false,
    };
    assert_eq!(out.iter().map(|o| o.completion).collect::<Vec<_>>(), [expected]);
    assert_eq!(w.close(1, conns[1], CLIENT), [gone(2, conns[1])]);
    assert_eq!(w.close(2, conns[1], SERVER), []);
    assert_eq!([conns[0], conns[2]].map(|conn| w.close(1, conn, CLIENT)), [[], []]);
    assert_eq!(w.logic.segments().conns(), 0);
    end(w);
}

#[test]
fn who_waits_gets_it_at_once() {
    let (mut w, listener) = pair(8);
    let conn = grant(&mut w, 1, 1)[0];
    w.accept_wait(2, listener);
    assert_eq!(open(&mut w, 1, conn).iter().find_map(accepted), Some(Ok(conn)));
    end(w);
}

/// Whatever makes the next client another listener's, or nobody's.
#[test]
fn it_is_taken_back() {
    type Change = fn(&mut World, u32) -> Vec<Out>;
    let changes: [(&str, Change); 6] = [
        ("closed", |w, listener| w.ask(2, Request::Unlisten { listener })),
        ("dead", |w, _| w.detach(2)),
        ("sent away", |w, listener| w.ask(2, Request::Withdraw { listener })),
        ("one beside it", |w, _| w.ask(2, Request::Listen { addr: lo(80), backlog: 1, flags: 0 })),
        ("a wider one", |w, _| {
            let addr = Addr { ip: Addr::V6_ANY, port: 80 };
            w.ask(2, Request::Listen { addr, backlog: 1, flags: LISTEN_V6ONLY })
        }),
        ("left to children that have not attached", |w, _| {
            w.ask(2, Request::Fork { nonce: 7 });
            w.detach(2)
        }),
    ];
    for (what, change) in changes {
        let (mut w, listener) = pair(8);
        let conns = grant(&mut w, 1, 2);
        let told: BTreeSet<String> = change(&mut w, listener).iter().map(|o| format!("{o:?}")).collect();
        for conn in &conns {
            assert!(told.contains(&format!("{:?}", refused(1, *conn))), "{what}: {told:?}");
        }
        // One was opened at the same time: its client has been told.
        assert_eq!(open(&mut w, 1, conns[0]), [], "{what}");
        if w.logic.listeners().get(listener).is_some_and(|l| l.is_served()) {
            assert_eq!(w.accept(2, listener), Err(Status::Empty), "{what}");
        }
        for conn in conns {
            assert_eq!(w.close(1, conn, CLIENT), [], "{what}");
        }
        assert_eq!(w.logic.segments().conns(), 0, "{what}");
        end(w);
    }
}

#[test]
fn there_are_as_many_as_the_queue_has_room_for() {
    let (mut w, listener) = pair(3);
    w.connect(1, lo(80)).unwrap();
    let conns = grant(&mut w, 1, 16);
    assert_eq!((conns.len(), grant(&mut w, 1, 1).len()), (3, 0));
    // Others are not kept out by what nobody has opened.
    w.attach(3);
    assert!((0..3).all(|_| w.connect(3, lo(80)).is_ok()));
    assert_eq!(w.connect(3, lo(80)), Err(Status::BacklogFull));
    // Who opened one is connected, and is not turned away for that.
    assert_eq!(open(&mut w, 1, conns[0]), [ready(2, listener)]);
    assert!((0..5).all(|_| w.accept(2, listener).is_ok()));
    assert_eq!(w.accept(2, listener), Err(Status::Empty));
    let (mut wide, _) = pair(1000);
    assert_eq!(grant(&mut wide, 1, u32::MAX).len(), 16, "for one request");
    end(w);
    end(wide);
}

#[test]
fn there_are_none_where_it_is_not_known_who_takes_the_next_client() {
    let (mut w, _) = pair(8);
    assert_eq!(granted(&w.ask(1, Request::Ahead { dst: lo(81), count: 4 })), []);
    assert_eq!(granted(&w.ask(1, Request::Ahead { dst: Addr::v4([127, 0, 0, 2], 80), count: 4 })), []);
    w.listen(2, lo(80), 8).unwrap();
    assert_eq!(grant(&mut w, 1, 4), []);
    w.attach_as(4, 0, 2);
    assert_eq!(grant(&mut w, 4, 4), [], "another namespace");
    end(w);
}

#[test]
fn quotas_count_them() {
    let mut w = World::with(Limits { conns_per_function: 3, ..Limits::default() });
    w.attach(1);
    w.attach(2);
    w.listen(2, lo(80), 8).unwrap();
    let first = w.connect(1, lo(80)).unwrap();
    let conns = grant(&mut w, 1, 8);
    assert_eq!(conns.len(), 2);
    assert_eq!(w.connect(1, lo(80)), Err(Status::Quota));
    w.close(1, conns[0], CLIENT);
    assert!(w.connect(1, lo(80)).is_ok());
    w.close(1, first, CLIENT);
    end(w);
}

#[test]
fn a_child_does_not_hold_them() {
    let (mut w, listener) = pair(8);
    let conns = grant(&mut w, 1, 2);
    w.ask(1, Request::Fork { nonce: 7 });
    w.attach_child(3, 1, 7, 1);
    open(&mut w, 1, conns[0]);
    w.accept(2, listener).unwrap();
    assert_eq!(w.close(1, conns[0], CLIENT), [gone(2, conns[0])], "nobody else holds it");
    assert_eq!(open(&mut w, 3, conns[1]), [], "the parent's");
    assert_eq!(w.ask(1, Request::Lend { nonce: 8, conn: conns[1], side: CLIENT }), []);
    assert_eq!(w.accept(2, listener), Err(Status::Empty));
    end(w);
}

#[test]
fn nobody_else_opens_or_closes_it_and_nobody_lies() {
    let (mut w, listener) = pair(8);
    let conns = grant(&mut w, 1, 2);
    w.attach(3);
    assert_eq!((open(&mut w, 3, conns[0]), w.close(3, conns[0], CLIENT)), (vec![], vec![]));
    assert_eq!((w.close(2, conns[0], SERVER), w.close(1, conns[0], SERVER)), (vec![], vec![]));
    let lie = Request::Open { conn: conns[0], src: Addr::v4([10, 0, 0, 1], 41000) };
    assert_eq!(w.ask(1, lie), [refused(1, conns[0])]);
    assert_eq!(w.accept(2, listener), Err(Status::Empty));
    assert_eq!(open(&mut w, 1, conns[1]), [ready(2, listener)]);
    assert_eq!(open(&mut w, 1, conns[1]), [], "once");
    end(w);
}

#[test]
fn a_server_that_is_gone_leaves_no_memory_to_a_client_that_sleeps() {
    let (mut w, _) = pair(8);
    let conns = grant(&mut w, 1, 2);
    w.detach(2);
    assert_eq!(w.dropped, [conns[0].segment()]);
    assert_eq!((open(&mut w, 1, conns[0]), w.close(1, conns[1], CLIENT)), (vec![], vec![]));
    end(w);
}

#[test]
fn a_client_that_is_gone_leaves_room_for_others() {
    let (mut w, _) = pair(3);
    assert_eq!(grant(&mut w, 1, 16).len(), 4);
    w.attach(3);
    w.detach(1);
    w.connect(3, lo(80)).unwrap();
    assert_eq!(grant(&mut w, 3, 16).len(), 3);
    end(w);
}

#[derive(Clone, Debug)]
enum Step {
    Ahead(u32),
    Open(u32, usize),
    Connect(u32),
    Accept,
    Close(u32, usize),
    Listen,
    Unlisten,
    Fork(u64),
    Detach(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let client = || prop_oneof![Just(1u32), Just(3u32)];
    prop_oneof![
        4 => client().prop_map(Step::Ahead),
        6 => (client(), any::<usize>()).prop_map(|(f, n)| Step::Open(f, n)),
        2 => client().prop_map(Step::Connect),
        6 => Just(Step::Accept),
        4 => (client(), any::<usize>()).prop_map(|(f, n)| Step::Close(f, n)),
        1 => Just(Step::Listen),
        1 => Just(Step::Unlisten),
        1 => any::<u64>().prop_map(Step::Fork),
        1 => prop_oneof![Just(1u32), Just(2u32), Just(3u32)].prop_map(Step::Detach),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, none is accepted that was not opened, and in the end nothing is left.
    #[test]
    fn any_steps(steps in proptest::collection::vec(step(), 1..120)) {
        let mut w = World::new();
        for f in 1..=3 {
            w.attach(f);
        }
        let mut listeners = vec![w.listen(2, lo(80), 5).unwrap()];
        let (mut granted_to, mut made) = (Vec::new(), BTreeSet::new());
        for step in steps {
            match step {
                Step::Ahead(f) => {
                    let out = w.ask(f, Request::Ahead { dst: lo(80), count: 3 });
                    granted_to.extend(granted(&out).into_iter().map(|conn| (f, conn)));
                }
                Step::Open(f, n) if !granted_to.is_empty() => {
                    let (owner, conn) = granted_to[n % granted_to.len()];
                    let out = open(&mut w, f, conn);
                    prop_assert!(f == owner || out.is_empty());
                    if f == owner {
                        made.insert(conn);
                    }
                }
                Step::Connect(f) => {
                    let out = w.ask(f, Request::Connect { dst: lo(80), src: lo(40000) });
                    made.extend(out.iter().find_map(common::connected).and_then(Result::ok));
                }
                Step::Accept => {
                    for listener in &listeners {
                        let out = w.ask(2, Request::Accept { listener: *listener, flags: 0 });
                        if let Some(Ok(conn)) = out.iter().find_map(accepted) {
                            prop_assert!(made.contains(&conn), "accepted, but never opened");
                            w.close(2, conn, SERVER);
                        }
                    }
                }
                Step::Close(f, n) if !granted_to.is_empty() => {
                    let (_, conn) = granted_to[n % granted_to.len()];
                    w.close(f, conn, CLIENT);
                }
                Step::Listen => listeners.extend(w.listen(2, lo(80), 5)),
                Step::Unlisten => {
                    if let Some(listener) = listeners.pop() {
                        w.ask(2, Request::Unlisten { listener });
                    }
                }
                Step::Fork(nonce) => drop(w.ask(1, Request::Fork { nonce })),
                Step::Detach(f) => {
                    w.detach(f);
                    w.attach(f);
                    granted_to.retain(|(owner, _)| *owner != f);
                    if f == 2 {
                        listeners.clear();
                    }
                }
                Step::Open(..) | Step::Close(..) => {}
            }
        }
        for f in 1..=3 {
            w.detach(f);
        }
        w.tick(u64::MAX);
        prop_assert!(w.logic.is_empty());
    }
}
