//! Many processes want the same thing: a port, a lock, the next connection. By the coordinator, and by the kernel.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::instance::with_instance_over;
use harness::{Failure, Outcome};
use measure::job::{Job, Shape};
use measure::pairs;
use measure::stats::median;
use ring::msg::{ACCEPT_WAIT, Addr, Completion, Request, Status};
use ring::queue::Kind;

use crate::figure::Figure;
use crate::rates::Effort;
use crate::rig::{Client, Rig};

const PORT: u16 = 7000;
/// Connections that a fight for the accept queue keeps on their way.
const CONNECTING: usize = 4;

#[allow(clippy::cast_precision_loss)] // counts stay far below 2^52
fn per_s(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

fn local(port: u16) -> Addr {
    Addr::v4([127, 0, 0, 1], port)
}

/// Everybody asks for the port, and gives it back once he has it. How often it changed hands, each second.
fn port(kind: Kind, n: u32, time: Duration) -> Outcome<f64> {
    let (mut rig, mut clients) = Rig::new(kind, n)?;
    let (count, _) = rig.beside(|| {
        let end = Instant::now() + time;
        let listen = Request::Listen { addr: local(PORT), backlog: 1, flags: 0 };
        clients.iter_mut().for_each(|client| client.ask(listen));
        let mut count = 0;
        while Instant::now() < end {
            let mut quiet = true;
            for client in &mut clients {
                let Some(answer) = client.take() else { continue };
                quiet = false;
                if let Completion::Done { status: Status::Ok, value } = answer {
                    count += 1;
                    client.ask(Request::Unlisten { listener: value });
                }
                client.ask(listen);
            }
            if quiet {
                thread::yield_now();
            }
        }
        clients.iter_mut().for_each(|client| drop(client.wait()));
        count
    });
    Ok(per_s(count, time))
}

/// `n` processes share a listening socket, and each waits for the next of the connections that one more makes.
fn accept(kind: Kind, n: u32, time: Duration) -> Outcome<f64> {
    let (mut rig, mut clients) = Rig::new(kind, 2)?;
    let (Some(mut client), Some(mut owner)) = (clients.pop(), clients.pop()) else {
        return Err(Failure("no clients".to_owned()));
    };
    owner.ask(Request::Listen { addr: local(PORT), backlog: 4096, flags: 0 });
    while rig.turn() {}
    let Completion::Done { status: Status::Ok, value: listener } = owner.wait() else {
        return Err(Failure("no listener".to_owned()));
    };
    let mut workers = Vec::new();
    for function in 3..3 + n {
        owner.ask(Request::Fork { nonce: function.into() });
        workers.push(rig.attach(function, 1, function.into())?);
    }
    let (count, _) = rig.beside(|| {
        let end = Instant::now() + time;
        let take = Request::Accept { listener, flags: ACCEPT_WAIT };
        let connect = Request::Connect { dst: local(PORT), src: local(40_000) };
        workers.iter_mut().for_each(|worker| worker.ask(take));
        (0..CONNECTING).for_each(|_| client.ask(connect));
        let mut count = 0;
        while Instant::now() < end {
            let mut quiet = true;
            while let Some(answer) = client.take() {
                quiet = false;
                if let Completion::Connected { status, conn } = answer {
                    if status == Status::Ok {
                        client.ask(Request::Close { conn, side: 0, finished: true });
                    }
                    client.ask(connect);
                }
            }
            for worker in &mut workers {
                while let Some(answer) = worker.take() {
                    quiet = false;
                    if let Completion::Accepted { status: Status::Ok, conn, .. } = answer {
                        count += 1;
                        worker.ask(Request::Close { conn, side: 1, finished: true });
                        worker.ask(take);
                    }
                }
            }
            if quiet {
                thread::yield_now();
            }
        }
        count
    });
    let _: Vec<Client> = workers;
    Ok(per_s(count, time))
}

/// `n` threads do `step` until the time is over; how many steps succeeded, each second.
fn threads(n: u32, time: Duration, step: impl Fn() -> bool + Sync) -> f64 {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..n {
            scope.spawn(|| {
                crate::rig::unpin();
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

/// A futex that is worth sleeping for: held for about as long as the coordinator needs for a decision.
fn futex(n: u32, time: Duration) -> f64 {
    let lock = Mutex::new(0u64);
    threads(n, time, || lock.lock().map(|mut value| *value += 1).is_ok())
}

/// bind(2) and listen(2) of one port.
fn kernel_port(n: u32, time: Duration) -> f64 {
    let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 77), PORT);
    threads(n, time, || TcpListener::bind(address).is_ok())
}

/// accept(2) of one listening socket.
fn kernel_accept(n: u32, time: Duration) -> Outcome<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let end = AtomicBool::new(false);
    let rate = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                crate::rig::unpin();
                while !end.load(Ordering::Relaxed) {
                    let _ = TcpStream::connect(address);
                }
            });
        }
        let rate = threads(n, time, || listener.accept().is_ok());
        end.store(true, Ordering::Relaxed);
        rate
    });
    Ok(rate)
}

