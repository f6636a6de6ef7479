//! Connecting, refusing, sleeping, and what is said when something isn't there.

mod common;

use std::time::Duration;

use common::{accept_one, address, messages, open, pair, provider, say, until};
use fabric::endpoint::{Down, Endpoint, Event, PostError, Settings};
use fabric::provider::{Fabric, OpenError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[test]
fn messages_go_both_ways_in_order() {
    let fabric = open();
    let (mut client, mut server) = pair(&fabric, &Settings::default());
    for round in 0..200_u32 {
        // Shorter and longer than what goes without a buffer.
        let message = [round.to_le_bytes().to_vec(), vec![7; usize::try_from(round).unwrap() * 20]].concat();
        for (from, to) in [(0, 1), (1, 0)] {
            let ends = &mut [&mut client, &mut server];
            say(ends[from], &message);
            let got = until("the message", || messages(ends[to]).unwrap().pop());
            let nobody = messages(ends[from]).unwrap();
            assert_eq!((got.len(), &got, nobody), (message.len(), &message, vec![]));
        }
    }
}

#[test]
fn asking_without_waiting() {
    let fabric = open();
    let mut listener = fabric.listen(0).unwrap();
    let mut asking = fabric.ask(listener.address().unwrap(), Settings::default(), b"may I".to_vec()).unwrap();
    let mut client = until("the endpoint", || asking.poll().unwrap());
    assert!(asking.poll().unwrap().is_none());
    let incoming = accept_one(&mut listener, &mut client);
    assert!(incoming.data.starts_with(b"may I"), "{:?}", incoming.data);
    let mut server = incoming.accept(&Settings::default(), b"").unwrap();
    until("both connections", || {
        let _ = server.event().unwrap();
        matches!(client.event().unwrap(), Some(Event::Connected(_))).then_some(())
    });
}

#[test]
fn a_peer_refuses() {
    let fabric = open();
    let mut listener = fabric.listen(0).unwrap();
    let mut client = fabric.connect(listener.address().unwrap(), &Settings::default(), b"may I").unwrap();
    accept_one(&mut listener, &mut client).refuse(b"no");
    let event = until("the refusal", || client.event().unwrap());
    assert!(matches!(&event, Event::Refused(data) if data.starts_with(b"no")), "{event:?}");
    assert_eq!(until("the end", || client.poll(|_| {}).err()), Down::Ended);
}

#[test]
fn nobody_listens() {
    let fabric = open();
    let gone = fabric.listen(0).unwrap().address().unwrap();
    let mut client = fabric.connect(gone, &Settings::default(), b"").unwrap();
    let result = until("the refusal", || client.event().transpose());
    // Which of the two is the provider's.
    assert!(matches!(result, Ok(Event::Refused(_)) | Err(Down::Failed(_))), "{result:?}");
    client.outgoing().unwrap()[0] = 1;
    assert!(matches!(client.send(1), Err(PostError::Down(_))));
}

#[test]
fn a_peer_ends_it() {
    let fabric = open();
    let (mut client, server) = pair(&fabric, &Settings::default());
    drop(server);
    until("the end", || client.poll(|_| {}).err());
    assert!(matches!(until("the event", || client.event().transpose()), Ok(Event::Ended) | Err(_)));
}

#[test]
fn what_was_sent_before_the_end_arrives() {
    let fabric = open();
    let (mut client, mut server) = pair(&fabric, &Settings::default());
    say(&mut client, b"last words");
    let got = until("the message", || {
        let _ = client.poll(|_| {});
        messages(&mut server).unwrap().pop()
    });
    assert_eq!(got, b"last words");
}

#[test]
fn names_that_are_none() {
    let message = |name: &str| Fabric::open(name, address()).unwrap_err().to_string();
    assert_eq!(message(""), "\"\" is no name of a libfabric provider: use for example \"tcp\" or \"verbs\"");
    assert!(message("tcp;ofi_rxm").contains("is no name"));
    let unknown = message("carrier-pigeon");
    assert!(
        unknown.starts_with("libfabric has no provider \"carrier-pigeon\" with connected endpoints"),
        "{unknown}"
    );
    assert!(unknown.contains("choose one of ") && unknown.contains(&provider()), "{unknown}");
}

#[test]
fn addresses_that_are_somebody_elses() {
    // TEST-NET-1.
    let error = Fabric::open(&provider(), [192, 0, 2, 1].into()).unwrap_err();
    assert!(matches!(error, OpenError::NoNetwork { .. }), "{error}");
    assert!(error.to_string().contains("has no network at 192.0.2.1"), "{error}");
}

#[test]
fn a_port_is_taken() {
    let fabric = open();
    let first = fabric.listen(0).unwrap();
    let error = fabric.listen(first.address().unwrap().port()).unwrap_err().to_string();
    assert!(error.starts_with("cannot listen at port "), "{error}");
}

/// Sleeps until the endpoint has something, at most `time`. False: nothing came.
fn sleep(endpoint: &mut Endpoint, time: Duration) -> bool {
    if !endpoint.may_sleep().unwrap() {
        return true;
    }
    let fds = endpoint.wait_fds().unwrap();
    let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let time = Timespec::try_from(time).unwrap();
    poll(&mut fds, Some(&time)).unwrap() > 0
}

#[test]
fn sleepers_are_woken() {
    let fabric = open();
    let (mut client, mut server) = pair(&fabric, &Settings::default());
    for _ in 0..3 {
        // What connecting has left.
        while messages(&mut server).unwrap().pop().is_some() || server.event().unwrap().is_some() {}
        let _ = sleep(&mut server, Duration::ZERO);
    }
    assert!(!sleep(&mut server, Duration::from_millis(50)), "woken for nothing");
    let sender = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        say(&mut client, b"wake up");
        client
    });
    let got = until("the message", || {
        assert!(sleep(&mut server, common::WAIT_MAX));
        messages(&mut server).unwrap().pop()
    });
    assert_eq!(got, b"wake up");
    // The end of the connection wakes, too.
    drop(sender.join().unwrap());
    until("the end", || {
        assert!(sleep(&mut server, common::WAIT_MAX));
        server.poll(|_| {}).err().or_else(|| server.event().unwrap().map(|_| Down::Ended))
    });
}
