//! Python's `socket` module: an echo server and a client that uses every form of I/O.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use harness::child::{Guarded, run_ok};
use harness::{Failure, Outcome, bins, ensure};

use crate::{in_user_space, with_instance};

pub fn echo() -> Outcome {
    with_instance(|instance| {
        in_user_space(instance, 1_000_000, || {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/echo.py");
            let python = bins::program("python3")?;
            let mut command = instance.shimmed(&python);
            command.arg(&script).arg("server").stdin(Stdio::null()).stdout(Stdio::piped());
            let mut server = Guarded::spawn(&mut command)?;
            let out =
                server.stdout().ok_or_else(|| Failure("the server's output is not piped".to_owned()))?;
            let mut port = String::new();
            BufReader::new(out).read_line(&mut port)?;
            let mut client = instance.shimmed(&python);
            client.arg(&script).args(["client", port.trim()]);
            let said = run_ok(&mut client, Duration::from_secs(60))?;
            ensure(said.trim_end().ends_with("all forms agree"), || format!("the client said {said}"))?;
            let status = server.wait(Duration::from_secs(10))?;
            ensure(status.success(), || format!("the server ended with {status}"))
        })
    })
}
