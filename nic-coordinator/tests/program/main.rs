//! The real program: boots it on an emulated bus and plays the agent and its processes.
#![allow(unsafe_code, clippy::cast_possible_wrap)] // See card.rs.

mod card;
mod lcores;
mod queues;

use std::os::fd::AsFd;
use std::time::Duration;

use card::{Card, Process, memory, program};
use ring::bus::BusMsg;
use ring::msg::{ACCEPT_WAIT, Addr, Completion, ConnId, Request, Status};
use ring::queue::Kind;
use ring::window::{ENTRIES, ENTRIES_OFFSET, HOST_BYTES, WINDOW_BYTES};
use rustix::fs::SealFlags;

const QUIET_PORT: &str = "net_null0,no-rx=1";
/// Produces packets for ever.
const BUSY_PORT: &str = "net_null0";

fn lo(port: u16) -> Addr {
    Addr::v4([127, 0, 0, 1], port)
}

/// A card with its agent, who is function 0 and makes every segment.
struct Host {
    card: Card,
    agent: Process,
}

impl Host {
    fn boot() -> Host {
        Host::with(&["--log", "debug"], QUIET_PORT)
    }

    fn with(options: &[&str], vdev: &str) -> Host {
        Host::over(|| Card::boot(options, vdev))
    }

    fn over(boot: impl FnOnce() -> Card) -> Host {
        rustix::thread::membarrier(rustix::thread::MembarrierCommand::RegisterGlobalExpedited).unwrap();
        let card = boot();
        let agent = card.function(0);
        Host { card, agent }
    }

    fn attach(&mut self, function: u32) -> Process {
        let process = self.card.function(function);
        assert_eq!(process.host.header.epoch.load(ring::atomic::Ordering::Relaxed), self.card.epoch);
        let attach =
            Request::Attach { function, group: function, parent: 0, nonce: 0, uid: 0, pid: 1, netns: 1 };
        assert_eq!(self.agent.ask(attach), Completion::Done { status: Status::Ok, value: 0 });
        process
    }

    fn attach_child(&mut self, function: u32, parent: u32, nonce: u64) -> Process {
        let process = self.card.function(function);
        let attach = Request::Attach { function, group: parent, parent, nonce, uid: 0, pid: 1, netns: 1 };
        assert_eq!(self.agent.ask(attach), Completion::Done { status: Status::Ok, value: 0 });
        process
    }

    fn detach(&mut self, process: Process) {
        self.card.send(BusMsg::Unmap { function: process.number }, &[]);
        self.agent.post(Request::Detach { function: process.number });
    }

    fn make_segment(&mut self) -> u32 {
        let segment = self.agent.wait_for("MakeSegment", |_, c| match c {
            Completion::MakeSegment { segment, .. } => Some(segment),
            _ => None,
        });
        self.agent.post(Request::SegmentMade { segment, ok: true });
        segment
    }

    fn end(mut self) {
        self.card.hang_up();
        assert!(self.card.ended().success());
    }
}

fn listen(process: &mut Process, port: u16) -> u32 {
    match process.ask(Request::Listen { addr: lo(port), backlog: 16, flags: 0 }) {
        Completion::Done { status: Status::Ok, value } => value,
        other => panic!("{other:?}"),
    }
}

fn connect(process: &mut Process, port: u16) -> ConnId {
    let token = process.post(Request::Connect { dst: lo(port), src: lo(40000) });
    connected(process, token)
}

fn connected(process: &mut Process, token: u32) -> ConnId {
    match process.answer(token) {
        Completion::Connected { status: Status::Ok, conn } => conn,
        other => panic!("{other:?}"),
    }
}

fn accepted(process: &mut Process, token: u32) -> ConnId {
    match process.answer(token) {
        Completion::Accepted { status: Status::Ok, conn, peer, local, .. } => {
            assert_eq!(peer, lo(40000));
            assert_eq!(local.ip, lo(0).ip);
            conn
        }
        other => panic!("{other:?}"),
    }
}

fn close(process: &mut Process, conn: ConnId, side: u32) {
    process.post(Request::Close { conn, side, finished: false });
}

fn gone(process: &mut Process, conn: ConnId) {
    let news = Completion::PeerGone { conn, reset: false };
    process.wait_for("PeerGone", |_, c| (c == news).then_some(()));
}

