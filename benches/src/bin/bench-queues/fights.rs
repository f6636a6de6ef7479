//! Many processes want the same thing: a port, a lock, the next connection. By the coordinator, and by the kernel.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use harness::{Failure, Outcome, ensure, fail};
use measure::rig::{Client, Kin, Rig};
use ring::msg::{ACCEPT_WAIT, Addr, Completion, ConnId, Request, Status};
use ring::queue::Kind;
use rustix::net::sockopt::set_socket_linger;

use crate::figure::{Better, Figure};
use crate::rates::{float, kind, names, whole};
use crate::sweep::{Effort, Run};

const PORT: u16 = 7000;
/// Connections that a fight for the accept queue keeps on their way.
const CONNECTING: usize = 4;
/// The owner of a listening socket that others inherit, and who connects to it.
const OWNER: u32 = 1;

/// How many fight.
pub fn crowds(effort: Effort) -> &'static [f64] {
    effort.points(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0], &[1.0, 4.0, 16.0])
}

fn per_s(count: u64, time: Duration) -> f64 {
    float(count) / time.as_secs_f64()
}

fn local(port: u16) -> Addr {
    Addr::v4([127, 0, 0, 1], port)
}

/// One thread for each of `clients` does `step` until the time is over; how many steps said that they had it.
fn each<'a>(
    clients: impl Iterator<Item = &'a mut Client>,
    time: Duration,
    step: impl Fn(&mut Client, &AtomicBool) -> Outcome<u64> + Sync,
) -> Outcome<u64> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let all: Vec<_> = clients
            .map(|client| {
                let (step, stop) = (&step, &stop);
                scope.spawn(move || {
                    let mut count = 0;
                    // Relaxed: nothing but the end is told by it.
                    while !stop.load(Ordering::Relaxed) {
                        count += step(client, stop)?;
                    }
                    Outcome::Ok(count)
                })
            })
            .collect();
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        all.into_iter().map(|one| one.join().unwrap_or_else(|_| fail("a client panicked"))).sum()
    })
}

/// Everybody asks for the port, and gives it back once he has it.
fn port(kind: Kind, n: u32, time: Duration) -> Outcome<f64> {
    let (mut rig, mut clients) = Rig::new(kind, n)?;
    let held = AtomicBool::new(false);
    let crowded = n > 1;
    let (count, _) = rig.beside(|| {
        each(clients.iter_mut(), time, |client, _| {
            client.ask(Request::Listen { addr: local(PORT), backlog: 1, flags: 0 })?;
            let Completion::Done { status: Status::Ok, value: listener } = client.wait(crowded)? else {
                return Ok(0);
            };
            let alone = !held.swap(true, Ordering::AcqRel);
            ensure(alone, || "two had the port at the same time".to_owned())?;
            held.store(false, Ordering::Release);
            // As close(2), which returns when the coordinator knows.
            client.ask(Request::Unlisten { listener })?;
            client.wait(crowded)?;
            Ok(1)
        })
    })?;
    Ok(per_s(count, time))
}

/// A listening socket that `n` processes inherited, and one process more, of another family.
struct Queue {
    rig: Rig,
    listener: u32,
    workers: Vec<Client>,
    outside: Client,
}

impl Queue {
    fn new(kind: Kind, n: u32) -> Outcome<Queue> {
        let (mut rig, clients) = Rig::new(kind, 2)?;
        let Ok([mut owner, outside]) = <[Client; 2]>::try_from(clients) else { return fail("no clients") };
        owner.ask(Request::Listen { addr: local(PORT), backlog: 4096, flags: 0 })?;
        rig.work()?;
        let Some(Completion::Done { status: Status::Ok, value: listener }) = owner.take() else {
            return fail("no listener");
        };
        let mut workers = Vec::new();
        for function in 3..3 + n {
            owner.ask(Request::Fork { nonce: function.into() })?;
            let kin = Kin { parent: OWNER, nonce: function.into(), uid: OWNER };
            workers.push(rig.attach(function, kin)?);
        }
        Ok(Queue { rig, listener, workers, outside })
    }

    fn connect() -> Request {
        Request::Connect { dst: local(PORT), src: local(40_000) }
    }
}

