//! Round trips between two processes: the `pingpong` program as server and as client, on any path.

use std::io::{BufRead as _, BufReader};
use std::path::Path as FilePath;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::child::{Guarded, run_ok};
use harness::instance::Instance;
use harness::{Failure, Outcome, fail};
use serde::{Deserialize, Serialize};

use crate::path::Path;

/// How both processes wait for the next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// In a blocking `recv`.
    Blocking,
    /// In `epoll_wait`, level-triggered.
    Epoll,
}

/// What the client measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RoundTrips {
    /// Half of the round trips took at most this, in ns.
    pub p50_ns: u32,
    /// 99% of the round trips took at most this, in ns.
    pub p99_ns: u32,
    /// How many there were.
    pub rounds: u64,
}

/// Measures for about `seconds` with messages of `bytes`. `program`: the `pingpong` binary.
///
/// # Errors
/// When one of the two processes fails.
pub fn measure(
    program: &FilePath,
    instance: &Instance,
    path: Path,
    wait: Wait,
    bytes: usize,
    seconds: f64,
) -> Outcome<RoundTrips> {
    let command = || match path {
        Path::Direct => instance.shimmed(program),
        Path::Tcp | Path::Unix => Command::new(program),
    };
    let how = match wait {
        Wait::Blocking => "blocking",
        Wait::Epoll => "epoll",
    };
    let common = ["--wait", how, "--bytes", &bytes.to_string()].map(str::to_owned);
    let listen = if path == Path::Unix { "unix" } else { "127.0.0.1:0" };
    let mut server = Guarded::spawn(
        command()
            .arg("server")
            .args(&common)
            .args(["--listen", listen])
            .stdin(Stdio::null())
            .stdout(Stdio::piped()),
    )?;
    let Some(out) = server.stdout() else { return fail("the server's output is not piped") };
    let mut address = String::new();
    BufReader::new(out).read_line(&mut address)?;
    let client_bound = Duration::from_secs(20) + Duration::from_secs_f64(seconds);
    let text = run_ok(
        command().arg("client").args(&common).args([
            "--connect",
            address.trim(),
            "--seconds",
            &seconds.to_string(),
        ]),
        client_bound,
    )?;
    server.wait(Duration::from_secs(10))?;
    serde_json::from_str(&text).map_err(|e| Failure(format!("pingpong client wrote {text:?}: {e}")))
}
