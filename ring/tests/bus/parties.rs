//! A host and a card over the model: what they do is the code of `ring::window`, in the order in which shim and coordinator do it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use ring::queue::Requests;
use ring::window::{CardEnd, Entry, FarHost, FarWindow, HostEnd, NearHost, NearWindow, Raw};

use crate::model::{Bus, Faults, ModelWord, Modelled, Party, Way, interleave};

/// What the parties leave out, or do in another order: the other twins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mistakes {
    /// The card looks at `armed` only before it pushes, and only when it pushes.
    pub armed_before_push: bool,
    /// The host sleeps without a look after it has armed.
    pub no_look_after_arm: bool,
    /// The host never rings.
    pub no_doorbell: bool,
    /// It rings for requests only, and not for credit.
    pub no_credit_doorbell: bool,
    /// The card sleeps without its full fence.
    pub no_fence: bool,
}

/// The memories of a function.
pub struct Function {
    armed: ModelWord<u64>,
    doorbell_wanted: ModelWord<u32>,
    requests: Vec<Entry<Modelled>>,
    completions: Vec<Entry<Modelled>>,
}

impl Function {
    pub fn new(bus: &Rc<RefCell<Bus>>, entries: usize) -> Function {
        let ring = |storer| {
            let entry = |_| {
                let mut first = Some(ModelWord::alone(bus, storer));
                Entry::of([(); 8].map(|()| first.take().unwrap_or_else(|| ModelWord::new(bus, storer))))
            };
            (0..entries).map(entry).collect()
        };
        Function {
            requests: ring(Party::Host),
            completions: ring(Party::Card),
            armed: ModelWord::alone(bus, Party::Host),
            doorbell_wanted: ModelWord::alone(bus, Party::Card),
        }
    }
}

/// Entry number `n` of a ring.
fn raw(n: u32) -> Raw {
    let word = u64::from(n) << 32 | u64::from(!n);
    Raw { kind: (n % 251) as u8, status: 0, token: n, body: [1, 2, 3, 4, 5, 6].map(|i| word.rotate_left(i)) }
}

/// Panics unless it is the next of a ring, whole.
fn check(got: &Raw, expected: u32, what: &str) {
    assert!(*got == raw(got.token), "a torn {what}: {got:?}");
    assert!(got.token == expected, "{what} {} came where {expected} was due", got.token);
}

struct Host {
    end: HostEnd<'static, Modelled>,
    taken: u32,
}

struct Card {
    end: CardEnd<'static, Modelled>,
    taken: u32,
    /// Completions that wait for credit.
    outbox: VecDeque<u32>,
}

/// Everything of one run. Each party acts also in the middle of what the other one does, between any two of its accesses to memory.
struct World {
    bus: Rc<RefCell<Bus>>,
    host: RefCell<Host>,
    card: RefCell<Card>,
    mistakes: Mistakes,
    posted: Cell<u32>,
    host_asleep: Cell<bool>,
    card_asleep: Cell<bool>,
    /// Completions that the card has made.
    made: Cell<u32>,
    /// Interrupts under way: each with the card's stores that come before it.
    interrupts: RefCell<VecDeque<u64>>,
    doorbells: Cell<u32>,
    /// The card sleeps on the doorbell when there is nothing to do.
    card_sleeps: bool,
    /// The host does not sleep as long as it has something to post.
    insists: bool,
    credit_after: u64,
    /// How many the host is to post.
    requests: u32,
}

/// Steps of either party, before everything is left to come to its end.
const STEPS: usize = 400;

