//! The bridge: what is written on one host is read on the other one, byte by byte, and every way in which a connection, a process,
//! the other bridge or the link can end or lie.

mod bridged;

use bridged::{Asked, Process, Random, Rig, endpoints, open_fabric};
use fabric::endpoint::{Down, PostError, Settings};
use nic_coordinator::bridge::{LinkEnd, Over, Speaker};
use ring::atomic::Ordering;
use ring::link::{Body, Builder, seal};
use ring::segment::{HEAD_BYTES, RING_BYTES, SLOTS, state};
use ring::stream::{Memory as _, RECORD_MAX};

/// Pumps `from` to `to` until all of `bytes` have come through.
fn transfer(rig: &mut Rig, from: &mut Process, to: &mut Process, bytes: &[u8]) {
    let (mut sent, mut got) = (0, Vec::new());
    rig.until("the transfer", |_| {
        sent += from.write(&bytes[sent..]);
        got.extend(to.read(usize::MAX));
        (got.len() == bytes.len()).then_some(())
    });
    assert!(got == bytes);
}

#[test]
fn random_streams_are_byte_exact() {
    for seed in 1..=6_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut rig = Rig::new();
        // The last one has long rings.
        let mut ends: Vec<_> = (0..3).map(|at| rig.connect(at * usize::from(SLOTS) / 2)).collect();
        // For each direction of each connection: what was written, and how much of that was read.
        let mut sent = vec![[Vec::new(), Vec::new()]; 3];
        let mut read = [[0, 0]; 3];
        for _ in 0..3000 {
            let (at, from) = (random.below(3), random.below(2));
            match random.below(5) {
                0 | 1 => {
                    let max = [16, 300, 5000, 3 * RECORD_MAX, 2 * RING_BYTES][random.below(5)];
                    let len = 1 + random.below(max);
                    let bytes = random.bytes(len);
                    let done = ends[at][from].1.write(&bytes);
                    sent[at][from].extend_from_slice(&bytes[..done]);
                }
                2 | 3 => {
                    let max = 1 + random.below(RING_BYTES);
                    let got = ends[at][1 - from].1.read(max);
                    let known = &sent[at][from][read[at][from]..];
                    assert!(known.starts_with(&got), "seed {seed}");
                    read[at][from] += got.len();
                }
                _ => rig.turn(),
            }
        }
        rig.until("the rest", |_| {
            for at in 0..3 {
                for from in 0..2 {
                    let got = ends[at][1 - from].1.read(usize::MAX);
                    assert!(sent[at][from][read[at][from]..].starts_with(&got), "seed {seed}");
                    read[at][from] += got.len();
                }
            }
            (0..3).all(|at| (0..2).all(|from| read[at][from] == sent[at][from].len())).then_some(())
        });
        // Nothing is kept longer than it is read.
        rig.settle();
        for end in ends.iter().flatten() {
            assert_eq!(end.1.out().consumed.load(Ordering::Acquire), end.1.w.tail, "seed {seed}");
        }
        assert_eq!(rig.hosts[0].bridge.counts, Default::default());
    }
}

#[test]
fn a_reader_that_does_not_read_holds_the_writer_up() {
    let mut rig = Rig::new();
    let [(_, mut writer), (_, mut reader)] = rig.connect(0);
    let bytes = Random(5).bytes(3 * RING_BYTES);
    let mut sent = 0;
    for _ in 0..50 {
        sent += writer.write(&bytes[sent..]);
        rig.settle();
    }
    // Two rings, nothing in between.
    assert!(sent <= 2 * RING_BYTES && sent > 2 * (RING_BYTES - 2 * RECORD_MAX), "{sent}");
    // And on.
    let mut got = Vec::new();
    rig.until("the rest", |_| {
        got.extend(reader.read(10_000));
        sent += writer.write(&bytes[sent..]);
        (got.len() == bytes.len()).then_some(())
    });
    assert!(got == bytes);
}

