//! Connections a second: by the coordinator alone, and whole ones between real processes.

use std::time::{Duration, Instant};

use harness::Outcome;
use harness::instance::{Instance, with_instance_over};
use measure::job::{Job, Shape};
use measure::pairs::{self, Waiting};
use measure::rig::{Client, Rig};
use ring::msg::{Addr, Completion, ConnId, Request, Status};
use ring::queue::Kind;

use crate::figure::{Better, Figure};
use crate::rates::{float, kind, many, names, whole};
use crate::sweep::{Effort, Run};

/// Where kernel TCP stands among the competitors.
pub const KERNEL: &str = "kernel: TCP";

/// Idle processes beside the two that connect.
pub fn beside(effort: Effort) -> &'static [f64] {
    effort.points(&[0.0, 16.0, 64.0, 256.0], &[0.0, 64.0])
}

fn local(port: u16) -> Addr {
    Addr::v4([127, 0, 0, 1], port)
}

/// What the coordinator alone does for a connection.
pub fn coordinator(run: &mut Run) -> Outcome<Vec<Figure>> {
    let axes = ["processes", "connections/s"];
    let mut figure = Figure::new("setup", "Connection set-ups by the coordinator", axes, Better::More).note(
        "Connect, accept, close by both: the requests alone, one connection at a time between two processes \
        that one thread plays; the others are attached and do nothing.",
    );
    let xs: Vec<f64> = many(run.effort).iter().copied().filter(|x| *x > 1.0).collect();
    run.sweep(&mut [&mut figure], &names(), &xs, |place, x, time| {
        let (mut rig, mut clients) = Rig::new(kind(place)?, whole(x))?;
        let [server, client, ..] = clients.as_mut_slice() else { return harness::fail("no clients") };
        let (count, _) = rig.beside(|| connections(server, client, time))?;
        Ok(vec![float(count) / time.as_secs_f64()])
    })?;
    Ok(vec![figure])
}

fn connections(server: &mut Client, client: &mut Client, time: Duration) -> Outcome<u64> {
    server.ask(Request::Listen { addr: local(7000), backlog: 64, flags: 0 })?;
    let Completion::Done { status: Status::Ok, value: listener } = server.wait(false)? else {
        return harness::fail("no listener");
    };
    let (end, mut count) = (Instant::now() + time, 0);
    while Instant::now() < end {
        client.ask(Request::Connect { dst: local(7000), src: local(40_000) })?;
        let conn = connected(client)?;
        server.ask(Request::Accept { listener, flags: 0 })?;
        accepted(server)?;
        client.ask(Request::Close { conn, side: 0, finished: true })?;
        server.ask(Request::Close { conn, side: 1, finished: true })?;
        count += 1;
    }
    Ok(count)
}

fn connected(client: &mut Client) -> Outcome<ConnId> {
    match client.wait(false)? {
        Completion::Connected { status: Status::Ok, conn } => Ok(conn),
        other => harness::fail(format!("connect: {other:?}")),
    }
}

fn accepted(server: &mut Client) -> Outcome {
    loop {
        match server.wait(false)? {
            Completion::Accepted { status: Status::Ok, .. } => return Ok(()),
            Completion::Ready { .. } => {}
            other => return harness::fail(format!("accept: {other:?}")),
        }
    }
}

/// Whole connections: an agent and a card for each queue, two real processes, and idle ones.
pub fn whole_ones(run: &mut Run) -> Outcome<Vec<Figure>> {
    let axes = ["idle processes beside them", "connections/s"];
    let mut figure = Figure::new("setup-whole", "Whole connection set-ups", axes, Better::More).note(
        "socket, connect, accept, close by two real processes under the shim, over an agent and an emulated \
        card that sleeps when idle, beside so many more servers \
         that are attached and wait for clients; and by the same programs over kernel TCP.",
    );
    let [a, b, c] = Kind::ALL.map(Kind::name);
    with_instance_over(a, |a| {
        with_instance_over(b, |b| with_instance_over(c, |c| measured(run, &mut figure, [a, b, c])))
    })?;
    Ok(vec![figure])
}

fn measured(run: &mut Run, figure: &mut Figure, instances: [&Instance; 3]) -> Outcome {
    let program = pairs::program()?;
    let seconds = (run.effort.time * 2).as_secs_f64();
    let job = Job { shape: Shape::Connect { exchange: false }, seconds, cpus: None, start_ns: None };
    let mut waiting: [Vec<Waiting>; 3] = Default::default();
    let [a, b, c] = names();
    for x in beside(run.effort) {
        for (instance, waiting) in instances.iter().zip(&mut waiting) {
            while waiting.len() < whole(*x) as usize {
                run.still(&format!("server {} of those that wait", waiting.len() + 1));
                waiting.push(Waiting::start(&program, instance, &job)?);
            }
        }
        run.sweep(&mut [&mut *figure], &[a, b, c, KERNEL], &[*x], |place, _, _| {
            Ok(vec![pairs::two(&program, instances.get(place).copied(), false, &job)?.client.per_s()])
        })?;
    }
    Ok(())
}
