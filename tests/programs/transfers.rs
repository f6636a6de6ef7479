//! Programs that move bytes from one place to another: rsync's daemon, socat, netcat, iperf3, sockperf.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use harness::child::run_ok;
use harness::{Outcome, bins, ensure, net};
use rustix::process::{Signal, getuid};

use crate::side::{BOUND, Way, compare};

const LEN: usize = 10_000_019;

/// The daemon forks for every client, and talks to its own child through a socket pair.
pub fn rsync() -> Outcome {
    compare(Way::UserSpace(LEN as u64), |side| {
        let port = net::free_port()?;
        let dir = side.dir().join("module");
        fs::create_dir(&dir)?;
        side.file("module/big", LEN)?;
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        run_ok(Command::new(bins::program("cp")?).arg("-r").arg(tree).arg(&dir), BOUND)?;
        let owner = if getuid().is_root() { "uid = root\ngid = root\n" } else { "" };
        let config = format!("use chroot = no\n{owner}[m]\npath = {}\nread only = no\n", dir.display());
        fs::write(side.dir().join("rsyncd.conf"), config)?;
        let mut command = side.program("rsync")?;
        command.args(["--daemon", "--no-detach", "--config=rsyncd.conf", "--address=127.0.0.1"]);
        let server = side.serve("rsync", command.arg(format!("--port={port}")), Signal::TERM)?;
        side.wait_listening(port)?;
        let url = format!("rsync://127.0.0.1:{port}/m/");
        side.run(side.program("rsync")?.args(["-a", &url, "down/"]))?;
        same_tree(&dir, &side.dir().join("down"))?;
        // Back into a new place, compressed; then once more, when only checksums go over.
        for _ in 0..2 {
            side.run(side.program("rsync")?.args(["-a", "-z", "--checksum", "down/", &format!("{url}up/")]))?;
            same_tree(&side.dir().join("down"), &dir.join("up"))?;
        }
        server.kill()
    })
}

fn same_tree(a: &Path, b: &Path) -> Outcome {
    run_ok(Command::new(bins::program("diff")?).arg("-r").arg(a).arg(b), BOUND).map(drop)
}

/// One way, then both ways with a process per client that hands the connection's bytes to another program.
pub fn socat() -> Outcome {
    compare(Way::UserSpace(LEN as u64), |side| {
        let content = side.file("data", LEN)?;
        let port = net::free_port()?;
        let listen = format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,backlog=128");
        let mut command = side.program("socat")?;
        let server = side.serve("one", command.args(["-u", &listen, "CREATE:got"]), Signal::TERM)?;
        side.wait_listening(port)?;
        let peer = format!("TCP:127.0.0.1:{port}");
        side.run(side.program("socat")?.args(["-u", "OPEN:data", &peer]))?;
        let status = server.wait()?;
        ensure(status.success(), || format!("socat ended with {status}"))?;
        ensure(fs::read(side.dir().join("got"))? == content, || "socat wrote something else".to_owned())?;

        let mut command = side.program("socat")?;
        let server =
            side.serve("echo", command.args([&format!("{listen},fork"), "EXEC:cat"]), Signal::TERM)?;
        side.wait_listening(port)?;
        for _ in 0..3 {
            let mut client = side.program("socat")?;
            client.args(["-t", "20", "OPEN:data,rdonly!!CREATE:back", &peer]);
            side.run(&mut client)?;
            ensure(fs::read(side.dir().join("back"))? == content, || "the echo differs".to_owned())?;
        }
        server.kill()
    })
}

