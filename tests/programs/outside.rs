//! Programs that no preloaded library reaches: static ones, and Go's, which make their system calls themselves. They
//! work, through the kernel, with programs under the shim as their peers.

use harness::{Outcome, ensure, net};
use rustix::process::Signal;

use crate::nginx::{self, Site};
use crate::side::{Way, compare};

const LEN: usize = 10_000_019;

/// busybox, linked statically: its web server for a shimmed curl, its wget at a shimmed nginx.
pub fn static_program() -> Outcome {
    compare(Way::Kernel, |side| {
        let content = side.file("big", LEN)?;
        let port = net::free_port()?;
        let mut command = side.program("busybox")?;
        let server = side.serve(
            "busybox",
            command.args(["httpd", "-f", "-p", &format!("127.0.0.1:{port}")]),
            Signal::TERM,
        )?;
        net::wait_bound(port)?;
        side.expect(&format!("http://127.0.0.1:{port}/big"), &content)?;
        server.kill()?;

        let port = net::free_port()?;
        let server = nginx::start(side, "nginx", port, &Site::default())?;
        let mut wget = side.program("busybox")?;
        let got = side.run(wget.args(["wget", "-q", "-O", "-", &format!("http://127.0.0.1:{port}/big")]))?;
        ensure(got == content, || format!("wget got {} bytes that differ", got.len()))?;
        server.stop()
    })
}

/// `hey`, a load program written in Go, at a shimmed nginx.
pub fn go_program() -> Outcome {
    compare(Way::Kernel, |side| {
        side.file("1k", 1024)?;
        let port = net::free_port()?;
        let server = nginx::start(side, "nginx", port, &Site::default())?;
        let mut load = side.program("hey")?;
        load.args(["-n", "2000", "-c", "20", &format!("http://127.0.0.1:{port}/1k")]);
        let said = String::from_utf8(side.run(&mut load)?)?;
        ensure(said.contains("[200]\t2000 responses"), || format!("hey did not get 2000 answers:\n{said}"))?;
        side.figure("hey (Go), requests/s".to_owned(), &said, "Requests/sec:")?;
        server.stop()
    })
}