/// `BRIDGE_CONNECTIONS` says how many, if not a thousand.
#[test]
fn a_thousand_connections() {
    let count = std::env::var("BRIDGE_CONNECTIONS").map_or(1000, |text| text.parse().unwrap());
    let mut rig = Rig::new();
    let mut random = Random(77);
    let mut ends: Vec<_> = (0..count).map(|at| rig.connect(at)).collect();
    assert_eq!(rig.hosts[0].bridge.len(), count);
    for round in 0..3 {
        let messages: Vec<Vec<u8>> = (0..count)
            .map(|_| {
                let len = 1 + random.below([8, 200, 9000][round]);
                random.bytes(len)
            })
            .collect();
        for (end, message) in ends.iter_mut().zip(&messages) {
            assert_eq!(end[0].1.write(message), message.len());
        }
        let mut echoed = vec![0; count];
        let mut got = vec![Vec::new(); count];
        rig.until("the echoes", |_| {
            for (at, [client, server]) in ends.iter_mut().enumerate() {
                let bytes = server.1.read(usize::MAX);
                assert_eq!(server.1.write(&bytes), bytes.len());
                echoed[at] += bytes.len();
                got[at].extend(client.1.read(usize::MAX));
            }
            got.iter().zip(&messages).all(|(got, sent)| got.len() == sent.len()).then_some(())
        });
        assert!(got == messages);
    }
    for end in &mut ends {
        end.iter_mut().for_each(|end| end.1.close());
    }
    let mut over = [0, 0];
    rig.until("the ends", |rig| {
        over = [over[0] + rig.over()[0].len(), over[1]];
        rig.hosts.iter().all(|host| host.bridge.is_empty()).then_some(())
    });
    assert_eq!(rig.hosts[0].bridge.counts, Default::default());
}

#[test]
fn half_close_goes_on_in_the_other_direction() {
    let mut rig = Rig::new();
    let [(here, mut client), (there, mut server)] = rig.connect(3);
    let bytes = Random(9).bytes(100_000);
    assert_eq!(client.write(&bytes), bytes.len());
    client.finish();
    let mut got = Vec::new();
    rig.until("the end", |_| {
        // The state first: behind it nothing comes.
        let ended = server.input_state() != state::OPEN;
        got.extend(server.read(usize::MAX));
        ended.then_some(())
    });
    assert!(got == bytes);
    assert_eq!((server.input_state(), client.input_state()), (state::FIN, state::OPEN));
    assert!(!server.reader_is_gone() && !client.reader_is_gone());
    transfer(&mut rig, &mut server, &mut client, &bytes);
    assert_eq!(rig.over(), [vec![], vec![]]);
    server.close();
    rig.until("the close", |_| client.reader_is_gone().then_some(()));
    rig.until("the end", |_| (client.input_state() == state::FIN).then_some(()));
    assert_eq!(rig.over(), [vec![], vec![]]);
    client.close();
    let mut over = [vec![], vec![]];
    rig.until("both to be over", |rig| {
        over.iter_mut().zip(rig.over()).for_each(|(all, new)| all.extend(new));
        over.iter().all(|over| !over.is_empty()).then_some(())
    });
    assert_eq!(over, [vec![(here, Over::Closed)], vec![(there, Over::Closed)]]);
    assert!(rig.hosts[0].bridge.is_empty());
    // The places are used again, by other numbers, and nothing of the old connection is left.
    let [(again, mut client), (_, mut server)] = rig.connect(3);
    assert_ne!(again, here);
    transfer(&mut rig, &mut client, &mut server, &bytes);
}

#[test]
fn closing_with_unread_bytes_is_a_reset() {
    let mut rig = Rig::new();
    let [(_, mut client), (_, mut server)] = rig.connect(0);
    assert_eq!(client.write(b"never read"), 10);
    rig.until("the bytes", |_| {
        (server.input().consumed.load(Ordering::Relaxed) == 0
            && server.input_ring().header(server.input_ring().place(0))?.load(Ordering::Acquire) != 0)
            .then_some(())
    });
    server.close();
    rig.until("the reset", |_| (client.input_state() == state::RST).then_some(()));
    assert!(client.reader_is_gone());
    client.close();
    rig.until("the end", |rig| rig.hosts.iter().all(|host| host.bridge.is_empty()).then_some(()));
}

#[test]
fn closing_on_one_side_ends_a_full_ring() {
    let mut rig = Rig::new();
    let [(_, mut client), (_, mut server)] = rig.connect(0);
    let bytes = vec![1; 2 * RING_BYTES];
    client.write(&bytes);
    rig.settle();
    // The rest of the client's ring will never fit there.
    server.close();
    rig.until("the close", |_| client.reader_is_gone().then_some(()));
    client.write(&bytes);
    client.close();
    rig.until("the end", |rig| rig.hosts.iter().all(|host| host.bridge.is_empty()).then_some(()));
}

#[test]
fn a_reader_that_shuts_down_still_reads_what_is_there() {
    let mut rig = Rig::new();
    let [(_, mut client), (_, mut server)] = rig.connect(0);
    assert_eq!(client.write(b"before"), 6);
    rig.settle();
    server.shut_reading();
    rig.until("the news", |_| client.reader_is_gone().then_some(()));
    assert_eq!(client.input_state(), state::OPEN);
    assert_eq!(server.read(99), b"before");
}

