//! What `ipc-direct run` does around a program: agents of its own, exit codes, daemons.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use harness::census::Census;
use harness::child::{alive, run, run_ok, signal_pid, wait_for};
use harness::instance::Instance;
use harness::redis::{Server, command};
use harness::scratch::Scratch;
use harness::{Outcome, bins, ensure, fail, net};
use rustix::process::Signal;

use crate::{in_user_space, with_instance};

const BOUND: Duration = Duration::from_secs(30);

/// `--daemonize yes`: forks, makes a session, lets the parent go.
pub fn redis_daemonizes() -> Outcome {
    with_instance(|instance| {
        let scratch = Scratch::new()?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, net::free_port()?));
        let pid_file = scratch.path().join("pid");
        let mut server = command(Some(instance), bins::program("redis-server")?);
        server.args(Server::options(addr, scratch.path())).args(["--daemonize", "yes"]);
        server.arg("--pidfile").arg(&pid_file).arg("--logfile").arg(scratch.path().join("log"));
        run_ok(&mut server, BOUND)?;
        // Redis writes its number once it listens.
        let number =
            || Ok(fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse::<u32>().ok()));
        let Some(pid) = wait_for(BOUND, number)? else {
            return fail("the daemon did not write its pid file");
        };
        instance.wait_listening(addr)?;
        let outcome = in_user_space(instance, 1000, || {
            let mut load = command(Some(instance), bins::program("redis-benchmark")?);
            load.args(["-h", "127.0.0.1", "-p", &addr.port().to_string()]);
            run_ok(load.args(["-c", "10", "-n", "2000", "-t", "set,get", "-q"]), BOUND).map(drop)
        });
        signal_pid(pid, Signal::TERM);
        let gone = wait_for(BOUND, || Ok((!alive(pid)).then_some(())))?;
        if gone.is_none() {
            signal_pid(pid, Signal::KILL);
        }
        outcome?;
        ensure(gone.is_some(), || "the daemon did not end on SIGTERM".to_owned())
    })
}

/// Without an agent, `run` starts one; it goes away when its last client has left.
pub fn own_agent() -> Outcome {
    let before = Census::take();
    let instance = Instance::absent()?;
    let server = Server::start(Some(&instance))?;
    in_user_space(&instance, 30, || {
        let set = server.cli(Some(&instance), &["set", "key", "a value"])?;
        ensure(set == "OK", || format!("SET said {set}"))
    })?;
    let agent = instance.report()?.agent.pid;
    server.stop()?;
    let gone = wait_for(BOUND, || Ok((!alive(agent)).then_some(())))?;
    ensure(gone.is_some(), || "the agent stayed when its last client had left".to_owned())?;
    before.compare()
}

/// `run` ends as the program ends, and as a shell does when there is no such program.
pub fn exit_status() -> Outcome {
    with_instance(|instance| {
        let shell = bins::program("sh")?;
        let expectations: [(&[&str], i32); 3] =
            [(&["-c", "exit 0"], 0), (&["-c", "exit 7"], 7), (&["-c", "true"], 0)];
        for (arguments, expected) in expectations {
            let out = run(instance.shimmed(&shell).args(arguments), BOUND)?;
            ensure(out.status.code() == Some(expected), || {
                format!("{arguments:?} ended with {}", out.status)
            })?;
            ensure(out.stderr.is_empty(), || format!("noise: {}", String::from_utf8_lossy(&out.stderr)))?;
        }
        let scratch = Scratch::new()?;
        let not_executable = scratch.path().join("text");
        fs::write(&not_executable, "not a program")?;
        one_sentence(run(&mut instance.shimmed("/no/such/program"), BOUND)?, 127)?;
        one_sentence(run(&mut instance.shimmed(&not_executable), BOUND)?, 126)?;
        let mut unknown = instance.command();
        let out = run(unknown.args(["run", "--no-such-option"]).stdin(Stdio::null()), BOUND)?;
        ensure(out.status.code() == Some(2) && !out.stderr.is_empty(), || format!("unknown option: {out:?}"))
    })
}

fn one_sentence(out: std::process::Output, expected: i32) -> Outcome {
    let text = String::from_utf8_lossy(&out.stderr);
    ensure(out.status.code() == Some(expected) && text.trim_end().lines().count() == 1, || {
        format!("expected status {expected} and one sentence, got {} and {text:?}", out.status)
    })
}