#[test]
fn attach_listen_connect_accept_close_detach() {
    let mut host = Host::boot();
    let (mut client, mut server) = (host.attach(1), host.attach(2));
    let listener = listen(&mut server, 80);
    let token = client.post(Request::Connect { dst: lo(80), src: lo(40000) });
    let segment = host.make_segment();
    let conn = connected(&mut client, token);
    assert_eq!(conn.segment(), segment);
    let ready = Completion::Ready { listener, waiting: true };
    server.wait_for("Ready", |_, c| (c == ready).then_some(()));
    let token = server.post(Request::Accept { listener, flags: 0 });
    assert_eq!(accepted(&mut server, token), conn);
    close(&mut client, conn, 0);
    gone(&mut server, conn);
    server.interrupted(1);
    close(&mut server, conn, 1);
    assert!(matches!(
        client.ask(Request::Connect { dst: lo(81), src: lo(40000) }),
        Completion::Connected { status: Status::NoListener, .. }
    ));
    host.detach(client);
    let dropped = Completion::DropSegment { segment };
    host.agent.wait_for("DropSegment", |_, c| (c == dropped).then_some(()));
    host.detach(server);
    // The numbers can be used again at once.
    let mut again = host.attach(1);
    assert!(listen(&mut again, 80) > listener);
    host.end();
}

#[test]
fn more_requests_than_the_rings_hold() {
    let mut host = Host::boot();
    let mut process = host.attach(1);
    // No answers: credit comes by itself.
    for _ in 0..10 * ENTRIES {
        process.tell(Request::Unlisten { listener: 1 });
    }
    // Answers that nobody takes wait their turn.
    let tokens: Vec<u32> =
        (0..ENTRIES).map(|_| process.post(Request::Accept { listener: 1, flags: 0 })).collect();
    for token in tokens {
        assert!(matches!(process.answer(token), Completion::Accepted { status: Status::BadRequest, .. }));
    }
    host.end();
}

#[test]
fn a_parked_accept_is_answered_by_an_interrupt() {
    let mut host = Host::boot();
    let (mut client, mut server) = (host.attach(1), host.attach(2));
    let listener = listen(&mut server, 80);
    for round in 0..20 {
        let accept = server.post(Request::Accept { listener, flags: ACCEPT_WAIT });
        assert!(server.arm());
        // Long enough for the program to go to sleep, in most rounds.
        std::thread::sleep(Duration::from_millis(round % 5));
        let connect = client.post(Request::Connect { dst: lo(80), src: lo(40000) });
        if round == 0 {
            host.make_segment();
        }
        server.interrupted(0);
        let conn = accepted(&mut server, accept);
        assert_eq!(connected(&mut client, connect), conn);
        close(&mut client, conn, 0);
        gone(&mut server, conn);
        close(&mut server, conn, 1);
    }
    assert!(host.card.counter("sleeps") > 0 && host.card.counter("doorbells") > 0);
    host.end();
}

#[test]
fn an_end_that_is_marked_in_the_stream_interrupts_nobody() {
    let mut host = Host::boot();
    let (mut client, mut server) = (host.attach(1), host.attach(2));
    let listener = listen(&mut server, 80);
    let token = client.post(Request::Connect { dst: lo(80), src: lo(40000) });
    host.make_segment();
    let conn = connected(&mut client, token);
    let token = server.post(Request::Accept { listener, flags: 0 });
    accepted(&mut server, token);
    client.post(Request::Close { conn, side: 0, finished: true });
    // Two requests later the first one has had its effects.
    listen(&mut client, 81);
    listen(&mut server, 82);
    assert!(!server.news.iter().any(|(_, c)| matches!(c, Completion::PeerGone { .. })), "{:?}", server.news);
    assert!(rustix::io::read(&server.irqs[1], &mut [0; 8]).is_err(), "vector 1 has fired");
    host.end();
}

/// The coordinator does not run while the parent announces the fork and the agent the child: the agent's ring is read
/// first, but the child is expected.
#[test]
fn a_child_attaches_before_its_parents_ring_is_read() {
    use rustix::process::{Pid, Signal, kill_process};
    let mut host = Host::boot();
    let mut parent = host.attach(1);
    let listener = listen(&mut parent, 80);
    let mut child = host.card.function(2);
    let pid = Pid::from_child(&host.card.child);
    kill_process(pid, Signal::STOP).unwrap();
    parent.post(Request::Fork { nonce: 7 });
    let attach = Request::Attach { function: 2, group: 1, parent: 1, nonce: 7, uid: 0, pid: 1, netns: 1 };
    let token = host.agent.post(attach);
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(host.agent.answer(token), Completion::Done { status: Status::Ok, value: 0 });
    // It holds what its parent held.
    let accept = child.ask(Request::Accept { listener, flags: 0 });
    assert!(matches!(accept, Completion::Accepted { status: Status::Empty, .. }), "{accept:?}");
    host.end();
}

