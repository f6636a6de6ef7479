//! The TCP cases with client and server on different hosts of a lab, natively and with both under the shim.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::Outcome;
use harness::counters::Totals;
use harness::lab::{Lab, Machine};
use harness::suite::trial_within;
use harness::wire::{Addr, Op};
use libtest_mimic::Arguments;

use crate::driver::{self, Duo, Mode, Stage};
use crate::matrix::Family;
use crate::{CASE_MAX, Expect, GROUPS, WORKER, path, same};

/// How long what one side does has to arrive before the other's next call. A busy machine, and a lost datagram, may take longer: a case that
/// differs is run once more with a longer way, and must agree then.
const ON_THE_WAY: [Duration; 2] = [Duration::from_millis(15), Duration::from_millis(150)];

/// Cases that are about one host, and why.
const AT_HOME: &[(&str, &str)] = &[
    ("connect::from_bound_address_only", OTHER_LOOPBACK),
    ("families::specific_beats_wildcard", OTHER_LOOPBACK),
    ("names::other_loopback_address", OTHER_LOOPBACK),
    ("figures::segments_and_paths", PATH),
    ("figures::paths_of_ipv6", PATH),
];
const OTHER_LOOPBACK: &str =
    "it is about more addresses of the loopback network, and no host reaches another one there";
const PATH: &str = "the figures are of the loopback's path (a segment of 64 KiB), also to another host";

/// `op` as it is told to a party: this host's loopback is another host's when that is meant.
pub fn told(op: &Op, [own, other]: [u32; 2]) -> Op {
    let on = |host: u32, addr: &Addr| Addr {
        ip: match addr.ip.as_str() {
            "127.0.0.1" => format!("10.99.0.{host}"),
            "::1" => format!("fd99::{host}"),
            "::ffff:127.0.0.1" => format!("::ffff:10.99.0.{host}"),
            ip => ip.to_owned(),
        },
        port: addr.port,
    };
    let mut op = op.clone();
    match &mut op {
        Op::Bind { addr, .. } => *addr = on(own, addr),
        // The wildcard addresses mean this host, too.
        Op::Connect { addr, .. } => {
            *addr = match addr.ip.as_str() {
                "0.0.0.0" => on(other, &Addr { ip: "127.0.0.1".into(), port: addr.port }),
                "::" => on(other, &Addr { ip: "::1".into(), port: addr.port }),
                _ => on(other, addr),
            }
        }
        Op::Start { op } => **op = told(op, [own, other]),
        _ => {}
    }
    op
}

type Pool = Arc<Mutex<Vec<Lab>>>;

/// Runs them. `network`: `good`, or `lossy` for 2 % of the coordinators' datagrams lost.
pub fn main(arguments: &Arguments, network: &OsStr) -> ExitCode {
    let lossy = network == "lossy";
    let before = match Machine::take() {
        Ok(before) => before,
        Err(e) => return failed(&e.0),
    };
    // From this thread: a lab ends with the thread that started it.
    let labs = if arguments.list { 0 } else { arguments.test_threads.unwrap_or(1) };
    let pool = match (0..labs).map(|_| start(lossy)).collect::<Outcome<Vec<Lab>>>() {
        Ok(labs) => Pool::new(Mutex::new(labs)),
        Err(e) => return failed(&e.0),
    };
    let tcp = GROUPS.iter().filter(|g| g.family == Family::Tcp && g.modes.contains(&Mode::Both));
    let cases =
        tcp.flat_map(|group| group.cases).filter(|(name, ..)| !AT_HOME.iter().any(|(n, _)| n == name));
    let trials = cases.map(|(name, expect, script)| {
        let pool = Arc::clone(&pool);
        trial_within((*name).to_owned(), CASE_MAX, move || {
            let free = pool.lock().ok().and_then(|mut labs| labs.pop());
            let lab = free.map_or_else(|| start(lossy), Ok)?;
            let [short, long] = ON_THE_WAY;
            if let Err(e) = differential(&lab, short, *expect, *script) {
                println!("{name}, once more with a longer way, since: {}", e.0);
                differential(&lab, long, *expect, *script)?;
            }
            if let Ok(mut labs) = pool.lock() {
                labs.push(lab);
            }
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(arguments, trials.collect());
    let labs = pool.lock().map(|mut labs| std::mem::take(&mut *labs)).unwrap_or_default();
    match labs.into_iter().try_for_each(Lab::down).and_then(|()| before.compare()) {
        Ok(()) => conclusion.exit_code(),
        Err(e) => failed(&e.0),
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("after all cases: {why}");
    ExitCode::FAILURE
}

fn start(lossy: bool) -> Outcome<Lab> {
    let lab = Lab::start(2)?;
    lab.wait_met()?;
    if lossy {
        lab.tell(&["fault", "link", "h1", "--loss", "2", "--port", "card"])?;
    }
    Ok(lab)
}

fn differential(lab: &Lab, on_the_way: Duration, expect: Expect, script: fn(&Duo)) -> Outcome {
    let (worker, stage) = (Path::new(WORKER), Stage::Hosts(lab, on_the_way));
    let (native, ()) = driver::run(worker, stage, Mode::Native, script, || Ok(()))?;
    let before = totals(lab)?;
    let (run, after) = driver::run(worker, stage, Mode::Both, script, || totals(lab))?;
    same(Mode::Both, &native.lines, &run.lines)?;
    path(Mode::Both, expect, after - before)
}

fn totals(lab: &Lab) -> Outcome<Totals> {
    let (one, other) = (lab.report("h1")?.totals, lab.report("h2")?.totals);
    Ok(one + other)
}
