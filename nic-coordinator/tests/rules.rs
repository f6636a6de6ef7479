//! The rules of the coordinator's logic, one by one.

mod common;

use common::{CLIENT, SERVER, World, accepted, connected, emptied, gone, lo, more, ready, refused, status};
use nic_coordinator::logic::forks::{ATTACH_LATER_US_MAX, ATTACH_US_MAX};
use nic_coordinator::logic::{Limits, Out};
use ring::msg::{Addr, Completion, ConnId, Request, Status};
use ring::segment::SLOTS;

/// Functions 1 (client) and 2 (server, listening on port 80 with `backlog`).
fn pair(backlog: u32) -> (World, u32) {
    let mut w = World::new();
    w.attach(1);
    w.attach(2);
    let listener = w.listen(2, lo(80), backlog).unwrap();
    (w, listener)
}

#[test]
fn connect_accept_close() {
    let (mut w, listener) = pair(8);
    let out = w.ask(1, Request::Connect { dst: lo(80), src: lo(40000) });
    let conn = out.iter().find_map(connected).unwrap().unwrap();
    assert_eq!(out[0], ready(2, listener));
    let out = w.ask(2, Request::Accept { listener, flags: 0 });
    let completion =
        Completion::Accepted { status: Status::Ok, conn, peer: lo(40000), local: lo(80), more: false };
    assert_eq!(out, [Out { function: 2, token: w.token, completion, listener: Some(listener) }]);
    assert_eq!(w.close(1, conn, CLIENT), [gone(2, conn)]);
    assert_eq!(w.close(2, conn, SERVER), []);
    assert_eq!(w.logic.segments().conns(), 0);
    w.detach(1);
    assert_eq!(w.dropped, [conn.segment()]);
    w.detach(2);
    assert!(w.logic.is_empty());
}

#[test]
fn without_listener_policy_or_sense_there_is_no_connection() {
    let (mut w, _) = pair(8);
    assert_eq!(w.connect(1, lo(81)), Err(Status::NoListener));
    assert_eq!(w.connect(1, Addr::v4([127, 0, 0, 2], 80)), Err(Status::NoListener));
    let lie = Request::Connect { dst: lo(80), src: Addr::v4([10, 0, 0, 1], 40000) };
    assert_eq!(connected(&w.ask(1, lie)[0]), Some(Err(Status::Denied)));
    w.attach_as(3, 1000, 1);
    let privileged = Request::Connect { dst: lo(80), src: lo(1023) };
    assert_eq!(connected(&w.ask(3, privileged)[0]), Some(Err(Status::Denied)));
    w.attach_as(4, 0, 2);
    assert_eq!(w.connect(4, lo(80)), Err(Status::NoListener), "another namespace");
    assert_eq!(w.listen(3, lo(99), 1), Err(Status::Denied));
    assert_eq!(w.listen(3, Addr::v4([0; 4], 80), 1), Err(Status::Denied), "root listens on that port");
    let flags = Request::Listen { addr: lo(5000), backlog: 1, flags: 8 };
    assert_eq!(status(&w.ask(1, flags)), Status::BadRequest);
}

#[test]
fn the_queue_takes_backlog_plus_one() {
    let (mut w, listener) = pair(1);
    assert!(w.connect(1, lo(80)).is_ok() && w.connect(1, lo(80)).is_ok());
    assert_eq!(w.connect(1, lo(80)), Err(Status::BacklogFull));
    let first = w.accept(2, listener).unwrap();
    assert_eq!(first.slot(), 0, "in the order of arrival");
    assert!(w.connect(1, lo(80)).is_ok());
}

#[test]
fn ready_comes_with_each_arrival_and_accepted_says_whether_more_wait() {
    let (mut w, listener) = pair(8);
    let request = Request::Connect { dst: lo(80), src: lo(40000) };
    let accept = Request::Accept { listener, flags: 0 };
    for _ in 0..3 {
        assert_eq!(w.ask(1, request)[..1], [ready(2, listener)], "before the client hears");
    }
    assert_eq!([w.ask(2, accept), w.ask(2, accept), w.ask(2, accept)].map(|o| more(&o)), [true, true, false]);
    assert_eq!(w.accept(2, listener), Err(Status::Empty));
    assert_eq!(w.ask(1, request)[..1], [ready(2, listener)], "before the client hears");
}