/// Waits for the next connection; `None`: the time is over.
fn accepted(client: &mut Client, stop: &AtomicBool, crowded: bool) -> Outcome<Option<ConnId>> {
    loop {
        match client.wait_unless(stop, crowded)? {
            None => return Ok(None),
            Some(Completion::Accepted { status: Status::Ok, conn, .. }) => return Ok(Some(conn)),
            Some(Completion::Accepted { status, .. }) => return fail(format!("accept: {status:?}")),
            // `Ready`: nobody here sleeps.
            Some(_) => {}
        }
    }
}

/// The lock is a connection in an accept queue: who has accepted it holds it, and gives it back to the queue.
fn lock(kind: Kind, n: u32, time: Duration) -> Outcome<f64> {
    let Queue { mut rig, listener, mut workers, mut outside } = Queue::new(kind, n)?;
    outside.ask(Queue::connect())?;
    rig.work()?;
    let held = AtomicBool::new(false);
    let crowded = n > 1;
    let (count, _) = rig.beside(|| {
        each(workers.iter_mut(), time, |worker, stop| {
            worker.ask(Request::Accept { listener, flags: ACCEPT_WAIT })?;
            let Some(conn) = accepted(worker, stop, crowded)? else { return Ok(0) };
            let alone = !held.swap(true, Ordering::AcqRel);
            ensure(alone, || "two had the lock at the same time".to_owned())?;
            held.store(false, Ordering::Release);
            worker.ask(Request::Requeue { conn })?;
            Ok(1)
        })
    })?;
    Ok(per_s(count, time))
}

/// `n` processes share a listening socket, and each waits for the next of the connections that one more makes.
fn accept(kind: Kind, n: u32, time: Duration) -> Outcome<f64> {
    let Queue { mut rig, listener, mut workers, mut outside } = Queue::new(kind, n)?;
    let end = AtomicBool::new(false);
    let (count, _) = rig.beside(|| {
        thread::scope(|scope| {
            let connects = scope.spawn(|| {
                for _ in 0..CONNECTING {
                    outside.ask(Queue::connect())?;
                }
                while let Some(answer) = outside.wait_unless(&end, true)? {
                    match answer {
                        // Accepted, and closed by who did.
                        Completion::PeerGone { conn, .. } => {
                            outside.ask(Request::Close { conn, side: 0, finished: true })?;
                            outside.ask(Queue::connect())?;
                        }
                        Completion::Connected { status: Status::Ok, .. } => {}
                        other => return fail(format!("connect: {other:?}")),
                    }
                }
                Outcome::Ok(())
            });
            let count = each(workers.iter_mut(), time, |worker, stop| {
                worker.ask(Request::Accept { listener, flags: ACCEPT_WAIT })?;
                let Some(conn) = accepted(worker, stop, true)? else { return Ok(0) };
                // Not marked as finished: so the other side is told.
                worker.ask(Request::Close { conn, side: 1, finished: false })?;
                Ok(1)
            });
            end.store(true, Ordering::Relaxed);
            connects.join().map_err(|_| Failure("a client panicked".to_owned()))??;
            count
        })
    })?;
    Ok(per_s(count, time))
}

/// `n` threads, wherever the scheduler puts them, do `step` until the time is over; how many steps succeeded,
/// each second.
fn threads(n: u32, time: Duration, step: impl Fn() -> bool + Sync) -> f64 {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..n {
            scope.spawn(|| {
                let mut done = 0;
                // Relaxed: nothing but the end is told by it.
                while !stop.load(Ordering::Relaxed) {
                    done += u64::from(step());
                }
                count.fetch_add(done, Ordering::Relaxed);
            });
        }
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
    per_s(count.load(Ordering::Relaxed), time)
}

/// A futex, held for as long as a step of the counter takes.
fn kernel_futex(n: u32, time: Duration) -> f64 {
    let lock = Mutex::new(0u64);
    threads(n, time, || lock.lock().map(|mut value| *value += 1).is_ok())
}

/// bind(2) and listen(2) of one port.
fn kernel_bind(n: u32, time: Duration) -> f64 {
    let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 77), PORT);
    threads(n, time, || TcpListener::bind(address).is_ok())
}

