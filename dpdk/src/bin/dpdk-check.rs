//! `dpdk-check [EAL options] -- WHAT [PORT]`: does DPDK work here, with these options?
//!
//! | WHAT | |
//! |---|---|
//! | `info` | starts the EAL and says what it found |
//! | `burst PORT` | receives and sends bursts on a port that needs no peer (`net_null0`) |
//! | `loop PORT` | sends packets to a port that returns them (`net_ring0`) and compares them, main lcore and workers in turn |
//! | `rings` | passes boxes to workers and back over rings, more than they hold |
//! | `serve` | answers `/dpdk_check/...` on the telemetry socket until stdin ends |
//!
//! Prints one `name value` a line on stdout, and ends with 0, or with 1 and a sentence on stderr. The package's tests
//! run it, since a process can start the EAL only once.

use std::error::Error;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dpdk::eal::{Eal, EalError};
use dpdk::ethdev::{Port, PortConfig, PortError, RxQueue, TxQueue};
use dpdk::lcore::LaunchError;
use dpdk::mbuf::{Mbuf, PktPool};
use dpdk::ring::{Receiver, RingError, Sender, ring};
use dpdk::telemetry::{self, Reply, Value};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const BURST: u16 = 32;
const POOL_COUNT: u32 = 2047;
const ROOM_BYTES: u16 = 2048;

fn main() -> ExitCode {
    match run(std::env::args().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dpdk-check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<String>) -> Outcome {
    // Before the EAL, to see that the order does not matter.
    let asked = Arc::new(AtomicU64::new(0));
    register_early(Arc::clone(&asked))?;
    let (eal, consumed) = Eal::init(args.iter().cloned())?;
    ensure(matches!(Eal::init(["again"]), Err(EalError::AlreadyStarted)), "a second EAL must be refused")?;
    let rest: Vec<&str> = args.iter().skip(consumed + 1).map(String::as_str).collect();
    match rest.as_slice() {
        ["info"] => info(&eal),
        ["burst", port] => burst(&eal, port),
        ["loop", port] => loop_back(&eal, port),
        ["rings"] => rings(&eal),
        ["serve"] => serve(&eal),
        _ => Err("usage: dpdk-check [EAL options] -- info | burst PORT | loop PORT | rings | serve".into()),
    }
}

fn ensure(holds: bool, sentence: &str) -> Outcome {
    if holds { Ok(()) } else { Err(sentence.into()) }
}

fn info(eal: &Eal) -> Outcome {
    println!("version {}", dpdk::eal::version());
    println!("hugepages {}", eal.has_hugepages());
    println!("runtime_dir {}", eal.runtime_dir().display());
    println!("main_lcore {}", eal.main_lcore().id);
    for lcore in eal.lcores() {
        println!("lcore {} cpus {:?} node {} main {}", lcore.id, lcore.cpus, lcore.numa_node, lcore.is_main);
    }
    let pinned = dpdk::affinity::Affinity::of_this_thread()?.cpus();
    let original = eal.original_affinity();
    let restored = std::thread::spawn(move || {
        original.apply_to_this_thread()?;
        dpdk::affinity::Affinity::of_this_thread()
    });
    let restored = restored.join().map_err(|_| "the helper thread panicked")??.cpus();
    ensure(restored == original.cpus(), "a helper thread must get the original affinity back")?;
    println!("pinned {pinned:?} restored {restored:?}");
    Ok(())
}

/// A port that makes and swallows packets: counts, and that every buffer comes back.
fn burst(eal: &Eal, name: &str) -> Outcome {
    ensure(
        matches!(Port::by_name(eal, "no such port"), Err(PortError::NotFound(_))),
        "an unknown port was found",
    )?;
    let pool = PktPool::new(eal, "check", POOL_COUNT, 64, ROOM_BYTES)?;
    let (mut received, mut sent) = (0, 0);
    // Twice: a port whose handles were dropped can be started again.
    for _ in 0..2 {
        let mut port = Port::by_name(eal, name)?;
        ensure(matches!(Port::by_name(eal, name), Err(PortError::InUse(_))), "a port was given out twice")?;
        let (mut rx, mut tx) = port.start(&PortConfig::default(), pool)?;
        let again = port.start(&PortConfig::default(), pool);
        ensure(matches!(again, Err(PortError::AlreadyStarted(_))), "a port was started twice")?;
        drop(again);
        drop(port);
        let mut packets = Vec::with_capacity(usize::from(BURST));
        for _ in 0..100 {
            received += rx[0].burst(&mut packets, BURST);
            packets.clear();
            for _ in 0..BURST {
                packets.push(filled(pool, b"to nowhere")?);
            }
            sent += tx[0].burst(&mut packets);
        }
        ensure(matches!(Port::by_name(eal, name), Err(PortError::InUse(_))), "a running port was given out")?;
    }
    let port = Port::by_name(eal, name)?;
    println!("mac {}", port.mac()?);
    println!("link {:?}", port.link()?);
    println!("stats {:?}", port.stats()?);
    println!("received {received}");
    println!("sent {sent}");
    println!("in_use {}", pool.in_use());
    ensure(pool.in_use() == 0, "buffers have leaked")
}

/// A port that returns what it is sent: contents, order, a full queue, and the same on every worker.
fn loop_back(eal: &Eal, name: &str) -> Outcome {
    let pool = PktPool::new(eal, "check", POOL_COUNT, 0, ROOM_BYTES)?;
    let mut exhausted = Vec::new();
    while let Ok(mbuf) = pool.alloc() {
        exhausted.push(mbuf);
    }
    ensure(exhausted.len() == POOL_COUNT as usize && pool.available() == 0, "the pool has another size")?;
    drop(exhausted);
    ensure(pool.available() == POOL_COUNT, "buffers have leaked on drop")?;
    bounds(pool)?;

    let mut port = Port::by_name(eal, name)?;
    let (mut rx, mut tx) = port.start(&PortConfig::default(), pool)?;
    let (rx, tx) = (&mut rx[0], &mut tx[0]);
    println!("looped {}", round(pool, rx, tx)?);
    ensure(pool.in_use() == 0, "buffers have leaked")?;
    let main = eal.main_lcore();
    for lcore in eal.workers() {
        let done = eal.lcore_scope(|scope| {
            let refused = scope.launch(&main, || ());
            ensure(matches!(refused, Err(LaunchError::MainLcore(_))), "the main lcore took a closure")?;
            // The error is turned to text, which unlike a boxed error may change threads.
            let job = scope.launch(&lcore, || round(pool, rx, tx).map_err(|error| error.to_string()))?;
            let count = job.wait().map_err(|_| "the closure panicked")??;
            let job = scope.launch(&lcore, || std::thread::current().id())?;
            let there = job.wait().map_err(|_| "the closure panicked")?;
            ensure(there != std::thread::current().id(), "the closure ran on the main lcore")?;
            Outcome::Ok(count)
        })?;
        println!("looped_on_worker {} {done}", lcore.id);
    }
    println!("in_use {}", pool.in_use());
    ensure(pool.in_use() == 0, "buffers have leaked")
}

/// What fits into a buffer and what does not.
fn bounds(pool: PktPool<'_>) -> Outcome {
    let mut mbuf = pool.alloc()?;
    ensure(mbuf.is_empty() && mbuf.tailroom() == usize::from(ROOM_BYTES), "a fresh buffer is not empty")?;
    ensure(mbuf.append(&[1; ROOM_BYTES as usize + 1]).is_err(), "more than the room was appended")?;
    ensure(mbuf.append(&vec![1; 1 << 16]).is_err() && mbuf.is_empty(), "64 KiB were appended")?;
    mbuf.append(&[1; 3])?;
    mbuf.append(&[2; ROOM_BYTES as usize - 3])?;
    ensure(mbuf.append(&[3]).is_err() && mbuf.tailroom() == 0, "a full buffer took a byte")?;
    ensure(mbuf.len() == usize::from(ROOM_BYTES) && mbuf.packet_len() == mbuf.len(), "the length is wrong")?;
    mbuf.data_mut()[0] = 9;
    ensure(mbuf.data()[..4] == [9, 1, 1, 2] && mbuf.segments() == 1, "the contents are wrong")
}

fn filled<'eal>(pool: PktPool<'eal>, bytes: &[u8]) -> Outcome<Mbuf<'eal>> {
    let mut mbuf = pool.alloc()?;
    mbuf.append(bytes)?;
    Ok(mbuf)
}

