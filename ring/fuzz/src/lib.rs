//! What is fuzzed: everything of `ring` that takes bytes from somebody else. One function for each, which panics if
//! the bytes get further than they should.
//!
//! `cargo test -p ipc-direct-ring --test fuzz_smoke` feeds them random bytes. With coverage, from `ring/`:
//! `cargo install cargo-fuzz`, then `cargo +nightly fuzz run stream` (or `msg`, `attach`, `bus`, `hosts`, `queue`, `window`, `link`);
//! `cargo fuzz run -s none stream` does without nightly.

#[path = "../../tests/support/mod.rs"]
mod support;

use ring::atomic::{AtomicU64, Ordering};
use ring::attach::{Call, Reply};
use ring::bus::BusMsg;
use ring::card;
use ring::hosts::{Envelope, HostMsg, Incarnation, Path};
use ring::link;
use ring::msg::{Completion, Request};
use ring::queue::Key;
use ring::queue::shared::{Found, Poster, Ring, Taker};
use ring::stream::{self, Memory as _, Reader, Writer};
use ring::urgent;
use ring::window::{Consumer, Entry, IrqGate, Producer, Raw};
use support::{Memory, StreamMemory};

/// Takes numbers off the front of the input; zero when it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes([(); 8].map(|()| self.byte()))
    }

    fn raw(&mut self) -> Raw {
        let (kind, head) = (self.byte(), self.word());
        Raw {
            kind,
            status: u16::from_le_bytes([self.byte(), 0]),
            token: u32::try_from(head >> 32).unwrap_or(0),
            body: [(); 6].map(|()| self.word()),
        }
    }
}

/// SPEC 3: entries of either ring.
pub fn msg(data: &[u8]) {
    let mut input = Input(data);
    while !input.0.is_empty() {
        let raw = input.raw();
        if let Ok(request) = Request::from_raw(&raw) {
            assert_eq!(Request::from_raw(&request.to_raw(raw.token)), Ok(request));
        }
        if let Ok(completion) = Completion::from_raw(&raw) {
            assert_eq!(Completion::from_raw(&completion.to_raw(raw.token)), Ok(completion));
        }
    }
}

/// SPEC 7: datagrams between a process and the agent, as they are and behind an honest magic and version.
pub fn attach(data: &[u8]) {
    let mut framed = Call::Report { verbose: false }.to_wire();
    for (to, from) in framed.iter_mut().skip(8).zip(data) {
        *to = *from;
    }
    for bytes in [data, &framed] {
        if let Ok(call) = Call::from_wire(bytes) {
            assert_eq!(Call::from_wire(&call.to_wire()), Ok(call));
        }
        if let Ok(reply) = Reply::from_wire(bytes) {
            assert_eq!(Reply::from_wire(&reply.to_wire()), Ok(reply));
        }
    }
}

/// SPEC 8: datagrams of the emulated bus, likewise.
pub fn bus(data: &[u8]) {
    let mut framed = BusMsg::Hello.to_wire();
    for (to, from) in framed.iter_mut().skip(8).zip(data) {
        *to = *from;
    }
    for bytes in [data, &framed] {
        if let Ok(message) = BusMsg::from_wire(bytes) {
            assert_eq!(BusMsg::from_wire(&message.to_wire()), Ok(message));
        }
        // As a card's bus carries it.
        let mut entry = Input(bytes);
        let body = [(); 6].map(|()| entry.word());
        if let Ok((message, address)) = card::from_raw(&Raw { body, ..card::to_raw(BusMsg::Hello, 0) }) {
            assert_eq!(card::from_raw(&card::to_raw(message, address)), Ok((message, address)));
        }
    }
}

/// SPEC 2: entries, credits and the armed word, written by the input.
pub fn window(data: &[u8]) {
    const N: usize = 8;
    let memory = Memory::zeroed(N * 64);
    let mut input = Input(data);
    let start = input.word() >> 1;
    let Some(entries) = memory.region().slice::<Entry>(0, N) else { return };
    let (mut producer, mut consumer) = (Producer::new(entries, start), Consumer::new(entries, start));
    let mut gate = IrqGate::default();
    while !input.0.is_empty() {
        match input.byte() % 5 {
            0 => {
                let word = memory.region().get::<AtomicU64>(usize::from(input.byte()) % (N * 8) * 8);
                word.iter().for_each(|w| w.store(input.word(), Ordering::Relaxed));
            }
            1 => {
                let before = consumer.consumed();
                let _ = consumer.pop();
                assert!(consumer.consumed() - before <= 1);
            }
            2 => {
                let _ = producer.push(&input.raw(), consumer.credit());
            }
            3 => {
                let _ = producer.take_credit(u32::try_from(input.word() >> 32).unwrap_or(0));
            }
            _ => {
                let armed = input.word();
                let _ = producer.take_armed(armed);
                let _ = gate.should_fire(armed, producer.pushed());
            }
        }
        assert!(producer.space() <= N as u64);
    }
}

