//! Connections between hosts go through the cards: counters say so, bytes are right, and whoever is killed, the others go on.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use harness::child::{Guarded, run, run_ok, wait_for};
use harness::scratch::Scratch;
use harness::voice::Voice;
use harness::{Failure, Outcome, ensure};

use crate::meeting::status;
use crate::traffic::redis;
use harness::lab::{BOUND, Lab, with_lab};

/// `echo PORT`: reads each connection to its end, answers with how much that was, its hash, and as much data. `talk HOST PORT BYTES`: the other
/// side of it, in pieces of random size. `many HOST PORT COUNT`: so many connections at once, to `mirror PORT`, each with its own
/// exchange.
const PROGRAM: &str = r#"
import hashlib, random, resource, select, socket, struct, sys, threading
def read_all(sock):
    digest, count = hashlib.sha256(), 0
    while data := sock.recv(random.choice([100, 5000, 1 << 20])):
        digest.update(data); count += len(data)
    return count, digest.hexdigest()
def serve_one(sock):
    count, digest = read_all(sock)
    data = random.Random(count).randbytes(count)
    sock.sendall(struct.pack("<Q64s", count, digest.encode()) + data)
    sock.close()
def echo(port):
    listener = socket.create_server(("", int(port)), backlog=100)
    print("listening", flush=True)
    while True:
        threading.Thread(target=serve_one, args=[listener.accept()[0]]).start()
def talk(host, port, count):
    sock = socket.create_connection((host, int(port)))
    names = sock.getsockname()[0], sock.getpeername()[0]
    data = random.Random(7).randbytes(int(count))
    at = 0
    while at < len(data):
        at += sock.send(data[at:at + random.choice([1, 7, 64, 1000, 8192, 100_000, 1 << 20])])
    sock.shutdown(socket.SHUT_WR)
    head = b""
    while len(head) < 72: head += sock.recv(72 - len(head))
    there, digest = struct.unpack("<Q64s", head)
    back = read_all(sock)
    right = random.Random(len(data)).randbytes(len(data))
    assert there == len(data) and digest.decode() == hashlib.sha256(data).hexdigest(), "bytes are wrong there"
    assert back == (len(right), hashlib.sha256(right).hexdigest()), "bytes are wrong here"
    print("right", *names, flush=True)
def mirror(port):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    listener = socket.create_server(("", int(port)), backlog=4096)
    listener.setblocking(False)
    poll, socks = select.epoll(), {listener.fileno(): listener}
    poll.register(listener, select.EPOLLIN)
    print("listening", flush=True)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                try:
                    while True:
                        sock, _ = listener.accept()
                        socks[sock.fileno()] = sock
                        poll.register(sock, select.EPOLLIN)
                except BlockingIOError:
                    pass
            elif data := socks[fd].recv(1000):
                socks[fd].sendall(data)
            else:
                poll.unregister(fd)
                socks.pop(fd).close()
def many(host, port, count):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    socks = [socket.create_connection((host, int(port))) for _ in range(int(count))]
    for number, sock in enumerate(socks): sock.sendall(b"number %d" % number)
    wrong = [n for n, sock in enumerate(socks) if sock.recv(100) != b"number %d" % n]
    for sock in socks: sock.close()
    print("wrong", len(wrong), flush=True)
globals()[sys.argv[1]](*sys.argv[2:])
"#;

fn python(lab: &Lab, host: &str, words: &[&str]) -> Outcome<std::process::Command> {
    let mut command = lab.exec(host, "python3")?;
    command.args(["-c", PROGRAM]).args(words);
    Ok(command)
}

fn server(lab: &Lab, host: &str, words: &[&str]) -> Outcome<Voice> {
    let server = Voice::of(python(lab, host, words)?)?;
    ensure(server.line()? == "listening", || "the server does not start".into())?;
    Ok(server)
}