/// Sends until the queue is full, takes everything back and compares.
fn round<'eal>(pool: PktPool<'eal>, rx: &mut RxQueue<'eal>, tx: &mut TxQueue<'eal>) -> Outcome<u32> {
    let mut sent = 0_u32;
    let mut packets = Vec::with_capacity(usize::from(BURST));
    loop {
        for number in sent..sent + u32::from(BURST) {
            packets.push(filled(pool, &number.to_be_bytes())?);
        }
        let taken = tx.burst(&mut packets);
        sent += u32::try_from(taken)?;
        if !packets.is_empty() {
            // Those not taken are still here, in order.
            ensure(packets.len() + taken == usize::from(BURST), "unsent packets are missing")?;
            ensure(packets[0].data() == sent.to_be_bytes(), "unsent packets are out of order")?;
            packets.clear();
            break;
        }
    }
    let mut expected = 0_u32;
    while rx.burst(&mut packets, BURST) > 0 {
        for packet in packets.drain(..) {
            ensure(packet.data() == expected.to_be_bytes(), "a packet came back changed or out of order")?;
            expected += 1;
        }
    }
    ensure(expected == sent, "packets were lost")?;
    Ok(sent)
}

/// Boxes go round by each worker in turn, and nothing is lost, doubled, out of order, or left behind.
fn rings(eal: &Eal) -> Outcome {
    for count in [0, u32::MAX] {
        ensure(matches!(ring::<u32>(eal, "check", count), Err(RingError::Count(_))), "nonsense was made")?;
    }
    let first = ring::<u32>(eal, "check", 7)?;
    ensure(matches!(ring::<u32>(eal, "check", 7), Err(RingError::Refused { .. })), "a name was given twice")?;
    drop(first);
    exact_and_dropped(eal)?;
    let mut passed = 0;
    for lcore in eal.workers() {
        // Both ends gone, the name is free again.
        let (to, mut there) = ring::<Box<u64>>(eal, "to", 7)?;
        let (mut back, from) = ring::<Box<u64>>(eal, "back", 5)?;
        passed += eal.lcore_scope(|scope| {
            let job = scope.launch(&lcore, move || reflect(&mut there, &mut back))?;
            let heard = all_there_and_back(to, from)?;
            ensure(job.wait().map_err(|_| "the worker panicked")? == heard, "a box was lost")?;
            Outcome::Ok(heard)
        })?;
    }
    println!("passed {passed}");
    Ok(())
}