#[test]
fn all_holders_hear_of_arrivals_and_the_others_of_an_emptied_queue() {
    let (mut w, listener) = pair(8);
    w.ask(2, Request::Fork { nonce: 7 });
    w.attach_child(3, 2, 7, 2);
    let request = Request::Connect { dst: lo(80), src: lo(40000) };
    assert_eq!(w.ask(1, request)[..2], [ready(2, listener), ready(3, listener)]);
    assert_eq!(w.ask(1, request)[..2], [ready(2, listener), ready(3, listener)]);
    let accept = Request::Accept { listener, flags: 0 };
    let out = w.ask(3, accept);
    assert_eq!((out.len(), more(&out)), (1, true), "nothing new for the other");
    let out = w.ask(3, accept);
    assert_eq!((more(&out), &out[1..]), (false, &[emptied(2, listener)][..]));
    // Nobody hears of what does not wait in the queue.
    w.accept_wait(2, listener);
    let out = w.ask(1, request);
    assert_eq!((out.len(), more(&out)), (2, false));
}

#[test]
fn relatives_hear_of_a_shutdown_of_their_side() {
    let (mut w, listener) = pair(8);
    let conn = w.connect(1, lo(80)).unwrap();
    w.accept(2, listener).unwrap();
    w.ask(1, Request::Fork { nonce: 7 });
    w.attach_child(3, 1, 7, 1);
    let shut = |side| Request::Shut { conn, side };
    let told = Out { function: 3, token: 0, completion: Completion::Shut { conn, side: 0 }, listener: None };
    assert_eq!(w.ask(1, shut(0)), [told]);
    assert_eq!((w.ask(1, shut(1)), w.ask(2, shut(0))), (vec![], vec![]), "not theirs");
}

#[test]
fn an_end_that_is_marked_in_the_stream_is_not_announced() {
    let (mut w, listener) = pair(8);
    let conn = w.connect(1, lo(80)).unwrap();
    w.accept(2, listener).unwrap();
    assert_eq!(w.finish(1, conn, CLIENT), []);
    w.ask(2, Request::Fork { nonce: 7 });
    assert_eq!(w.attach_child(3, 2, 7, 2)[1..], [emptied(3, listener)], "nor to children");
    assert_eq!(w.finish(3, conn, SERVER), []);
    assert_eq!(w.finish(2, conn, SERVER), []);
    assert_eq!(w.logic.segments().conns(), 0);

    let early = w.connect(1, lo(80)).unwrap();
    assert_eq!(w.finish(1, early, CLIENT), []);
    let out = w.ask(2, Request::Accept { listener, flags: 0 });
    assert_eq!((accepted(&out[0]), &out[1..]), (Some(Ok(early)), &[emptied(3, listener)][..]), "nor later");
}

#[test]
fn how_the_last_holder_closes_counts() {
    let (mut w, listener) = pair(8);
    for (last_finishes, news) in [(true, false), (false, true)] {
        let conn = w.connect(1, lo(80)).unwrap();
        w.accept(2, listener).unwrap();
        w.ask(2, Request::Fork { nonce: 7 });
        w.attach_child(3, 2, 7, 2);
        let close = |finished| Request::Close { conn, side: SERVER, finished };
        assert_eq!(w.ask(2, close(!last_finishes)), []);
        assert_eq!(w.ask(3, close(last_finishes)), if news { vec![gone(1, conn)] } else { vec![] });
        w.detach(3);
    }
    // A holder that dies after another one has marked the end.
    let conn = w.connect(1, lo(80)).unwrap();
    w.accept(2, listener).unwrap();
    w.ask(2, Request::Fork { nonce: 7 });
    assert_eq!(w.finish(2, conn, SERVER), []);
    assert_eq!(w.tick(ATTACH_US_MAX), [gone(1, conn)]);
}

#[test]
fn what_is_lent_has_a_second_holder_and_nothing_else_has() {
    let (mut w, listener) = pair(8);
    let lent = w.connect(1, lo(80)).unwrap();
    let kept = w.connect(1, lo(80)).unwrap();
    w.accept(2, listener).unwrap();
    w.accept(2, listener).unwrap();
    w.ask(2, Request::Lend { nonce: 7, conn: lent, side: 1 });
    w.ask(2, Request::Lend { nonce: 8, conn: lent, side: 0 });
    assert_eq!(w.logic.forks().len(), 1, "only what one holds can be lent");
    assert_eq!(w.detach(2), [gone(1, kept)], "the lender's own holds end with it");
    w.attach_child(3, 2, 7, 2);
    assert_eq!(w.detach(3), [gone(1, lent)]);
}

