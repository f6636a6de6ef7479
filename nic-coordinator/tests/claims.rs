//! The rules of offers and claims (SPEC 3.10), one by one.

mod common;

use common::{CLIENT, SERVER, World, gone, status};
use nic_coordinator::logic::{Limits, Out};
use ring::msg::{Completion, ConnId, Request, Status};

/// Functions 1 (offers, number 5) and 2, who are each other's peers by the kernel.
fn offered() -> World {
    let mut w = World::new();
    w.attach(1);
    w.attach(2);
    assert_eq!(offer(&mut w, 1, 2), Status::Ok);
    w
}

fn offer(w: &mut World, function: u32, pid: u32) -> Status {
    status(&w.ask(function, Request::Offer { serial: 5, pid, uid: 0, name: 9 }))
}

fn claim(w: &mut World, function: u32, offerer: u32, pid: u32) -> Vec<Out> {
    w.ask(function, Request::Claim { function: offerer, serial: 5, pid, uid: 0 })
}

fn outcome(out: &[Out]) -> Result<ConnId, Status> {
    let answers = out.iter().find_map(|o| match o.completion {
        Completion::Claimed { status: Status::Ok, conn } => Some(Ok(conn)),
        Completion::Claimed { status, .. } => Some(Err(status)),
        _ => None,
    });
    answers.expect("an answer")
}

#[test]
fn both_are_told_of_one_connection_and_hold_its_sides() {
    let mut w = offered();
    let out = claim(&mut w, 2, 1, 1);
    let conn = outcome(&out).unwrap();
    let completion = Completion::Paired { serial: 5, conn };
    assert_eq!(out[1..], [Out { function: 1, token: 0, completion, listener: None }]);
    assert_eq!(outcome(&claim(&mut w, 2, 1, 1)), Err(Status::Empty), "it is used up");
    assert_eq!(w.close(1, conn, CLIENT), [gone(2, conn)]);
    assert_eq!(w.close(2, conn, SERVER), []);
    w.detach(1);
    w.detach(2);
    assert!(w.logic.is_empty());
}

#[test]
fn only_the_peers_family_claims_and_only_from_the_peers_family() {
    let mut w = offered();
    w.attach(3);
    assert_eq!(outcome(&claim(&mut w, 3, 1, 1)), Err(Status::Denied), "a stranger");
    assert_eq!(outcome(&claim(&mut w, 2, 1, 3)), Err(Status::Denied), "the kernel shows another client");
    w.ask(2, Request::Fork { nonce: 7 });
    w.attach_child(4, 2, 7, 2);
    assert!(outcome(&claim(&mut w, 4, 1, 1)).is_ok(), "a child of who listened");
}

/// A process number that is in use again shows by its user; a process that was root may have become that user.
#[test]
fn root_may_be_anybody() {
    for (user, becomes) in [(0, true), (7, true), (8, false)] {
        let mut w = World::new();
        w.attach_as(1, user, 1);
        w.attach(2);
        offer(&mut w, 1, 2);
        let claim = w.ask(2, Request::Claim { function: 1, serial: 5, pid: 1, uid: 7 });
        assert_eq!(outcome(&claim).is_ok(), becomes, "attached as {user}");
    }
}

#[test]
fn another_namespace_has_other_names() {
    let mut w = World::new();
    w.attach(1);
    w.attach_as(2, 0, 9);
    offer(&mut w, 1, 2);
    assert_eq!(outcome(&claim(&mut w, 2, 1, 1)), Err(Status::Denied));
}

#[test]
fn nothing_is_offered_to_who_is_not_there() {
    let mut w = World::new();
    w.attach(1);
    assert_eq!(offer(&mut w, 1, 2), Status::NoListener);
    assert_eq!(outcome(&claim(&mut w, 1, 1, 1)), Err(Status::Empty));
}

/// Who called listen(2) is not there (any more), or another family's; the agent has seen who has the listener.
#[test]
fn who_accepts_on_anothers_listener_claims_what_is_offered_to_that() {
    let stands = |w: &mut World, function, name| {
        assert_eq!(w.ask(0, Request::StandsFor { function, pid: 77, uid: 0, name }), []);
    };
    let mut w = World::new();
    for function in [1, 2, 3] {
        w.attach(function);
    }
    assert_eq!(offer(&mut w, 1, 77), Status::NoListener);
    stands(&mut w, 3, 8);
    assert_eq!(offer(&mut w, 1, 77), Status::NoListener, "a listener of another name");
    stands(&mut w, 2, 9);
    assert_eq!(offer(&mut w, 1, 77), Status::Ok);
    assert_eq!(outcome(&claim(&mut w, 3, 1, 1)), Err(Status::Denied), "a listener of another name");
    assert_eq!(outcome(&claim(&mut w, 2, 1, 3)), Err(Status::Denied), "the kernel shows another client");
    assert!(outcome(&claim(&mut w, 2, 1, 1)).is_ok());
    w.detach(2);
    assert_eq!(offer(&mut w, 1, 77), Status::NoListener);
}

#[test]
fn an_offer_is_taken_back_or_goes_with_its_process() {
    let mut w = offered();
    assert_eq!(w.ask(1, Request::Retract { serial: 5 }), []);
    assert_eq!(outcome(&claim(&mut w, 2, 1, 1)), Err(Status::Empty));
    offer(&mut w, 1, 2);
    w.detach(1);
    w.attach(1);
    assert_eq!(outcome(&claim(&mut w, 2, 1, 1)), Err(Status::Empty));
}

#[test]
fn what_was_offered_while_memory_was_made_is_looked_at_again() {
    let mut w = offered();
    w.slow_agent = true;
    assert_eq!(claim(&mut w, 2, 1, 1), []);
    w.ask(1, Request::Retract { serial: 5 });
    offer(&mut w, 1, 2);
    assert_eq!(outcome(&w.make(true)), Err(Status::Empty), "another offer of the same number");
    assert!(outcome(&claim(&mut w, 2, 1, 1)).is_ok());
    let mut w = offered();
    w.slow_agent = true;
    claim(&mut w, 2, 1, 1);
    assert_eq!(outcome(&w.make(false)), Err(Status::NoSegment));
    assert!(w.logic.segments().is_empty());
}

#[test]
fn a_process_has_no_more_offers_and_sides_than_its_quota() {
    let mut w = World::with(Limits { conns_per_function: 1, ..Limits::default() });
    w.attach(1);
    w.attach(2);
    assert_eq!(offer(&mut w, 1, 2), Status::Ok);
    assert_eq!(status(&w.ask(1, Request::Offer { serial: 6, pid: 2, uid: 0, name: 9 })), Status::Quota);
    assert!(outcome(&claim(&mut w, 2, 1, 1)).is_ok());
    offer(&mut w, 1, 2);
    assert_eq!(outcome(&claim(&mut w, 2, 1, 1)), Err(Status::Quota));
}

#[test]
fn one_process_may_have_both_ends() {
    let mut w = World::new();
    w.attach(1);
    offer(&mut w, 1, 1);
    let conn = outcome(&claim(&mut w, 1, 1, 1)).unwrap();
    assert_eq!(w.close(1, conn, SERVER), [gone(1, conn)]);
    assert_eq!(w.close(1, conn, CLIENT), []);
}
