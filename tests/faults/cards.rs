//! The card is stuck, lost, or starts anew (`ipc-direct fault`), or behind a slow bus: what is connected goes on, what is new
//! comes through, and is accelerated again.

use std::time::Duration;

use harness::child::{run_ok, wait_for};
use harness::instance::{Instance, with_instance, with_instance_behind};
use harness::transfer::BOUND;
use harness::{Outcome, ensure};

use crate::restarts::{Holder, server, until_accelerated};

/// How long the command may take.
const SOON: Duration = Duration::from_secs(10);

fn break_it(instance: &Instance, how: &[&str]) -> Outcome {
    run_ok(instance.command().arg("fault").args(how), SOON).map(drop)
}

fn epoch(instance: &Instance) -> Option<u32> {
    instance.report().ok().map(|report| report.agent.epoch)
}

pub fn stuck() -> Outcome {
    with_instance(|instance| {
        let (_server, addr) = server(instance, "0")?;
        let mut old = Holder::start(instance, addr)?;
        old.ping()?;
        let before = (epoch(instance), instance.totals()?);
        break_it(instance, &["stuck", "--ms", "600000"])?;
        old.ping_anew()?;
        let moved = instance.totals()? - before.1;
        ensure(moved.kernel.connections == 2 && moved.user.connections == 0, || format!("{moved:?}"))?;
        break_it(instance, &["stuck", "--ms", "0"])?;
        until_accelerated(instance, addr)?.ping()?;
        ensure(epoch(instance) == before.0, || "it is another card".to_owned())
    })
}

pub fn link_loss() -> Outcome {
    with_instance(|instance| {
        let (_server, addr) = server(instance, "0")?;
        let mut old = Holder::start(instance, addr)?;
        old.ping()?;
        break_it(instance, &["link-loss"])?;
        instance.wait_gone(BOUND)?;
        old.ping()?;
        // By the kernel.
        old.ping_anew()?;
        instance.start_again()?;
        until_accelerated(instance, addr)?.ping()?;
        old.ping()
    })
}

pub fn reset() -> Outcome {
    with_instance(|instance| {
        let (_server, addr) = server(instance, "0")?;
        let mut old = Holder::start(instance, addr)?;
        for _ in 0..2 {
            old.ping()?;
            let (agent, before) = (instance.agent_pid(), epoch(instance));
            break_it(instance, &["reset"])?;
            let again = wait_for(BOUND, || Ok(epoch(instance).filter(|now| Some(*now) != before)))?;
            ensure(again.is_some(), || "the card does not come back".to_owned())?;
            let report = instance.report()?;
            ensure(report.agent.pid == agent, || "it is another agent".to_owned())?;
            // Of the server and the client, which `run` started.
            ensure(report.agent.leases >= 2, || format!("{} leases", report.agent.leases))?;
            old.ping()?;
            until_accelerated(instance, addr)?.ping()?;
        }
        old.ping()
    })
}

/// Everything works as slow as it is, and says so.
pub fn slow_bus() -> Outcome {
    let profile = "bluefield2,seed=3";
    with_instance_behind(profile, |instance| {
        let (_server, addr) = server(instance, "0")?;
        let mut holder = until_accelerated(instance, addr)?;
        holder.ping()?;
        let said = instance.report()?.agent.pcie_profile;
        ensure(said == profile, || format!("ps --json says {said}"))?;
        let shown = run_ok(instance.command().arg("ps"), SOON)?;
        ensure(shown.contains("as slow as bluefield2,seed=3"), || format!("ps says {shown}"))?;
        let before = epoch(instance);
        break_it(instance, &["reset"])?;
        let again = wait_for(BOUND, || Ok(epoch(instance).filter(|now| Some(*now) != before)))?;
        ensure(again.is_some(), || "the card does not come back".to_owned())?;
        until_accelerated(instance, addr)?.ping()?;
        let said = instance.report()?.agent.pcie_profile;
        ensure(said == profile, || format!("after a reset it says {said}"))
    })
}
