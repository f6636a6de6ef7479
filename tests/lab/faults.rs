//! What `lab fault` breaks, and only that.

use harness::child::{run_ok, wait_for};
use harness::voice::Voice;
use harness::{Failure, Outcome, ensure};

use harness::lab::{BOUND, Lab, with_lab};

/// Datagrams that a test sends.
const SENT: u32 = 500;

struct Counted {
    total: u32,
    distinct: u32,
    late: u32,
}

/// Sends [`SENT`] numbered datagrams from h1 to h2.
fn datagrams(lab: &Lab) -> Outcome<Counted> {
    let counter = Voice::of(lab.python(false, "h2", &["count", "0.0.0.0:7003"])?)?;
    ensure(counter.line()? == "listening", || "the counter does not start".into())?;
    run_ok(&mut lab.python(false, "h1", &["send", "h2:7003", &SENT.to_string()])?, BOUND)?;
    let said = counter.line()?;
    let numbers: Vec<u32> = said.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    match numbers.as_slice() {
        [total, distinct, late] => Ok(Counted { total: *total, distinct: *distinct, late: *late }),
        _ => Err(Failure(format!("the counter said {said:?}"))),
    }
}

pub fn packets() -> Outcome {
    with_lab(2, |lab| {
        let expect = |what: &str, right: fn(&Counted) -> bool| {
            let c = datagrams(lab)?;
            ensure(right(&c), || {
                format!("{what}: {} of {SENT}, {} distinct, {} late", c.total, c.distinct, c.late)
            })
        };
        let whole: fn(&Counted) -> bool = |c| (c.total, c.distinct, c.late) == (SENT, SENT, 0);
        expect("no fault", whole)?;
        lab.tell(&["fault", "link", "h2", "--loss", "30"])?;
        expect("loss", |c| c.distinct == c.total && c.late == 0 && (50..SENT - 50).contains(&c.total))?;
        lab.tell(&["fault", "link", "h2", "--duplicate", "50"])?;
        expect("duplicates", |c| c.distinct == SENT && c.total > SENT + 100)?;
        lab.tell(&["fault", "link", "h2", "--reorder", "20"])?;
        expect("reordering", |c| (c.total, c.distinct) == (SENT, SENT) && c.late > 10)?;
        lab.tell(&["fault", "link", "h2", "--delay-ms", "20"])?;
        expect("delay", whole)?;
        lab.tell(&["fault", "link", "h2", "--loss", "100", "--port", "card"])?;
        expect("the card's port", |c| c.total == SENT)?;
        lab.tell(&["fault", "link", "h2", "--loss", "100"])?;
        let said = lab.reach_in_vain("h1", "h2:7001")?;
        ensure(said == "TIMEOUT" || said == "EHOSTUNREACH", || said)?;
        lab.tell(&["fault", "link", "h2"])?;
        expect("no fault any more", whole)
    })
}

/// Segments that the kernel leaves to the network card, of 64 KiB, and unfinished checksums pass a bad link as they are.
pub fn transfer() -> Outcome {
    with_lab(2, |lab| {
        lab.tell(&["fault", "link", "h1", "--loss", "0.5", "--delay-ms", "0.2", "--reorder", "1"])?;
        let receive = "import hashlib, socket; s = socket.create_server(('', 7004)); print('listening', flush=True); \
                       c, _ = s.accept(); h = hashlib.sha256(); n = 0\n\
                       while d := c.recv(1 << 20): h.update(d); n += len(d)\n\
                       print(n, h.hexdigest(), flush=True)";
        let send = "import hashlib, random, socket; d = random.Random(7).randbytes(4 << 20); \
                    s = socket.create_connection(('h2', 7004)); s.sendall(d); s.close(); \
                    print(len(d), hashlib.sha256(d).hexdigest())";
        let mut command = lab.plain("h2", "python3")?;
        command.args(["-c", receive]);
        let receiver = Voice::of(command)?;
        ensure(receiver.line()? == "listening", || "the receiver does not start".into())?;
        let sent = run_ok(lab.plain("h1", "python3")?.args(["-c", send]), BOUND)?;
        let received = receiver.line()?;
        ensure(received == sent.trim(), || format!("{received}, not {sent}"))
    })
}