#[test]
fn the_dead_finish_or_reset() {
    for (unread, end) in [(false, state::FIN), (true, state::RST)] {
        let mut rig = Rig::new();
        let [(here, mut client), (_, mut server)] = rig.connect(0);
        assert_eq!(client.write(b"last words"), 10);
        if unread {
            assert_eq!(server.write(b"unread"), 6);
            rig.settle();
        }
        rig.hosts[0].bridge.process_is_gone(here);
        rig.until("the end", |_| (server.input_state() == end).then_some(()));
        assert_eq!(server.read(99), b"last words");
        assert!(server.reader_is_gone());
        server.close();
        rig.until("the end", |rig| rig.hosts.iter().all(|host| host.bridge.is_empty()).then_some(()));
    }
}

#[test]
fn urgent_bytes_keep_their_place() {
    let mut rig = Rig::new();
    let [(_, mut client), (_, mut server)] = rig.connect(0);
    assert_eq!(client.write(b"abc"), 3);
    client.write_urgent(b'!');
    assert_eq!(client.write(b"def"), 3);
    let urgent = rig.until("the news", |_| ring::urgent::ahead(server.input(), &server.r));
    assert_eq!((urgent.pos, urgent.byte), (16, b'!'));
    let mut got = Vec::new();
    rig.until("the bytes", |_| {
        got.extend(server.read(99));
        (got.len() == 7).then_some(())
    });
    assert_eq!(got, b"abc!def");
    assert_eq!(ring::urgent::ahead(server.input(), &server.r), None);
}

#[test]
fn a_process_that_writes_garbage_loses_its_connection_only() {
    let mut random = Random(1234);
    let mut rig = Rig::new();
    let [(_, mut good), (_, mut good_server)] = rig.connect(998);
    for at in 0..60 {
        let [(number, mut client), (_, mut server)] = rig.connect(at);
        // Out of the head, where a skip may stand anywhere.
        let sent = HEAD_BYTES + random.below(3000);
        let bytes = random.bytes(sent);
        assert_eq!(client.write(&bytes), sent);
        // What no writer leaves there: a length beyond the ring, an unknown kind, a skip in the middle, anything.
        let header = match random.below(5) {
            0 => 1 << 63 | 1 << 32 | 0x7fff_fff0,
            1 => 1 << 63 | 9 << 32 | 8,
            2 => 1 << 63 | 2 << 32,
            3 => 1 << 63 | 4 << 32 | 8,
            _ => random.next() | 1,
        };
        let ring = client.out_ring();
        ring.header(ring.place(client.w.tail)).unwrap().store(header, Ordering::Release);
        client.notify_reader();
        rig.until("the reset", |_| {
            (client.input_state() == state::RST && server.input_state() == state::RST).then_some(())
        });
        assert!(client.reader_is_gone() && server.reader_is_gone());
        // What was right before that is there.
        let got = server.read(usize::MAX);
        assert!(bytes.starts_with(&got));
        transfer(&mut rig, &mut good, &mut good_server, b"unharmed");
        let over = rig.until("the end", |rig| {
            let over = rig.over();
            over[0].first().copied()
        });
        assert_eq!(over, (number, Over::Broken));
    }
    assert_eq!(rig.hosts[0].bridge.counts.violations, 60);
    assert_eq!(rig.hosts[1].bridge.counts.violations, 0);
}

#[test]
fn a_process_that_writes_without_room_loses_its_connection() {
    let mut rig = Rig::new();
    let [(_, mut client), (_, server)] = rig.connect(0);
    let bytes = vec![7; RECORD_MAX];
    // As if the reader had read all.
    for _ in 0..40 {
        if client.w.tail > 0 {
            client.w.limit = client.w.tail + RING_BYTES as u64;
        }
        client.out().consumed.store(client.w.tail, Ordering::Relaxed);
        client.write(&bytes);
        rig.turn();
    }
    rig.until("the reset", |_| {
        (client.input_state() == state::RST && server.input_state() == state::RST).then_some(())
    });
}

#[test]
fn a_process_that_claims_to_have_read_more_loses_its_connection() {
    for lie in [1 << 40, u64::MAX, 24] {
        let mut rig = Rig::new();
        let [(_, mut client), (_, server)] = rig.connect(0);
        assert_eq!(client.write(b"12345678"), 8);
        rig.settle();
        server.input().consumed.store(lie, Ordering::Relaxed);
        server.notify_writer(None);
        rig.until("the reset", |_| {
            (client.input_state() == state::RST && server.input_state() == state::RST).then_some(())
        });
        assert_eq!(rig.hosts[1].bridge.counts.violations, 1);
    }
}