/// One run of the protocol, chosen by `seed`; panics when a promise is broken.
pub fn run(seed: u64, ways: [Way; 2], faults: Faults, mistakes: Mistakes) {
    let bus = Bus::new(seed, ways, faults);
    let (entries, card_sleeps, insists, requests) = {
        let mut bus = bus.borrow_mut();
        (2 << bus.below(3), bus.chance(128), bus.chance(64), 20 + bus.below(60))
    };
    // Left behind, so that the parties may be anywhere; a few kilobytes.
    let function: &'static Function = Box::leak(Box::new(Function::new(&bus, entries)));
    let (armed, wanted) = (&function.armed, &function.doorbell_wanted);
    let (requests_ring, completions) = (function.requests.as_slice(), function.completions.as_slice());
    let window = FarWindow { armed: armed.into(), requests: requests_ring.into() };
    let near_window = NearWindow { armed: armed.into(), requests: requests_ring.into() };
    let host = NearHost { doorbell_wanted: wanted.into(), completions: completions.into() };
    let far_host = FarHost { doorbell_wanted: wanted.into(), completions: completions.into() };
    let world = Rc::new(World {
        host: RefCell::new(Host { end: HostEnd::new(Requests::private(&window), &window, &host), taken: 0 }),
        card: RefCell::new(Card {
            end: CardEnd::new(&near_window, &far_host),
            taken: 0,
            outbox: VecDeque::new(),
        }),
        bus: Rc::clone(&bus),
        mistakes,
        posted: Cell::new(0),
        host_asleep: Cell::new(false),
        card_asleep: Cell::new(false),
        made: Cell::new(0),
        interrupts: RefCell::default(),
        doorbells: Cell::new(0),
        card_sleeps,
        insists,
        credit_after: (entries as u64 / 4).max(1),
        requests: u32::try_from(requests).unwrap(),
    });
    let inside = Rc::downgrade(&world);
    interleave(Some(Box::new(move |acting| {
        if let Some(world) = inside.upgrade() {
            world.meanwhile(acting);
        }
    })));
    for _ in 0..STEPS {
        let what = world.bus.borrow_mut().below(9);
        match what {
            0..=2 => world.host_step(),
            3..=5 => world.card_step(),
            6 => world.signals(),
            // The program does something of its own.
            7 if world.posted.get() < world.requests => world.host_asleep.set(false),
            _ => world.bus.borrow_mut().some_time(),
        }
    }
    world.settle();
    interleave(None);
    bus.borrow_mut().forget();
}

impl World {
    fn chance(&self, of_256: u64) -> bool {
        self.bus.borrow_mut().chance(of_256)
    }

    /// `acting` is about to access memory; the other side may do something first.
    fn meanwhile(&self, acting: Party) {
        if !self.chance(24) {
            return;
        }
        match acting {
            Party::Host => self.card_step(),
            Party::Card => self.host_step(),
        }
        if self.chance(64) {
            self.signals();
        }
    }

    fn host_step(&self) {
        // It may be in the middle of another step.
        let Ok(mut host) = self.host.try_borrow_mut() else { return };
        if self.host_asleep.get() {
            return;
        }
        let what = self.bus.borrow_mut().below(4);
        match what {
            0 | 1 if self.posted.get() < self.requests => self.post(&mut host),
            3 if !self.insists || self.posted.get() == self.requests => self.host_sleeps(&mut host),
            _ => drop(Self::take_completions(&mut host)),
        }
    }

    fn post(&self, host: &mut Host) {
        let next = raw(self.posted.get() + 1);
        // Nobody waits for it, and it is not the last one: that brings all before it.
        let quiet = self.posted.get() + 1 < self.requests && self.chance(40);
        if quiet && host.end.post_quietly(&next).is_ok() {
            self.posted.set(self.posted.get() + 1);
            return;
        }
        let posted = host.end.post(&next);
        if posted.is_ok() {
            self.posted.set(self.posted.get() + 1);
        }
        self.ring(host.end.doorbell_wanted(|| self.bus.borrow_mut().fence(Party::Host)));
        if posted.is_err() {
            Self::take_completions(host);
        }
    }

    fn take_completions(host: &mut Host) -> bool {
        let mut any = false;
        while let Some(got) = host.end.take().expect("honest credit refused by the host") {
            host.taken += 1;
            check(&got, host.taken, "completion");
            any = true;
        }
        any
    }

    fn host_sleeps(&self, host: &mut Host) {
        // Its eventfd was reset before: an interrupt from here on wakes it.
        self.host_asleep.set(true);
        let armed = host.end.arm(|| self.bus.borrow_mut().fence(Party::Host));
        self.ring(armed.ring && !self.mistakes.no_credit_doorbell);
        if armed.ready && !self.mistakes.no_look_after_arm {
            self.host_asleep.set(false);
        }
    }