/// Who gets the port, the lock, the connection.
pub fn fights(effort: Effort) -> Outcome<Vec<Figure>> {
    let note = "One port and N processes: how often it changes hands. Beside it bind(2) and close(2) by N threads, and a futex (std's Mutex) \
                that N threads hold for a moment each, which is what processes with memory in common can do instead, and processes that \
                don't trust each other cannot.";
    let mut port_figure =
        Figure::new("port", "One port, or lock, and N that want it", "N", "acquisitions/s", note);
    let note = "Connect, accept, close: N processes wait at one listening socket. Beside it accept(2) by N threads, two threads connecting. \
                The coordinator's connections need no socket of the kernel's here; see connection setups for whole ones.";
    let mut accept_figure =
        Figure::new("accept", "One accept queue and N that wait at it", "N", "connections/s", note);
    for n in [1, 2, 4, 8, 16, 32] {
        eprintln!("{}: {n}", port_figure.title);
        let x = f64::from(n);
        let mut rows: Vec<(&str, bool, Vec<f64>)> = Vec::new();
        let mut put = |name, is_port, value| match rows.iter_mut().find(|r| r.0 == name && r.1 == is_port) {
            Some(row) => row.2.push(value),
            None => rows.push((name, is_port, vec![value])),
        };
        for _ in 0..effort.rounds {
            for kind in Kind::ALL {
                put(kind.name(), true, port(kind, n, effort.time)?);
                put(kind.name(), false, accept(kind, n, effort.time)?);
            }
            put("kernel: bind", true, kernel_port(n, effort.time));
            put("kernel: futex", true, futex(n, effort.time));
            put("kernel: accept", false, kernel_accept(n, effort.time)?);
        }
        for (name, is_port, values) in rows {
            let figure = if is_port { &mut port_figure } else { &mut accept_figure };
            figure.add(name, x, median(values));
        }
    }
    Ok(vec![port_figure, accept_figure])
}

/// Whole connections of real processes: socket, connect, accept, close. Name and rate.
pub fn setups(effort: Effort) -> Outcome<Vec<(String, f64)>> {
    eprintln!("connection setups");
    crate::rig::unpin();
    let program = pairs::program()?;
    let seconds = (effort.time * 3).as_secs_f64();
    let job = Job { shape: Shape::Connect { exchange: false }, seconds, cpus: None, start_ns: None };
    let mut rows = vec![Vec::new(); 4];
    for _ in 0..effort.rounds {
        for (row, kind) in rows.iter_mut().zip(Kind::ALL) {
            with_instance_over(kind.name(), |instance| {
                row.push(pairs::two(&program, Some(instance), false, &job)?.client.per_s());
                Ok(())
            })?;
        }
        let kernel = pairs::two(&program, None, false, &job)?.client.per_s();
        rows.last_mut().into_iter().for_each(|row| row.push(kernel));
    }
    let names = Kind::ALL.map(|kind| kind.name().to_owned()).into_iter().chain(["kernel: TCP".to_owned()]);
    Ok(names.zip(rows.into_iter().map(median)).collect())
}