/// A bridge whose other end is an endpoint that says what it likes.
fn lied_to(say: impl Fn(u32, &mut Random) -> Vec<u8>, seeds: u64) -> (Rig, Vec<(u32, Process)>) {
    let mut rig = Rig::new();
    let fabric = open_fabric();
    let settings = Settings { message_bytes: 16 * 1024, ..Settings::default() };
    let (honest, mut liar) = endpoints(&fabric, &fabric, &settings);
    let host = &mut rig.hosts[0];
    host.link = host.bridge.add_link(honest, u32::try_from(liar.receives()).unwrap());
    let mut ends = Vec::new();
    let mut random = Random(0xfeed);
    for at in 0..usize::try_from(seeds).unwrap() {
        let (number, far, process) = rig.hosts[0].open(at, 3);
        let link = rig.hosts[0].link;
        rig.hosts[0].bridge.join(number, link, far, Speaker::Us);
        ends.push((number, process));
    }
    for (number, _) in &ends {
        let message = say(*number, &mut random);
        rig.until("room", |_| {
            let _ = liar.poll(|_| {});
            liar.outgoing()?[..message.len()].copy_from_slice(&message);
            match liar.send(message.len()) {
                Ok(()) | Err(PostError::Down(_)) => Some(()),
                Err(error) => (error == PostError::Full).then_some(()).filter(|()| false),
            }
        });
        rig.turn();
    }
    for _ in 0..10 {
        rig.settle();
        let _ = liar.poll(|_| {});
        if rig.hosts[0].bridge.counts.violations == seeds {
            break;
        }
    }
    (rig, ends)
}

fn item(number: u32, body: &Body<'_>) -> Vec<u8> {
    let mut room = vec![0; 2048];
    let mut builder = Builder::new(&mut room, 0);
    assert!(builder.add(number, body));
    let len = builder.len();
    room.truncate(len);
    seal(&mut room, 0);
    room
}

#[test]
fn impossible_items_reset_their_connection() {
    let data = 1 << 63 | 1 << 32;
    let (rig, ends) = lied_to(
        |number, random| {
            let rest = vec![0; 8];
            let body = match number % 8 {
                // Not where the last one ended; does not fit; no header; longer than what it is.
                0 => Body::Run { start: 8, first: data | 8, len: 16, urgent: false },
                1 => Body::Run { start: 0, first: data | 8, len: RING_BYTES as u64 + 8, urgent: false },
                2 => Body::Inline { start: 0, first: 0, urgent: false, rest: &rest },
                3 => Body::Inline { start: 0, first: data | 100, urgent: false, rest: &rest },
                4 => Body::Run { start: 0, first: random.next(), len: 16, urgent: true },
                // What was never written.
                5 => Body::Consumed(8),
                6 => Body::Consumed(random.next() | 1),
                _ => Body::Run { start: u64::MAX - 7, first: data | 8, len: 16, urgent: false },
            };
            item(number, &body)
        },
        64,
    );
    assert_eq!(rig.hosts[0].bridge.counts.violations, 64);
    for (_, process) in &ends {
        assert_eq!(process.input_state(), state::RST);
        assert!(process.reader_is_gone());
    }
}

#[test]
fn items_about_nothing_are_dropped() {
    let (mut rig, ends) = lied_to(|number, _| item(number ^ 0xfff0_0000, &Body::Reset), 20);
    assert_eq!(rig.hosts[0].bridge.counts.strays, 20);
    assert!(ends.iter().all(|(_, process)| process.input_state() == state::OPEN));
    assert_eq!(rig.hosts[0].bridge.next_down(), None);
}

#[test]
fn messages_that_are_none_end_the_link() {
    for kind in 0..4 {
        let (mut rig, ends) = lied_to(
            |number, random| match kind {
                0 => random.bytes(100),
                1 => vec![],
                // Cut off; a count of messages that nobody sent.
                2 => item(number, &Body::Consumed(0))[..16].to_vec(),
                _ => {
                    let mut message = item(number, &Body::Done);
                    seal(&mut message, 1000);
                    message
                }
            },
            1,
        );
        let (link, end) = rig.until("the end", |rig| rig.hosts[0].bridge.next_down());
        assert_eq!((link, end), (rig.hosts[0].link, LinkEnd::Malformed));
        assert_eq!(ends[0].1.input_state(), state::RST);
        assert_eq!(rig.over()[0], vec![(ends[0].0, Over::Broken)]);
    }
}