/// Nothing of connections with other hosts is left on these hosts' cards.
fn nothing_left(lab: &Lab, hosts: &[&str]) -> Outcome {
    for host in hosts {
        let left = || -> Outcome<u64> {
            let carried = status(lab, host)?.carried;
            Ok(carried.get("connections").copied().unwrap_or(0)
                + carried.get("segments").copied().unwrap_or(0))
        };
        let gone = wait_for(BOUND, || Ok((left()? == 0).then_some(())))?;
        ensure(gone.is_some(), || format!("{host} keeps something: {:?}", status(lab, host)))?;
    }
    Ok(())
}

/// Both hosts' totals: everything in user space.
fn all_in_user_space(lab: &Lab, hosts: &[&str], bytes: u64) -> Outcome {
    for host in hosts {
        let totals = lab.report(host)?.totals;
        let right = totals.kernel.connections == 0 && totals.user.tx_bytes + totals.user.rx_bytes >= bytes;
        ensure(right, || format!("{host}: {totals:?}"))?;
    }
    Ok(())
}

pub fn redis_across() -> Outcome {
    with_lab(2, |lab| {
        lab.wait_met()?;
        let server = redis(lab, "h1")?;
        let arguments =
            ["-h", "h1", "-p", "7000", "-n", "5000", "-c", "20", "-t", "set,get", "-q", "-d", "1000"];
        run_ok(lab.exec("h2", "redis-benchmark")?.args(arguments), BOUND)?;
        all_in_user_space(lab, &["h2"], 5000 * 1000)?;
        // Whoever waited for it to be up was not under the shim.
        let there = lab.report("h1")?.totals;
        ensure(there.user.rx_bytes > 5000 * 1000 && there.kernel.rx_bytes < 100, || {
            format!("h1: {there:?}")
        })?;
        drop(server);
        nothing_left(lab, &["h1", "h2"])
    })
}

/// Large and small pieces, half-close, several connections at once, in both directions, by both families.
pub fn bytes() -> Outcome {
    with_lab(2, |lab| {
        lab.wait_met()?;
        let servers = [server(lab, "h1", &["echo", "7010"])?, server(lab, "h2", &["echo", "7010"])?];
        let mut clients = Vec::new();
        for (from, to) in [("h1", "h2"), ("h2", "h1"), ("h2", "h1"), ("h1", "10.99.0.2")] {
            for count in ["0", "1", "100000", "20000000"] {
                clients.push(Voice::of(python(lab, from, &["talk", to, "7010", count])?)?);
            }
        }
        for client in clients {
            let said = client.line()?;
            let right = ["right 10.99.0.1 10.99.0.2", "right 10.99.0.2 10.99.0.1"].contains(&said.as_str());
            ensure(right, || format!("a client said {said:?}"))?;
        }
        all_in_user_space(lab, &["h1", "h2"], 4 * 2 * 20_000_000)?;
        drop(servers);
        nothing_left(lab, &["h1", "h2"])
    })
}

/// 10,000 connections at one time, over one link.
pub fn many() -> Outcome {
    const MANY: &str = "10000";
    with_lab(2, |lab| {
        lab.wait_met()?;
        let server = server(lab, "h1", &["mirror", "7011"])?;
        let said = run_ok(&mut python(lab, "h2", &["many", "h1", "7011", MANY])?, BOUND)?;
        ensure(said.trim() == "wrong 0", || said)?;
        all_in_user_space(lab, &["h1", "h2"], 10_000 * 8)?;
        drop(server);
        nothing_left(lab, &["h1", "h2"])
    })
}

/// kill -9 of each of the six: the two programs, the two agents, the two coordinators.
pub fn kills() -> Outcome {
    with_lab(2, |lab| {
        for victim in ["client", "server", "h1 agent", "h2 agent", "h1 coordinator", "h2 coordinator"] {
            lab.wait_met()?;
            kill_one(lab, victim).map_err(|e| Failure(format!("{victim} killed: {}", e.0)))?;
            for host in lab.hosts()?.iter().filter(|host| host.state == "no-agent") {
                wait_for(BOUND, || Ok((lab.host(&host.name)?.agent_pid == 0).then_some(())))?;
                lab.tell(&["start", &host.name])?;
                lab.wait_state(&host.name, "up")?;
            }
            nothing_left(lab, &["h1", "h2"]).map_err(|e| Failure(format!("{victim} killed: {}", e.0)))?;
        }
        Ok(())
    })
}

