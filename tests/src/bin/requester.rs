//! A process that attaches and asks the coordinator as fast as it can, to be killed at any moment.
//!
//! `requester SOCKET SECONDS` posts requests, with and without answers, and takes every answer. When its time is over it
//! prints how many it got and ends with status 0; a request that is not answered ends it with status 1.

use std::error::Error;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use emulator::{AgentRing, FunctionMemory};
use ipc_direct_agent::address::Address;
use ipc_direct_agent::dial::Agent;
use ring::attach::{Call, Reply};
use ring::msg::{Completion, Request, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long an answer may take on a machine that is busy with others.
const ANSWER_BOUND: Duration = Duration::from_secs(20);
/// Looks at the completion ring before it sleeps.
const LOOKS: usize = 200;
/// Requests posted together.
const BATCH: u32 = 8;
/// A listener that nobody has: the shortest way to an answer.
const NO_LISTENER: u32 = u32::MAX;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.as_slice() {
        [socket, seconds] => ask(socket, seconds),
        _ => Err("usage: requester SOCKET SECONDS".into()),
    };
    match outcome {
        Ok(answers) => {
            println!("answers {answers}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("requester: {e}");
            ExitCode::FAILURE
        }
    }
}

fn ask(socket: &str, seconds: &str) -> Result<u32, Box<dyn Error>> {
    let end = Instant::now() + Duration::from_secs_f64(seconds.parse()?);
    let agent = Agent::connect(&Address::parse(socket))?;
    let (reply, fds) = agent.call(&Call::Hello { parent: 0, nonce: 0 })?;
    let Reply::Welcome { function, .. } = reply else { return Err(format!("not welcome: {reply:?}").into()) };
    let mut fds = fds.into_iter();
    let [window, host, _stats, doorbell, answers, events] =
        [(); 6].map(|()| fds.next().ok_or("no descriptor"));
    let memory = FunctionMemory { window: window?, host: host?, interrupts: [answers?, events?] };
    let mut ring = AgentRing::new(function, &memory, fds.next().as_ref().map(AsFd::as_fd), doorbell?)?;
    println!("attached");
    let (mut posted, mut answered) = (0, 0);
    while Instant::now() < end {
        for _ in 0..BATCH {
            posted += 1;
            ring.post(0, Request::Unlisten { listener: NO_LISTENER });
            ring.post(posted, Request::Accept { listener: NO_LISTENER, flags: 0 });
        }
        while answered < posted {
            let (token, answer) = next(&mut ring)?;
            answered += 1;
            let right = matches!(answer, Completion::Accepted { status: Status::BadRequest, .. });
            if token != answered || !right {
                return Err(format!("request {answered} was answered by {token}: {answer:?}").into());
            }
        }
    }
    Ok(answered)
}

fn next(ring: &mut AgentRing) -> Result<(u32, Completion), Box<dyn Error>> {
    for _ in 0..LOOKS {
        if let Some(answer) = ring.take()? {
            return Ok(answer);
        }
        std::hint::spin_loop();
    }
    let bound = Instant::now() + ANSWER_BOUND;
    while Instant::now() < bound {
        if ring.rearm() {
            let timeout = Timespec::try_from(bound.saturating_duration_since(Instant::now()))?;
            let _ = poll(&mut [PollFd::from_borrowed_fd(ring.interrupt(), PollFlags::IN)], Some(&timeout));
        }
        if let Some(answer) = ring.take()? {
            return Ok(answer);
        }
    }
    Err("a request was not answered".into())
}
