//! What clients ask, one datagram at a time. Nothing here waits for a client: a message that makes no
//! sense, or an answer that the client does not take, ends its connection.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use emulator::packet;
use ring::attach::{BYTES, Call, Fault, Reply, Text};
use ring::msg::Request;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::clients::{Accepted, Role};
use crate::inspect::{CONNECTIONS_MAX, Tails};
use crate::peer;
use crate::report::{AgentReport, ProcessReport, Report, SCHEMA_VERSION, SOCKETS_MAX, Totals};
use crate::serve::{Agent, Watch};

impl Agent {
    /// One connection, if one waits.
    pub(crate) fn accept(&mut self) {
        let socket = match self.clients.accept(self.listener.socket.as_fd()) {
            Accepted::Socket(socket) => socket,
            Accepted::TurnedAway => {
                tracing::error!("out of file descriptors: a client was turned away");
                return;
            }
            Accepted::Nobody => return,
        };
        self.admit(socket);
    }

    /// Of an agent that was here before: goes on with a lease.
    pub(crate) fn keep_lease(&mut self, socket: OwnedFd, uid: u32) {
        let id = self.clients.add(socket, uid, Instant::now());
        self.clients.set(id, Role::Lease, None);
        let watched = self.clients.get(id).map(|c| self.poller.watch(c.socket.as_fd(), Watch::Client(id)));
        if !matches!(watched, Some(Ok(()))) {
            self.close_client(id);
        }
    }

    /// A client socket, connected or handed in: serves it, if its owner may be served.
    fn admit(&mut self, socket: OwnedFd) {
        let Ok((_, uid)) = peer::credentials(&socket) else { return };
        if uid != self.own_uid && self.own_uid != 0 {
            say_no(&socket, "this agent serves another user: start your own with ipc-direct run");
            tracing::error!("a process of uid {uid} was refused: this agent serves uid {}", self.own_uid);
            return;
        }
        if self.clients.full_for(uid, self.own_uid) {
            say_no(&socket, "the agent has too many clients");
            tracing::error!("a process of uid {uid} was refused: too many clients");
            return;
        }
        let id = self.clients.add(socket, uid, Instant::now());
        let Some(client) = self.clients.get(id) else { return };
        if let Err(e) = self.poller.watch(client.socket.as_fd(), Watch::Client(id)) {
            tracing::error!("a client can't be watched: {e}");
            self.close_client(id);
        }
    }

    /// One message from a client, or its end.
    pub(crate) fn client_readable(&mut self, id: u32) {
        let Some(client) = self.clients.get(id) else { return };
        if matches!(client.role, Role::Born(_)) {
            return self.close_client(id);
        }
        // One byte more than a message, so that a longer one is seen to be wrong. Descriptors that no message
        // of its kind carries are closed at the end of this function.
        let mut buffer = [0; BYTES + 1];
        let (n, fds) = match packet::receive_now(&client.socket, &mut buffer) {
            Ok((0, _)) => return self.close_client(id),
            Ok(received) => received,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(_) => return self.close_client(id),
        };
        match Call::from_wire(buffer.get(..n).unwrap_or(&[])) {
            Ok(call) => self.call(id, call, fds),
            Err(bad) => self.refuse(id, &bad.to_string()),
        }
    }

    fn call(&mut self, id: u32, call: Call, fds: Vec<OwnedFd>) {
        let Some(client) = self.clients.get(id) else { return };
        match (call, client.role) {
            (Call::Born { parent, nonce }, role) => self.born((client.uid, role), (parent, nonce), fds),
            (Call::Hello { parent, nonce }, Role::Fresh) => self.hello(id, parent, nonce),
            (Call::Segment { segment, side }, Role::Attached(function)) => {
                self.hand_out(id, function, segment, side);
            }
            (Call::Report { verbose }, Role::Fresh | Role::Attached(_) | Role::Lease) => {
                self.report(id, client.uid, verbose);
            }
            (Call::Lease, Role::Fresh) => {
                self.clients.set(id, Role::Lease, None);
                self.reply(id, &Reply::Leased, &[]);
            }
            (Call::Fault(fault), Role::Fresh) => self.fail_on_purpose(id, fault),
            (Call::Relay, Role::Attached(_)) => self.start_relay(id, fds),
            (Call::Vouch, Role::Attached(function)) => self.vouch(id, function, &fds),
            // Its maker is known to the kernel as if he had connected; what else may come by a lease is ignored, for
            // the lease is not the offender's alone.
            (Call::Admit, Role::Lease) => {
                if let Some(socket) = fds.into_iter().find(|s| peer::is_client_socket(s)) {
                    self.admit(socket);
                }
            }
            _ => self.refuse(id, "the message is out of order"),
        }
    }

    /// Has the emulated card fail, once the client knows that it will.
    fn fail_on_purpose(&mut self, id: u32, fault: Fault) {
        let uid = self.clients.get(id).map(|client| client.uid);
        if uid.is_none_or(|uid| uid != 0 && uid != self.own_uid) {
            return self.refuse(id, "only the agent's own user and root may make its card fail");
        }
        if self.card.coordinator_pid().is_none() {
            return self.refuse(id, "only an emulated card can be made to fail");
        }
        if self.reply(id, &Reply::Failing, &[]) {
            tracing::info!("the card fails on purpose: {fault:?}");
            self.fault = Some(fault);
        }
    }

