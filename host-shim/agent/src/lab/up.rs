//! The lab's process: makes the hosts, does what the commands ask, and sleeps in between.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use emulator::lab::{Commands, HostStatus, Lab};
use emulator::packet;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::SocketFlags;
use rustix::net::sockopt::{self, Timeout};

use super::call::{Answer, Ask, MESSAGE_BYTES_MAX, address};
use super::own_command;
use crate::address::{BindError, Bound};
use crate::peer;

/// How long a command may take to say what it wants.
const CLIENT_PATIENCE: Duration = Duration::from_secs(2);

/// `lab up`: until it is asked to end.
pub(super) fn up(name: &str, hosts: u32) -> Result<(), String> {
    let io = |e: io::Error| format!("the lab could not be set up: {e}");
    if hosts == 0 || name.is_empty() || name.len() > 64 {
        return Err("a lab has a name of 1 to 64 bytes".into());
    }
    let signals = crate::serve::watch_signals().map_err(io)?;
    // In the namespace of whoever gives the commands: before the lab leaves it.
    let listener = address(name).bind().map_err(|e| match e {
        BindError::Taken(_) => format!("there is a lab \"{name}\" already: give this one another --name, or end that with: ipc-direct lab down --name {name}"),
        e => e.to_string(),
    })?;
    let commands = Commands { init: own_command("init", name)?, splice: own_command("splice", name)? };
    let lab = Lab::start(hosts, commands, signals.as_fd())?;
    // Whether anybody reads the line is not our affair.
    let _ = writeln!(io::stdout(), "{}", ready_line(name, &lab.status())).and_then(|()| io::stdout().flush());
    Served { lab, listener, signals, asked_to_end: None }.serve().map_err(io)
}

fn ready_line(name: &str, hosts: &[HostStatus]) -> String {
    let hosts: Vec<_> = hosts.iter().map(|h| format!("{} {}", h.name, h.address)).collect();
    format!("lab \"{name}\" is up: {}", hosts.join(", "))
}

struct Served {
    lab: Lab,
    listener: Bound,
    signals: UnixStream,
    /// Who asked for the end; he hears of it when it has come.
    asked_to_end: Option<OwnedFd>,
}

impl Served {
    fn serve(mut self) -> io::Result<()> {
        while self.asked_to_end.is_none() {
            let fixed = [self.signals.as_fd(), self.listener.socket.as_fd()];
            let mut fds: Vec<_> = fixed
                .into_iter()
                .chain(self.lab.fds())
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready.first() == Some(&true) {
                return Ok(());
            }
            if ready.iter().skip(2).any(|r| *r) {
                self.lab.listen();
            }
            if ready.get(1) == Some(&true) {
                self.accept();
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        let Ok(client) = rustix::net::accept_with(&self.listener.socket, SocketFlags::CLOEXEC) else {
            return;
        };
        let own = rustix::process::geteuid().as_raw();
        match peer::credentials(&client) {
            Ok((_, uid)) if uid == own || uid == 0 => {}
            // Closed without a word.
            _ => return,
        }
        let patient = [Timeout::Recv, Timeout::Send]
            .map(|d| sockopt::set_socket_timeout(&client, d, Some(CLIENT_PATIENCE)));
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        let (Ok(()), Ok((n, _))) = (patient[0].and(patient[1]), packet::receive(&client, &mut buffer)) else {
            return;
        };
        match serde_json::from_slice(buffer.get(..n).unwrap_or_default()) {
            Ok(Ask::Down) => {
                answer(&client, &Answer::Done, &[]);
                self.asked_to_end = Some(client);
            }
            Ok(Ask::Enter { host }) => match self.lab.entrance(&host) {
                Ok(entrance) => answer(&client, &Answer::Done, &[entrance]),
                Err(why) => answer(&client, &Answer::Failed(why), &[]),
            },
            Ok(ask) => answer(&client, &self.obey(ask).unwrap_or_else(Answer::Failed), &[]),
            Err(e) => answer(&client, &Answer::Failed(format!("the lab does not understand: {e}")), &[]),
        }
    }

    fn obey(&mut self, ask: Ask) -> Result<Answer, String> {
        let lab = &mut self.lab;
        match ask {
            Ask::Status => return Ok(Answer::Hosts(lab.status())),
            Ask::Start { host } => lab.restart(&host, self.signals.as_fd())?,
            Ask::Kill { host, target } => lab.kill(&host, target)?,
            Ask::Link { host, ports, badness } => lab.set_badness(&host, &ports, badness)?,
            Ask::Partition { sides } => lab.partition(&sides)?,
            Ask::Heal => lab.heal()?,
            // Seen to by the caller.
            Ask::Enter { .. } | Ask::Down => {}
        }
        Ok(Answer::Done)
    }
}

/// A client that is gone or does not read does not hear it.
fn answer(client: &OwnedFd, answer: &Answer, fds: &[BorrowedFd<'_>]) {
    if let Ok(message) = serde_json::to_vec(answer) {
        let _ = packet::send(client, &message, fds);
    }
}
