//! nginx with a master and two workers: static files by sendfile, reverse proxy, reload, graceful quit; under wrk.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use harness::child::{Guarded, wait_for};
use harness::{Outcome, ensure, net};
use rustix::process::{Signal, getuid};

use crate::side::{BOUND, Service, Side, Way, compare};

/// A response in one piece, one in several, and one that ends in the middle of everything.
const SIZES: [(&str, usize); 3] = [("1k", 1024), ("64k", 65_536), ("big", 10_000_019)];

/// What a server does besides giving out the files of the scratch directory.
#[derive(Default)]
pub struct Site {
    /// Blocks beside the server's: `upstream`.
    pub around: String,
    /// Blocks in it: `location`.
    pub within: String,
}

/// A server with two workers on 127.0.0.1:`port`; its own files go into the directory `name`.
pub fn start(side: &Side, name: &str, port: u16, site: &Site) -> Outcome<Service> {
    let dir = side.dir().join(name);
    fs::create_dir(&dir)?;
    let (root, at) = (side.dir().display(), dir.display());
    let user = if getuid().is_root() { "user nobody nogroup;" } else { "" };
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String = kinds.map(|kind| format!("{kind}_temp_path {at}/{kind};\n")).concat();
    let Site { around, within } = site;
    let config = format!(
        "worker_processes 2; daemon off; pid {at}/pid; error_log {root}/{name}.log warn; {user}
         events {{ worker_connections 512; }}
         http {{
           access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
           proxy_max_temp_file_size 0; fastcgi_max_temp_file_size 0;
           {temporary}
           {around}
           server {{ listen 127.0.0.1:{port} backlog=1024; root {root}; {within} }}
         }}"
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = side.program("nginx")?;
    let service = side.serve(&format!("{name}-output"), command.arg("-c").arg(file), Signal::QUIT)?;
    side.wait_listening(port)?;
    Ok(service)
}

/// `/proxied/` goes to a second nginx over kept connections, `/python/` to a Python backend.
fn proxy(nginx: u16, python: u16) -> Site {
    Site {
        around: format!("upstream pool {{ server 127.0.0.1:{nginx}; keepalive 16; }}"),
        within: format!(
            "location /proxied/ {{
               proxy_pass http://pool/; proxy_http_version 1.1; proxy_set_header Connection \"\";
             }}
             location /python/ {{ proxy_pass http://127.0.0.1:{python}/; }}"
        ),
    }
}

/// Files of all sizes, then wrk with one connection and with many, kept alive and not.
pub fn serves_files() -> Outcome {
    compare(Way::UserSpace(20_000_000), |side| {
        let port = net::free_port()?;
        let server = start(side, "nginx", port, &Site::default())?;
        for (name, len) in SIZES {
            let content = side.file(name, len)?;
            side.expect(&format!("http://127.0.0.1:{port}/{name}"), &content)?;
        }
        for (name, connections, close) in
            [("1k", 1, false), ("1k", 32, false), ("1k", 32, true), ("64k", 1, false), ("64k", 32, false)]
        {
            side.wrk(&format!("http://127.0.0.1:{port}/{name}"), connections, close)?;
        }
        server.stop()
    })
}

/// Two nginx, the first before the second (with a pool of kept connections) and before a Python backend.
pub fn proxies() -> Outcome {
    compare(Way::UserSpace(40_000_000), |side| {
        let (front, back, python) = (net::free_port()?, net::free_port()?, net::free_port()?);
        let server = start(side, "front", front, &proxy(back, python))?;
        let second = start(side, "back", back, &Site::default())?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/backend.py");
        let mut command = side.program("python3")?;
        command.arg(script).arg(python.to_string());
        let backend = side.serve("backend", &mut command, Signal::TERM)?;
        side.wait_listening(python)?;
        for (name, len) in SIZES {
            let content = side.file(name, len)?;
            side.expect(&format!("http://127.0.0.1:{front}/proxied/{name}"), &content)?;
            side.expect(&format!("http://127.0.0.1:{front}/python/{name}"), &content)?;
        }
        for (path, connections, close) in [
            ("proxied/1k", 1, false),
            ("proxied/1k", 32, false),
            ("proxied/1k", 32, true),
            ("python/1k", 8, false),
        ] {
            side.wrk(&format!("http://127.0.0.1:{front}/{path}"), connections, close)?;
        }
        server.stop()?;
        second.stop()?;
        backend.kill()
    })
}

/// HUP while wrk runs: new workers take the listener over, old ones finish what they have.
pub fn reloads_under_load() -> Outcome {
    compare(Way::UserSpace(1_000_000), |side| {
        let port = net::free_port()?;
        let server = start(side, "nginx", port, &Site::default())?;
        let content = side.file("1k", 1024)?;
        let mut wrk = side.program("wrk")?;
        wrk.args(["-t", "1", "-c", "16", "-d", "3", "-H", "Connection: close"]);
        wrk.arg(format!("http://127.0.0.1:{port}/1k")).stdin(Stdio::null()).stdout(Stdio::null());
        let mut load = Guarded::spawn(&mut wrk)?;
        for _ in 0..3 {
            let before = workers(&server)?;
            server.signal(Signal::HUP);
            let replaced = wait_for(BOUND, || {
                let now = workers(&server)?;
                Ok((now.len() >= 2 && !now.iter().any(|pid| before.contains(pid))).then_some(()))
            })?;
            ensure(replaced.is_some(), || format!("workers {before:?} stayed after HUP"))?;
            side.expect(&format!("http://127.0.0.1:{port}/1k"), &content)?;
        }
        let status = load.wait(BOUND)?;
        ensure(status.success(), || format!("wrk ended with {status}"))?;
        server.stop()
    })
}

/// The workers' process ids.
fn workers(server: &Service) -> Outcome<Vec<u32>> {
    let master = server.pid();
    let text = fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
    Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// QUIT in the middle of a download: the download ends well, then the server does.
pub fn quits_gracefully() -> Outcome {
    compare(Way::UserSpace(10_000_019), |side| {
        let port = net::free_port()?;
        let server = start(side, "nginx", port, &Site::default())?;
        let content = side.file("big", 10_000_019)?;
        let got = side.dir().join("got");
        let mut curl = side.curl(&format!("http://127.0.0.1:{port}/big"))?;
        curl.args(["--limit-rate", "8M", "--output"]).arg(&got).stdin(Stdio::null());
        let mut download = Guarded::spawn(&mut curl)?;
        let begun = wait_for(BOUND, || Ok(fs::metadata(&got).ok().filter(|m| m.len() > 0)))?;
        ensure(begun.is_some(), || "the download did not begin".to_owned())?;
        server.signal(Signal::QUIT);
        // New clients are refused while the old one is served.
        let closed = wait_for(BOUND, || Ok((!net::is_bound(port)?).then_some(())))?;
        ensure(closed.is_some(), || "nginx still listens after QUIT".to_owned())?;
        let status = download.wait(BOUND + Duration::from_secs(10))?;
        ensure(status.success() && fs::read(&got)? == content, || {
            format!("the download ended with {status}")
        })?;
        let status = server.wait()?;
        ensure(status.success(), || format!("nginx ended with {status}"))
    })
}