    /// Answers; a client that does not read its answers is closed.
    pub(crate) fn reply(&mut self, id: u32, reply: &Reply, fds: &[BorrowedFd<'_>]) -> bool {
        let sent =
            self.clients.get(id).is_some_and(|c| packet::send(&c.socket, &reply.to_wire(), fds).is_ok());
        if !sent {
            self.close_client(id);
        }
        sent
    }

    /// Says no, in a sentence for the client and a line in the log, and closes the client.
    pub(crate) fn refuse(&mut self, id: u32, why: &str) {
        let Some(client) = self.clients.get(id) else { return };
        tracing::error!("client {id} of uid {} refused: {why}", client.uid);
        say_no(&client.socket, why);
        self.close_client(id);
    }

    /// The client is gone, or to go.
    pub(crate) fn close_client(&mut self, id: u32) {
        let Some(client) = self.clients.remove(id) else { return };
        self.poller.forget(client.socket.as_fd());
        match client.role {
            Role::Attaching(number) | Role::Attached(number) => self.lose_function(number),
            Role::Orphan(group) => self.groups.release(group),
            Role::Born(birth) => self.child_ended(birth),
            Role::Fresh | Role::Lease => {}
        }
    }

    /// Closes clients whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(id) = self.clients.late(now) {
            match self.clients.get(id).map(|c| c.role) {
                Some(Role::Attaching(_)) => self.refuse(id, "the coordinator did not answer in time"),
                _ => self.close_client(id),
            }
        }
    }

    /// The coordinator has put two groups together.
    pub(crate) fn make_segment(&mut self, segment: u32, client_group: u32, server_group: u32) {
        let made = self.groups.make_segment(segment, client_group, server_group);
        let given = made.and_then(|()| match self.groups.take_card_side(segment) {
            Some((memory, wire)) => self.card.give_segment(segment, memory, wire).map(|()| false),
            None => Ok(true),
        });
        match given {
            Ok(true) => self.segment_made(segment, true),
            // Once the card has it.
            Ok(false) => {}
            Err(e) => {
                tracing::error!("segment {segment} could not be made: {e}; its connections use the kernel");
                self.segment_made(segment, false);
            }
        }
    }

    /// A segment is ready for use, or can't be.
    pub(crate) fn segment_made(&mut self, segment: u32, ok: bool) {
        if !ok {
            self.groups.drop_segment(segment);
        }
        self.card.ring().post(0, Request::SegmentMade { segment, ok });
    }

    fn hand_out(&mut self, id: u32, function: u32, segment: u32, side: u32) {
        let Some((client, function)) = self.clients.get(id).zip(self.functions.get(&function)) else {
            return;
        };
        let sent = match self.groups.hand_out(segment, side, function.group) {
            Ok(fds) => packet::send(&client.socket, &Reply::Segment { side }.to_wire(), &fds),
            Err(why) => {
                tracing::error!("segment {segment} not given to pid {}: {why}", function.identity.pid);
                let no = Reply::Refused(Text::new(&why.to_string()));
                packet::send(&client.socket, &no.to_wire(), &[])
            }
        };
        if sent.is_err() {
            self.close_client(id);
        }
    }

    /// Root and the agent's own user see everything, others what is theirs.
    fn report(&mut self, id: u32, uid: u32, verbose: bool) {
        let everything = uid == 0 || uid == self.own_uid;
        let mut report = self.build_report(|owner| everything || owner == uid);
        if verbose {
            self.add_rings(&mut report);
        }
        match json_memfd(&report) {
            Ok(memfd) => {
                self.reply(id, &Reply::Report, &[memfd.as_fd()]);
            }
            Err(e) => self.refuse(id, &format!("the report could not be made: {e}")),
        }
    }

    fn build_report(&self, visible: impl Fn(u32) -> bool) -> Report {
        let mut totals = Totals::default();
        for (_, retired) in self.retired.iter().filter(|(uid, _)| visible(**uid)) {
            totals += *retired;
        }
        let mut processes = Vec::new();
        let (mut room, mut sockets_omitted) = (SOCKETS_MAX, 0);
        let shown = |f: &&crate::function::Function| f.is_live() && visible(f.identity.uid);
        for (number, function) in self.functions.iter().filter(|(_, f)| shown(f)) {
            let (process, omitted) = ProcessReport::of(*number, function, room);
            totals += process.totals;
            room -= process.sockets.len();
            sockets_omitted += omitted;
            processes.push(process);
        }
        let agent = AgentReport {
            pid: std::process::id(),
            coordinator_pid: self.card.coordinator_pid().unwrap_or(0),
            epoch: self.card.epoch(),
            uptime_s: self.up_since.elapsed().as_secs(),
            telemetry_prefix: self.card.telemetry_prefix().unwrap_or_default().to_owned(),
            request_queue: self.card.request_queue().to_string(),
            pcie_profile: self.card.pcie_profile().to_string(),
            segments: self.groups.segments() as u64,
            leases: self.clients.leases() as u64,
        };
        Report { version: SCHEMA_VERSION, agent, totals, processes, sockets_omitted, segments: None }
    }

    /// What `--verbose` adds, for the processes that the report shows and the segments of their groups.
    fn add_rings(&self, report: &mut Report) {
        let mut tails = Tails::default();
        for process in &mut report.processes {
            if let Some(function) = self.functions.get(&process.function) {
                tails.add(function.stats());
                process.rings = Some(function.rings());
            }
        }
        let groups: BTreeSet<u32> = report.processes.iter().map(|p| p.group).collect();
        let visible = |group| groups.contains(&group);
        report.segments = Some(self.groups.inspect(visible, &tails, CONNECTIONS_MAX));
    }
}

/// One refusal; whether it is read is the client's affair.
fn say_no(socket: &OwnedFd, why: &str) {
    let _ = packet::send(socket, &Reply::Refused(Text::new(why)).to_wire(), &[]);
}

/// The report as JSON text in a memfd that nobody can change any more.
fn json_memfd(report: &Report) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    let fd = rustix::fs::memfd_create("ipc-direct-report", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(&serde_json::to_vec(report).map_err(io::Error::other)?)?;
    file.rewind()?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}
