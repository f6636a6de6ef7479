//! SPEC 13.9 to 13.14 between two coordinators: what a connection costs that comes to nothing, and that a message counts once.

use std::net::Ipv4Addr;

use nic_coordinator::hosts::calls::{
    CLOSE_LATER_US, CLOSES_MAX, CONNECT_US_MAX, CallId, HALF_EVERY_US, Limits, News, Wanted,
};
use nic_coordinator::hosts::finder::SEEK_US;
use nic_coordinator::hosts::{Destination, Hosts, Settings};
use ring::hosts::{Addresses, Ending, Incarnation, KEY_BYTES, Path};
use ring::msg::{Addr, Status};

const WAY_US: u64 = 50;

fn address(host: u8, port: u16) -> Addr {
    Addr::v4([10, 0, 0, host], port)
}

fn wanted(from: u8, to: u8, port: u16) -> Wanted {
    Wanted { dst: address(to, 80), src: address(from, port), path: Path([from; 64]) }
}

/// Hosts 1 and 2, and what is on its way between them.
struct Pair {
    now_us: u64,
    hosts: [Hosts; 2],
    /// Datagrams of these are lost.
    cut: [bool; 2],
    /// How many, of which each arrives twice.
    sent: usize,
}

impl Pair {
    fn new(limits: Limits) -> Pair {
        let host = |number: u8| {
            let mut addresses = Addresses::NONE;
            addresses.push(address(number, 0).ip);
            let settings = Settings {
                card: Ipv4Addr::new(10, 1, 0, number),
                incarnation: Incarnation([number; 16]),
                epoch: number.into(),
                key: [3; KEY_BYTES],
                addresses,
                peers: Vec::new(),
                announce: true,
                limits,
            };
            Hosts::new(settings, 0)
        };
        let mut pair = Pair { now_us: 0, hosts: [host(1), host(2)], cut: [false; 2], sent: 0 };
        pair.run(200_000);
        for host in [0, 1] {
            let card = Ipv4Addr::new(10, 1, 0, if host == 0 { 2 } else { 1 });
            let met = pair.news(host);
            assert!(met.contains(&News::Lost { card }), "what an earlier run has left is over: {met:?}");
        }
        pair
    }

    /// Lets both talk for so long.
    fn run(&mut self, for_us: u64) {
        let end_us = self.now_us + for_us;
        while self.now_us < end_us {
            for from in [0, 1] {
                while let Some((to, datagram)) = self.hosts[from].poll(self.now_us) {
                    assert!(matches!(to, Destination::Everybody | Destination::Peer(_)));
                    self.sent += 1;
                    if !self.cut[from] {
                        let card = Ipv4Addr::new(10, 1, 0, u8::try_from(from).unwrap() + 1);
                        self.hosts[1 - from].receive(self.now_us, card, &datagram);
                        self.hosts[1 - from].receive(self.now_us, card, &datagram);
                    }
                }
            }
            self.now_us += WAY_US;
        }
    }

    fn news(&mut self, host: usize) -> Vec<News> {
        std::iter::from_fn(|| self.hosts[host].next_news(self.now_us)).collect()
    }

    fn connect(&mut self, id: u64, wanted: Wanted) {
        self.hosts[0].connect(self.now_us, id, wanted);
    }
}

fn refused(id: u64, status: Status) -> News {
    News::Answered { id: CallId::Out(id), answer: Err(status) }
}

/// Host 1 asks host 2 for a connection: its name there.
fn asked(pair: &mut Pair) -> CallId {
    pair.connect(1, wanted(1, 2, 4000));
    pair.run(1000);
    let asked = pair.news(1);
    let [News::Connect { id, .. }] = asked[..] else { panic!("{asked:?}") };
    id
}

/// A connection from host 1 to host 2: its names there.
fn connected(pair: &mut Pair) -> [CallId; 2] {
    let id = asked(pair);
    pair.hosts[1].answer(pair.now_us, id, Ok(Path::default()));
    pair.run(1000);
    assert_eq!(pair.news(0).len(), 1);
    [CallId::Out(1), id]
}

#[test]
fn s13_13_a_host_without_coordinator_costs_one_wait_once() {
    let mut pair = Pair::new(Limits::default());
    pair.connect(1, wanted(1, 9, 4000));
    assert_eq!(pair.news(0), []);
    pair.run(SEEK_US + WAY_US);
    let address = wanted(1, 9, 4000).dst.ip;
    assert_eq!(pair.news(0), [refused(1, Status::NoHost), News::Nobody { address }]);
    pair.connect(2, wanted(1, 9, 4001));
    assert_eq!(pair.news(0), [refused(2, Status::NoHost)]);
}

