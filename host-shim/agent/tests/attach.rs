//! Attaching, segments and forks against a real coordinator.

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::{TestAgent, TestClient, eventually, kill9};
use emulator::{AgentRing, FunctionMemory, packet};
use ipc_direct_agent::dial::{Agent, DialError};
use ring::attach::{Call, Reply};
use ring::msg::Request;

#[test]
fn two_processes_share_a_segment_and_a_third_does_not_get_it() {
    let agent = TestAgent::start(&[]);
    let [mut server, mut client, mut third] = [0; 3].map(|_| TestClient::attach(&agent));
    assert_ne!(server.group, client.group);
    let listener = server.ask_ok("listen 7001")[0];
    let segment = client.ask_ok("connect 7001")[0];
    assert_eq!(server.ask_ok(&format!("accept {listener}"))[0], segment);
    assert_eq!(client.ask(&format!("segment {segment} 0")), "Segment { side: 0 }");
    assert_eq!(server.ask(&format!("segment {segment} 1")), "Segment { side: 1 }");
    let ask = |who: &mut TestClient, side: u32| who.ask(&format!("segment {segment} {side}"));
    let answers = [ask(&mut third, 0), ask(&mut third, 1), ask(&mut client, 1), ask(&mut server, 0)];
    for answer in answers {
        assert!(answer.contains("not yours"), "{answer}");
    }
    // A refused segment is no reason to be thrown out.
    assert_eq!(third.ask("notice"), "0");
    assert_eq!(agent.report().processes.len(), 3);
    assert_eq!(agent.report().agent.segments, 1);
}

#[test]
fn a_killed_process_is_a_hangup_and_an_event_at_its_peer() {
    let agent = TestAgent::start(&[]);
    let [mut server, mut client] = [0; 2].map(|_| TestClient::attach(&agent));
    let listener = server.ask_ok("listen 7002")[0];
    let conn = client.ask_ok("connect 7002");
    server.ask_ok(&format!("accept {listener}"));
    client.ask(&format!("segment {} 0", conn[0]));
    server.ask(&format!("segment {} 1", conn[0]));
    kill9(server.child.id());
    assert_eq!(client.ask("hangup"), "hung up");
    assert_eq!(client.ask("gone"), format!("gone {} {} {}", conn[0], conn[1], conn[2]));
    eventually("the peer is told to look", || client.ask("notice") != "0");
    eventually("the dead process is forgotten", || agent.report().processes.len() == 1);
}

/// Attaches from this process; its ring, and the socket that keeps it attached.
fn attach(agent: &TestAgent, parent: u32, nonce: u64) -> Result<(AgentRing, OwnedFd, u32, u32), DialError> {
    let connection = Agent::connect(&agent.address())?;
    let (reply, fds) = connection.call(&Call::Hello { parent, nonce })?;
    let Reply::Welcome { function, group, .. } = reply else { panic!("{reply:?}") };
    let mut fds = fds.into_iter();
    let [window, host, _stats, doorbell, answers, events] = [(); 6].map(|()| fds.next().unwrap());
    let common = fds.next();
    let memory = FunctionMemory { window, host, interrupts: [answers, events] };
    let ring = AgentRing::new(function, &memory, common.as_ref().map(AsFd::as_fd), doorbell).unwrap();
    Ok((ring, connection.into_socket(), function, group))
}

#[test]
fn a_fork_joins_its_family_only_with_the_right_nonce() {
    let agent = TestAgent::start(&[]);
    let (mut parent, parent_socket, function, group) = attach(&agent, 0, 0).unwrap();
    let (_stranger, _stranger_socket, _, other_group) = attach(&agent, 0, 0).unwrap();
    assert_ne!(group, other_group);
    parent.post(0, Request::Fork { nonce: 77 });
    assert!(matches!(attach(&agent, function, 78), Err(DialError::Refused(_))), "wrong nonce");
    let (_child, _child_socket, child_function, child_group) = attach(&agent, function, 77).unwrap();
    assert_eq!(child_group, group);
    assert_ne!(child_function, function);
    assert!(matches!(attach(&agent, function, 77), Err(DialError::Refused(_))), "a nonce serves once");
    assert!(matches!(attach(&agent, 4000, 77), Err(DialError::Refused(_))), "no such parent");

    // A parent that forks and ends at once, as daemons do: the child is let in all the same.
    parent.post(0, Request::Fork { nonce: 79 });
    drop((parent, parent_socket));
    eventually("the parent is gone", || agent.report().processes.len() == 2);
    let (_late, _late_socket, _, late_group) = attach(&agent, function, 79).unwrap();
    assert_eq!(late_group, group);
}

