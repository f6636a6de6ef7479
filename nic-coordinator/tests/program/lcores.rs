//! Several lcores (docs/decisions.md): who polls what, and what crosses from one to the other.

use ring::atomic::Ordering;
use ring::bus::BusMsg;
use ring::msg::{ACCEPT_WAIT, Completion, Request, Status};
use ring::queue::Kind;
use ring::window::ENTRIES;
use rustix::process::{Pid, Signal, kill_process};

use crate::card::Card;
use crate::{Host, QUIET_PORT, accepted, close, connect, connected, gone, listen, lo};

const LCORES: u32 = 3;

fn host(kind: Kind, options: &[&str]) -> Host {
    Host::over(|| Card::boot_on(LCORES, kind, options, QUIET_PORT))
}

/// What an lcore has counted.
fn counted(host: &Host, lcore: u32, name: &str) -> u64 {
    let text = host.card.telemetry("/ipc_direct/lcores");
    let (_, of_it) = text.split_once(&format!("\"{lcore}\":{{")).unwrap_or_else(|| panic!("{text}"));
    let (_, rest) = of_it.split_once(&format!("\"{name}\":")).unwrap_or_else(|| panic!("{text}"));
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

#[test]
fn each_lcore_polls_its_functions_and_one_decides_for_all() {
    for kind in Kind::ALL {
        for options in [&["--idle", "sleep"][..], &["--idle", "poll"]] {
            let mut host = host(kind, options);
            let (mut client, mut server) = (host.attach(1), host.attach(2));
            let listener = listen(&mut server, 80);
            let token = client.post(Request::Connect { dst: lo(80), src: lo(40000) });
            host.make_segment();
            connected(&mut client, token);
            for _ in 0..20 {
                let accept = server.post(Request::Accept { listener, flags: ACCEPT_WAIT });
                let first = accepted(&mut server, accept);
                connect(&mut client, 80);
                close(&mut client, first, 0);
                gone(&mut server, first);
                close(&mut server, first, 1);
            }
            for lcore in 1..LCORES {
                assert!(counted(&host, lcore, "requests") >= 40, "{kind}: lcore {lcore} polls nobody");
            }
            assert_eq!(counted(&host, 0, "requests"), 3, "the agent's: {kind}");
            assert_eq!(counted(&host, 2, "connects"), 21, "{kind}");
            assert_eq!(counted(&host, 1, "accepts"), 20, "{kind}");
            assert_eq!(host.card.counter("accepts"), 20, "the sum: {kind}");
            host.end();
        }
    }
}

/// The coordinator does not run while everybody posts: whatever it reads first, the agent's word comes last.
#[test]
fn what_a_process_asked_for_comes_before_what_the_agent_says_of_it() {
    for kind in Kind::ALL {
        let mut host = host(kind, &[]);
        let pid = Pid::from_child(&host.card.child);
        for round in 0..10 {
            let mut parent = host.attach(1);
            let listener = listen(&mut parent, 80);
            let mut child = host.card.function(2 + round % 2);
            kill_process(pid, Signal::STOP).unwrap();
            for _ in 0..ENTRIES / 2 {
                parent.post(Request::Unlisten { listener: 0 });
            }
            parent.post(Request::Fork { nonce: 7 });
            let (function, group) = (child.number, 1);
            let attach = Request::Attach { function, group, parent: 1, nonce: 7, uid: 0, pid: 1, netns: 1 };
            let attach = host.agent.post(attach);
            // And the parent is gone at once, as a daemon's.
            host.detach(parent);
            kill_process(pid, Signal::CONT).unwrap();
            assert_eq!(host.agent.answer(attach), Completion::Done { status: Status::Ok, value: 0 });
            let accept = child.ask(Request::Accept { listener, flags: 0 });
            assert!(
                matches!(accept, Completion::Accepted { status: Status::Empty, .. }),
                "{kind}: {accept:?}"
            );
            host.detach(child);
        }
        host.end();
    }
}

#[test]
fn a_number_that_is_used_again_at_once_hears_nothing_of_its_former_owner() {
    let mut host = host(Kind::PerProcess, &[]);
    let mut server = host.attach(2);
    listen(&mut server, 80);
    // As many as the listener holds without anybody accepting them.
    for round in 0..16 {
        let mut client = host.attach(1);
        let token = client.post(Request::Connect { dst: lo(80), src: lo(40000) });
        host.make_segment();
        connected(&mut client, token);
        // Answers that it does not wait for.
        for _ in 0..10 * round {
            client.post(Request::Connect { dst: lo(81), src: lo(40000) });
        }
        host.card.send(BusMsg::Unmap { function: 1 }, &[]);
        let mut fresh = host.card.function(1);
        host.agent.post(Request::Detach { function: 1 });
        listen(&mut server, 100 + round);
        assert_eq!(fresh.host.header.epoch.load(Ordering::Relaxed), host.card.epoch);
        fresh.collect();
        assert!(fresh.news.is_empty(), "{:?}", fresh.news);
        host.card.send(BusMsg::Unmap { function: 1 }, &[]);
    }
    host.end();
}

#[test]
fn all_lcores_sleep_and_a_doorbell_wakes_them() {
    for kind in Kind::ALL {
        let mut host = host(kind, &["--idle", "sleep"]);
        let mut processes = [1, 2].map(|number| host.attach(number));
        listen(&mut processes[0], 79);
        let before = host.card.cpu_ticks();
        std::thread::sleep(std::time::Duration::from_secs(1));
        let used = host.card.cpu_ticks() - before;
        assert!(used < 10, "{kind}: {used} ticks of 10 ms in 1 s");
        for round in 0..50 {
            let process = &mut processes[usize::from(round % 2)];
            assert!(process.arm());
            let token = process.post(Request::Listen { addr: lo(80 + round), backlog: 1, flags: 0 });
            process.interrupted(0);
            assert!(matches!(process.answer(token), Completion::Done { status: Status::Ok, .. }));
            std::thread::sleep(std::time::Duration::from_millis(u64::from(round % 3)));
        }
        for lcore in 0..LCORES {
            assert!(counted(&host, lcore, "sleeps") > 5, "{kind}: lcore {lcore} does not sleep");
        }
        host.end();
    }
}

#[test]
fn nonsense_in_the_ring_of_another_lcore_is_answered_by_the_same_end() {
    let mut host = host(Kind::PerProcess, &[]);
    let mut server = host.attach(2);
    let listener = listen(&mut server, 80);
    for round in 1..20 {
        let mut villain = host.attach(1);
        let token = villain.post(Request::Connect { dst: lo(80), src: lo(40000) });
        host.make_segment();
        let conn = connected(&mut villain, token);
        let accept = server.post(Request::Accept { listener, flags: 0 });
        assert_eq!(accepted(&mut server, accept), conn);
        // What the shard finds out itself, or what only the logic knows.
        if round % 2 == 0 {
            villain.scribble(16, u64::MAX);
            villain.ring();
        } else {
            for _ in 0..ENTRIES / 2 {
                villain.post(Request::Detach { function: 2 });
            }
        }
        gone(&mut server, conn);
        close(&mut server, conn, 1);
        assert_eq!(host.card.counter("functions_dropped"), round);
        host.detach(villain);
    }
    host.end();
}