#[test]
fn a_withdrawn_listener_gets_no_new_connections_and_keeps_those_that_wait() {
    let (mut w, listener) = pair(8);
    let early = w.connect(1, lo(80)).unwrap();
    w.ask(1, Request::Withdraw { listener });
    let next = w.connect(1, lo(80)).unwrap();
    w.ask(2, Request::Withdraw { listener });
    assert_eq!(w.connect(1, lo(80)), Err(Status::NoListener), "only its holders may withdraw it");
    assert_eq!([w.accept(2, listener), w.accept(2, listener)], [Ok(early), Ok(next)]);
    w.ask(2, Request::Unlisten { listener });
    assert!(w.logic.listeners().is_empty());
}

#[test]
fn a_parked_accept_gets_the_next_connection() {
    let (mut w, listener) = pair(8);
    let (first, out) = w.accept_wait(2, listener);
    assert_eq!(out, []);
    let (second, _) = w.accept_wait(2, listener);
    let out = w.ask(1, Request::Connect { dst: lo(80), src: lo(40000) });
    assert_eq!((out.len(), out[0].token, accepted(&out[0]).is_some()), (2, first, true));
    let cancel = |token| Request::CancelAccept { listener, token };
    assert_eq!(w.ask(2, cancel(first)), [], "too late");
    let out = w.ask(2, cancel(second));
    assert_eq!((out.len(), out[0].token, accepted(&out[0])), (1, second, Some(Err(Status::Empty))));
    assert_eq!(w.ask(2, cancel(second)), [], "answered once");
}

#[test]
fn only_holders_accept() {
    let (mut w, listener) = pair(8);
    w.connect(1, lo(80)).unwrap();
    assert_eq!(w.accept(1, listener), Err(Status::BadRequest));
    assert_eq!(w.accept(2, listener + 1), Err(Status::BadRequest));
    let (_, out) = w.accept_wait(1, listener);
    assert_eq!(accepted(&out[0]), Some(Err(Status::BadRequest)));
}

#[test]
fn a_closed_listener_resets_its_queue_and_answers_its_waiters() {
    let (mut w, listener) = pair(8);
    let conn = w.connect(1, lo(80)).unwrap();
    assert_eq!(w.ask(2, Request::Unlisten { listener }), [refused(1, conn)]);
    assert_eq!(w.connect(1, lo(80)), Err(Status::NoListener));
    assert_eq!(w.logic.segments().conns(), 1, "the client holds it");
    w.close(1, conn, CLIENT);
    assert_eq!(w.logic.segments().conns(), 0);

    let listener = w.listen(2, lo(80), 8).unwrap();
    let (token, _) = w.accept_wait(2, listener);
    let out = w.ask(2, Request::Unlisten { listener });
    assert_eq!((out.len(), out[0].token, accepted(&out[0])), (1, token, Some(Err(Status::BadRequest))));
}

#[test]
fn a_client_that_left_is_accepted_and_then_gone() {
    let (mut w, listener) = pair(8);
    let conn = w.connect(1, lo(80)).unwrap();
    assert_eq!(w.detach(1), []);
    let out = w.ask(2, Request::Accept { listener, flags: 0 });
    assert_eq!((accepted(&out[0]), out[1]), (Some(Ok(conn)), gone(2, conn)));
    assert_eq!(w.dropped, []);
    w.close(2, conn, SERVER);
    assert_eq!(w.dropped, [conn.segment()]);
}

#[test]
fn a_requeued_connection_comes_first() {
    let (mut w, listener) = pair(8);
    let (a, b) = (w.connect(1, lo(80)).unwrap(), w.connect(1, lo(80)).unwrap());
    assert_eq!(w.accept(2, listener), Ok(a));
    assert_eq!(w.ask(2, Request::Requeue { conn: a }), [ready(2, listener)]);
    assert_eq!(w.ask(2, Request::Requeue { conn: a }), [], "not accepted any more");
    assert_eq!((w.accept(2, listener), w.accept(2, listener)), (Ok(a), Ok(b)));
    assert_eq!(w.ask(2, Request::Requeue { conn: b }), [ready(2, listener)]);
    assert_eq!(w.accept(2, listener), Ok(b));
    // Without its listener it is reset, as all that wait.
    w.ask(2, Request::Unlisten { listener });
    assert_eq!(w.ask(2, Request::Requeue { conn: b }), [refused(1, b)]);
}