/// A client that waits for what does not come, until its connection ends.
const LISTENS: &str = r#"
import socket
s = socket.create_connection(("h1", 7000))
s.sendall(b"SUBSCRIBE nothing\r\n")
try:
    while s.recv(4096): pass
except OSError: pass
"#;

fn kill_one(lab: &Lab, victim: &str) -> Outcome {
    let server = redis(lab, "h1")?;
    let before = lab.report("h2")?.totals;
    let mut benchmark = lab.exec("h2", "redis-benchmark")?;
    benchmark.args(["-h", "h1", "-p", "7000", "-n", "1000000000", "-c", "8", "-t", "set", "-q"]);
    let mut client =
        Guarded::spawn(benchmark.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))?;
    let mut listens = lab.exec("h2", "python3")?;
    listens.args(["-c", LISTENS]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut witness = Guarded::spawn(&mut listens)?;
    // None: it was the agent that died.
    let sent = || lab.report("h2").ok().map(|report| report.totals.user.tx_bytes);
    let both = || {
        let report = lab.report("h2")?;
        let connected = report.processes.iter().filter(|p| p.command.starts_with("python3")).any(|p| {
            p.sockets.iter().any(|s| s.state == "connected" && s.path.as_deref() == Some("user-space"))
        });
        Ok((connected && report.totals.user.tx_bytes > before.user.tx_bytes + 10_000).then_some(()))
    };
    ensure(wait_for(BOUND, both)?.is_some(), || "the clients send nothing in user space".into())?;
    match victim.split_once(' ') {
        Some((host, part)) => lab.tell(&["fault", "kill", host, part])?,
        None => {
            let (host, name) =
                if victim == "client" { ("h2", "redis-benchmark") } else { ("h1", "redis-server") };
            let report = lab.report(host)?;
            let found = report.processes.iter().find(|p| name.starts_with(&p.command));
            let pid = found.map(|p| p.pid).ok_or_else(|| Failure(format!("no {name} in {host}")))?;
            run_ok(lab.plain(host, "sh")?.args(["-c", &format!("kill -9 {pid}")]), BOUND)?;
        }
    }
    // Either it is the victim, or it hears that its connections are gone. redis-benchmark, on the kernel, too, does not end
    // if that is the answer to a write: hiredis refuses to write again, which it takes for a full buffer.
    let over = || {
        let now = sent();
        std::thread::sleep(Duration::from_millis(500));
        Ok((client.ended()?.is_some() || sent() == now).then_some(()))
    };
    ensure(wait_for(BOUND, over)?.is_some(), || "the client goes on".into())?;
    drop(client);
    if victim != "client" {
        ensure(wait_for(BOUND, || witness.ended())?.is_some(), || "who listens hears nothing".into())?;
    }
    drop(witness);
    if victim == "server" {
        return Ok(());
    }
    let alone = wait_for(BOUND, || {
        let info = run_ok(lab.plain("h1", "redis-cli")?.args(["-p", "7000", "info", "clients"]), BOUND)?;
        Ok(info.contains("connected_clients:1\r").then_some(()))
    })?;
    ensure(alone.is_some(), || "the server keeps connections of a client that is gone".into())?;
    // By the kernel, or by the cards: somebody new is served.
    let pong = run_ok(lab.exec("h2", "redis-cli")?.args(["-h", "h1", "-p", "7000", "ping"]), BOUND)?;
    ensure(pong.trim() == "PONG", || pong)?;
    drop(server);
    Ok(())
}

