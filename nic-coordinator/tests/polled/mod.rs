//! A poller over real memory, and the processes that use it. The test holds the clock.
#![allow(dead_code)] // Every test file uses its part of it.

use std::os::fd::{AsFd, OwnedFd};

use nic_coordinator::counters::Shown;
use nic_coordinator::intake::Intake;
use nic_coordinator::link::ShardEnd;
use nic_coordinator::logic::{Limits, Logic};
use nic_coordinator::mapping::{CardMemory, FunctionMemory};
use nic_coordinator::poll::Poller;
use ring::bus::AGENT_FUNCTION;
use ring::msg::{Completion, Request};
use ring::profile::Profile;
use ring::queue::shared::Poster;
use ring::queue::{COMMON_BYTES, CommonMemory, Key, Kind, Requests};
use ring::window::{HOST_BYTES, HostEnd, HostMemory, Raw, WINDOW_BYTES, Window};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// What a process runs between its post and its look whether the card sleeps (SPEC 2.6.2).
fn full_fence() {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

fn memory(bytes: usize) -> (OwnedFd, CardMemory) {
    let fd = memfd_create("ipcd-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, bytes as u64).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    let map = CardMemory::map(&fd, 0, bytes, "test").unwrap();
    (fd, map)
}

/// A poller over one kind of queue.
pub struct Host<'r> {
    pub poller: Poller<'r>,
    pub shown: Shown,
    kind: Kind,
    /// Functions have interrupts, as on the emulated card.
    pub interrupts: bool,
    /// Kept mapped for good, as the test's processes use it until the end.
    pub common: Option<&'static CommonMemory>,
    pub agent: Option<Process>,
}

/// A function, as its process sees it.
pub struct Process {
    pub number: u32,
    pub end: HostEnd<'static>,
    host: HostMemory<'static>,
    irqs: [OwnedFd; 2],
    /// Whether the card wanted its doorbell rung, how often.
    pub doorbells: u64,
}

impl<'r> Host<'r> {
    pub fn new(kind: Kind) -> Host<'r> {
        Host::with(kind, |_, _| Vec::new())
    }

    /// With shards on other lcores: `shards` is given what they count in and the common memory.
    pub fn with(kind: Kind, shards: impl FnOnce(&Shown, Option<&OwnedFd>) -> Vec<ShardEnd<'r>>) -> Host<'r> {
        let common = (kind != Kind::PerProcess).then(|| memory(COMMON_BYTES));
        let (fd, map) = common.unzip();
        let view = map.map(|map| CommonMemory::over(Box::leak(Box::new(map)).region()).unwrap());
        view.iter().for_each(|common| common.format());
        let shown = Shown::default();
        let shards = shards(&shown, fd.as_ref());
        let intake = Intake::new(kind, fd).unwrap();
        let poller = Poller::new(Logic::new(Limits::default()), &shown, 9, intake, shards);
        let mut host = Host { poller, shown, kind, interrupts: true, common: view, agent: None };
        host.agent = Some(host.map(AGENT_FUNCTION));
        host
    }

    /// A process comes.
    pub fn attach(&mut self, function: u32) -> Process {
        self.attach_as(function, 1)
    }

    /// A process of this group comes.
    pub fn attach_as(&mut self, function: u32, group: u32) -> Process {
        let process = self.map(function);
        let attach = Request::Attach { function, group, parent: 0, nonce: 0, uid: 0, pid: 1, netns: 1 };
        self.agent.as_mut().unwrap().post(&attach.to_raw(1));
        let mut answers = Vec::new();
        // One turn, but for a slow bus.
        while self.poller.turn(0) && answers.is_empty() {
            answers = self.agent.as_mut().unwrap().answers();
        }
        answers.extend(self.agent.as_mut().unwrap().answers());
        assert_eq!(answers, [1]);
        process
    }

    /// From now on they are behind a slow bus.
    pub fn behind(mut self, profile: Profile) -> Host<'r> {
        self.poller = self.poller.with_profile(profile);
        self
    }

    pub fn map(&mut self, number: u32) -> Process {
        let ((window_fd, window), (host_fd, host)) = (memory(WINDOW_BYTES), memory(HOST_BYTES));
        let window = Window::over(Box::leak(Box::new(window)).region()).unwrap();
        let host = HostMemory::over(Box::leak(Box::new(host)).region()).unwrap();
        window.format(number);
        let kind = if number == AGENT_FUNCTION { Kind::PerProcess } else { self.kind };
        host.format(kind, Key([number.into(), 77]));
        let irqs = [0; 2].map(|n| eventfd(n, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        if self.interrupts {
            let cards = irqs.each_ref().map(|irq| irq.try_clone().unwrap());
            self.poller.map(number, [window_fd, host_fd].into_iter().chain(cards).collect()).unwrap();
        } else {
            let memory = FunctionMemory::map(number, window_fd.as_fd(), host_fd.as_fd()).unwrap();
            self.poller.add(number, memory, None).unwrap();
        }
        let requests = Requests::over(number, &window.far(), &host, self.common).unwrap();
        let end = HostEnd::new(requests, &window.far(), &host.near());
        Process { number, end, host, irqs, doorbells: 0 }
    }
}

impl Process {
    /// A request that everybody gets an answer to, if only an error.
    pub fn ask(&mut self, token: u32) {
        self.post(&Request::Accept { listener: 1, flags: 0 }.to_raw(token));
    }

    pub fn post(&mut self, raw: &Raw) {
        self.end.post(raw).unwrap();
        self.doorbells += u64::from(self.end.doorbell_wanted(full_fence));
    }

    /// Tokens and completions but for credits, in their order.
    pub fn heard(&mut self) -> Vec<(u32, Completion)> {
        let mut heard = Vec::new();
        while let Some(raw) = self.end.take().unwrap() {
            match Completion::from_raw(&raw).unwrap() {
                Completion::Credit => {}
                completion => heard.push((raw.token, completion)),
            }
        }
        heard
    }

    /// As before sleeping: the card gets the credit for what was heard, and is asked for an interrupt.
    pub fn arm(&mut self) {
        let _ = self.end.arm(full_fence);
    }

    /// Takes the interrupts of a vector: how many there were.
    pub fn interrupts(&self, vector: usize) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.irqs[vector], &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    pub fn answers(&mut self) -> Vec<u32> {
        self.heard().into_iter().map(|(token, _)| token).collect()
    }

    pub fn poster(&self, host: &Host<'_>) -> Poster<'static> {
        let function = u16::try_from(self.number).unwrap();
        Poster::new(host.common.unwrap().ring(), &self.host.header.pushing, function, self.host.key())
    }
}