pub fn partition() -> Outcome {
    with_lab(3, |lab| {
        let mut servers = Vec::new();
        for host in ["h1", "h2", "h3"] {
            servers.push(lab.serve(true, host, "0.0.0.0:7005", host)?);
        }
        lab.tell(&["fault", "partition", "h1,h2", "h3"])?;
        let sides: Vec<_> = lab.hosts()?.into_iter().map(|h| h.name).collect();
        ensure(sides == ["h1", "h2", "h3"], || format!("{sides:?}"))?;
        let cut = |from: &str, to: &str| {
            let said = lab.reach_in_vain(from, &format!("{to}:7005"))?;
            ensure(said == "TIMEOUT" || said == "EHOSTUNREACH", || format!("{from} to {to}: {said}"))
        };
        let joined = |from: &str, to: &str| {
            let said = lab.reach(true, from, &format!("{to}:7005"))?;
            ensure(said == format!("reached {to}"), || format!("{from} to {to}: {said}"))
        };
        joined("h1", "h2")?;
        joined("h3", "h3")?;
        cut("h1", "h3")?;
        cut("h3", "h2")?;
        lab.tell(&["fault", "partition", "h2"])?;
        joined("h1", "h3")?;
        cut("h2", "h1")?;
        // A bad link is in its side's network, too.
        lab.tell(&["fault", "link", "h2", "--delay-ms", "1"])?;
        cut("h2", "h1")?;
        lab.tell(&["fault", "heal"])?;
        joined("h2", "h3")?;
        joined("h1", "h2")
    })
}

/// Killed parts are gone and can be started again, and nobody else minds.
pub fn kill_and_start() -> Outcome {
    with_lab(2, |lab| {
        let bystander = lab.host("h1")?;
        for part in ["agent", "coordinator"] {
            let before = lab.host("h2")?;
            lab.tell(&["fault", "kill", "h2", part])?;
            lab.wait_state("h2", "no-agent")?;
            // Over the kernel, meanwhile.
            let server = lab.serve(true, "h2", "0.0.0.0:7006", "h2")?;
            let said = lab.reach(true, "h1", "h2:7006")?;
            ensure(said == "reached h2", || format!("without {part}: {said}"))?;
            drop(server);
            // Its agent goes with the coordinator, and the other way round.
            wait_for(BOUND, || Ok((lab.host("h2")?.agent_pid == 0).then_some(())))?;
            lab.tell(&["start", "h2"])?;
            lab.wait_state("h2", "up")?;
            let after = lab.host("h2")?;
            ensure(after.init_pid == before.init_pid && after.agent_pid != before.agent_pid, || {
                format!("{before:?}, then {after:?}")
            })?;
            accelerated(lab, "h2")?;
        }
        let server = lab.serve(true, "h2", "0.0.0.0:7006", "h2")?;
        lab.tell(&["fault", "kill", "h2"])?;
        lab.wait_state("h2", "gone")?;
        drop(server);
        let said = lab.reach_in_vain("h1", "h2:7006")?;
        ensure(said == "TIMEOUT" || said == "EHOSTUNREACH", || format!("of a host that is gone: {said}"))?;
        lab.tell(&["start", "h2"])?;
        lab.wait_state("h2", "up")?;
        accelerated(lab, "h2")?;
        let said = lab.reach(true, "h1", "h2:7006")?;
        ensure(said == "ECONNREFUSED", || format!("of a host that was started again: {said}"))?;
        let now = lab.host("h1")?;
        ensure(now.coordinator_pid == bystander.coordinator_pid, || format!("{bystander:?}, then {now:?}"))
    })
}

fn accelerated(lab: &Lab, host: &str) -> Outcome {
    let before = lab.report(host)?.totals.user.connections;
    let _server = lab.serve(true, host, "127.0.0.1:7007", "me")?;
    let said = lab.reach(true, host, "127.0.0.1:7007")?;
    let after = lab.report(host)?.totals.user.connections;
    ensure(said == "reached me" && after == before + 2, || format!("{said}, {before} then {after}"))
}
