//! curl against Python's own web server.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::child::{Guarded, run_ok};
use harness::instance::Instance;
use harness::scratch::Scratch;
use harness::wire::Pattern;
use harness::{Outcome, bins, ensure, net};

use crate::{in_user_space, with_instance};

const BOUND: Duration = Duration::from_secs(60);
/// An odd size, so that it ends in the middle of everything.
const SIZE: usize = 10_000_019;

/// Serves a directory with the one file `data`.
fn with_server(body: impl FnOnce(&Instance, &Scratch, u16, &[u8]) -> Outcome) -> Outcome {
    with_instance(|instance| {
        let scratch = Scratch::new()?;
        let pattern = Pattern::default();
        let mut content = Vec::with_capacity(SIZE);
        while content.len() < SIZE {
            content.extend_from_slice(pattern.at(content.len() as u64, SIZE - content.len()));
        }
        fs::write(scratch.path().join("data"), &content)?;
        let port = net::free_port()?;
        let mut command = instance.shimmed(bins::program("python3")?);
        command.args(["-m", "http.server", &port.to_string(), "--bind", "127.0.0.1", "--directory"]);
        command.arg(scratch.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Guarded::spawn(&mut command)?;
        instance.wait_listening(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        body(instance, &scratch, port, &content)?;
        drop(server);
        Ok(())
    })
}

fn curl(instance: &Instance, scratch: &Scratch, port: u16, name: &str) -> Outcome<Command> {
    let mut command = instance.shimmed(bins::program("curl")?);
    command.args(["--silent", "--show-error", "--fail", "--max-time", "50", "--noproxy", "*", "--output"]);
    command.arg(scratch.path().join(name)).arg(format!("http://127.0.0.1:{port}/data"));
    Ok(command)
}

fn check(scratch: &Scratch, name: &str, content: &[u8]) -> Outcome {
    let got = fs::read(scratch.path().join(name))?;
    ensure(got == content, || format!("curl got {} bytes that differ from the file", got.len()))
}

pub fn curl_gets_a_file() -> Outcome {
    with_server(|instance, scratch, port, content| {
        in_user_space(instance, SIZE as u64, || {
            run_ok(&mut curl(instance, scratch, port, "got")?, BOUND)?;
            check(scratch, "got", content)
        })
    })
}

pub fn curls_in_parallel() -> Outcome {
    with_server(|instance, scratch, port, content| {
        in_user_space(instance, 4 * SIZE as u64, || {
            let names = ["a", "b", "c", "d"];
            let start =
                |name: &&str| Guarded::spawn(curl(instance, scratch, port, name)?.stdin(Stdio::null()));
            let mut all = names.iter().map(start).collect::<Outcome<Vec<Guarded>>>()?;
            for (process, name) in all.iter_mut().zip(names) {
                let status = process.wait(BOUND)?;
                ensure(status.success(), || format!("curl ended with {status}"))?;
                check(scratch, name, content)?;
            }
            Ok(())
        })
    })
}
