//! A card's bus (SPEC 12) over plain files, with the agent played by hand.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering as O};

use nic_coordinator::bus::{BusError, Payload};
use nic_coordinator::card::CardBus;
use nic_coordinator::counters::Shown;
use nic_coordinator::intake::Intake;
use nic_coordinator::logic::{Limits, Logic};
use nic_coordinator::mapping::{CardMemory, MapError};
use nic_coordinator::poll::Poller;
use ring::atomic::Ordering;
use ring::bus::{AGENT_FUNCTION, BusMsg};
use ring::card::{CARD_MAGIC, CardSide, HostSide, from_raw, to_raw};
use ring::msg::{Completion, Request, Status};
use ring::queue::{Key, Kind};
use ring::window::{Consumer, HOST_BYTES, HostMemory, Producer, WINDOW_BYTES, Window};

const RAM_BYTES: u64 = 1 << 20;
/// Where the agent's memory and that of function 1 are in the host's.
const AGENT_AT: u64 = 0x20000;
const OTHER_AT: u64 = 0x40000;

/// Two windows and the host's memory, removed at the end.
struct Files(PathBuf);

impl Files {
    fn new() -> Files {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ipc-direct-card-{}-{}", std::process::id(), NEXT.fetch_add(1, O::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        for (file, bytes) in
            [("function-0", WINDOW_BYTES as u64), ("function-1", 2 * WINDOW_BYTES as u64), ("ram", RAM_BYTES)]
        {
            File::create(dir.join(file)).unwrap().set_len(bytes).unwrap();
        }
        Files(dir)
    }

    fn card(&self) -> CardBus {
        CardBus::open(&self.0, &self.0.join("ram")).unwrap()
    }

    fn map(&self, file: &str, at: u64) -> CardMemory {
        let file = OpenOptions::new().read(true).write(true).open(self.0.join(file)).unwrap();
        CardMemory::map(&file, at, WINDOW_BYTES.max(HOST_BYTES), "test").unwrap()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The agent's half of the bus.
struct Agent {
    window: CardMemory,
    host: CardMemory,
    messages: Producer<'static>,
    answers: Consumer<'static>,
}

impl Agent {
    /// Makes itself known as `incarnation`.
    fn new(files: &Files, incarnation: u64) -> Agent {
        let (window, host) = (files.map("function-0", 0), files.map("ram", AGENT_AT));
        host.clear(0, HOST_BYTES);
        HostMemory::over(host.region()).unwrap().format(Kind::PerProcess, Key::default());
        let card = CardSide::over(window.region()).unwrap();
        assert_eq!(card.registers.magic.load(Ordering::Acquire), CARD_MAGIC);
        card.registers.address.store(AGENT_AT, Ordering::Relaxed);
        card.registers.incarnation.store(incarnation, Ordering::Release);
        let messages = Producer::new(card.ring, 0);
        let answers = Consumer::new(HostSide::over(host.region()).unwrap().ring, 0);
        Agent { window, host, messages, answers }
    }

    fn say(&mut self, message: BusMsg, address: u64) {
        let credit = self.answers.credit();
        self.messages.push(&to_raw(message, address), credit).unwrap();
    }

    fn hear(&mut self) -> Option<BusMsg> {
        let (raw, credit) = self.answers.pop().unwrap()?;
        assert!(self.messages.take_credit(credit));
        Some(from_raw(&raw).unwrap().0)
    }
}

#[test]
fn s12_3_one_agent_after_the_other() {
    let files = Files::new();
    let mut card = files.card();
    assert!(!card.greet().unwrap(), "nobody is there");
    let mut first = Agent::new(&files, 7);
    assert!(card.greet().unwrap());
    card.send(BusMsg::Up { epoch: 5 }, 0).unwrap();
    assert_eq!(first.hear(), Some(BusMsg::Up { epoch: 5 }));
    assert!(card.receive().unwrap().is_none());
    assert_eq!(HostSide::over(first.host.region()).unwrap().pulse.beat.load(Ordering::Relaxed), 1);

    // A coordinator that is started anew takes nobody over who was another's.
    let mut heir = files.card();
    assert!(!heir.greet().unwrap());
    let mut second = Agent::new(&files, 8);
    assert!(matches!(card.receive(), Err(BusError::HungUp)));
    assert!(heir.greet().unwrap());
    heir.send(BusMsg::Up { epoch: 6 }, 0).unwrap();
    assert_eq!(second.hear(), Some(BusMsg::Up { epoch: 6 }));
}

#[test]
fn s12_2_more_messages_than_entries() {
    let files = Files::new();
    let mut card = files.card();
    let mut agent = Agent::new(&files, 1);
    assert!(card.greet().unwrap());
    for n in 0..1000 {
        let function = n % 7;
        agent.say(BusMsg::Map { function }, OTHER_AT);
        let incoming = card.receive().unwrap().unwrap();
        assert_eq!(incoming.message, BusMsg::Map { function });
        assert!(matches!(incoming.payload, Payload::Address(OTHER_AT)));
        card.send(BusMsg::Mapped { function }, 0).unwrap();
        assert_eq!(agent.hear(), Some(BusMsg::Mapped { function }));
    }
}

#[test]
fn s12_5_addresses_outside_of_the_hosts_memory_are_refused() {
    let files = Files::new();
    let card = files.card();
    for address in [RAM_BYTES, RAM_BYTES - 4096, u64::MAX - 63, u64::MAX, OTHER_AT + 8] {
        assert!(matches!(card.function(1, address), Err(MapError::Outside { .. })), "{address:#x}");
    }
    assert!(matches!(card.function(1, OTHER_AT), Err(MapError::Header(_))), "not formatted by an agent");
    assert!(matches!(card.function(2, OTHER_AT), Err(MapError::Kernel(..))), "no such window");
}

#[test]
fn s12_5_a_request_is_answered_in_host_memory() {
    let files = Files::new();
    let mut card = files.card();
    let agent = Agent::new(&files, 1);
    assert!(card.greet().unwrap());
    let intake = Intake::new(Kind::PerProcess, None).unwrap();
    let mut poller = Poller::new(Logic::new(Limits::default()), &Shown::default(), 9, intake, Vec::new());
    poller.add(AGENT_FUNCTION, card.function(AGENT_FUNCTION, AGENT_AT).unwrap(), None).unwrap();

    let window = Window::over(agent.window.region()).unwrap();
    assert!(window.valid());
    let mut requests = Producer::new(window.requests, 0);
    let attach = Request::Attach { function: 1, group: 1, parent: 0, nonce: 0, uid: 0, pid: 1, netns: 1 };
    requests.push(&attach.to_raw(3), 0).unwrap();
    assert!(poller.turn(0));
    let host = HostMemory::over(agent.host.region()).unwrap();
    assert_eq!(host.header.epoch.load(Ordering::Relaxed), 9);
    let (raw, _) = Consumer::new(host.completions, 0).pop().unwrap().unwrap();
    assert!(matches!(Completion::from_raw(&raw), Ok(Completion::Done { status: Status::Ok, .. })));

    // The window's next owner finds none of it.
    drop(poller);
    card.function(AGENT_FUNCTION, AGENT_AT).unwrap();
    assert!(!Consumer::new(window.requests, 0).ready());
}