#[test]
fn s13_10_a_connection_is_asked_for_until_it_is_answered_and_decided_once() {
    let mut pair = Pair::new(Limits::default());
    pair.connect(1, wanted(1, 2, 4000));
    pair.run(300_000);
    let asked = pair.news(1);
    let [News::Connect { id, peer, wanted: heard }] = asked[..] else { panic!("{asked:?}") };
    assert_eq!((peer, heard), (Ipv4Addr::new(10, 1, 0, 1), wanted(1, 2, 4000)));
    pair.hosts[1].answer(pair.now_us, id, Ok(Path([2; 64])));
    pair.run(100_000);
    assert_eq!(pair.news(0), [News::Answered { id: CallId::Out(1), answer: Ok(Path([2; 64])) }]);
    assert_eq!(pair.news(1), []);
    // Each end ends, and is told of the other one.
    pair.hosts[1].close(pair.now_us, id, Ending::Marked);
    pair.run(100_000);
    assert_eq!(pair.news(0), [News::Closed { id: CallId::Out(1), ending: Ending::Marked }]);
    pair.hosts[0].close(pair.now_us, CallId::Out(1), Ending::Unmarked);
    pair.run(100_000);
    assert_eq!(pair.news(1), [News::Closed { id, ending: Ending::Unmarked }]);
    assert!(pair.hosts[0].calls().is_empty());
    // And nobody says any more about it.
    let sent = pair.sent;
    pair.run(500_000);
    assert!(pair.sent <= sent + 4, "{} more", pair.sent - sent);
}

#[test]
fn s13_10_no_answer_is_one_after_a_while() {
    let mut pair = Pair::new(Limits::default());
    pair.cut = [true; 2];
    pair.connect(1, wanted(1, 2, 4000));
    pair.run(CONNECT_US_MAX - 1000);
    assert_eq!(pair.news(0), []);
    pair.run(2000);
    assert_eq!(pair.news(0), [refused(1, Status::NoListener)]);
}

/// Given up here while it is granted there: there it ends, too.
#[test]
fn s13_11_who_gives_up_says_so() {
    let mut pair = Pair::new(Limits::default());
    let id = asked(&mut pair);
    pair.hosts[0].close(pair.now_us, CallId::Out(1), Ending::Unmarked);
    assert_eq!(pair.news(0), [refused(1, Status::NoListener)]);
    pair.run(100_000);
    assert_eq!(pair.news(1), [News::Closed { id, ending: Ending::Refused }]);
    pair.hosts[1].answer(pair.now_us, id, Ok(Path::default()));
    pair.hosts[1].close(pair.now_us, id, Ending::Unmarked);
    pair.run(1_000_000);
    assert!(pair.hosts[0].calls().is_empty(), "{:?}", pair.hosts[0].calls());
}

#[test]
fn s13_12_a_lost_peer_ends_all() {
    let mut pair = Pair::new(Limits::default());
    let ids = connected(&mut pair);
    pair.cut = [true; 2];
    pair.run(4_000_000);
    for (host, id) in ids.into_iter().enumerate() {
        let card = Ipv4Addr::new(10, 1, 0, if host == 0 { 2 } else { 1 });
        assert_eq!(pair.news(host), [News::Lost { card }, News::Closed { id, ending: Ending::Unmarked }]);
    }
    assert!(pair.hosts.iter().all(|hosts| hosts.calls().is_empty()));
}

/// As two that have just met may: one of them has got its second ticket before the other one's first.
#[test]
fn s13_12_who_has_no_answer_asks_again_when_the_other_one_had_lost_it() {
    let mut pair = Pair::new(Limits::default());
    pair.cut = [true, false];
    pair.run(3_000_000);
    assert_eq!(pair.news(0), []);
    pair.connect(1, wanted(1, 2, 4000));
    let lost = News::Lost { card: Ipv4Addr::new(10, 1, 0, 1) };
    while !pair.news(1).contains(&lost) {
        pair.run(WAY_US);
    }
    pair.cut = [false; 2];
    pair.run(600_000);
    assert_eq!(pair.news(0), [News::Lost { card: Ipv4Addr::new(10, 1, 0, 2) }]);
    let asked = pair.news(1);
    let Some(News::Connect { id, .. }) = asked.last() else { panic!("{asked:?}") };
    pair.hosts[1].answer(pair.now_us, *id, Ok(Path::default()));
    pair.run(100_000);
    assert_eq!(pair.news(0), [News::Answered { id: CallId::Out(1), answer: Ok(Path::default()) }]);
}

#[test]
fn s13_14_nobody_speaks_for_another_hosts_addresses() {
    let mut pair = Pair::new(Limits::default());
    pair.connect(1, wanted(7, 2, 4000));
    pair.run(100_000);
    assert_eq!(pair.news(1), []);
    pair.run(100_000);
    assert_eq!(pair.news(0), [refused(1, Status::Denied)]);
}

#[test]
fn s13_10_so_many_are_set_up_at_one_time() {
    let mut pair = Pair::new(Limits { setups: 2, waiting: 3, of_peer: 100 });
    for id in 1..=6 {
        pair.connect(id, wanted(1, 2, 4000 + u16::try_from(id).unwrap()));
    }
    assert_eq!(pair.news(0), [refused(6, Status::Quota)]);
    pair.run(1000);
    assert_eq!(pair.hosts[1].calls().setups(), 2);
    let mut granted = 0;
    for _ in 0..10 {
        for news in pair.news(1) {
            let News::Connect { id, .. } = news else { panic!("{news:?}") };
            pair.hosts[1].answer(pair.now_us, id, Ok(Path::default()));
            granted += 1;
        }
        pair.run(100_000);
    }
    assert_eq!((granted, pair.news(0).len()), (5, 5));
}

