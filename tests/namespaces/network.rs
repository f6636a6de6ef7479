//! Network namespaces.

use std::process::Command;

use harness::census::Census;
use harness::child::run_ok;
use harness::instance::Instance;
use harness::scratch::Scratch;
use harness::voice::Voice;
use harness::{Outcome, bins, ensure};

use crate::scene::{ADDRESS_A, At, BOUND, all_in_user_space, compare, none_in_user_space};

pub fn loopback() -> Outcome {
    compare(
        |scene| {
            let (_server, port) = scene.serve(At::A, "127.0.0.1:0", "a")?;
            [At::A, At::B, At::Home]
                .into_iter()
                .map(|at| scene.reach(at, &format!("127.0.0.1:{port}")))
                .collect()
        },
        &["reached a", "ECONNREFUSED", "ECONNREFUSED"],
        all_in_user_space(1),
    )
}

pub fn same_port() -> Outcome {
    compare(
        |scene| {
            let (_first, port) = scene.serve(At::A, "0.0.0.0:0", "a")?;
            let there = format!("127.0.0.1:{port}");
            let (_second, _) = scene.serve(At::B, &format!("0.0.0.0:{port}"), "b")?;
            [At::A, At::B].into_iter().map(|at| scene.reach(at, &there)).collect()
        },
        &["reached a", "reached b"],
        all_in_user_space(2),
    )
}

pub fn routed() -> Outcome {
    compare(
        |scene| {
            let (_server, port) = scene.serve(At::A, "0.0.0.0:0", "a")?;
            // The same port in the client's own namespace must not be taken for it.
            let (_decoy, _) = scene.serve(At::B, &format!("0.0.0.0:{port}"), "b")?;
            Ok(vec![scene.reach(At::B, &format!("{ADDRESS_A}:{port}"))?])
        },
        &["reached a"],
        none_in_user_space,
    )
}

/// A process that has attached in one namespace and goes to another: what it makes there is there, what it made before is
/// where it was.
pub fn moved() -> Outcome {
    compare(
        |scene| {
            let (_server, port) = scene.serve(At::A, "127.0.0.1:0", "a")?;
            let there = format!("127.0.0.1:{port}");
            let mover = Voice::of(scene.python(At::A, &["move", scene.name(At::B), &there, &port])?)?;
            let mut said = vec![mover.line()?, mover.line()?, mover.line()?, mover.line()?];
            mover.listening()?;
            said.push(scene.reach(At::B, &there)?);
            said.push(scene.reach(At::A, &there)?);
            Ok(said)
        },
        &["reached a", "ECONNREFUSED", "reached a", "reached a", "reached moved", "reached a"],
        // In user space: before the move, by the sockets of that time, and within `a`.
        |totals| ensure(totals.user.connections == 8, || format!("{totals:?}")),
    )
}

/// A process that gives its namespace up for a new one, in which there is nobody, by a system call.
pub fn left() -> Outcome {
    compare(
        |scene| {
            let (_server, port) = scene.serve(At::A, "127.0.0.1:0", "a")?;
            let leaver = Voice::of(scene.python(At::A, &["leave", &format!("127.0.0.1:{port}")])?)?;
            (0..5).map(|_| leaver.line()).collect()
        },
        &["reached a", "reached a", "ENETUNREACH", "reached a", "reached a"],
        all_in_user_space(4),
    )
}

pub fn abstract_names() -> Outcome {
    let name = format!("@ipc-direct-test-name-{}", std::process::id());
    compare(
        |scene| {
            let (_server, _) = scene.serve(At::A, &name, "a")?;
            [At::A, At::B, At::Home].into_iter().map(|at| scene.reach(at, &name)).collect()
        },
        &["reached a", "ECONNREFUSED", "ECONNREFUSED"],
        |_| Ok(()),
    )
}

/// An agent at a path is reached from every network namespace, without a lease: as from containers that mount it.
pub fn agent_at_a_path() -> Outcome {
    let before = Census::take();
    let scratch = Scratch::new()?;
    let path = scratch.path().join("agent");
    let instance = Instance::start_at(&path.display().to_string())?;
    let unshared = |script: &str| -> Outcome<String> {
        let mut command = Command::new(bins::program("unshare")?);
        command.args(["--net", "sh", "-c", script]);
        command.env("LD_PRELOAD", instance.dir().join("libipc_direct.so"));
        run_ok(command.env("IPC_DIRECT_SOCKET", &path).env("IPC_DIRECT_REQUIRE", "1"), BOUND)
    };
    let said = unshared("echo attached")?;
    ensure(said.trim() == "attached", || said)?;
    instance.stop()?;
    ensure(!path.exists(), || format!("{} stays", path.display()))?;
    drop(scratch);
    before.compare()
}
