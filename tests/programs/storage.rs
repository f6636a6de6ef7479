//! Programs that keep data for others: memcached with four threads, PostgreSQL with a process per connection.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use harness::child::run_ok;
use harness::{Outcome, bins, ensure, net};
use rustix::process::{Signal, getuid};

use crate::side::{BOUND, Side, Way, compare};

/// memcached's own load program, and a value of a size that goes in and comes out the same.
pub fn memcached() -> Outcome {
    compare(Way::UserSpace(50_000_000), |side| {
        let port = net::free_port()?;
        let mut command = side.program("memcached")?;
        command.args(["-t", "4", "-l", "127.0.0.1", "-U", "0", "-p", &port.to_string()]);
        if getuid().is_root() {
            command.args(["-u", "nobody"]);
        }
        let server = side.serve("memcached", &mut command, Signal::TERM)?;
        side.wait_listening(port)?;
        let servers = format!("--servers=127.0.0.1:{port}");
        for arguments in [&["--test=set"][..], &["--test=get"], &["--test=mget"], &["--test=get", "--binary"]]
        {
            let mut load = side.program("memcslap")?;
            load.args(arguments).args(["--concurrency=20", "--execute-number=500"]).arg(&servers);
            side.run(&mut load)?;
        }
        let mut load = side.program("memcaslap")?;
        load.args(["-T", "2", "-c", "32", "-t", "2s", "-s", &format!("127.0.0.1:{port}")]);
        let said = String::from_utf8(side.run(&mut load)?)?;
        side.figure("memcached, 32 connections, operations/s".to_owned(), &said, "TPS:")?;
        let content = side.file("value", 1_000_003)?;
        let mut put = side.program("memccp")?;
        side.run(put.arg(&servers).arg("value"))?;
        let mut get = side.program("memccat")?;
        let got = side.run(get.arg(&servers).args(["--file=got", "value"]))?;
        let got = fs::read(side.dir().join("got")).unwrap_or(got);
        ensure(got == content, || format!("memccat got {} bytes that differ", got.len()))?;
        server.stop()
    })
}

/// A cluster of one's own, with TCP and a unix socket, for `pgbench` in all its modes and two bulk copies.
pub fn postgres() -> Outcome {
    compare(Way::Mostly(5_000_000), |side| {
        let bin = bins::postgres()?;
        let data = side.dir().join("data");
        fs::create_dir(&data)?;
        // PostgreSQL does not run as root.
        if getuid().is_root() {
            let id = |what: &str| -> Outcome<u32> {
                let text = run_ok(Command::new(bins::program("id")?).args([what, "postgres"]), BOUND)?;
                Ok(text.trim().parse()?)
            };
            chown(&data, Some(id("-u")?), Some(id("-g")?))?;
        }
        let mut initdb = as_postgres(side, &bin.join("initdb"))?;
        side.run(initdb.args(["--no-sync", "-A", "trust", "-U", "postgres", "-D"]).arg(&data))?;
        let port = net::free_port()?;
        let mut command = as_postgres(side, &bin.join("postgres"))?;
        command.arg("-D").arg(&data).args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
        command.arg("-c").arg(format!("unix_socket_directories={}", data.display()));
        let server = side.serve("postgres", command.args(["-p", &port.to_string()]), Signal::INT)?;
        side.wait_said("postgres", "ready to accept connections")?;
        loads(side, &bin, "127.0.0.1", port)?;
        loads(side, &bin, &data.display().to_string(), port)?;
        server.stop()
    })
}

fn loads(side: &mut Side, bin: &Path, host: &str, port: u16) -> Outcome {
    let port = port.to_string();
    let client = |side: &Side, program: &str| {
        let mut command = side.at(&bin.join(program));
        command.args(["-h", host, "-p", &port, "-U", "postgres"]);
        command
    };
    side.run(client(side, "pgbench").args(["-i", "-q", "postgres"]))?;
    let family = if host.starts_with('/') { "AF_UNIX" } else { "TCP" };
    let modes: [(&str, &[&str]); 4] = [
        ("read only", &["-S", "-c", "8", "-T", "1"]),
        ("prepared, one client", &["-S", "-M", "prepared", "-T", "1"]),
        ("read and write", &["-c", "8", "-T", "1"]),
        ("a connection each", &["-S", "-C", "-c", "4", "-t", "20"]),
    ];
    for (mode, arguments) in modes {
        let said = side.run(client(side, "pgbench").args(arguments).arg("postgres"))?;
        let name = format!("pgbench over {family}, {mode}, transactions/s");
        side.figure(name, &String::from_utf8(said)?, "tps = ")?;
    }
    // Out: 300,000 numbered lines. In: the same lines, summed up by the server.
    let numbers: String = (0..300_000).map(|n| format!("{n}\n")).collect();
    let select = "copy (select generate_series(0, 299999)) to stdout";
    let got = side.run(client(side, "psql").args(["-X", "-c", select, "postgres"]))?;
    ensure(got == numbers.as_bytes(), || format!("COPY gave {} bytes that differ", got.len()))?;
    fs::write(side.dir().join("numbers"), numbers)?;
    let mut load = client(side, "psql");
    load.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", "create temporary table n (n bigint)"]);
    load.args(["-c", "\\copy n from 'numbers'", "-c", "select count(*), sum(n) from n", "postgres"]);
    let sum = String::from_utf8(side.run(&mut load)?)?;
    ensure(sum.trim() == "300000|44999850000", || format!("after COPY, count and sum are {sum}"))
}

/// A program of the server's side, as the user `postgres` if we are root.
fn as_postgres(side: &Side, program: &Path) -> Outcome<Command> {
    if !getuid().is_root() {
        return Ok(side.at(program));
    }
    let mut command = side.program("setpriv")?;
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    Ok(command)
}
