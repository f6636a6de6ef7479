//! Clients are killed, and stopped, at random points of their requests: nobody else's request is lost, on any request queue.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::child::Guarded;
use harness::instance::{Instance, with_instance_over};
use harness::{Failure, Outcome, ensure, fail};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, connect, recv, send, socket,
};
use rustix::process::Signal;

/// How long one queue is under fire, if `QUEUE_SECONDS` does not say otherwise.
const SECONDS: f64 = 20.0;
/// Clients that live to the end.
const SURVIVORS: usize = 2;
/// Longest life of one that does not, in microseconds.
const LIFE_US_MAX: u64 = 20_000;
/// For the last answer, and the end of a process.
const GRACE: Duration = Duration::from_secs(60);

fn requester(instance: &Instance, seconds: f64) -> Outcome<(Guarded, BufReader<std::process::ChildStdout>)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_requester"));
    command.args([instance.socket(), &seconds.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Guarded::spawn(&mut command)?;
    let mut out = BufReader::new(process.stdout().ok_or_else(|| Failure("no output".into()))?);
    let mut line = String::new();
    out.read_line(&mut line)?;
    ensure(line.trim() == "attached", || format!("the requester said {line:?}"))?;
    Ok((process, out))
}

/// What the coordinator answers to a command of DPDK's telemetry.
pub fn telemetry(prefix: &str, command: &str) -> Outcome<serde_json::Value> {
    let base = match std::env::var_os("XDG_RUNTIME_DIR") {
        _ if rustix::process::getuid().is_root() => "/var/run".into(),
        Some(directory) => directory,
        None => "/tmp".into(),
    };
    let path = Path::new(&base).join("dpdk").join(prefix).join("dpdk_telemetry.v2");
    let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let mut bytes = vec![0; 32 * 1024];
    // Who it is comes first.
    recv(&socket, &mut bytes[..], RecvFlags::empty())?;
    send(&socket, command.as_bytes(), SendFlags::NOSIGNAL)?;
    let (length, _) = recv(&socket, &mut bytes[..], RecvFlags::empty())?;
    let mut answer: serde_json::Value = serde_json::from_slice(bytes.get(..length).unwrap_or_default())
        .map_err(|e| Failure(format!("telemetry: {e}")))?;
    Ok(answer.get_mut(command).map(serde_json::Value::take).unwrap_or(answer))
}

/// The lcores that were asked for are there, and all that poll have polled somebody.
fn lcores_at_work(prefix: &str) -> Outcome {
    let wanted = std::env::var("IPC_DIRECT_LCORES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let lcores = telemetry(prefix, "/ipc_direct/lcores")?;
    let counted = lcores.as_object().map(|all| all.values().map(|one| one["requests"].as_u64()).collect());
    let counted: Vec<Option<u64>> = counted.unwrap_or_default();
    let busy = counted.iter().skip(usize::from(wanted > 1)).all(|requests| *requests > Some(100));
    ensure(counted.len() == wanted && busy, || format!("not {wanted} lcores at work: {lcores}"))
}

/// xorshift64.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn clients_killed(queue: &str) -> Outcome {
    let seconds = match std::env::var("QUEUE_SECONDS") {
        Ok(text) => text.parse()?,
        Err(_) => SECONDS,
    };
    with_instance_over(queue, |instance| {
        let mut survivors = Vec::new();
        for _ in 0..SURVIVORS {
            survivors.push(requester(instance, seconds)?);
        }
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        let (mut state, mut killed) = (0x9e37_79b9_7f4a_7c15, 0);
        while Instant::now() < end {
            let (mut victim, _out) = requester(instance, GRACE.as_secs_f64())?;
            std::thread::sleep(Duration::from_micros(random(&mut state) % LIFE_US_MAX));
            // Every other one stands still for a while before it dies, or before it goes on and is killed later.
            if killed % 2 == 0 {
                victim.signal(Signal::STOP);
                std::thread::sleep(Duration::from_micros(random(&mut state) % LIFE_US_MAX));
                if killed % 4 == 0 {
                    victim.signal(Signal::CONT);
                    std::thread::sleep(Duration::from_micros(random(&mut state) % LIFE_US_MAX));
                }
            }
            victim.signal(Signal::KILL);
            victim.wait(GRACE)?;
            killed += 1;
        }
        let mut answers = Vec::new();
        for (mut survivor, mut out) in survivors {
            let status = survivor.wait(GRACE)?;
            let mut text = String::new();
            out.read_to_string(&mut text)?;
            ensure(status.success(), || format!("a survivor lost a request: {status}, {text:?}"))?;
            answers.push(text.trim().to_owned());
        }
        let agent = instance.report()?.agent;
        ensure(agent.request_queue == queue, || format!("the request queue is {}", agent.request_queue))?;
        lcores_at_work(&agent.telemetry_prefix)?;
        let stats = telemetry(&agent.telemetry_prefix, "/ipc_direct/stats")?;
        let gaps = stats["gaps"].as_u64().ok_or_else(|| Failure(format!("no gaps in {stats}")))?;
        println!(
            "{queue}: {killed} killed in {seconds} s, {gaps} tickets passed by; survivors: {}",
            answers.join(", ")
        );
        if killed == 0 { fail("nobody was killed") } else { Ok(()) }
    })
}

pub fn per_process() -> Outcome {
    clients_killed("per-process")
}

pub fn shared() -> Outcome {
    clients_killed("shared")
}

pub fn hybrid() -> Outcome {
    clients_killed("hybrid")
}
