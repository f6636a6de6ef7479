//! However a lab ends, nothing is left; and what is wrong is said in one sentence.

use std::process::{Command, Stdio};
use std::time::Duration;

use harness::child::{Guarded, alive, run, run_ok, wait_for};
use harness::voice::Voice;
use harness::{Outcome, bins, ensure};
use rustix::process::Signal;

use harness::lab::{BOUND, Lab, Machine, command, fresh_name};

/// A lab with servers in it, and broken links: more to clean up.
fn busy(lab: &Lab) -> Outcome<[Voice; 2]> {
    lab.tell(&["fault", "link", "h2", "--delay-ms", "1"])?;
    lab.tell(&["fault", "partition", "h1", "h2"])?;
    let servers =
        [lab.serve(true, "h1", "0.0.0.0:7001", "h1")?, lab.serve(false, "h2", "0.0.0.0:7001", "h2")?];
    let mut leaves = lab.plain("h1", "sh")?;
    run_ok(leaves.args(["-c", "setsid sleep 1000 >/dev/null 2>&1 & touch /run/x /dev/shm/x"]), BOUND)?;
    Ok(servers)
}

/// The programs that ran in it have ended, too.
fn all_ended(servers: [Voice; 2]) -> Outcome {
    for mut server in servers {
        let status = server.process.wait(BOUND)?;
        ensure(status.code() == Some(137), || format!("a program ended with {status}"))?;
    }
    Ok(())
}

fn ends(how: impl FnOnce(&mut Lab) -> Outcome) -> Outcome {
    let before = Machine::take()?;
    let mut lab = Lab::start(2)?;
    let servers = busy(&lab)?;
    how(&mut lab)?;
    all_ended(servers)?;
    before.compare()
}

pub fn down() -> Outcome {
    ends(|lab| {
        lab.tell(&["down"])?;
        // Once it says so, all is gone.
        let left = harness::census::processes();
        ensure(left.iter().all(|pid| !alive(*pid) || !in_a_host(*pid)), || format!("{left:?}"))?;
        ensure(lab.ended()?.success(), || "`lab up` failed".into())
    })
}

fn in_a_host(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // One number for each pid namespace that the process is in.
    status.lines().any(|l| l.starts_with("NSpid:") && l.split_whitespace().count() > 2)
}

pub fn ctrl_c() -> Outcome {
    ends(|lab| {
        lab.signal(Signal::INT);
        ensure(lab.ended()?.success(), || "`lab up` failed".into())
    })
}

pub fn killed() -> Outcome {
    ends(|lab| {
        lab.signal(Signal::KILL);
        lab.ended().map(drop)
    })
}

/// The same command without an ignored SIGINT, as whatever a shell starts in the background inherits it.
fn interruptible(command: &Command) -> Command {
    let mut same = Command::new("env");
    same.arg("--default-signal=INT").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => same.env(name, value),
            None => same.env_remove(name),
        };
    }
    same
}

/// Ended at some moment of its start, in three ways.
pub fn half_started() -> Outcome {
    for (signal, step_ms) in [(Signal::KILL, 17), (Signal::INT, 29), (Signal::TERM, 41)] {
        // It may be ignored at first.
        for step in u64::from(signal == Signal::INT)..8 {
            let before = Machine::take()?;
            let mut up = interruptible(&command(&fresh_name())?);
            up.args(["up", "--hosts", "3"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut process = Guarded::spawn(&mut up)?;
            std::thread::sleep(Duration::from_millis(step * step_ms));
            process.signal(signal);
            process.wait(BOUND)?;
            before.compare()?;
        }
    }
    Ok(())
}

/// kill -9 of `exec` ends its program.
pub fn exec_is_killed() -> Outcome {
    let before = Machine::take()?;
    let lab = Lab::start(1)?;
    let server = lab.serve(true, "h1", "0.0.0.0:7001", "h1")?;
    server.process.signal(Signal::KILL);
    drop(server);
    let free = wait_for(BOUND, || Ok((lab.reach(false, "h1", "h1:7001")? == "ECONNREFUSED").then_some(())))?;
    ensure(free.is_some(), || "the program stays".into())?;
    lab.down()?;
    before.compare()
}

/// Fails with one sentence that has `word` in it, and prints nothing else.
fn refused(command: &mut Command, word: &str) -> Outcome {
    let output = run(command, BOUND)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure(!output.status.success() && output.stdout.is_empty(), || format!("{command:?}: {said}"))?;
    ensure(said.lines().count() == 1 && said.starts_with("ipc-direct: ") && said.contains(word), || {
        format!("{command:?} said: {said}")
    })
}

pub fn sentences() -> Outcome {
    let before = Machine::take()?;
    let nobody = fresh_name();
    for words in
        [&["status"][..], &["down"], &["exec", "h1", "--", "true"], &["fault", "heal"], &["start", "h1"]]
    {
        refused(command(&nobody)?.args(words), "there is no lab")?;
    }
    let mut as_nobody = Command::new(bins::program("unshare")?);
    // Root's name without root's rights.
    let own = bins::product_dir()?.join("ipc-direct");
    as_nobody.args(["--user"]).arg(own).args(["lab", "--name", &nobody, "up"]);
    refused(&mut as_nobody, "run it as root")?;
    refused(command(&nobody)?.arg("up").env("PATH", "/nowhere"), "install iproute2")?;
    let lab = Lab::start(1)?;
    refused(command(lab.name())?.arg("up"), "already")?;
    refused(lab.exec("h2", "true")?.arg("x"), "there is no host h2")?;
    refused(command(lab.name())?.args(["fault", "link", "h1", "--loss", "101"]), "from 0 to 100")?;
    refused(command(lab.name())?.args(["fault", "partition", "h1,h1"]), "two sides")?;
    lab.tell(&["fault", "kill", "h1"])?;
    refused(lab.exec("h1", "true")?.arg("x"), "start it again")?;
    refused(command(lab.name())?.args(["fault", "kill", "h1", "agent"]), "start it again")?;
    lab.down()?;
    before.compare()
}
