//! Writes into the peer's memory: their order before messages, their sizes, their bounds, and who keeps the memory.

mod common;
#[path = "common/memory.rs"]
mod memory;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{messages, open, pair, say, until};
use fabric::endpoint::{Completion, Endpoint, PostError, Settings};
use fabric::memory::{Access, Region, RegisterError};
use fabric::provider::Fabric;
use memory::{MAPPED, Mapped};

const MIB: usize = 1024 * 1024;

/// Memory that peers may write, and a source for writes.
fn memories(fabric: &Fabric, bytes: usize) -> (Arc<Mapped>, Region, Arc<Mapped>, Arc<Region>) {
    let (target, source) = (Mapped::new(bytes), Mapped::new(bytes));
    let region = fabric.register(target.clone(), 0..bytes, Access::SourceAndTarget).unwrap();
    let from = Arc::new(fabric.register(source.clone(), 0..bytes, Access::Source).unwrap());
    (target, region, source, from)
}

/// Polls until the write with `token` is complete.
fn written(endpoint: &mut Endpoint, other: &mut Endpoint, token: u64) {
    until("the completion", || {
        let mut done = false;
        endpoint
            .poll(|completion| done |= matches!(completion, Completion::Written(t) if t == token))
            .unwrap();
        let _ = other.poll(|_| {});
        done.then_some(())
    });
}

#[test]
fn a_message_comes_after_what_was_written_before_it() {
    let fabric = open();
    let (mut client, mut server) = pair(&fabric, &Settings::default());
    let (target, region, source, from) = memories(&fabric, MIB);
    let remote = region.remote();
    for round in 0..400_u64 {
        let len = match round % 5 {
            0 => 8,
            1 => 4096,
            2 => 10_000,
            3 => 64 * 1024,
            _ if round % 20 == 4 => MIB,
            _ => 200_000,
        };
        source.fill(len, round);
        until("room for a write", || match client.write(&from, 0, len, &remote, 0, round) {
            Ok(()) => Some(()),
            Err(PostError::Full) => client.poll(|_| {}).map(|_| None).unwrap(),
            Err(error) => panic!("{error}"),
        });
        say(&mut client, &round.to_le_bytes());
        let got = until("the message", || {
            client.poll(|_| {}).unwrap();
            messages(&mut server).unwrap().pop()
        });
        assert_eq!(got, round.to_le_bytes());
        target.check(len, round).unwrap();
    }
}

#[test]
fn a_part_goes_to_a_part() {
    let fabric = open();
    let (mut client, mut server) = pair(&fabric, &Settings::default());
    let (target, source) = (Mapped::new(MIB), Mapped::new(MIB));
    // Registered from the middle: places count from there.
    let region = fabric.register(target.clone(), 4096..MIB, Access::SourceAndTarget).unwrap();
    let from = Arc::new(fabric.register(source.clone(), 8192..MIB, Access::Source).unwrap());
    source.fill(MIB, 9);
    client.write(&from, 24, 1000, &region.remote(), 104, 1).unwrap();
    say(&mut client, b"x");
    until("the message", || {
        client.poll(|_| {}).unwrap();
        messages(&mut server).unwrap().pop()
    });
    for (at, byte) in target.bytes().iter().enumerate().take(8192) {
        let there = (4200..5200).contains(&at);
        let want = if there { source.bytes()[8192 + 24 + at - 4200].load(Ordering::Relaxed) } else { 0 };
        assert_eq!(byte.load(Ordering::Relaxed), want, "byte {at}");
    }
}