/// A file through `nc`, which waits with poll(2) and half-closes at the end.
pub fn netcat() -> Outcome {
    compare(Way::UserSpace(LEN as u64), |side| {
        let content = side.file("data", LEN)?;
        let port = net::free_port()?;
        // Its standard output is what came.
        let mut command = side.program("nc")?;
        let server = side.serve("got", command.args(["-l", "127.0.0.1", &port.to_string()]), Signal::TERM)?;
        side.wait_listening(port)?;
        let mut client = side.program("nc")?;
        client.args(["-N", "127.0.0.1", &port.to_string()]);
        client.stdin(File::open(side.dir().join("data"))?).stdout(Stdio::null());
        let mut client = harness::child::Guarded::spawn(&mut client)?;
        let status = client.wait(BOUND)?;
        ensure(status.success(), || format!("nc ended with {status}"))?;
        let status = server.wait()?;
        ensure(status.success(), || format!("nc -l ended with {status}"))?;
        let log = side.dir().join("got.log");
        let got = fs::read(&log)?;
        fs::remove_file(&log)?;
        ensure(got == content, || format!("nc wrote {} bytes that differ", got.len()))
    })
}

/// Both directions, several streams, sendfile, small writes.
pub fn iperf3() -> Outcome {
    compare(Way::UserSpace(1_000_000_000), |side| {
        let port = net::free_port()?.to_string();
        let mut command = side.program("iperf3")?;
        let server =
            side.serve("iperf3", command.args(["-s", "-B", "127.0.0.1", "-p", &port]), Signal::TERM)?;
        side.wait_listening(port.parse()?)?;
        let modes: [&[&str]; 6] =
            [&[], &["--reverse"], &["--parallel", "4"], &["--zerocopy"], &["--bidir"], &["--length", "1K"]];
        for mode in modes {
            let mut client = side.program("iperf3")?;
            client.args(["-c", "127.0.0.1", "-p", &port, "-t", "1", "--json"]).args(mode);
            let said = String::from_utf8(side.run(&mut client)?)?;
            let report: serde_json::Value = serde_json::from_str(&said)?;
            let sum = report.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64);
            let name = format!("iperf3 {}, bit/s:", mode.join(" "));
            side.figure(name, &sum.map(|n| n.to_string()).unwrap_or_default(), "")?;
        }
        server.kill()
    })
}

/// Ping-pong, as fast as it goes, and at a given rate. Ping-pong is held back: sockperf gives up when more messages come than
/// it expected of any network.
pub fn sockperf() -> Outcome {
    compare(Way::UserSpace(500_000), |side| {
        let port = net::free_port()?.to_string();
        let place = ["--tcp", "-i", "127.0.0.1", "-p", &port];
        let mut command = side.program("sockperf")?;
        let server = side.serve("sockperf", command.arg("server").args(place), Signal::INT)?;
        side.wait_listening(port.parse()?)?;
        let modes: [(&str, &[&str], &str); 3] = [
            ("ping-pong", &["--mps", "100000"], "Summary: Latency is"),
            ("throughput", &[], "Summary: Message Rate is"),
            ("under-load", &["--mps", "1000"], "Summary: Latency is"),
        ];
        for (mode, arguments, mark) in modes {
            let mut client = side.program("sockperf")?;
            client.arg(mode).args(place).args(["-t", "1"]).args(arguments);
            let said = String::from_utf8(side.run(&mut client)?)?;
            side.figure(format!("sockperf {mode}, {}", mark.trim_start_matches("Summary: ")), &said, mark)?;
        }
        server.kill()
    })
}

/// Datagrams are not accelerated: they go through the kernel, as if we were not there.
pub fn sockperf_udp() -> Outcome {
    compare(Way::Kernel, |side| {
        let port = net::free_port()?.to_string();
        let place = ["-i", "127.0.0.1", "-p", &port];
        let mut command = side.program("sockperf")?;
        let server = side.serve("sockperf", command.arg("server").args(place), Signal::INT)?;
        side.wait_said("sockperf", "to block on socket")?;
        let mut client = side.program("sockperf")?;
        client.arg("ping-pong").args(place).args(["-t", "1"]);
        let said = String::from_utf8(side.run(&mut client)?)?;
        side.figure("sockperf UDP ping-pong, µs".to_owned(), &said, "Summary: Latency is")?;
        server.kill()
    })
}
