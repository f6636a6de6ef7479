//! redis-server, redis-cli and redis-benchmark, all under the shim.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv6Addr};
use std::process::Stdio;
use std::time::Duration;

use harness::child::{Guarded, run_ok, wait_for};
use harness::counters::Socket;
use harness::instance::Instance;
use harness::redis::Server;
use harness::wire::Pattern;
use harness::{Outcome, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{in_user_space, mostly_in_user_space, with_instance};

const BOUND: Duration = Duration::from_secs(120);

pub fn set_and_get() -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        in_user_space(instance, 50, || set_get(instance, &server))?;
        server.stop()
    })
}

fn set_get(instance: &Instance, server: &Server) -> Outcome {
    let set = server.cli(Some(instance), &["set", "key", "a value"])?;
    ensure(set == "OK", || format!("SET said {set}"))?;
    let got = server.cli(Some(instance), &["get", "key"])?;
    ensure(got == "a value", || format!("GET said {got}"))
}

pub fn ipv6() -> Outcome {
    with_instance(|instance| {
        let server = Server::start_at(Some(instance), IpAddr::V6(Ipv6Addr::LOCALHOST))?;
        in_user_space(instance, 50, || set_get(instance, &server))?;
        server.stop()
    })
}

/// Every test of redis-benchmark that fits here, with few and many clients, with and without pipelining.
pub fn benchmark() -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        for (clients, pipeline) in [("1", "1"), ("50", "1"), ("50", "16")] {
            in_user_space(instance, 100_000, || {
                let mut command = server.client(Some(instance), "redis-benchmark")?;
                command.args(["-c", clients, "-P", pipeline, "-n", "5000", "-q"]);
                command.args(["-t", "ping,set,get,incr,lpush,rpop,sadd,hset,lrange_100,mset"]);
                run_ok(&mut command, BOUND).map(drop)
            })?;
        }
        server.stop()
    })
}

/// The same over the server's unix socket, and what redis-cli says of both ends there.
pub fn unix_socket() -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        let socket = server.unix_socket().display().to_string();
        // So many that each connection makes calls enough to leave the kernel.
        for (clients, pipeline, n) in [("1", "1", "5000"), ("50", "1", "5000"), ("50", "16", "100000")] {
            mostly_in_user_space(instance, 100_000, || {
                let mut command = server.client(Some(instance), "redis-benchmark")?;
                command.args(["-s", &socket, "-c", clients, "-P", pipeline, "-n", n, "-q"]);
                command.args(["-t", "ping,set,get,incr,lpush,rpop,sadd,hset,lrange_100,mset"]);
                run_ok(&mut command, BOUND).map(drop)
            })?;
        }
        let list = server.cli(Some(instance), &["-s", &socket, "client", "list"])?;
        ensure(list.contains("redis.sock:0"), || format!("the client list is {list}"))?;
        let report = instance.report()?;
        let named = |s: &Socket| s.local == socket && s.state == "listening" && s.reason == "-";
        ensure(report.processes.iter().any(|p| p.sockets.iter().any(named)), || {
            format!("`ps` does not show the listener at {socket}: {report:?}")
        })?;
        server.stop()
    })
}

/// BGSAVE forks the server while 50 clients write.
pub fn background_saves() -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        in_user_space(instance, 1_000_000, || {
            let mut command = server.client(Some(instance), "redis-benchmark")?;
            command.args(["-c", "50", "-n", "300000", "-r", "1000", "-d", "100", "-t", "set", "-q"]);
            let mut load = Guarded::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
            for _ in 0..5 {
                server.cli(Some(instance), &["bgsave"])?;
                let saved = wait_for(Duration::from_secs(30), || {
                    let info = server.cli(Some(instance), &["info", "persistence"])?;
                    let done = info.contains("rdb_bgsave_in_progress:0");
                    Ok(done.then(|| info.contains("rdb_last_bgsave_status:ok")))
                })?;
                ensure(saved == Some(true), || format!("a background save failed: {saved:?}"))?;
            }
            let status = load.wait(BOUND)?;
            ensure(status.success(), || format!("redis-benchmark ended with {status}"))
        })?;
        let saved = fs::metadata(server.dir().join("dump.rdb"))?.len();
        ensure(saved > 0, || "the saved file is empty".to_owned())?;
        server.stop()
    })
}

pub fn thousand_clients() -> Outcome {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let outcome = with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        in_user_space(instance, 1_000_000, || {
            let mut command = server.client(Some(instance), "redis-benchmark")?;
            command.args(["-c", "1000", "-n", "50000", "-t", "set,get", "-q"]);
            run_ok(&mut command, BOUND).map(drop)
        })?;
        server.stop()
    });
    setrlimit(Resource::Nofile, limit)?;
    outcome
}

pub fn large_values() -> Outcome {
    const SIZE: u64 = 64 << 20;
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        let file = server.dir().join("value");
        let pattern = Pattern::default();
        let mut content = Vec::new();
        while (content.len() as u64) < SIZE {
            let left = usize::try_from(SIZE).unwrap_or(0) - content.len();
            content.extend_from_slice(pattern.at(content.len() as u64, left));
        }
        fs::write(&file, &content)?;
        in_user_space(instance, 2 * SIZE, || {
            let mut set = server.client(Some(instance), "redis-cli")?;
            set.args(["-x", "set", "big"]).stdin(File::open(&file)?).stdout(Stdio::null());
            let status = Guarded::spawn(&mut set)?.wait(BOUND)?;
            ensure(status.success(), || format!("SET ended with {status}"))?;
            let answer = server.dir().join("answer");
            let mut get = server.client(Some(instance), "redis-cli")?;
            get.args(["get", "big"]).stdin(Stdio::null()).stdout(File::create(&answer)?);
            let status = Guarded::spawn(&mut get)?.wait(BOUND)?;
            ensure(status.success(), || format!("GET ended with {status}"))?;
            let answer = fs::read(answer)?;
            let same = answer.strip_suffix(b"\n") == Some(&content);
            ensure(same, || format!("GET gave {} bytes that differ from what was set", answer.len()))
        })?;
        server.stop()
    })
}
