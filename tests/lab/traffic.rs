//! What programs in the hosts see of each other.

use std::process::Stdio;

use harness::child::{Guarded, run, run_ok, wait_for};
use harness::voice::Voice;
use harness::{Outcome, ensure};
use rustix::process::Signal;

use harness::lab::{BOUND, Lab, with_lab};

const SERVER: &[&str] =
    &["--save", "", "--appendonly", "no", "--bind", "0.0.0.0", "--protected-mode", "no", "--port", "7000"];
const BENCHMARK: &[&str] = &["-p", "7000", "-n", "2000", "-c", "4", "-t", "set,get", "-q"];

/// Redis in `host`, up.
pub fn redis(lab: &Lab, host: &str) -> Outcome<Guarded> {
    let mut server = lab.exec(host, "redis-server")?;
    let server = Guarded::spawn(server.args(SERVER).stdin(Stdio::null()).stdout(Stdio::null()))?;
    let up = wait_for(BOUND, || {
        let mut ping = lab.plain(host, "redis-cli")?;
        Ok(run(ping.args(["-p", "7000", "ping"]), BOUND)?.status.success().then_some(()))
    })?;
    ensure(up.is_some(), || "redis does not come up".into())?;
    Ok(server)
}

pub fn within() -> Outcome {
    with_lab(2, |lab| {
        let _server = redis(lab, "h1")?;
        run_ok(lab.exec("h1", "redis-benchmark")?.args(["-h", "127.0.0.1"]).args(BENCHMARK), BOUND)?;
        // By the host's own address as well.
        let mut cli = lab.exec("h1", "redis-cli")?;
        let pong = run_ok(cli.args(["-h", "10.99.0.1", "-p", "7000", "ping"]), BOUND)?;
        ensure(pong.trim() == "PONG", || pong)?;
        let totals = lab.report("h1")?.totals;
        // Both tests of the benchmark, and the last command.
        ensure(totals.user.connections >= 2 * 9 && totals.user.tx_bytes > 100_000, || format!("{totals:?}"))?;
        let other = lab.report("h2")?.totals;
        ensure(other.user.connections == 0, || format!("h2 has h1's counters: {other:?}"))
    })
}

/// Each host is reached by its name and both of its addresses, and the same port of two hosts is two servers; with and
/// without the shim.
pub fn names() -> Outcome {
    with_lab(3, |lab| {
        for shim in [false, true] {
            let hosts = lab.hosts()?;
            let mut servers = Vec::new();
            for host in &hosts {
                servers.push(lab.serve(shim, &host.name, "::0:7001", &host.name)?);
            }
            for from in ["h1", "h3"] {
                for host in &hosts {
                    for there in [&host.name, &host.address, &host.address_v6] {
                        let said = lab.reach(shim, from, &format!("{there}:7001"))?;
                        let right = format!("reached {}", host.name);
                        ensure(said == right, || format!("{from} to {there}, shim {shim}: {said}"))?;
                    }
                }
            }
            // Nobody listens on h2's port 7002, though h1 has one.
            let _only_h1 = lab.serve(shim, "h1", "127.0.0.1:7002", "loopback")?;
            for (from, there, right) in [
                ("h1", "127.0.0.1:7002", "reached loopback"),
                ("h2", "127.0.0.1:7002", "ECONNREFUSED"),
                ("h2", "h1:7002", "ECONNREFUSED"),
            ] {
                let said = lab.reach(shim, from, there)?;
                ensure(said == right, || format!("{from} to {there}, shim {shim}: {said}"))?;
            }
        }
        Ok(())
    })
}

/// Hostname, processes, files and links of a host are its own.
pub fn own_world() -> Outcome {
    with_lab(2, |lab| {
        let script = "hostname; ls /dev/shm | wc -l; ls /sys/class/net | tr '\\n' ' '; echo; \
                      echo $$; touch /dev/shm/mine /run/mine; ipcmk -M 100 >/dev/null; ipcs -m | grep -c 0x";
        for host in ["h1", "h2"] {
            let mut shell = lab.plain(host, "sh")?;
            let said = run_ok(shell.args(["-c", script]), BOUND)?;
            let lines: Vec<_> = said.lines().map(str::trim).collect();
            let [name, files, links, pid, memory] = lines.as_slice() else {
                return harness::fail(format!("{host} said {said}"));
            };
            ensure((*name, *files, *links, *memory) == (host, "0", "card0 eth0 lo", "1"), || said.clone())?;
            // The first process, the agent and its coordinator, this one and what starts it.
            ensure(pid.parse::<u32>().is_ok_and(|pid| pid < 20), || said.clone())?;
        }
        ensure(!std::path::Path::new("/dev/shm/mine").exists(), || "h1's file is here".into())
    })
}

/// `exec` passes on streams, directory, status and signals.
pub fn exec() -> Outcome {
    with_lab(1, |lab| {
        let here = std::env::current_dir()?.display().to_string();
        for plain in [true, false] {
            let shell = || if plain { lab.plain("h1", "sh") } else { lab.exec("h1", "sh") };
            let out = run(shell()?.args(["-c", "pwd; echo wrong >&2; exit 7"]), BOUND)?;
            let (said, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            ensure(out.status.code() == Some(7) && said.trim() == here && wrong == "wrong\n", || {
                format!("{}: {said} {wrong}", out.status)
            })?;
            let killed = run(shell()?.args(["-c", "kill -9 $$"]), BOUND)?;
            ensure(killed.status.code() == Some(137), || format!("{}", killed.status))?;
            let mut waits = Voice::of({
                let mut command = shell()?;
                command
                    .args(["-c", "trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.05; done"]);
                command
            })?;
            ensure(waits.line()? == "ready", || "the shell does not start".into())?;
            waits.process.signal(Signal::TERM);
            ensure(waits.line()? == "asked", || "SIGTERM is not passed on".into())?;
            let status = waits.process.wait(BOUND)?;
            ensure(status.code() == Some(3), || format!("{status}"))?;
        }
        Ok(())
    })
}