#[test]
fn connects_wait_for_their_segment() {
    let (mut w, listener) = pair(8);
    w.slow_agent = true;
    let request = Request::Connect { dst: lo(80), src: lo(40000) };
    assert_eq!((w.ask(1, request), w.ask(1, request)), (vec![], vec![]));
    assert_eq!(w.asked.len(), 1, "one segment for both");
    let out = w.make(true);
    assert_eq!(out.iter().filter_map(connected).filter(Result::is_ok).count(), 2);
    assert_eq!(out.iter().filter(|o| **o == ready(2, listener)).count(), 2);
    assert!(w.connect(1, lo(80)).is_ok(), "there is a segment now");
}

#[test]
fn a_segment_that_cannot_be_made_fails_those_who_wait() {
    let (mut w, _) = pair(8);
    w.slow_agent = true;
    w.ask(1, Request::Connect { dst: lo(80), src: lo(40000) });
    assert_eq!(connected(&w.make(false)[0]), Some(Err(Status::NoSegment)));
    assert!(w.logic.segments().is_empty());
    w.slow_agent = false;
    assert!(w.connect(1, lo(80)).is_ok(), "the next one asks again");
}

#[test]
fn what_changes_during_the_wait_counts() {
    let (mut w, listener) = pair(0);
    w.slow_agent = true;
    let request = Request::Connect { dst: lo(80), src: lo(40000) };
    w.ask(1, request);
    w.ask(1, request);
    let answers: Vec<_> = w.make(true).iter().filter_map(connected).collect();
    assert!(matches!(answers[..], [Ok(_), Err(Status::BacklogFull)]), "{answers:?}");

    w.attach(3);
    w.ask(2, Request::Accept { listener, flags: 0 });
    w.ask(3, request);
    w.ask(2, Request::Unlisten { listener });
    assert_eq!(connected(&w.make(true)[0]), Some(Err(Status::NoListener)));

    w.attach(4);
    let listener = w.listen(2, lo(80), 8).unwrap();
    w.ask(4, request);
    assert_eq!(w.detach(4), []);
    assert_eq!(w.make(true), [], "nobody waits any more");
    assert_eq!(w.dropped.len(), 1);
    assert_eq!(w.accept(2, listener), Err(Status::Empty));
}

#[test]
fn a_full_segment_is_followed_by_another() {
    let (mut w, listener) = pair(10_000);
    let conns: Vec<ConnId> = (0..=SLOTS).map(|_| w.connect(1, lo(80)).unwrap()).collect();
    let [first, .., last] = conns[..] else { panic!() };
    assert_ne!(first.segment(), last.segment());
    assert_eq!(w.logic.segments().len(), 2);
    assert_eq!(w.accept(2, listener), Ok(first));
    w.close(1, first, CLIENT);
    w.close(2, first, SERVER);
    let again = w.connect(1, lo(80)).unwrap();
    assert_eq!((again.segment(), again.slot()), (first.segment(), first.slot()));
    assert_ne!(again.generation(), first.generation());
}

#[test]
fn quotas() {
    let limits = Limits {
        listeners_per_function: 1,
        conns_per_function: 2,
        waiters_per_listener: 1,
        segments_per_pair: 1,
        ..Limits::default()
    };
    let mut w = World::with(limits);
    w.attach(1);
    w.attach(2);
    let listener = w.listen(2, lo(80), 8).unwrap();
    assert_eq!(w.listen(2, lo(81), 8), Err(Status::Quota));
    assert!(w.connect(1, lo(80)).is_ok() && w.connect(1, lo(80)).is_ok());
    assert_eq!(w.connect(1, lo(80)), Err(Status::Quota));
    assert!(w.accept(2, listener).is_ok() && w.accept(2, listener).is_ok());
    w.attach(3);
    w.connect(3, lo(80)).unwrap();
    assert_eq!(w.accept(2, listener), Err(Status::Quota));
    w.ask(2, Request::Unlisten { listener });
    let listener = w.listen(2, lo(80), 8).unwrap();
    let (token, _) = w.accept_wait(2, listener);
    let (_, out) = w.accept_wait(2, listener);
    assert_eq!(accepted(&out[0]), Some(Err(Status::Quota)));
    let out = w.ask(3, Request::Connect { dst: lo(80), src: lo(40000) });
    let refused: Vec<_> = out.iter().filter(|o| o.token == token).filter_map(accepted).collect();
    assert_eq!(refused, [Err(Status::Quota)], "it holds too many already");
    assert!(out.contains(&ready(2, listener)), "and the connection waits");
}