#[test]
fn writes_outside_are_not_made() {
    let fabric = open();
    let (mut client, _server) = pair(&fabric, &Settings::default());
    let (_target, region, _source, from) = memories(&fabric, 4096);
    let remote = region.remote();
    for (at, len, target_at) in
        [(0, 4097, 0), (4096, 1, 0), (usize::MAX, 2, 0), (0, 1, 4096), (0, 2, u64::MAX)]
    {
        assert_eq!(client.write(&from, at, len, &remote, target_at, 1), Err(PostError::Outside));
    }
    // Of another fabric.
    let foreign = memories(&open(), 4096).3;
    assert_eq!(client.write(&foreign, 0, 8, &remote, 0, 1), Err(PostError::Outside));
    let nothing = fabric.register(Mapped::new(64), 64..64, Access::Source);
    assert!(matches!(nothing, Err(RegisterError::Outside(_))));
    let beyond = fabric.register(Mapped::new(64), 0..65, Access::Source);
    assert!(matches!(beyond, Err(RegisterError::Outside(_))));
}

#[test]
fn a_key_that_is_gone_ends_the_link() {
    let fabric = open();
    let (mut client, mut server) = pair(&fabric, &Settings::default());
    let (target, region, source, from) = memories(&fabric, 4096);
    source.fill(4096, 1);
    let remote = region.remote();
    drop(region);
    client.write(&from, 0, 4096, &remote, 0, 1).unwrap();
    until("the end", || {
        let _ = server.poll(|_| {});
        let _ = server.event();
        client.poll(|_| {}).err()
    });
    assert!(target.bytes().iter().all(|byte| byte.load(Ordering::Relaxed) == 0));
}

#[test]
fn full_is_said_and_passes() {
    let fabric = open();
    let settings = Settings { writes: 16, sends: 4, ..Settings::default() };
    let (mut client, mut server) = pair(&fabric, &settings);
    let (target, region, source, from) = memories(&fabric, MIB);
    source.fill(MIB, 3);
    let remote = region.remote();
    // Nobody takes it: sooner or later nothing goes any more.
    let mut under_way = 0;
    while client.write(&from, 0, MIB, &remote, 0, under_way).is_ok() {
        under_way += 1;
        assert!(under_way <= 16);
    }
    let mut done = Vec::new();
    until("all writes", || {
        client
            .poll(|completion| {
                if let Completion::Written(token) = completion {
                    done.push(token);
                }
            })
            .unwrap();
        server.poll(|_| {}).unwrap();
        (done.len() as u64 == under_way).then_some(())
    });
    assert_eq!(done, (0..under_way).collect::<Vec<_>>());
    target.check(MIB, 3).unwrap();
    client.write(&from, 0, 8, &remote, 0, 99).unwrap();
    written(&mut client, &mut server, 99);
}

#[test]
fn memory_stays_as_long_as_it_is_needed() {
    let fabric = open();
    let settings = Settings { receives: 4, ..Settings::default() };
    let (mut client, mut server) = pair(&fabric, &settings);
    let before = MAPPED.load(Ordering::SeqCst);
    let (target, region, source, from) = memories(&fabric, MIB);
    let remote = region.remote();
    client.write(&from, 0, MIB, &remote, 0, 1).unwrap();
    // Only the write has the source now.
    let (weak_source, weak_target) = (Arc::downgrade(&source), Arc::downgrade(&target));
    drop((source, from));
    assert!(weak_source.upgrade().is_some());
    written(&mut client, &mut server, 1);
    assert!(weak_source.upgrade().is_none(), "kept without a reason");
    // A peer could be writing this one, until enough of its messages have come.
    drop((target, region));
    assert!(weak_target.upgrade().is_some());
    for number in 0..40 {
        for (from, to) in [(0, 1), (1, 0)] {
            let ends = &mut [&mut client, &mut server];
            say(ends[from], b"next");
            until("the message", || messages(ends[to]).unwrap().pop());
        }
        // Another one makes the fabric look.
        drop(fabric.register(Mapped::new(64), 0..64, Access::SourceAndTarget).unwrap());
        assert!(number > 0 || weak_target.upgrade().is_some());
    }
    assert!(weak_target.upgrade().is_none(), "kept too long");
    drop((client, server));
    drop(fabric);
    assert_eq!(MAPPED.load(Ordering::SeqCst), before);
}
