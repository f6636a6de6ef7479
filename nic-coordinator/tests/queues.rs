//! The shared ring and the hints (SPEC 2.8, 2.9) behind a poller whose clock the test holds.

use std::os::fd::OwnedFd;

use nic_coordinator::counters::Shown;
use nic_coordinator::intake::{GAP_US, Intake, SCAN_EVERY_US};
use nic_coordinator::logic::{Limits, Logic};
use nic_coordinator::mapping::CardMemory;
use nic_coordinator::poll::Poller;
use ring::atomic::Ordering;
use ring::bus::AGENT_FUNCTION;
use ring::msg::{Completion, Request};
use ring::queue::shared::{Poster, Ticket};
use ring::queue::{COMMON_BYTES, CommonMemory, Key, Kind, Requests};
use ring::window::{Consumer, HOST_BYTES, HostMemory, WINDOW_BYTES, Window};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// SPEC 2.8.4.
const GAP_US_MAX: u64 = 10_000;

fn memory(bytes: usize) -> (OwnedFd, CardMemory) {
    let fd = memfd_create("ipcd-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, bytes as u64).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    let map = CardMemory::map(&fd, 0, bytes, "test").unwrap();
    (fd, map)
}

/// A poller over one kind of queue.
struct Host {
    poller: Poller<'static>,
    shown: Shown,
    kind: Kind,
    /// Kept mapped for good, as the test's processes use it until the end.
    common: Option<&'static CommonMemory>,
    agent: Option<Process>,
}

/// A function, as its process sees it.
struct Process {
    number: u32,
    requests: Requests<'static>,
    completions: Consumer<'static>,
    host: HostMemory<'static>,
}

impl Host {
    fn new(kind: Kind) -> Host {
        let common = (kind != Kind::PerProcess).then(|| memory(COMMON_BYTES));
        let (fd, map) = common.unzip();
        let view = map.map(|map| CommonMemory::over(Box::leak(Box::new(map)).region()).unwrap());
        view.iter().for_each(|common| common.format());
        let shown = Shown::default();
        let intake = Intake::new(kind, fd).unwrap();
        let poller = Poller::new(Logic::new(Limits::default()), &shown, 9, intake, Vec::new());
        let mut host = Host { poller, shown, kind, common: view, agent: None };
        host.agent = Some(host.map(AGENT_FUNCTION));
        host
    }

    /// A process comes.
    fn attach(&mut self, function: u32) -> Process {
        let process = self.map(function);
        let attach = Request::Attach { function, group: 1, parent: 0, nonce: 0, uid: 0, pid: 1, netns: 1 };
        let agent = self.agent.as_mut().unwrap();
        agent.requests.push(&attach.to_raw(1), 0).unwrap();
        self.poller.turn(0);
        assert_eq!(self.agent.as_mut().unwrap().answers(), [1]);
        process
    }

    fn map(&mut self, number: u32) -> Process {
        let ((window_fd, window), (host_fd, host)) = (memory(WINDOW_BYTES), memory(HOST_BYTES));
        let window = Window::over(Box::leak(Box::new(window)).region()).unwrap();
        let host = HostMemory::over(Box::leak(Box::new(host)).region()).unwrap();
        window.format(number);
        let kind = if number == AGENT_FUNCTION { Kind::PerProcess } else { self.kind };
        host.format(kind, Key([number.into(), 77]));
        let irqs = [0; 2].map(|n| eventfd(n, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        self.poller.map(number, [window_fd, host_fd].into_iter().chain(irqs).collect()).unwrap();
        Process {
            number,
            requests: Requests::over(number, &window, &host, self.common).unwrap(),
            completions: Consumer::new(host.completions, 0),
            host,
        }
    }
}

impl Process {
    /// A request that everybody gets an answer to, if only an error.
    fn ask(&mut self, token: u32) {
        let credit = self.completions.credit();
        self.requests.push(&Request::Accept { listener: 1, flags: 0 }.to_raw(token), credit).unwrap();
    }

    fn answers(&mut self) -> Vec<u32> {
        let mut tokens = Vec::new();
        while let Some((raw, credit)) = self.completions.pop().unwrap() {
            assert!(self.requests.take_credit(credit));
            if !matches!(Completion::from_raw(&raw), Ok(Completion::Credit)) {
                tokens.push(raw.token);
            }
        }
        tokens
    }

    fn poster(&self, host: &Host) -> Poster<'static> {
        let function = u16::try_from(self.number).unwrap();
        Poster::new(host.common.unwrap().ring(), &self.host.header.pushing, function, self.host.key())
    }
}

#[test]
fn s2_7_the_same_requests_get_the_same_answers_on_each_queue() {
    for kind in Kind::ALL {
        let mut host = Host::new(kind);
        let mut processes = [1, 2, 4095].map(|number| host.attach(number));
        let mut now_us = 0;
        for round in 0..300 {
            for process in &mut processes {
                process.ask(2 * round);
                process.ask(2 * round + 1);
            }
            while host.poller.turn(now_us) {
                now_us += 1;
            }
            for process in &mut processes {
                assert_eq!(process.answers(), [2 * round, 2 * round + 1], "{kind}");
            }
        }
        let hinted = host.shown.sum("hints") > 0;
        assert_eq!(hinted, kind == Kind::Hybrid, "{kind}");
    }
}

#[test]
fn s2_8_4_a_ticket_is_waited_for_and_passed_by_in_time() {
    let mut host = Host::new(Kind::Shared);
    let (mut dead, mut other) = (host.attach(1), host.attach(2));
    let mut poster = dead.poster(&host);
    let mut now_us = 5_000_000;
    for round in 0..100 {
        // Never published.
        let _: Ticket = poster.draw().unwrap();
        other.ask(round);
        let seen_us = now_us;
        while other.answers().is_empty() {
            assert!(now_us - seen_us < GAP_US_MAX, "round {round}: not passed by");
            host.poller.turn(now_us);
            // The card says when it wants to look again, should it sleep.
            let due_us = host.poller.next_deadline_us();
            assert!(due_us.is_none_or(|due_us| due_us <= seen_us + GAP_US), "{due_us:?}");
            now_us += 100;
        }
        assert!(now_us - seen_us >= GAP_US, "nobody is waited for");
        assert_eq!(host.shown.sum("gaps"), u64::from(round) + 1);
        // Its process is still seen in a push: as good as dead, and gone in the end.
        if round % 60 == 59 {
            host.poller.unmap(1, now_us);
            dead = host.attach(1);
            poster = dead.poster(&host);
        }
    }
}

#[test]
fn s2_9_5_who_is_left_out_of_the_hints_is_found_by_the_scan() {
    let mut host = Host::new(Kind::Hybrid);
    let mut process = host.attach(3);
    for round in 1..100u64 {
        let now_us = round * 10 * SCAN_EVERY_US;
        host.poller.turn(now_us);
        let mark = &host.common.unwrap().marks[3];
        let before = mark.load(Ordering::Relaxed);
        process.ask(7);
        // Somebody else takes the hint back.
        mark.store(before, Ordering::Relaxed);
        assert!(!host.poller.turn(now_us + SCAN_EVERY_US - 1));
        assert!(process.answers().is_empty());
        assert!(host.poller.turn(now_us + SCAN_EVERY_US));
        assert_eq!(process.answers(), [7]);
    }
}