#[test]
fn a_process_may_connect_to_itself() {
    let mut w = World::new();
    w.attach(1);
    let listener = w.listen(1, lo(80), 8).unwrap();
    let conn = w.connect(1, lo(80)).unwrap();
    assert_eq!(w.accept(1, listener), Ok(conn));
    assert_eq!(w.close(1, conn, SERVER), [gone(1, conn)]);
    assert_eq!(w.close(1, conn, SERVER), []);
    assert_eq!(w.close(1, conn, CLIENT), []);
    assert_eq!(w.detach(1), []);
    assert!(w.logic.is_empty());
}

#[test]
fn a_child_holds_what_its_parent_held() {
    let (mut w, listener) = pair(8);
    let conn = w.connect(1, lo(80)).unwrap();
    assert_eq!(w.accept(2, listener), Ok(conn));
    w.ask(2, Request::Fork { nonce: 7 });
    let queued = w.connect(1, lo(80)).unwrap();
    // The parent exits at once, as daemons do: the child keeps everything, and until it is here, new clients are the kernel's.
    assert_eq!(w.detach(2), []);
    assert_eq!(w.connect(1, lo(80)), Err(Status::NoListener));
    let out = w.attach_child(3, 2, 7, 2);
    assert_eq!((status(&out), &out[1..]), (Status::Ok, &[ready(3, listener)][..]));
    assert_eq!(w.accept(3, listener), Ok(queued));
    assert_eq!(w.close(3, conn, SERVER), [gone(1, conn)]);
    assert_eq!(w.detach(3), [gone(1, queued)]);
    w.detach(1);
    assert!(w.logic.is_empty());
}

#[test]
fn a_side_is_closed_when_its_last_holder_lets_go() {
    let (mut w, listener) = pair(8);
    let conn = w.connect(1, lo(80)).unwrap();
    w.accept(2, listener).unwrap();
    w.ask(2, Request::Fork { nonce: 7 });
    w.attach_child(3, 2, 7, 2);
    assert_eq!(w.close(2, conn, SERVER), []);
    assert_eq!(w.close(2, conn, SERVER), [], "it has let go already");
    assert_eq!(w.close(3, conn, SERVER), [gone(1, conn)]);
}

#[test]
fn a_child_hears_what_it_missed() {
    let (mut w, listener) = pair(8);
    let conn = w.connect(1, lo(80)).unwrap();
    w.accept(2, listener).unwrap();
    w.ask(2, Request::Fork { nonce: 7 });
    assert_eq!(w.close(1, conn, CLIENT), [gone(2, conn)]);
    let out = w.attach_child(3, 2, 7, 2);
    assert_eq!(out[1..], [emptied(3, listener), gone(3, conn)]);

    // A client's child, whose connection was refused meanwhile.
    let conn = w.connect(1, lo(80)).unwrap();
    w.ask(1, Request::Fork { nonce: 8 });
    w.ask(2, Request::Unlisten { listener });
    assert_eq!(w.ask(3, Request::Unlisten { listener }), [refused(1, conn)]);
    assert_eq!(w.attach_child(4, 1, 8, 1)[1..], [refused(4, conn)]);
}

#[test]
fn a_requeue_of_a_shared_connection_is_a_close() {
    let (mut w, listener) = pair(8);
    let conn = w.connect(1, lo(80)).unwrap();
    w.accept(2, listener).unwrap();
    w.ask(2, Request::Fork { nonce: 7 });
    assert_eq!(w.ask(2, Request::Requeue { conn }), []);
    assert_eq!(w.accept(2, listener), Err(Status::Empty));
    assert_eq!(w.ask(2, Request::ForkFailed { nonce: 7 }), [gone(1, conn)]);
}

