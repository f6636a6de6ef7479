//! Who is who: pid and user namespaces, users, chroot.

use harness::voice::Voice;
use harness::{Outcome, bins, ensure};
use rustix::process::Signal;

use crate::scene::{At, Scene, all_in_user_space, compare};

/// The scene's program behind another program's arguments.
fn behind(scene: &Scene<'_>, program: &str, options: &[&str], arguments: &[&str]) -> Outcome<Voice> {
    let mut command = scene.command(At::Home, bins::program(program)?)?;
    // What python itself would be started with.
    let python = scene.python(At::Home, arguments)?;
    let inner: Vec<_> = python.get_args().collect();
    let from = inner.iter().position(|a| *a == "-c").unwrap_or_default();
    command.args(options).arg(bins::program("python3")?).args(inner.get(from..).unwrap_or_default());
    Voice::of(command)
}

/// Server and client each in a pid namespace of its own, where both have the same number.
pub fn pid_namespaces() -> Outcome {
    const OWN: &[&str] = &["--pid", "--fork", "--kill-child", "--mount-proc"];
    compare(
        |scene| {
            let server = behind(scene, "unshare", OWN, &["serve", "127.0.0.1:0", "inside"])?;
            let there = format!("127.0.0.1:{}", server.listening()?);
            let client = behind(scene, "unshare", OWN, &["reach", &there])?;
            Ok(vec![client.line()?, scene.reach(At::Home, &there)?])
        },
        &["reached inside", "reached inside"],
        all_in_user_space(2),
    )
}

/// Its peer hears of the death of a process whose number it could not name.
pub fn death() -> Outcome {
    compare(
        |scene| {
            let server = behind(
                scene,
                "unshare",
                &["--pid", "--fork", "--kill-child", "--mount-proc"],
                &["serve", "127.0.0.1:0", ""],
            )?;
            let there = format!("127.0.0.1:{}", server.listening()?);
            // The greeting is empty, so the client waits for the end.
            let client = Voice::of(scene.python(At::Home, &["reach", &there])?)?;
            std::thread::sleep(std::time::Duration::from_millis(500));
            server.process.signal(Signal::KILL);
            Ok(vec![client.line()?])
        },
        &["reached"],
        all_in_user_space(1),
    )
}

/// Root inside, somebody else outside.
pub fn user_namespace() -> Outcome {
    compare(
        |scene| {
            let (_server, port) = scene.serve(At::Home, "127.0.0.1:0", "outside")?;
            let there = format!("127.0.0.1:{port}");
            Ok(vec![behind(scene, "unshare", &["--user", "--map-root-user"], &["reach", &there])?.line()?])
        },
        &["reached outside"],
        all_in_user_space(1),
    )
}

/// Root's agent serves everybody; `nobody` reaches what root serves, as in the kernel.
pub fn two_users() -> Outcome {
    compare(
        |scene| {
            let (_server, port) = scene.serve(At::Home, "127.0.0.1:0", "root")?;
            let there = format!("127.0.0.1:{port}");
            let nobody = &["--reuid=65534", "--regid=65534", "--clear-groups"];
            Ok(vec![behind(scene, "setpriv", nobody, &["reach", &there])?.line()?])
        },
        &["reached root"],
        |totals| ensure(totals.user.connections == 2, || format!("{totals:?}")),
    )
}

/// The first socket after chroot(2).
pub fn chroot() -> Outcome {
    compare(
        |scene| {
            let (_server, port) = scene.serve(At::Home, "127.0.0.1:0", "outside")?;
            let there = format!("127.0.0.1:{port}");
            let client = Voice::of(scene.python(At::Home, &["leave_root", &there, "/run"])?)?;
            Ok(vec![client.line()?])
        },
        &["reached outside"],
        all_in_user_space(1),
    )
}
