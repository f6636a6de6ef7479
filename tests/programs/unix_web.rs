//! Web servers whose backends listen on unix sockets, as they are mostly set up: nginx before PHP's process manager and before
//! gunicorn, their workers of other users than root, who starts them. Connections that nginx keeps leave the kernel; one for each request
//! is over before.

use std::path::Path;

use harness::{Outcome, ensure, net};
use rustix::process::Signal;

use crate::nginx::{self, Site};
use crate::servers::php_fpm;
use crate::side::{Side, Way, compare};

/// An odd size, so that it ends in the middle of everything.
const LEN: usize = 10_000_019;
/// Requests of small answers, one after the other: enough for a kept connection to leave the kernel many times over.
const ROUNDS: usize = 30;
/// Connections that each of nginx's two workers keeps: as many as there are clients at once, so that none is closed.
const KEPT: u32 = 8;
/// Workers of PHP: more than nginx keeps connections, since each of those has its worker for itself.
const WORKERS: u32 = 2 * KEPT + 4;

pub fn php_kept() -> Outcome {
    compare(Way::Grown(2 * LEN as u64), |side| php(side, true))
}

pub fn php_closed() -> Outcome {
    compare(Way::Both(100_000), |side| php(side, false))
}

pub fn gunicorn_kept() -> Outcome {
    compare(Way::Grown(2 * LEN as u64), |side| gunicorn(side, true))
}

pub fn gunicorn_closed() -> Outcome {
    compare(Way::Both(100_000), |side| gunicorn(side, false))
}

/// The backend at the unix socket `name`, as nginx knows it: by a pool of kept connections, or not.
fn pool(side: &Side, name: &str, kept: bool) -> String {
    let keepalive = if kept { format!("keepalive {KEPT};") } else { String::new() };
    format!("upstream pool {{ server unix:{}/{name}; {keepalive} }}", side.dir().display())
}

fn php(side: &mut Side, kept: bool) -> Outcome {
    let front = net::free_port()?;
    let dir = side.dir().display().to_string();
    let fpm = php_fpm(side, &format!("{dir}/backend"), WORKERS)?;
    side.wait_socket("backend")?;
    let keep = if kept { "on" } else { "off" };
    let within = format!(
        "client_max_body_size 0;
         location ~ php$ {{
           fastcgi_pass pool; fastcgi_keep_conn {keep}; fastcgi_param SCRIPT_FILENAME {dir}$fastcgi_script_name;
           fastcgi_param REQUEST_METHOD $request_method; fastcgi_param CONTENT_TYPE $content_type;
           fastcgi_param CONTENT_LENGTH $content_length;
         }}"
    );
    let web = nginx::start(side, "nginx", front, &Site { around: pool(side, "backend", kept), within })?;
    for (name, text) in [
        ("hello.php", "hello from <?php echo 'PHP';"),
        ("big.php", "<?php readfile('big');"),
        ("digest.php", "<?php echo hash('sha256', file_get_contents('php://input'));"),
    ] {
        std::fs::write(side.dir().join(name), text)?;
    }
    let url = |name: &str| format!("http://127.0.0.1:{front}/{name}");
    let content = side.file("big", LEN)?;
    side.expect(&url("big.php"), &content)?;
    for _ in 0..ROUNDS {
        side.expect(&url("hello.php"), b"hello from PHP")?;
    }
    uploads(side, &url("digest.php"))?;
    loads(side, &url("hello.php"))?;
    side.expect(&url("big.php"), &content)?;
    web.stop()?;
    fpm.stop()
}

fn gunicorn(side: &mut Side, kept: bool) -> Outcome {
    let front = net::free_port()?;
    let socket = side.dir().join("backend");
    let mut command = side.program("gunicorn")?;
    command.args(["-w", "2", "-k", "gthread", "--threads", "8", "--backlog", "1024"]);
    command.args(["--keep-alive", if kept { "60" } else { "0" }]);
    command.arg("-b").arg(format!("unix:{}", socket.display()));
    command.arg("--pythonpath");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")).arg("wsgi:app");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let server = side.serve("gunicorn", &mut command, Signal::TERM)?;
    side.wait_socket("backend")?;
    let head = if kept { "proxy_http_version 1.1; proxy_set_header Connection \"\";" } else { "" };
    let within = format!("client_max_body_size 0; location / {{ proxy_pass http://pool; {head} }}");
    let web = nginx::start(side, "nginx", front, &Site { around: pool(side, "backend", kept), within })?;
    let url = format!("http://127.0.0.1:{front}/");
    // What comes in goes out again: a word, and a file.
    side.file("upload", 1000)?;
    for _ in 0..ROUNDS {
        uploads_of(side, &url, "upload")?;
    }
    uploads(side, &url)?;
    loads(side, &url)?;
    web.stop()?;
    server.stop()
}

/// A large file, twice.
fn uploads(side: &mut Side, url: &str) -> Outcome {
    side.file("upload", LEN)?;
    uploads_of(side, url, "upload")?;
    uploads_of(side, url, "upload")
}

/// The server answers with the digest of what it got.
fn uploads_of(side: &mut Side, url: &str, name: &str) -> Outcome {
    let said = side.run(side.program("sha256sum")?.arg(name))?;
    let mut upload = side.curl(url)?;
    upload.args(["-H", "Expect:", "-H", "Content-Type: application/octet-stream"]);
    let digest = side.run(upload.arg("--data-binary").arg(format!("@{name}")))?;
    ensure(digest.len() == 64 && said.starts_with(&digest), || {
        format!("{url}: the server got something else than {name}")
    })
}

/// One client and several, on kept connections to nginx and on one for each request.
fn loads(side: &mut Side, url: &str) -> Outcome {
    for (connections, close) in [(1, false), (KEPT, false), (KEPT, true)] {
        side.wrk(url, connections, close)?;
    }
    Ok(())
}