    fn ring(&self, wanted: bool) {
        self.doorbells.set(self.doorbells.get() + u32::from(wanted && !self.mistakes.no_doorbell));
    }

    /// One polling turn, as the coordinator's.
    fn card_step(&self) {
        let Ok(mut card) = self.card.try_borrow_mut() else { return };
        if self.card_asleep.get() {
            return;
        }
        let worked = self.turn(&mut card);
        if worked || !self.card_sleeps || self.chance(200) {
            return;
        }
        card.end.set_doorbell_wanted(true);
        if !self.mistakes.no_fence {
            self.bus.borrow_mut().fence(Party::Card);
        }
        if self.turn(&mut card) {
            card.end.set_doorbell_wanted(false);
        } else {
            self.card_asleep.set(true);
        }
    }

    fn turn(&self, card: &mut Card) -> bool {
        let mut worked = false;
        while let Some(got) = card.end.take().expect("honest credit refused by the card") {
            card.taken += 1;
            check(&got, card.taken, "request");
            worked = true;
            // Some requests have no answer, some have many, as if there were news besides.
            let answers = self.bus.borrow_mut().below(5);
            (0..answers).for_each(|_| card.outbox.push_back(self.make()));
        }
        if !self.mistakes.armed_before_push {
            card.end.look_at_armed().expect("honest armed refused");
        } else if !card.outbox.is_empty() {
            card.end.look_at_armed().expect("honest armed refused");
            self.interrupt(card);
        }
        while let Some(next) = card.outbox.front() {
            if card.end.push(&raw(*next)).is_err() {
                break;
            }
            card.outbox.pop_front();
        }
        // Credit by itself: here as one more completion.
        if card.outbox.is_empty()
            && card.end.untold() >= self.credit_after
            && card.end.push(&raw(self.made.get() + 1)).is_ok()
        {
            self.make();
        }
        if !self.mistakes.armed_before_push {
            self.interrupt(card);
        }
        worked
    }

    fn make(&self) -> u32 {
        self.made.set(self.made.get() + 1);
        self.made.get()
    }

    fn interrupt(&self, card: &mut Card) {
        if card.end.interrupt_due() {
            let before = self.bus.borrow().left(Party::Card);
            self.interrupts.borrow_mut().push_back(before);
        }
    }

    /// An interrupt or a doorbell arrives.
    fn signals(&self) {
        if self.doorbells.get() > 0
            && let Ok(card) = self.card.try_borrow_mut()
            && self.card_asleep.get()
        {
            self.doorbells.set(0);
            self.bus.borrow_mut().catch_up(Party::Card);
            self.card_asleep.set(false);
            card.end.set_doorbell_wanted(false);
        }
        let Some(before) = self.interrupts.borrow_mut().pop_front() else { return };
        let mut bus = self.bus.borrow_mut();
        if !bus.faults.interrupt_passes {
            // A message-signalled interrupt is a posted write that passes no other one (SPEC 2.10.5).
            bus.arrive_until(Party::Card, before);
        }
        bus.catch_up(Party::Host);
        self.host_asleep.set(false);
    }

    /// Until nothing happens any more, by itself: buffers that nobody flushes keep what they have.
    fn settle(&self) {
        for _ in 0..20 * self.requests {
            self.signals();
            self.bus.borrow_mut().arrive_all();
            for party in [Party::Host, Party::Card] {
                // What has arrived is seen some time.
                self.bus.borrow_mut().catch_up(party);
            }
            self.card_step();
            let host = &mut *self.host.borrow_mut();
            if self.posted.get() < self.requests {
                // The program has more to do; from its last request on only the card can wake it.
                self.host_asleep.set(false);
                self.post(host);
            } else if !self.host_asleep.get() && !Self::take_completions(host) {
                self.host_sleeps(host);
            }
        }
        let (posted, made) = (self.posted.get(), self.made.get());
        let (taken, got) = (self.card.borrow().taken, self.host.borrow().taken);
        assert!(posted == self.requests, "stuck: {posted} of {} posted", self.requests);
        assert!(taken == posted, "lost: {taken} of {posted} requests were taken");
        assert!(got == made, "a missed wake: {got} of {made} completions were taken");
    }
}