#[test]
fn random_messages_break_nothing() {
    for seed in 1..40 {
        let mut random = Random(seed);
        let (_, ends) = lied_to(
            |number, noise| {
                let mut message = vec![0; 8];
                for _ in 0..1 + noise.below(20) {
                    let head = u64::from(number) | (noise.next() % 10) << 32 | (noise.next() % 4) << 40;
                    message.extend(head.to_le_bytes());
                    message.extend(
                        [8, 0, 24, 1 << 63 | 1 << 32 | 8, noise.next()][noise.below(5)].to_le_bytes(),
                    );
                    message.extend((1_u64 << 63 | 1 << 32 | 8).to_le_bytes());
                }
                seal(&mut message, 0);
                message
            },
            1 + random.next() % 4,
        );
        for (_, mut process) in ends {
            // Whatever was put there ends, or is a violation that the reader sees.
            let _ = process.try_read(usize::MAX);
            process.close();
        }
    }
}

#[test]
fn a_link_that_dies_resets_its_connections() {
    let mut rig = Rig::new();
    let mut ends: Vec<_> = (0..50).map(|at| rig.connect(at)).collect();
    let bytes = vec![3; RING_BYTES];
    // In the middle of everything.
    for _ in 0..20 {
        for [client, server] in &mut ends {
            client.1.write(&bytes);
            server.1.write(&bytes[..100]);
            server.1.read(50_000);
        }
        rig.turn();
    }
    let [here, there] = &mut rig.hosts;
    let link = here.link;
    here.bridge.remove_link(link, &mut here.asked);
    assert_eq!(here.bridge.next_down(), Some((link, LinkEnd::Down(Down::Ended))));
    assert!(here.bridge.is_empty());
    let _ = there;
    let (_, end) = rig.until("the news", |rig| rig.hosts[1].bridge.next_down());
    assert!(matches!(end, LinkEnd::Down(_)), "{end}");
    for end in ends.iter().flatten() {
        assert_eq!(end.1.input_state(), state::RST);
        assert!(end.1.reader_is_gone());
    }
    let over = rig.over();
    assert!(over.iter().all(|over| over.len() == 50) && rig.hosts.iter().all(|host| host.bridge.is_empty()));
}

#[test]
fn nobody_waits_for_a_flood() {
    let mut rig = Rig::new();
    let mut floods: Vec<_> = (0..20).map(|at| rig.connect(at)).collect();
    let [(_, mut client), (_, mut server)] = rig.connect(20);
    let bytes = vec![1; 2 * RING_BYTES];
    let mut flooded = vec![0_usize; 20];
    for _ in 0..10 {
        assert_eq!(client.write(b"small"), 5);
        let mut got = Vec::new();
        rig.until("the small one", |_| {
            for (at, [from, to]) in floods.iter_mut().enumerate() {
                from.1.write(&bytes);
                flooded[at] += to.1.read(usize::MAX).len();
            }
            got.extend(server.read(99));
            (got.len() == 5).then_some(())
        });
    }
    // As much for each, within a factor.
    rig.until("the floods", |_| {
        for (at, [from, to]) in floods.iter_mut().enumerate() {
            from.1.write(&bytes);
            flooded[at] += to.1.read(usize::MAX).len();
        }
        (flooded.iter().min()? > &(20 * RING_BYTES)).then_some(())
    });
    let (least, most) = (flooded.iter().min().unwrap(), flooded.iter().max().unwrap());
    assert!(*most < 4 * least, "{flooded:?}");
}

#[test]
fn who_is_quiet_may_sleep() {
    let mut rig = Rig::new();
    let [(_, mut client), (_, mut server)] = rig.connect(0);
    transfer(&mut rig, &mut client, &mut server, b"hello");
    rig.settle();
    for host in &mut rig.hosts {
        let mut asked = Asked::default();
        // What the endpoint has left may need a look.
        let quiet = (0..10).any(|_| {
            host.poll(1 << 40);
            host.bridge.may_sleep(&mut asked)
        });
        assert!(quiet && host.bridge.due_us().is_none());
        assert_eq!(host.bridge.wait_fds().count(), 2);
    }
    // Who publishes now sees the announcement, and the bridge sees the news.
    client.write(b"again");
    let host = &mut rig.hosts[0];
    assert!(!host.bridge.may_sleep(&mut host.asked));
    transfer(&mut rig, &mut client, &mut server, b"");
    let mut got = Vec::new();
    rig.until("the bytes", |_| {
        got.extend(server.read(99));
        (got == b"again").then_some(())
    });
    // Read, and told within a few milliseconds, although nothing else is said.
    rig.settle();
    assert_eq!(client.out().consumed.load(Ordering::Acquire), client.w.tail);
    assert!(!rig.hosts[1].bridge.is_empty());
}
