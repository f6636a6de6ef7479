//! More servers: haproxy, lighttpd, PHP's process manager.

use std::fs;

use harness::{Failure, Outcome, net};
use rustix::process::{Signal, getuid};

use crate::nginx::{self, Site};
use crate::side::{Service, Side, Way, compare};

const LEN: usize = 10_000_019;

/// Between wrk and nginx: HTTP, and plain bytes, on two threads.
pub fn haproxy() -> Outcome {
    compare(Way::Mostly(2 * LEN as u64), |side| {
        let (http, tcp, back) = (net::free_port()?, net::free_port()?, net::free_port()?);
        let backend = nginx::start(side, "nginx", back, &Site::default())?;
        let config = format!(
            "global\n nbthread 2\n maxconn 500\n\
             defaults\n timeout connect 20s\n timeout client 50s\n timeout server 50s\n\
             listen web\n mode http\n bind 127.0.0.1:{http}\n server a 127.0.0.1:{back}\n\
             listen raw\n mode tcp\n bind 127.0.0.1:{tcp}\n server a 127.0.0.1:{back}\n"
        );
        fs::write(side.dir().join("haproxy.cfg"), config)?;
        let mut command = side.program("haproxy")?;
        let server = side.serve("haproxy", command.args(["-db", "-f", "haproxy.cfg"]), Signal::USR1)?;
        let content = side.file("big", LEN)?;
        side.file("1k", 1024)?;
        for port in [http, tcp] {
            side.wait_listening(port)?;
            side.expect(&format!("http://127.0.0.1:{port}/big"), &content)?;
            side.wrk(&format!("http://127.0.0.1:{port}/1k"), 16, false)?;
        }
        side.wrk(&format!("http://127.0.0.1:{http}/1k"), 16, true)?;
        server.stop()?;
        backend.stop()
    })
}

/// One process, epoll and sendfile. SIGINT lets it end what it has: on SIGTERM its exit status says whether a client's
/// end came before the signal, which on the kernel, too, is chance.
pub fn lighttpd() -> Outcome {
    compare(Way::UserSpace(LEN as u64), |side| {
        let port = net::free_port()?;
        let config = format!(
            "server.document-root=\"{}\"\nserver.bind=\"127.0.0.1\"\nserver.port={port}\n\
             server.network-backend=\"sendfile\"\nserver.max-keep-alive-requests=1000000\n",
            side.dir().display()
        );
        fs::write(side.dir().join("lighttpd.conf"), config)?;
        let mut command = side.program("lighttpd")?;
        let server = side.serve("lighttpd", command.args(["-D", "-f", "lighttpd.conf"]), Signal::INT)?;
        side.wait_listening(port)?;
        let content = side.file("big", LEN)?;
        side.file("1k", 1024)?;
        side.expect(&format!("http://127.0.0.1:{port}/big"), &content)?;
        side.wrk(&format!("http://127.0.0.1:{port}/1k"), 16, false)?;
        side.wrk(&format!("http://127.0.0.1:{port}/1k"), 16, true)?;
        server.stop()
    })
}

/// Workers that take turns at one FastCGI socket, behind nginx.
pub fn php() -> Outcome {
    compare(Way::UserSpace(LEN as u64), |side| {
        let (front, pool) = (net::free_port()?, net::free_port()?);
        let dir = side.dir().display().to_string();
        let fpm = php_fpm(side, &format!("127.0.0.1:{pool}"), 3)?;
        side.wait_listening(pool)?;
        let within = format!(
            "location ~ php$ {{
               fastcgi_pass 127.0.0.1:{pool}; fastcgi_param SCRIPT_FILENAME {dir}$fastcgi_script_name;
               fastcgi_param REQUEST_METHOD $request_method;
             }}"
        );
        let web = nginx::start(side, "nginx", front, &Site { within, ..Site::default() })?;
        fs::write(side.dir().join("hello.php"), "hello from <?php echo 'PHP';")?;
        fs::write(side.dir().join("big.php"), "<?php readfile('big');")?;
        let content = side.file("big", LEN)?;
        side.expect(&format!("http://127.0.0.1:{front}/hello.php"), b"hello from PHP")?;
        side.expect(&format!("http://127.0.0.1:{front}/big.php"), &content)?;
        side.wrk(&format!("http://127.0.0.1:{front}/hello.php"), 16, false)?;
        web.stop()?;
        fpm.stop()
    })
}

/// PHP's process manager, the newest that is installed, with so many workers at the address `listen`.
pub fn php_fpm(side: &Side, listen: &str, workers: u32) -> Outcome<Service> {
    let dir = side.dir().display();
    let owner = if getuid().is_root() { "user = nobody\ngroup = nogroup\n" } else { "" };
    let config = format!(
        "[global]\nerror_log = {dir}/php.log\npid = {dir}/php.pid\ndaemonize = no\nlog_level = warning\n\
         [www]\n{owner}listen = {listen}\nlisten.mode = 0666\npm = static\npm.max_children = {workers}\n\
         php_admin_value[post_max_size] = 64M\n"
    );
    fs::write(side.dir().join("php-fpm.conf"), config)?;
    let files = fs::read_dir("/usr/sbin").into_iter().flatten().flatten().map(|entry| entry.path());
    let managers = files.filter(|path| path.to_string_lossy().starts_with("/usr/sbin/php-fpm"));
    let manager =
        managers.max().ok_or_else(|| Failure("php-fpm is not installed: run `make setup`".to_owned()))?;
    side.serve("fpm", side.at(&manager).args(["-n", "-R", "-y", "php-fpm.conf"]), Signal::QUIT)
}