/// Whichever each host hears first, of its own process or of its data path: each end is told of once, and nothing is said.
#[test]
fn s13_11_nothing_is_said_of_ends_that_the_data_paths_know() {
    for first in 0..4 {
        let mut pair = Pair::new(Limits::default());
        let ids = connected(&mut pair);
        let sent = pair.sent;
        for (host, id) in ids.into_iter().enumerate() {
            let data_path_first = first >> host & 1 == 1;
            for data_path in [data_path_first, !data_path_first] {
                if data_path {
                    pair.hosts[host].end(pair.now_us, id);
                    pair.hosts[host].end(pair.now_us, id);
                } else {
                    pair.hosts[host].close(pair.now_us, id, Ending::Marked);
                }
                pair.run(1000);
            }
            assert_eq!(pair.news(host), [News::Closed { id, ending: Ending::Marked }]);
        }
        assert!(pair.hosts[0].calls().is_empty());
        pair.run(CLOSE_LATER_US);
        assert_eq!(pair.sent, sent);
        // The next request says that the number is settled.
        pair.connect(2, wanted(1, 2, 4001));
        pair.run(1000);
        assert_eq!(pair.news(1).len(), 1);
        assert_eq!(pair.hosts[1].calls().len(), 1);
    }
}

/// One host's data path has broken off: it hears of the other end by messages.
#[test]
fn s13_11_what_one_data_path_does_not_know_is_said() {
    for knows in [0, 1] {
        let mut pair = Pair::new(Limits::default());
        let ids = connected(&mut pair);
        for (host, id) in ids.into_iter().enumerate() {
            pair.hosts[host].close(pair.now_us, id, Ending::Marked);
        }
        pair.hosts[knows].end(pair.now_us, ids[knows]);
        pair.run(CLOSE_LATER_US + 100_000);
        for (host, id) in ids.into_iter().enumerate() {
            let news = pair.news(host);
            assert!(matches!(news[..], [News::Closed { id: of, .. }] if of == id), "{news:?}");
        }
        assert!(pair.hosts[0].calls().is_empty());
    }
}

/// One end is known, then the data path tells its host alone of the other one, and its link ends: the other host finds out.
#[test]
fn s13_11_an_end_that_is_known_is_said_again_while_the_other_one_is_open() {
    for closes_first in [0, 1] {
        let mut pair = Pair::new(Limits::default());
        let ids = connected(&mut pair);
        let knows = 1 - closes_first;
        pair.hosts[closes_first].close(pair.now_us, ids[closes_first], Ending::Marked);
        pair.run(CLOSE_LATER_US + 1000);
        assert_eq!(pair.news(knows), [News::Closed { id: ids[knows], ending: Ending::Marked }]);
        pair.hosts[knows].close(pair.now_us, ids[knows], Ending::Marked);
        pair.hosts[knows].end(pair.now_us, ids[knows]);
        pair.run(HALF_EVERY_US - 100_000);
        assert_eq!(pair.news(closes_first), []);
        pair.run(200_000);
        let id = ids[closes_first];
        assert_eq!(pair.news(closes_first), [News::Closed { id, ending: Ending::Unmarked }]);
        assert!(pair.hosts[0].calls().is_empty());
    }
}

/// Many closes at once are said a few at a time, and all of them in the end.
#[test]
fn s13_11_closes_wait_for_each_other() {
    const MANY: u64 = 1000;
    let mut pair = Pair::new(Limits { setups: 2000, waiting: 10, of_peer: 2000 });
    for id in 1..=MANY {
        pair.connect(id, wanted(1, 2, 4000 + u16::try_from(id).unwrap()));
    }
    pair.run(100_000);
    for news in pair.news(1) {
        let News::Connect { id, .. } = news else { panic!("{news:?}") };
        pair.hosts[1].answer(pair.now_us, id, Ok(Path::default()));
    }
    pair.run(600_000);
    assert_eq!(pair.news(0).len(), 1000);
    for id in 1..=MANY {
        pair.hosts[0].close(pair.now_us, CallId::Out(id), Ending::Marked);
    }
    let before = pair.sent;
    pair.now_us += CLOSE_LATER_US;
    let mut at_once = 0;
    while let Some((to, datagram)) = pair.hosts[0].poll(pair.now_us) {
        let Destination::Peer(_) = to else { continue };
        at_once += 1;
        let card = Ipv4Addr::new(10, 1, 0, 1);
        pair.hosts[1].receive(pair.now_us, card, &datagram);
    }
    assert!(at_once <= CLOSES_MAX + 1, "{at_once} datagrams at once");
    pair.run(2_000_000);
    assert_eq!(pair.news(1).len(), 1000, "all are known there");
    assert!(pair.sent - before < 4 * 1000, "{} datagrams", pair.sent - before);
}
