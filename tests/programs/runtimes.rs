//! Language runtimes with event loops and thread pools of their own: node and Java as HTTP servers and clients,
//! gunicorn as a pre-fork server.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use harness::child::wait_for;
use harness::{Outcome, ensure, fail, net};
use rustix::process::Signal;

use crate::side::{BOUND, Side, Way, compare};

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name)
}

/// Kept and closed connections, uploads, downloads, `fetch`; the client checks every byte.
pub fn node() -> Outcome {
    compare(Way::UserSpace(30_000_000), |side| {
        let port = net::free_port()?;
        let node = |side: &Side, role: &str| {
            side.program("node").map(|mut command| {
                command.arg(source("http.js")).args([role, &port.to_string()]);
                command
            })
        };
        let server = side.serve("node", &mut node(side, "server")?, Signal::TERM)?;
        side.wait_listening(port)?;
        let said = String::from_utf8(side.run(&mut node(side, "client")?)?)?;
        side.figure("node, 20 connections, requests/s".to_owned(), &said, "requests/s")?;
        server.stop()
    })
}

/// node's cluster: the primary accepts and sends every connection to a worker over AF_UNIX. Each goes on through a relay.
pub fn node_cluster() -> Outcome {
    compare(Way::Mostly(1000), |side| {
        let port = net::free_port()?;
        let mut command = side.program("node")?;
        command.arg(source("cluster.js")).arg(port.to_string());
        let server = side.serve("cluster", &mut command, Signal::TERM)?;
        side.wait_listening(port)?;
        let mut workers = BTreeSet::new();
        for _ in 0..10 {
            workers.insert(side.run(&mut side.curl(&format!("http://127.0.0.1:{port}/"))?)?);
        }
        ensure(workers.len() == 2, || format!("{} workers have answered", workers.len()))?;
        server.stop()
    })
}

/// `com.sun.net.httpserver` with a thread pool; `java.net.http` and plain sockets as clients, which check every byte.
pub fn java() -> Outcome {
    compare(Way::UserSpace(20_000_000), |side| {
        let classes = side.dir().join("classes");
        let mut compile = side.program("javac")?;
        side.run(compile.arg("-d").arg(&classes).arg(source("Web.java")))?;
        let port = net::free_port()?;
        let java = |side: &Side, role: &str| {
            side.program("java").map(|mut command| {
                command.arg("-cp").arg(&classes).args(["Web", role, &port.to_string()]);
                command
            })
        };
        let server = side.serve("java", &mut java(side, "server")?, Signal::TERM)?;
        side.wait_listening(port)?;
        let said = String::from_utf8(side.run(&mut java(side, "client")?)?)?;
        side.figure("Java, 50 requests at once, requests/s".to_owned(), &said, "requests/s")?;
        server.stop()
    })
}

/// Three workers that accept from one socket, and serve one request after the other.
pub fn gunicorn_sync() -> Outcome {
    compare(Way::UserSpace(10_000_000), |side| gunicorn(side, &["-k", "sync"]))
}

/// Three workers that accept from one socket, with four threads each.
pub fn gunicorn_threads() -> Outcome {
    compare(Way::UserSpace(10_000_000), |side| gunicorn(side, &["-k", "gthread", "--threads", "4"]))
}

fn gunicorn(side: &mut Side, kind: &[&str]) -> Outcome {
    let port = net::free_port()?;
    let mut command = side.program("gunicorn")?;
    command.args(["-w", "3", "--backlog", "1024", "-b", &format!("127.0.0.1:{port}"), "--pythonpath"]);
    command.arg(source("")).args(kind).arg("wsgi:app").env("PYTHONDONTWRITEBYTECODE", "1");
    let server = side.serve("gunicorn", &mut command, Signal::TERM)?;
    side.wait_listening(port)?;
    let url = format!("http://127.0.0.1:{port}/");
    side.wrk(&url, 8, false)?;
    let content = side.file("upload", 10_000_019)?;
    let said = side.run(side.program("sha256sum")?.arg("upload"))?;
    let mut upload = side.curl(&url)?;
    let digest = side.run(upload.args(["-H", "Expect:", "--data-binary", "@upload"]))?;
    ensure(said.starts_with(&digest) && digest.len() == 64, || {
        format!("the server got something else than the {} bytes of the upload", content.len())
    })?;
    // HUP replaces the workers; who answered before does not answer again.
    let before = side.run(&mut side.curl(&url)?)?;
    server.signal(Signal::HUP);
    let replaced = wait_for(BOUND, || {
        let mut answers = (0..5).map(|_| side.run(&mut side.curl(&url)?)).collect::<Outcome<Vec<_>>>()?;
        answers.retain(|answer| *answer == before);
        Ok(answers.is_empty().then_some(()))
    })?;
    if replaced.is_none() {
        return fail("the old workers still answer after HUP");
    }
    server.stop()
}
