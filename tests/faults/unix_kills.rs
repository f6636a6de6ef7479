//! kill -9 of each party while an `AF_UNIX` connection is on its way out of the kernel: between offer and claim, between claim
//! and join, and before the first byte in user space.

use harness::Outcome;
use harness::child::wait_for;
use harness::instance::Instance;
use harness::{ensure, fail};
use rustix::process::Signal;

use crate::kills::{BOUND, kill_and_wait};
use crate::unix_pair::{GROWN, MOMENTS, Moment, Pair, Party};
use crate::with_instance;

pub fn agent() -> Outcome {
    trusted(|instance| Ok(instance.agent_pid()))
}

pub fn coordinator() -> Outcome {
    trusted(Instance::coordinator_pid)
}

/// Both programs go on, over the kernel or in user space, and new connections leave the kernel once there is another agent.
fn trusted(victim: fn(&Instance) -> Outcome<u32>) -> Outcome {
    with_instance(|instance| {
        let pair = Pair::new(instance)?;
        for moment in MOMENTS {
            let grown = pair.until_accelerated()?;
            let conn = pair.connect_until(moment)?;
            kill_and_wait(pair.instance, victim)?;
            named(moment, pair.exchange(&conn, 2 * GROWN))?;
            named(moment, pair.exchange(&grown, GROWN))?;
            pair.instance.start_again()?;
            let new = named(moment, pair.until_accelerated())?;
            for conn in [&conn, &grown, &new] {
                named(moment, pair.exchange(conn, GROWN))?;
                pair.close(conn)?;
            }
        }
        Ok(())
    })
}

/// The server reads the end, and serves the next client.
pub fn client() -> Outcome {
    each_moment(|pair, moment| {
        let conn = pair.connect_until(moment)?;
        pair.client.process.signal(Signal::KILL);
        pair.client.process.wait(BOUND)?;
        ends(&pair.server, conn.s)?;
        pair.client = Party::new(pair.instance)?;
        pair.until_accelerated().map(drop)
    })
}

/// The client reads the end, and finds another server.
pub fn server() -> Outcome {
    each_moment(|pair, moment| {
        let conn = pair.connect_until(moment)?;
        pair.server.process.signal(Signal::KILL);
        pair.server.process.wait(BOUND)?;
        ends(&pair.client, conn.c)?;
        pair.server = Party::new(pair.instance)?;
        pair.name.ip.push('x');
        pair.listener = pair.server.listen(&pair.name)?;
        pair.until_accelerated().map(drop)
    })
}

/// What unix(7) says of a peer that is gone and has left nothing unread: the end, and an error for who still writes. Who writes to
/// the ring hears it from the coordinator, a moment after the kernel has told the end.
fn ends(survivor: &Party, fd: i32) -> Outcome {
    let end = survivor.until_end(fd)?;
    ensure(end.ret == 0, || format!("the survivor does not read the end: {end:?}"))?;
    let refused = wait_for(BOUND, || Ok((survivor.send(fd, b"x", 0)?.errno == libc::EPIPE).then_some(())))?;
    ensure(refused.is_some(), || "the survivor can still write".to_owned())
}

fn each_moment(test: fn(&mut Pair, Moment) -> Outcome) -> Outcome {
    MOMENTS.iter().try_for_each(|moment| with_instance(|i| named(*moment, test(&mut Pair::new(i)?, *moment))))
}

fn named<T>(moment: Moment, outcome: Outcome<T>) -> Outcome<T> {
    outcome.or_else(|e| fail(format!("{moment:?}: {}", e.0)))
}