#[test]
fn a_child_that_does_not_come_is_given_up() {
    let (mut w, _) = pair(8);
    let conn = w.connect(1, lo(80)).unwrap();
    w.ask(1, Request::Fork { nonce: 7 });
    w.detach(1);
    assert_eq!(w.logic.next_deadline_us(), Some(ATTACH_US_MAX));
    w.tick(ATTACH_US_MAX - 1);
    assert!(w.logic.functions().group_lives(1));
    w.tick(ATTACH_US_MAX);
    assert!(!w.logic.functions().group_lives(1));
    assert_eq!(status(&w.attach_child(3, 1, 7, 1)), Status::BadRequest, "too late");
    assert!(w.logic.segments().get(conn).is_some(), "still queued");
    w.detach(2);
    assert!(w.logic.is_empty());
}

#[test]
fn a_child_that_nobody_waits_for_may_come_late() {
    let (mut w, listener) = pair(8);
    w.ask(2, Request::Fork { nonce: 7 });
    w.ask(2, Request::Fork { nonce: 8 });
    assert_eq!(w.tick(ATTACH_LATER_US_MAX - 1), []);
    assert_eq!(status(&w.attach_child(3, 2, 7, 2)), Status::Ok);
    assert_eq!(w.ask(2, Request::Unlisten { listener }), []);
    let queued = w.connect(1, lo(80)).unwrap();
    assert_eq!(w.accept(3, listener), Ok(queued));
    w.tick(ATTACH_LATER_US_MAX);
    assert_eq!(status(&w.attach_child(4, 2, 8, 2)), Status::BadRequest, "too late");
}

#[test]
fn a_child_that_is_watched_holds_its_connections_as_a_process_does() {
    let child = |nonce, lives| Request::Child { parent: 2, nonce, lives };
    for attaches in [false, true] {
        let (mut w, listener) = pair(8);
        let conn = w.connect(1, lo(80)).unwrap();
        w.accept(2, listener).unwrap();
        w.ask(2, Request::Fork { nonce: 7 });
        assert_eq!(w.ask(0, child(8, true)), [], "of nobody");
        assert_eq!(w.ask(0, child(7, true)), []);
        w.ask(2, Request::Close { conn, side: 1, finished: false });
        w.detach(2);
        // What it does not serve it holds no longer than others do; what it may be reading it does.
        let queued = w.connect(1, lo(80));
        assert_eq!(queued, Err(Status::NoListener));
        assert_eq!(w.tick(ATTACH_US_MAX), []);
        assert!(w.logic.listeners().is_empty());
        assert_eq!(w.tick(2 * ATTACH_LATER_US_MAX), []);
        if attaches {
            assert_eq!(status(&w.attach_child(3, 2, 7, 2)), Status::Ok);
            assert_eq!(w.ask(0, child(7, false)), [], "it is a function");
            assert_eq!(w.detach(3), [gone(1, conn)]);
        } else {
            assert_eq!(w.ask(0, child(7, false)), [gone(1, conn)]);
        }
        w.detach(1);
        assert!(w.logic.is_empty());
    }
}

#[test]
fn a_client_waits_for_a_child_only_so_long() {
    for parent_dies in [false, true] {
        let (mut w, listener) = pair(8);
        w.ask(2, Request::Fork { nonce: 7 });
        let queued = w.connect(1, lo(80)).unwrap();
        assert_eq!(if parent_dies { w.detach(2) } else { w.ask(2, Request::Unlisten { listener }) }, []);
        assert_eq!(w.logic.next_deadline_us(), Some(ATTACH_US_MAX));
        assert_eq!(w.tick(ATTACH_US_MAX), [refused(1, queued)]);
        assert!(w.logic.listeners().is_empty());
    }
}

#[test]
fn a_child_needs_nonce_parent_and_group() {
    let (mut w, _) = pair(8);
    w.ask(1, Request::Fork { nonce: 7 });
    for (parent, nonce, group) in [(1, 8, 1), (2, 7, 1), (1, 7, 2), (9, 7, 1)] {
        assert_eq!(status(&w.attach_child(3, parent, nonce, group)), Status::BadRequest);
    }
    assert_eq!(status(&w.attach_child(3, 1, 7, 1)), Status::Ok);
    assert_eq!(status(&w.attach_child(4, 1, 7, 1)), Status::BadRequest, "once");
}