/// Sends what comes, until the other end is gone and nothing is left.
fn reflect(there: &mut Receiver<'_, Box<u64>>, back: &mut Sender<'_, Box<u64>>) -> u64 {
    let (mut waiting, mut count) = (Vec::new(), 0);
    loop {
        let over = there.is_closed();
        if there.burst(&mut waiting, 3) == 0 && over && waiting.is_empty() {
            return count;
        }
        count += back.burst(&mut waiting) as u64;
        std::thread::yield_now();
    }
}

fn all_there_and_back(to: Sender<'_, Box<u64>>, mut from: Receiver<'_, Box<u64>>) -> Outcome<u64> {
    const BOXES: u64 = 20_000;
    let (mut to, mut waiting, mut heard) = (Some(to), Vec::new(), Vec::new());
    let (mut next, mut expected) = (0, 0);
    while expected < BOXES {
        while waiting.len() < 4 && next < BOXES {
            waiting.push(Box::new(next));
            next += 1;
        }
        match &mut to {
            Some(sender) if next < BOXES || !waiting.is_empty() => {
                sender.burst(&mut waiting);
            }
            _ => to = None,
        }
        from.burst(&mut heard, 9);
        for number in heard.drain(..) {
            ensure(*number == expected, "a box came back out of order")?;
            expected += 1;
        }
        std::thread::yield_now();
    }
    Ok(expected)
}

/// A ring holds what was asked for, and what nobody took is dropped with it.
fn exact_and_dropped(eal: &Eal) -> Outcome {
    let counted = Arc::new(());
    let (mut sender, mut receiver) = ring::<Arc<()>>(eal, "check", 10)?;
    let mut many: Vec<_> = (0..12).map(|_| Arc::clone(&counted)).collect();
    ensure(sender.burst(&mut many) == 10 && many.len() == 2, "a ring of 10 does not hold 10")?;
    let mut got = Vec::new();
    ensure(receiver.burst(&mut got, 4) == 4 && !receiver.is_closed(), "4 of 10 did not come")?;
    drop(sender);
    ensure(receiver.is_closed(), "the sender is gone, and not missed")?;
    drop((many, got));
    ensure(Arc::strong_count(&counted) == 7, "what was taken or left was not dropped once")?;
    drop(receiver);
    ensure(Arc::strong_count(&counted) == 1, "what was in the ring has leaked")
}

fn register_early(asked: Arc<AtomicU64>) -> Outcome {
    telemetry::register(
        "/dpdk_check/early",
        "Every kind of value. Registered before the EAL.",
        move |parameters| {
            // A counter that orders nothing else: relaxed.
            let count = asked.fetch_add(1, Ordering::Relaxed) + 1;
            Reply::Dict(vec![
                ("asked".into(), Value::Number(count)),
                ("parameters".into(), Value::Text(parameters.to_owned())),
                ("largest".into(), Value::Number(u64::MAX)),
                ("numbers".into(), Value::Numbers(vec![1, 2, 3])),
                ("texts".into(), Value::Texts(vec!["a".into(), "b".into()])),
                ("inner".into(), Value::Dict(vec![("x".into(), Value::Number(7))])),
            ])
        },
    )?;
    Ok(())
}

fn serve(eal: &Eal) -> Outcome {
    let register = |command: &str, reply: fn() -> Reply| telemetry::register(command, "", move |_| reply());
    register("/dpdk_check/text", || Reply::Text("a \"quoted\" text".into()))?;
    register("/dpdk_check/numbers", || Reply::Numbers(vec![4, 5]))?;
    register("/dpdk_check/texts", || Reply::Texts(vec!["late".into()]))?;
    register("/dpdk_check/long", || Reply::Texts(vec!["x".repeat(1000)]))?;
    register("/dpdk_check/too_many", || Reply::Numbers(vec![1; 513]))?;
    println!("serving {}", eal.runtime_dir().display());
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