/// What nginx in a host reads: `body` in the server's block.
fn configuration(at: &Path, host: &str, workers: u32, body: &str) -> Outcome<String> {
    let base = at.join(host);
    std::fs::create_dir_all(&base)?;
    let file = base.join("nginx.conf");
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {0}/{name};", base.display()))
        .concat();
    let text = format!(
        "daemon off; pid {0}/pid; error_log {0}/error warn; worker_processes {workers}; user root;\n\
         events {{ worker_connections 512; }}\nhttp {{ access_log off; {temporary} keepalive_timeout 60;\n\
         upstream two {{ server h2:8080; server h3:8080; keepalive 8; }}\n\
         server {{ listen 8080; {body} }} }}\n",
        base.display()
    );
    std::fs::write(&file, text)?;
    Ok(file.display().to_string())
}

/// nginx on h1 hands requests to h2 and h3, and h3 may be without IPC-Direct.
pub fn nginx_proxy() -> Outcome {
    const BYTES: usize = 100_000;
    let scratch = Scratch::new()?;
    let root = scratch.path().join("root");
    std::fs::create_dir_all(&root)?;
    let content: Vec<u8> = (0..BYTES).map(|i| u8::try_from(i * 7 % 251).unwrap_or(0)).collect();
    std::fs::write(root.join("file"), &content)?;
    let wanted = scratch.path().join("file");
    with_lab(3, |lab| {
        lab.wait_met()?;
        for with_h3 in [true, false] {
            if !with_h3 {
                lab.tell(&["fault", "kill", "h3", "agent"])?;
                lab.wait_state("h3", "no-agent")?;
            }
            let proxy = "location / { proxy_pass http://two; proxy_http_version 1.1; proxy_set_header Connection ''; }";
            let files = format!("root {}; add_header Server-Name $hostname;", root.display());
            let mut servers = Vec::new();
            for (host, workers, body) in [("h2", 1, &*files), ("h3", 1, &*files), ("h1", 2, proxy)] {
                let file = configuration(scratch.path(), host, workers, body)?;
                let mut nginx = lab.exec(host, "nginx")?;
                servers.push(Guarded::spawn(nginx.args(["-c", &file]).stderr(Stdio::null()))?);
            }
            for client in ["h2", "h3", "h1"] {
                let mut seen = [false; 2];
                let all = wait_for(BOUND, || {
                    let mut curl = lab.exec(client, "curl")?;
                    let get = ["-s", "-D", "-", "-o"];
                    let out = run(curl.args(get).arg(&wanted).arg("http://h1:8080/file"), BOUND)?;
                    let head = String::from_utf8_lossy(&out.stdout).into_owned();
                    if !out.status.success() || !head.starts_with("HTTP/1.1 200") {
                        return Ok(None);
                    }
                    ensure(std::fs::read(&wanted)? == content, || format!("{client} gets other bytes"))?;
                    for (seen, name) in seen.iter_mut().zip(["Server-Name: h2", "Server-Name: h3"]) {
                        *seen |= head.contains(name);
                    }
                    Ok((seen == [true; 2]).then_some(()))
                })?;
                ensure(all.is_some(), || format!("{client} does not reach both: {seen:?}"))?;
            }
            let far = lab.report("h2")?.totals;
            ensure(far.user.tx_bytes > 100_000, || format!("h2 sends nothing in user space: {far:?}"))?;
        }
        Ok(())
    })
}

/// What a program hears of another host where nobody listens, and of one that has no coordinator, also again.
pub fn refusals() -> Outcome {
    with_lab(3, |lab| {
        lab.wait_met()?;
        lab.tell(&["fault", "kill", "h3", "agent"])?;
        lab.wait_state("h3", "no-agent")?;
        let _plain = lab.serve(true, "h3", "0.0.0.0:7012", "h3")?;
        for _ in 0..2 {
            for (to, right) in
                [("h2:7099", "ECONNREFUSED"), ("h3:7099", "ECONNREFUSED"), ("h3:7012", "reached h3")]
            {
                let said = lab.reach(true, "h1", to)?;
                ensure(said == right, || format!("{to}: {said}"))?;
            }
        }
        let totals = lab.report("h1")?.totals;
        ensure(totals.user.connections == 0, || format!("{totals:?}"))
    })
}