/// SPEC 2.8: both sides of the shared ring, in memory that the input writes between their steps.
pub fn queue(data: &[u8]) {
    const N: usize = 8;
    let (marks, entries) = (Memory::zeroed(4096), Memory::zeroed(N * 64));
    let word = |at: usize| marks.region().get::<AtomicU64>(at % 512 * 8);
    let (Some(tail), Some(freed), Some(pushing)) = (word(0), word(8), word(16)) else { return };
    let (Some(usable), Some(slots)) = (marks.region().slice(256, N), entries.region().slice(0, N)) else {
        return;
    };
    let ring = Ring { tail, freed, usable, entries: slots };
    let key = Key([1, 2]);
    let (mut poster, mut taker) = (Poster::new(ring, pushing, 3, key), Taker::new(ring));
    let (mut input, mut now_us, mut held) = (Input(data), 0, None);
    while !input.0.is_empty() {
        let n = input.byte();
        match n % 7 {
            0 => {
                word(usize::from(input.byte())).iter().for_each(|w| w.store(input.word(), Ordering::Relaxed))
            }
            // Near what the sides have there, so that more than nonsense is reached.
            1 => tail.store(tail.load(Ordering::Relaxed).wrapping_add(u64::from(n / 7)), Ordering::Relaxed),
            2 => {
                let at = usize::from(input.byte()) % (N * 8) * 8;
                let word = entries.region().get::<AtomicU64>(at);
                word.iter().for_each(|w| w.store(input.word() & 0xffff, Ordering::Relaxed));
            }
            3 => held = poster.draw().ok(),
            4 => {
                if let Some(ticket) = held.take() {
                    poster.publish(ticket, &input.raw(), 7);
                }
            }
            5 => {
                now_us += u64::from(n / 7);
                if let Found::Entry(entry) = taker.take(now_us, 8) {
                    let _ = (entry.function(), entry.open(&key));
                }
                taker.tell();
            }
            _ => {
                let first = taker.unresolved().next();
                let _ = first.map(|ticket| taker.release(ticket));
            }
        }
    }
}

/// SPEC 4.6: both sides of a stream in memory that the input writes between their steps.
pub fn stream(data: &[u8]) {
    let mut input = Input(data);
    let bytes = 64usize << (input.byte() % 5);
    let memory = StreamMemory::with_head(bytes, u64::from(input.byte() % 5) * 8);
    let (ring, dir) = (memory.ring(), memory.direction());
    let inside = |span: stream::Span| assert!(memory.inside(span));
    stream::open(ring, dir, 1);
    let (mut w, mut r) = (Writer::default(), Reader::default());
    while !input.0.is_empty() {
        let n = usize::from(input.byte());
        match n % 7 {
            0 => {
                let word = memory.ring_region().get::<AtomicU64>(usize::from(input.byte()) * 8 % bytes);
                word.iter().for_each(|h| h.store(input.word(), Ordering::Relaxed));
            }
            // Valid-looking headers, where the reader will look.
            1 => {
                let kind = u64::from(input.byte() % 4) << 32;
                let word = ring.header(ring.place(r.pos));
                word.iter()
                    .for_each(|h| h.store(1 << 63 | kind | u64::from(input.byte()), Ordering::Relaxed));
            }
            2 => dir.consumed.store(input.word() >> (n / 7), Ordering::Relaxed),
            3 => {
                if let Ok(Some(span)) = stream::reserve(ring, dir, &mut w, usize::from(input.byte()) * 99 + 1)
                {
                    inside(span);
                    let part = usize::from(input.byte()) % span.len + 1;
                    assert_eq!(stream::commit(ring, &mut w, part), Ok(()));
                }
            }
            4 => {
                if let Ok(Some(span)) = stream::next(ring, &mut r) {
                    inside(span);
                    stream::take(&mut r, usize::from(input.byte()));
                }
            }
            5 => {
                let _ = stream::release(dir, &r);
            }
            _ => {
                let there = stream::unread(ring, &r);
                assert!(there.is_ok_and(|n| n.ring_bytes <= 3 * bytes as u64) || there.is_err());
                let _ = urgent::ahead(dir, &r);
                let _ = stream::has_room(ring, dir, &mut w, u64::from(input.byte()));
                let _ = stream::drained(dir, &w);
            }
        }
        assert!(w.limit <= w.tail + bytes as u64 && r.pos.is_multiple_of(8));
    }
}

/// SPEC 13: datagrams of other hosts, as they come and as they would be behind the seal.
pub fn hosts(data: &[u8]) {
    let mut framed = Envelope::head(Incarnation::NOBODY, 0).to_vec();
    framed.extend_from_slice(data);
    for (to, from) in framed.iter_mut().skip(8).zip(data) {
        *to = *from;
    }
    for bytes in [data, &framed] {
        if let Ok(envelope) = Envelope::from_wire(bytes) {
            let head = Envelope::head(envelope.sender, envelope.counter);
            assert_eq!([&head[..], envelope.sealed].concat(), bytes);
        }
    }
    if let Ok(message) = HostMsg::from_wire(data) {
        let (bytes, length) = message.to_wire();
        assert_eq!(&bytes[..length], data);
    }
}

/// SPEC 14: messages of another host's bridge, as they are and behind an honest head; paths; private data. What parses is built again to
/// the same.
pub fn link(data: &[u8]) {
    let mut path = Path::default();
    path.0.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    if let Ok(contact) = link::Contact::from_path(&path) {
        assert_eq!(contact.to_path(), path);
    }
    if let Ok(knock) = link::Knock::from_bytes(data) {
        assert!(data.starts_with(&knock.to_bytes()));
    }
    if let Ok(welcome) = link::Welcome::from_bytes(data) {
        assert!(data.starts_with(&welcome.to_bytes()));
    }
    let mut framed = [&[0; link::HEAD_BYTES], data].concat();
    link::seal(&mut framed, 7);
    for bytes in [data, &framed] {
        let Ok((taken, items)) = link::parse(bytes) else { continue };
        let mut room = vec![0; bytes.len()];
        let mut builder = link::Builder::new(&mut room, 0);
        let mut whole = true;
        for item in items {
            let Ok(item) = item else {
                whole = false;
                break;
            };
            assert!(builder.add(item.connection, &item.body));
        }
        let len = builder.len();
        link::seal(&mut room, taken);
        assert_eq!(room[..len], bytes[..len]);
        assert!(!whole || len == bytes.len());
    }
}
