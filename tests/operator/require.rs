//! `run --require` and `IPC_DIRECT_REQUIRE`: rather not started than not accelerated.

use std::process::Command;
use std::time::Duration;

use harness::instance::{Instance, fresh_socket};
use harness::scratch::Scratch;
use harness::{Outcome, bins, child, ensure};

use crate::check::{NOTHING, compile};
use crate::with_instance;

const BOUND: Duration = Duration::from_secs(60);
/// Status of `run` when it does not start the program.
const NOT_STARTED: i32 = 125;

/// Fails to start with one sentence that has `word` in it, and prints nothing else.
fn is_refused(command: &mut Command, word: &str) -> Outcome {
    let output = child::run(command, BOUND)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure(output.status.code() == Some(NOT_STARTED) && output.stdout.is_empty(), || {
        format!("{command:?} ended with {}: {said}", output.status)
    })?;
    ensure(said.lines().count() == 1 && said.starts_with("ipc-direct: ") && said.contains(word), || {
        format!("{command:?} said: {said}")
    })
}

fn required(instance: &Instance) -> Command {
    let mut command = instance.command();
    command.args(["run", "--require", "--"]);
    command
}

/// It runs, and is attached before it has done anything.
pub fn accelerated() -> Outcome {
    with_instance(|instance| {
        let mut command = required(instance);
        let own = bins::product_dir()?.join("ipc-direct");
        let json = child::run_ok(command.arg(own).args(["ps", "--json"]), BOUND)?;
        ensure(json.contains("\"command\": \"ipc-direct\""), || format!("it is not attached itself:\n{json}"))
    })
}

pub fn not_accelerated() -> Outcome {
    let scratch = Scratch::new()?;
    let program = compile(scratch.path(), "static", NOTHING, &["-static"])?;
    with_instance(|instance| {
        is_refused(required(instance).arg(&program), "statically linked")?;
        is_refused(required(instance).arg("no-such-program"), "no such program")
    })
}

/// The shim itself, when the agent is gone by the time the program starts.
pub fn no_agent() -> Outcome {
    let mut command = Command::new(bins::program("echo")?);
    command.arg("started").env("LD_PRELOAD", bins::product_dir()?.join("libipc_direct.so"));
    command.env("IPC_DIRECT_SOCKET", fresh_socket()).env("IPC_DIRECT_REQUIRE", "1");
    is_refused(&mut command, "no agent answers")
}
