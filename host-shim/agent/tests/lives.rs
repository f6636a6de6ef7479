//! Who outlives whom, and what is left behind: nothing.

mod common;

use std::process::Stdio;

use common::{
    Installation, KilledOnDrop, TestAgent, TestClient, eventually, fresh_socket, kill9, running, terminate,
};
use ipc_direct_agent::address::Address;
use ipc_direct_agent::dial::Agent;
use ring::attach::Call;

#[test]
fn a_signal_ends_agent_and_coordinator() {
    let mut agent = TestAgent::start(&[]);
    let _client = TestClient::attach(&agent);
    terminate(agent.pid);
    assert_eq!(agent.wait(), Some(0));
    agent.assert_nothing_left();
}

#[test]
fn a_killed_coordinator_takes_the_agent_with_it() {
    let mut agent = TestAgent::start(&[]);
    kill9(agent.coordinator);
    assert_eq!(agent.wait(), Some(1));
    agent.assert_nothing_left();
}

#[test]
fn a_killed_agent_takes_the_coordinator_with_it() {
    let mut agent = TestAgent::start(&[]);
    kill9(agent.pid);
    assert_eq!(agent.wait(), None);
    agent.assert_nothing_left();
}

#[test]
fn what_two_killed_ones_leave_is_removed_by_the_next() {
    let mut agent = TestAgent::start(&[]);
    kill9(agent.pid);
    kill9(agent.coordinator);
    assert_eq!(agent.wait(), None);
    eventually("the coordinator is gone", || !common::process_exists(agent.coordinator));
    let next = TestAgent::start_at(&agent.socket, &[]);
    assert!(next.runtime_dir.exists());
    assert!(!agent.runtime_dir.exists(), "{} was left", agent.runtime_dir.display());
}

#[test]
fn an_idle_agent_ends_and_a_lease_or_a_process_keeps_it() {
    let mut agent = TestAgent::start(&["--idle-exit-ms", "300"]);
    let lease = Agent::connect(&agent.address()).unwrap();
    lease.call(&Call::Lease).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(900));
    assert_eq!(agent.report().agent.leases, 1);
    let client = TestClient::attach(&agent);
    drop(lease);
    std::thread::sleep(std::time::Duration::from_millis(900));
    assert_eq!(agent.report().processes.len(), 1);
    drop(client);
    assert_eq!(agent.wait(), Some(0));
    agent.assert_nothing_left();
}

#[test]
fn a_second_agent_is_refused_and_a_stale_socket_file_is_not_in_the_way() {
    let path = std::env::temp_dir().join(format!("ipc-direct-agent-{}.sock", std::process::id()));
    let socket = path.to_str().unwrap();
    let mut agent = TestAgent::start_at(socket, &[]);
    let second = std::process::Command::new(common::program())
        .args(["up", "--socket", socket])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("is taken"), "{second:?}");
    kill9(agent.pid);
    agent.wait();
    let third = TestAgent::start_at(socket, &[]);
    drop(third);
    assert!(!path.exists());
}

#[test]
fn the_agent_sleeps_when_nothing_happens() {
    let agent = TestAgent::start(&[]);
    let _clients = [0; 2].map(|_| TestClient::attach(&agent));
    let ticks = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<u64> =
            stat.rsplit(") ").next().unwrap().split(' ').map(|f| f.parse().unwrap_or(0)).collect();
        // utime and stime, in hundredths of a second (proc_pid_stat(5)).
        fields[11] + fields[12]
    };
    std::thread::sleep(std::time::Duration::from_millis(300));
    let before = ticks(agent.pid);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let used = ticks(agent.pid) - before;
    assert!(used <= 10, "the agent used {used} ticks of 200");
}

#[test]
fn run_accelerates_and_leaves_nothing() {
    let installation = Installation::new("run");
    let socket = fresh_socket();
    let script = "echo $LD_PRELOAD; echo $IPC_DIRECT_LOG $IPC_DIRECT_SPIN_US $IPC_DIRECT_SOCKET; \
                  readlink /proc/self/fd/$IPC_DIRECT_LEASE_FD; exit 7";
    let output = installation
        .command(&socket)
        .args(["--log", "info", "--spin-us", "9", "--require-agent", "--", "sh", "-c", script])
        .env("LD_PRELOAD", "")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(lines[0], installation.path("libipc_direct.so").to_str().unwrap());
    assert_eq!(lines[1], format!("info 9 {socket}"));
    assert!(lines[2].starts_with("socket:"), "{text}");
    eventually("agent and coordinator have gone", || {
        ["ipc-direct", "nic-coordinator"].iter().all(|p| running(&installation.path(p)).is_empty())
    });
}

#[test]
fn programs_that_run_at_once_share_one_agent() {
    let installation = Installation::new("share");
    let socket = fresh_socket();
    let spawn = || {
        let child = installation.command(&socket).args(["--require-agent", "--", "sleep", "600"]).spawn();
        KilledOnDrop(child.unwrap())
    };
    let programs = [spawn(), spawn(), spawn()];
    let address = Address::parse(&socket);
    eventually("three leases", || {
        ipc_direct_agent::ps::fetch(&address, false).is_ok_and(|r| r.agent.leases == 3)
    });
    // The other two agents, if they ever were, have found the address taken.
    eventually("one agent", || running(&installation.path("ipc-direct")).len() == 1);
    drop(programs);
    eventually("agent and coordinator have gone", || {
        ["ipc-direct", "nic-coordinator"].iter().all(|p| running(&installation.path(p)).is_empty())
    });
}

#[test]
fn without_a_card_the_program_runs_over_the_kernel_or_not_at_all_if_asked() {
    let installation = Installation::new("nocard");
    let socket = fresh_socket();
    let run = |extra: &[&str]| {
        installation
            .command(&socket)
            .env("IPC_DIRECT_COORDINATOR", "/nonexistent/coordinator")
            .args(extra)
            .args(["--", "sh", "-c", "echo ran $LD_PRELOAD"])
            .output()
            .unwrap()
    };
    let output = run(&[]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ran\n");
    let warning = String::from_utf8_lossy(&output.stderr);
    assert!(warning.contains("/nonexistent/coordinator") && warning.contains("over the kernel"), "{warning}");
    assert_eq!(warning.lines().count(), 1, "{warning}");
    let output = run(&["--require-agent"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(125), 0), "{output:?}");
}

#[test]
fn programs_that_do_not_exist_are_reported_as_shells_do() {
    let installation = Installation::new("status");
    let socket = fresh_socket();
    let status = |program: &str| {
        let output = installation.command(&socket).args(["--", program]).output().unwrap();
        let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), sentence)
    };
    let (code, sentence) = status("/nonexistent/program");
    assert_eq!(code, Some(127), "{sentence}");
    assert!(sentence.contains("/nonexistent/program"), "{sentence}");
    assert_eq!(status("/etc/passwd").0, Some(126));
    eventually("the agent has gone", || running(&installation.path("ipc-direct")).is_empty());
}