/// Ends without leaving a port in TIME_WAIT, of which there are 28,000.
fn reset(stream: &TcpStream) -> bool {
    set_socket_linger(stream, Some(Duration::ZERO)).is_ok()
}

/// accept(2) of one listening socket.
fn kernel_accept(n: u32, time: Duration) -> Outcome<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let connect = || {
            while !end.load(Ordering::Relaxed) {
                // Until who has accepted it closes it: then the queue never overflows, which would cost a
                // second.
                let _ = TcpStream::connect(address).map(|mut stream| stream.read(&mut [0]));
            }
        };
        let connecting = [(); CONNECTING].map(|()| scope.spawn(connect));
        let accept = || listener.accept().is_ok_and(|(stream, _)| reset(&stream));
        let rate = threads(n, time, accept);
        end.store(true, Ordering::Relaxed);
        // Ends what is left in the queue. While anybody connects, the listener stays: of a connection that meets its end, the
        // kernel may never say so.
        listener.set_nonblocking(true)?;
        while !connecting.iter().all(ScopedJoinHandle::is_finished) {
            if !accept() {
                thread::yield_now();
            }
        }
        Ok(rate)
    })
}

/// The queues, and what the kernel offers.
fn with_kernel(name: &'static str) -> [&'static str; 4] {
    let [a, b, c] = names();
    [a, b, c, name]
}

/// One port.
pub fn ports(run: &mut Run) -> Outcome<Vec<Figure>> {
    let mut figure = Figure::new(
        "port",
        "One port, and N that want it",
        ["contenders", "acquisitions/s"],
        Better::More,
    )
    .note(
        "N processes of N users ask to listen on one port until they are let, and give it back at once. \
        Beside it bind(2), listen(2) and close(2) by N threads. Each client is \
         a thread; through the coordinator all of them are on one processor and it has the other. That no \
         two have it at once is checked.",
    );
    let all = with_kernel("kernel: bind");
    run.sweep(&mut [&mut figure], &all, crowds(run.effort), |place, n, time| {
        let n = whole(n);
        Ok(vec![if place < Kind::ALL.len() { port(kind(place)?, n, time)? } else { kernel_bind(n, time) }])
    })?;
    Ok(vec![figure])
}

/// One lock.
pub fn locks(run: &mut Run) -> Outcome<Vec<Figure>> {
    let mut figure = Figure::new(
        "lock",
        "One lock, and N that want it",
        ["contenders", "acquisitions/s"],
        Better::More,
    )
    .note(
        "The lock is a connection in an accept queue that N processes inherited: who has accepted it has \
        the lock, and gives it back with Requeue; the coordinator gives it to who \
         has waited longest. Beside it a futex in common memory (std's Mutex) that N threads take and \
         leave, which whoever has it may take again at once; it is for processes that \
         share memory, and one that dies with it, or writes into it, stops the others.",
    );
    let all = with_kernel("kernel: futex");
    run.sweep(&mut [&mut figure], &all, crowds(run.effort), |place, n, time| {
        let n = whole(n);
        Ok(vec![if place < Kind::ALL.len() { lock(kind(place)?, n, time)? } else { kernel_futex(n, time) }])
    })?;
    Ok(vec![figure])
}

/// One accept queue.
pub fn accepts(run: &mut Run) -> Outcome<Vec<Figure>> {
    let axes = ["contenders", "connections/s"];
    let mut figure = Figure::new("accept", "One accept queue, and N that wait at it", axes, Better::More).note(
        "Connect, accept, close: N processes wait at one listening socket that they inherited, one process \
        has 4 connections on their way, each of which follows one that was accepted and \
         closed. Beside it accept(2) by N threads, with 4 threads that do the same. The coordinator's \
         connections are without the sockets that the shim adds: see the whole set-ups.",
    );
    let all = with_kernel("kernel: accept");
    run.sweep(&mut [&mut figure], &all, crowds(run.effort), |place, n, time| {
        let n = whole(n);
        let queue = place < Kind::ALL.len();
        Ok(vec![if queue { accept(kind(place)?, n, time)? } else { kernel_accept(n, time)? }])
    })?;
    Ok(vec![figure])
}