#[test]
fn every_descriptor_of_the_welcome_is_what_it_should_be() {
    use ring::stats::{STATS_BYTES, Stats};
    use ring::window::{HOST_BYTES, WINDOW_BYTES};
    let hinted = TestAgent::start(&["--request-queue", "hybrid"]);
    let connection = Agent::connect(&hinted.address()).unwrap();
    let (_, fds) = connection.call(&Call::Hello { parent: 0, nonce: 0 }).unwrap();
    assert_eq!(fds.len(), ring::attach::WELCOME_FDS);
    let common = rustix::fs::fstat(&fds[6]).unwrap().st_size;
    assert_eq!(common, i64::try_from(ring::queue::COMMON_BYTES).unwrap());
    let agent = TestAgent::start(&["--request-queue", "per-process"]);
    let connection = Agent::connect(&agent.address()).unwrap();
    let (_, fds) = connection.call(&Call::Hello { parent: 0, nonce: 0 }).unwrap();
    assert_eq!(fds.len(), ring::attach::WELCOME_FDS - 1, "nothing that others could write");
    for (fd, size) in fds.iter().zip([WINDOW_BYTES, HOST_BYTES, STATS_BYTES]) {
        assert_eq!(rustix::fs::fstat(fd).unwrap().st_size, i64::try_from(size).unwrap());
        let seals = rustix::fs::fcntl_get_seals(fd).unwrap();
        use rustix::fs::SealFlags;
        assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL), "{seals:?}");
    }
    let stats = emulator::memory::Mapping::new(&fds[2], STATS_BYTES).unwrap();
    let view = Stats::over(stats.region()).unwrap();
    view.header.closed_user.tx_bytes.store(1234, ring::atomic::Ordering::Relaxed);
    assert_eq!(agent.report().totals.user.tx_bytes, 1234);
    drop((connection, fds));
    eventually("counters outlive the process", || {
        let report = agent.report();
        report.processes.is_empty() && report.totals.user.tx_bytes == 1234
    });
}

#[test]
fn bad_messages_end_their_connection_with_a_sentence_and_nothing_else() {
    let agent = TestAgent::start(&[]);
    let (_bystander, socket, _, _) = attach(&agent, 0, 0).unwrap();
    let good = Call::Hello { parent: 0, nonce: 0 }.to_wire();
    let mut corrupt = good;
    corrupt[0] ^= 0xff;
    let mut old = good;
    old[4] = 0;
    let mut unknown = good;
    unknown[8] = 99;
    let mut long = good.to_vec();
    long.push(0);
    let out_of_order = Call::Segment { segment: 1, side: 0 }.to_wire();
    let cases: [(&[u8], &str); 7] = [
        (&corrupt, "not an IPC-Direct message"),
        (&old, "speaks version 0"),
        (&unknown, "malformed"),
        (&good[..17], "not an IPC-Direct message"),
        (&long, "not an IPC-Direct message"),
        (b"x", "not an IPC-Direct message"),
        (&out_of_order, "out of order"),
    ];
    for (bytes, sentence) in cases {
        let connection = Agent::connect(&agent.address()).unwrap();
        let raw = connection.into_socket();
        packet::send(&raw, bytes, &[]).unwrap();
        let mut buffer = [0; 256];
        let (n, _) = packet::receive(&raw, &mut buffer).unwrap();
        let Ok(Reply::Refused(text)) = Reply::from_wire(&buffer[..n]) else {
            panic!("{sentence}: {n} bytes")
        };
        assert!(text.as_str().contains(sentence), "{:?} for {sentence}", text.as_str());
        assert_eq!(packet::receive(&raw, &mut buffer).unwrap().0, 0, "closed after {sentence}");
    }
    // Saying Hello twice is out of order, too, and costs the function.
    packet::send(&socket, &good, &[]).unwrap();
    eventually("the function is lost", || agent.report().processes.is_empty());
    attach(&agent, 0, 0).unwrap();
}

#[test]
fn silent_and_deaf_clients_stop_nobody() {
    let agent = TestAgent::start(&[]);
    let silent: Vec<_> = (0..50).map(|_| Agent::connect(&agent.address()).unwrap().into_socket()).collect();
    // Asks for ever and reads nothing: its socket fills up, and the agent lets it go.
    let deaf = Agent::connect(&agent.address()).unwrap().into_socket();
    eventually("a deaf client is dropped", || {
        packet::send(&deaf, &Call::Report { verbose: false }.to_wire(), &[]).is_err()
    });
    attach(&agent, 0, 0).unwrap();
    let mut buffer = [0; 256];
    for socket in &silent {
        assert_eq!(packet::receive(socket, &mut buffer).unwrap().0, 0, "closed after a while");
    }
}