#[test]
fn too_many_children_push_out_the_oldest() {
    let mut w = World::with(Limits { forks_per_function: 2, ..Limits::default() });
    w.attach(1);
    for nonce in 1..=3 {
        w.ask(1, Request::Fork { nonce });
    }
    assert_eq!(w.logic.forks().len(), 2);
    assert_eq!(status(&w.attach_child(2, 1, 1, 1)), Status::BadRequest);
    assert_eq!(status(&w.attach_child(2, 1, 2, 1)), Status::Ok);

    let mut w = World::with(Limits { fork_holdings_per_function: 3, ..Limits::default() });
    w.attach(1);
    w.listen(1, lo(80), 1).unwrap();
    w.listen(1, lo(81), 1).unwrap();
    w.ask(1, Request::Fork { nonce: 1 });
    w.ask(1, Request::Fork { nonce: 2 });
    assert_eq!(w.logic.forks().len(), 1);
}

#[test]
fn agents_requests_are_the_agents() {
    let (mut w, _) = pair(8);
    let attach = Request::Attach { function: 9, group: 9, parent: 0, nonce: 0, uid: 0, pid: 9, netns: 1 };
    for request in [attach, Request::Detach { function: 2 }, Request::SegmentMade { segment: 1, ok: true }] {
        assert!(w.ask_rudely(1, request).is_err());
    }
    assert!(w.logic.functions().get(2).is_some() && w.logic.functions().get(9).is_none());
    for function in [0, 1, 4096] {
        let request = Request::Attach { function, group: 9, parent: 0, nonce: 0, uid: 0, pid: 9, netns: 1 };
        assert_eq!(status(&w.ask(0, request)), Status::BadRequest);
    }
}

#[test]
fn the_dead_are_not_heard() {
    let (mut w, _) = pair(8);
    w.detach(1);
    assert_eq!(w.ask(1, Request::Connect { dst: lo(80), src: lo(40000) }), []);
    assert_eq!(w.ask(1, Request::Listen { addr: lo(90), backlog: 1, flags: 0 }), []);
    assert_eq!(w.detach(1), []);
}

#[test]
fn strangers_cannot_close_or_requeue() {
    let (mut w, listener) = pair(8);
    w.attach(3);
    let conn = w.connect(1, lo(80)).unwrap();
    w.accept(2, listener).unwrap();
    let stale = ConnId::new(conn.segment(), conn.slot(), conn.generation() + 1);
    let close = |conn, side| Request::Close { conn, side, finished: true };
    for (f, request) in [
        (3, close(conn, CLIENT)),
        (3, close(conn, SERVER)),
        (1, close(conn, SERVER)),
        (1, close(stale, CLIENT)),
        (1, close(ConnId(u64::MAX), CLIENT)),
        (1, Request::Requeue { conn }),
        (3, Request::Unlisten { listener }),
    ] {
        assert_eq!(w.ask(f, request), []);
    }
    assert_eq!(w.close(1, conn, CLIENT), [gone(2, conn)]);
}

#[test]
fn several_listeners_on_one_address_take_turns() {
    let (mut w, a) = pair(8);
    w.attach(3);
    let b = w.listen(3, lo(80), 8).unwrap();
    let first = w.connect(1, lo(80)).unwrap();
    let second = w.connect(1, lo(80)).unwrap();
    assert_eq!((w.accept(2, a), w.accept(3, b)), (Ok(first), Ok(second)));
    assert_ne!(first.segment(), second.segment(), "another server, another memory");
}

#[test]
fn a_new_group_of_an_old_number_shares_no_memory_with_the_old_ones_peer() {
    let (mut w, listener) = pair(8);
    let old = w.connect(1, lo(80)).unwrap();
    w.accept(2, listener).unwrap();
    w.detach(1);
    w.attach(1);
    let new = w.connect(1, lo(80)).unwrap();
    assert_ne!(new.segment(), old.segment());
    w.close(2, old, SERVER);
    assert_eq!(w.dropped, [old.segment()]);
    w.detach(1);
    w.detach(2);
    assert!(w.logic.is_empty());
}