/// A stopped process of a server whose other processes go on.
#[test]
fn news_for_one_who_takes_none_do_not_pile_up() {
    let mut host = Host::boot();
    let (mut client, mut stopped) = (host.attach(1), host.attach(2));
    let listener = listen(&mut stopped, 80);
    stopped.post(Request::Fork { nonce: 7 });
    // The answer to this one follows the effects of that.
    listen(&mut stopped, 81);
    let mut worker = host.attach_child(3, 2, 7);
    let token = client.post(Request::Connect { dst: lo(80), src: lo(40000) });
    host.make_segment();
    for round in 0..2 * ENTRIES {
        let conn = if round == 0 { connected(&mut client, token) } else { connect(&mut client, 80) };
        let token = worker.post(Request::Accept { listener, flags: 0 });
        assert_eq!(accepted(&mut worker, token), conn);
        worker.post(Request::Close { conn, side: 1, finished: true });
        client.post(Request::Close { conn, side: 0, finished: true });
    }
    connect(&mut client, 80);
    // It goes on: what it takes is credit.
    stopped.collect();
    let token = stopped.post(Request::Accept { listener, flags: 0 });
    accepted(&mut stopped, token);
    let heard = stopped.news.iter().filter_map(|(_, c)| match *c {
        Completion::Ready { waiting, .. } => Some(waiting),
        _ => None,
    });
    let heard: Vec<bool> = heard.collect();
    assert_eq!(heard[..4], [true, false, true, false], "arrived, taken, and so on");
    assert_eq!(heard.last(), Some(&true), "the last word");
    assert!(heard.len() <= ENTRIES as usize + 1, "{} of {}", heard.len(), 4 * ENTRIES + 1);
    host.end();
}

#[test]
fn idle_costs_nothing_although_the_port_is_busy() {
    let mut host = Host::with(&[], BUSY_PORT);
    let mut process = host.attach(1);
    listen(&mut process, 80);
    let before = host.card.cpu_ticks();
    std::thread::sleep(Duration::from_secs(2));
    let used = host.card.cpu_ticks() - before;
    assert!(used < 20, "{used} ticks of 10 ms in 2 s");
    // And it still hears the doorbell.
    listen(&mut process, 81);
    assert!(host.card.counter("port_rx") > 0);
    host.end();
}

#[test]
fn polling_never_sleeps() {
    let mut host = Host::with(&["--idle", "poll"], QUIET_PORT);
    let mut process = host.attach(1);
    for port in 1..100 {
        listen(&mut process, port);
    }
    assert_eq!(process.host.header.doorbell_wanted.load(ring::atomic::Ordering::Relaxed), 0);
    assert_eq!(host.card.counter("sleeps"), 0);
    host.end();
}

/// Small seeded generator (xorshift64*), so that a failure can be repeated.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// One entry of random bytes with the right sequence number, so that it is looked at; every other one of our version
/// and of a kind that exists.
fn random_entry(process: &Process, index: u64, noise: &mut Noise) {
    let offset = ENTRIES_OFFSET + usize::try_from(index % u64::from(ENTRIES)).unwrap() * 64;
    for word in 1..8 {
        process.scribble(offset + word * 8, noise.next());
    }
    let mut head = noise.next() & !0xffff_ffff | (index + 1);
    if noise.next().is_multiple_of(2) {
        head = head & !0xffff_0000_0000 | u64::from(ring::VERSION) << 40 | (noise.next() % 10) << 32;
    }
    process.scribble(offset, head);
}

#[test]
fn nonsense_in_one_ring_hurts_nobody_else() {
    for kind in [Kind::PerProcess, Kind::Hybrid] {
        nonsense_in_one_ring(kind);
    }
}

fn nonsense_in_one_ring(kind: Kind) {
    let mut host = Host::over(|| Card::boot_with(kind, &[], QUIET_PORT));
    let (mut client, mut server) = (host.attach(1), host.attach(2));
    let listener = listen(&mut server, 80);
    let token = client.post(Request::Connect { dst: lo(80), src: lo(40000) });
    host.make_segment();
    connected(&mut client, token);
    let token = server.post(Request::Accept { listener, flags: 0 });
    accepted(&mut server, token);
    for seed in 1..=30 {
        let mut noise = Noise(seed);
        let mut villain = host.attach(3);
        let token = villain.post(Request::Connect { dst: lo(80), src: lo(40000) });
        host.make_segment();
        let victim_of = connected(&mut villain, token);
        let token = server.post(Request::Accept { listener, flags: 0 });
        assert_eq!(accepted(&mut server, token), victim_of);
        for i in 0..u64::from(ENTRIES) {
            let index = villain.posted() + i;
            match seed % 3 {
                0 => villain.scribble(16, noise.next()),
                1 => random_entry(&villain, index, &mut noise),
                _ => villain.scribble(
                    usize::try_from(noise.next() % (WINDOW_BYTES as u64 / 8)).unwrap() * 8,
                    noise.next(),
                ),
            }
            villain.ring();
            if i % 16 == 0 {
                let conn = connect(&mut client, 80);
                let token = server.post(Request::Accept { listener, flags: 0 });
                assert_eq!(accepted(&mut server, token), conn);
                close(&mut client, conn, 0);
                gone(&mut server, conn);
                close(&mut server, conn, 1);
            }
        }
        // A last, certain offence: a version that does not exist. (If it was dropped before, nobody looks.)
        for i in 0..u64::from(ENTRIES) {
            let index = villain.posted() + i;
            let offset = ENTRIES_OFFSET + usize::try_from(index % u64::from(ENTRIES)).unwrap() * 64;
            villain.scribble(offset, 0xee << 40 | (index + 1));
        }
        villain.ring();
        gone(&mut server, victim_of);
        close(&mut server, victim_of, 1);
        host.detach(villain);
    }
    assert_eq!(host.card.counter("functions_dropped"), 30);
    host.end();
}

#[test]
fn telemetry_shows_counters_and_tables() {
    let mut host = Host::boot();
    let mut process = host.attach(7);
    let listener = listen(&mut process, 8080);
    assert!(matches!(
        process.ask(Request::Connect { dst: lo(81), src: lo(40000) }),
        Completion::Connected { status: Status::NoListener, .. }
    ));
    // The tables are shown with a delay.
    let mut text = String::new();
    for _ in 0..200 {
        text = host.card.telemetry("/ipc_direct/listeners");
        if text.contains("8080") {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(text.contains(&format!("\"{listener}\":")) && text.contains("127.0.0.1:8080"), "{text}");
    let text = host.card.telemetry("/ipc_direct/functions");
    assert!(text.contains("\"7\":") && text.contains("group 7") && text.contains("listeners 1"), "{text}");
    assert_eq!(host.card.counter("refused_no_listener"), 1);
    assert_eq!(host.card.counter("functions"), 1);
    assert!(host.card.counter("requests") >= 3 && host.card.counter("completions") >= 3);
    host.end();
}

#[test]
fn functions_that_cannot_be_mapped_are_refused() {
    let host = Host::boot();
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let irq = || memory(1, seals);
    let unsealed = [memory(WINDOW_BYTES, SealFlags::GROW), memory(HOST_BYTES, seals), irq(), irq()];
    let short = [memory(4096, seals), memory(HOST_BYTES, seals), irq(), irq()];
    let unformatted = [memory(WINDOW_BYTES, seals), memory(HOST_BYTES, seals), irq(), irq()];
    for fds in [unsealed, short, unformatted] {
        host.card.send(BusMsg::Map { function: 5 }, &fds.each_ref().map(AsFd::as_fd));
        assert_eq!(host.card.receive(), BusMsg::MapFailed { function: 5 });
    }
    host.card.send(BusMsg::Map { function: 5 }, &[]);
    assert_eq!(host.card.receive(), BusMsg::MapFailed { function: 5 });
    host.card.function(5);
    host.end();
}

#[test]
fn signals_end_it_cleanly() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let host = Host::boot();
        let pid = rustix::process::Pid::from_child(&host.card.child);
        rustix::process::kill_process(pid, signal).unwrap();
        assert!(host.card.ended().success());
    }
}

#[test]
fn bad_command_lines_get_one_sentence_and_code_2() {
    for (arguments, sentence) in [
        (&["--", "--nonsense"][..], "unexpected argument '--nonsense' found"),
        (&["--no-pci"], "say which bus: --windows DIR"),
        (&["--", "--bus-fd", "77"], "--bus-fd 77 is not an open socket"),
        (&["--", "--bus-fd", "1"], "--bus-fd 1 is not an open socket"),
        (&["--", "--bus-fd", "3", "--log", "a=b=c"], "--log"),
        (&["--", "--request-queue", "x"], "there is no such request queue"),
    ] {
        let output = program().args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.starts_with("nic-coordinator: ") && text.contains(sentence), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn bad_eal_options_and_unknown_ports_get_a_sentence_and_code_2() {
    use std::os::fd::AsRawFd;
    let bus = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::empty(),
        None,
    )
    .unwrap();
    let number = bus.0.as_raw_fd().to_string();
    let prefix = format!("--file-prefix=ipcd-test-{}-bad", std::process::id());
    let good = ["--no-pci", "--no-huge", "-m", "64", "--no-shconf", &prefix];
    for (eal, ours, sentence) in [
        (&["--nonsense"][..], &[][..], "DPDK's EAL did not start: Invalid argument"),
        (&good, &["--port", "net_nowhere0"], "there is no Ethernet port \"net_nowhere0\""),
    ] {
        let output = program().args(eal).args(["--", "--bus-fd", &number]).args(ours).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let last = text.lines().last().unwrap_or_default();
        assert!(last.starts_with("nic-coordinator: ") && last.contains(sentence), "{text}");
    }
}
