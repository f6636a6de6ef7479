//! A model of what lies between two sides of a bus (SPEC 2.10): stores wait, pass each other, come in parts, and loads may see
//! what was there a while ago, as far as a bus and the processors at its ends may do that. All of it by one seeded generator.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::rc::Rc;

use ring::atomic::Ordering;
use ring::side::{Memory, Word};

/// Who stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    Host,
    Card,
}

impl Party {
    fn other(self) -> Party {
        match self {
            Party::Host => Party::Card,
            Party::Card => Party::Host,
        }
    }
}

/// How stores of one side get to the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One after the other: coherent memory, or an uncached mapping and a bus without relaxed ordering.
    InOrder,
    /// In order within a line of 64 bytes; lines pass each other: relaxed ordering, or a DMA engine with several queues.
    Lines,
    /// Gathered by line in buffers, of which any part may leave at any time and in any order, and of which none needs to until
    /// it is flushed; then in order.
    Combining,
}

/// What is broken on purpose: the twins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Nothing is flushed.
    pub no_flush: bool,
    /// What says that content is there is stored before the content.
    pub header_first: bool,
    /// Loads order nothing.
    pub no_acquire: bool,
    /// An interrupt passes the completions that it is for.
    pub interrupt_passes: bool,
}

struct Store {
    address: usize,
    value: u64,
}

/// From one side to the other.
struct Lane {
    way: Way,
    /// Under way, by the order in which they left; in [`Way::Combining`] behind `buffered`.
    posted: VecDeque<Store>,
    buffered: Vec<Store>,
    /// With [`Faults::header_first`].
    held: Vec<Store>,
    /// How many stores have left, and how many have arrived.
    left: u64,
    arrived: u64,
}

/// What the loading side knows: no load sees the memory as it was before `since`, nor a word as it was before that was seen last.
struct View {
    since: u64,
    seen: Vec<usize>,
}

pub struct Bus {
    random: u64,
    clock: u64,
    /// For each word, its values since when.
    words: Vec<(Party, Vec<(u64, u64)>)>,
    lanes: [Lane; 2],
    views: [View; 2],
    /// Of 256: how readily stores arrive, buffers leave by themselves, and loads see old values.
    eager: u64,
    leaky: u64,
    stale: u64,
    pub faults: Faults,
}

type Meanwhile = Box<dyn Fn(Party)>;

thread_local! {
    static MEANWHILE: RefCell<Option<Rc<Meanwhile>>> = const { RefCell::new(None) };
}

/// What to call before each access to memory, with the party that is about to do it.
pub fn interleave(what: Option<Meanwhile>) {
    MEANWHILE.set(what.map(Rc::new));
}

fn meanwhile(acting: Party) {
    let what = MEANWHILE.with_borrow(Clone::clone);
    if let Some(what) = what {
        what(acting);
    }
}

/// Bytes of a line, in words.
const LINE: usize = 8;

impl Bus {
    pub fn new(seed: u64, ways: [Way; 2], faults: Faults) -> Rc<RefCell<Bus>> {
        let lane = |way| Lane {
            way,
            posted: VecDeque::new(),
            buffered: Vec::new(),
            held: Vec::new(),
            left: 0,
            arrived: 0,
        };
        let view = || View { since: 0, seen: Vec::new() };
        let mut bus = Bus {
            random: seed,
            clock: 0,
            words: Vec::new(),
            lanes: ways.map(lane),
            views: [view(), view()],
            eager: 0,
            leaky: 0,
            stale: 0,
            faults,
        };
        bus.eager = [8, 64, 200][bus.below(3)];
        bus.leaky = [0, 8, 100][bus.below(3)];
        bus.stale = [0, 64, 160][bus.below(3)];
        Rc::new(RefCell::new(bus))
    }

    /// splitmix64.
    pub fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub fn chance(&mut self, of_256: u64) -> bool {
        self.next() % 256 < of_256
    }

    /// A fresh word, 0, that `storer` stores to. Addresses go up; those of an entry begin a line.
    fn add(&mut self, storer: Party) -> usize {
        self.words.push((storer, vec![(0, 0)]));
        self.views.iter_mut().for_each(|view| view.seen.push(0));
        self.words.len() - 1
    }

    fn line_break(&mut self) {
        while !self.words.len().is_multiple_of(LINE) {
            self.add(Party::Host);
        }
    }

    fn store(&mut self, address: usize, value: u64, order: Ordering) {
        let party = self.words[address].0;
        let header_first = self.faults.header_first;
        let lane = &mut self.lanes[party as usize];
        let store = Store { address, value };
        if header_first && order == Ordering::Relaxed {
            lane.held.push(store);
            return;
        }
        let all = [store].into_iter().chain(std::mem::take(&mut lane.held));
        for store in all {
            if lane.way == Way::Combining {
                // Into the buffer of its line, over what is there of the same word.
                lane.buffered.retain(|b| b.address != store.address);
                lane.buffered.push(store);
            } else {
                lane.left += 1;
                lane.posted.push_back(store);
            }
        }
        self.some_time();
    }

    fn load(&mut self, address: usize, order: Ordering) -> u64 {
        self.some_time();
        let reader = self.words[address].0.other();
        let stale = self.stale;
        let history = self.words[address].1.clone();
        let view = &self.views[reader as usize];
        // Values that were replaced before `since` can't be seen any more.
        let first = history.iter().rposition(|(at, _)| *at <= view.since).unwrap_or(0);
        let first = first.max(view.seen[address]);
        let mut chosen = history.len() - 1;
        if self.chance(stale) {
            chosen = first + self.below(history.len() - first);
        }
        let (at, value) = history[chosen];
        let acquires = order != Ordering::Relaxed && !self.faults.no_acquire;
        let view = &mut self.views[reader as usize];
        view.seen[address] = chosen;
        if acquires {
            view.since = view.since.max(at);
        }
        value
    }

    /// Things arrive meanwhile, or not.
    pub fn some_time(&mut self) {
        for party in [Party::Host, Party::Card] {
            while self.chance(self.leaky) {
                self.leak(party);
            }
            while self.chance(self.eager) {
                self.arrive(party);
            }
        }
    }

    /// One word leaves a write-combining buffer by itself.
    fn leak(&mut self, party: Party) {
        let waiting = self.lanes[party as usize].buffered.len();
        if waiting > 0 {
            let any = self.below(waiting);
            let lane = &mut self.lanes[party as usize];
            let store = lane.buffered.remove(any);
            lane.left += 1;
            lane.posted.push_back(store);
        }
    }

    fn flush(&mut self, address: usize) {
        if !self.faults.no_flush {
            self.drain(self.words[address].0);
        }
    }

    fn drain(&mut self, party: Party) {
        while !self.lanes[party as usize].buffered.is_empty() {
            self.leak(party);
        }
    }

    /// One store arrives. False: none is under way.
    fn arrive(&mut self, party: Party) -> bool {
        let lane = &self.lanes[party as usize];
        if lane.posted.is_empty() {
            return false;
        }
        let mut which = 0;
        if lane.way == Way::Lines {
            let lines: Vec<usize> = lane.posted.iter().map(|s| s.address / LINE).collect();
            let line = lines[self.below(lines.len())];
            which = lines.iter().position(|l| *l == line).unwrap();
        }
        let lane = &mut self.lanes[party as usize];
        let Store { address, value } = lane.posted.remove(which).unwrap();
        lane.arrived += 1;
        self.clock += 1;
        self.words[address].1.push((self.clock, value));
        true
    }

    /// Lets go of everything; the run is over.
    pub fn forget(&mut self) {
        (self.words, self.views) = (Vec::new(), [(); 2].map(|()| View { since: 0, seen: Vec::new() }));
    }

    /// What `party` has stored so far, and may wait in buffers, is under way; with the number of the last of it.
    pub fn left(&self, party: Party) -> u64 {
        self.lanes[party as usize].left
    }

    /// Everything under way arrives; what is in buffers stays there.
    pub fn arrive_all(&mut self) {
        for party in [Party::Host, Party::Card] {
            while self.arrive(party) {}
        }
    }

    /// What left before number `left` of `party` has arrived. In an order that isn't theirs, that means everything.
    pub fn arrive_until(&mut self, party: Party, left: u64) {
        let all = self.lanes[party as usize].way == Way::Lines;
        while self.lanes[party as usize].arrived < left || all {
            if !self.arrive(party) {
                return;
            }
        }
    }

    /// `party` was interrupted, or made a system call for it: it sees everything that has arrived.
    pub fn catch_up(&mut self, party: Party) {
        self.views[party as usize].since = self.clock;
    }

    /// `party` passes a full fence, in memory that both share: what it has stored before is there, and it sees what is.
    pub fn fence(&mut self, party: Party) {
        self.drain(party);
        while self.arrive(party) {}
        self.catch_up(party);
    }
}

/// A word of the model.
pub struct ModelWord<V> {
    bus: Rc<RefCell<Bus>>,
    address: usize,
    storer: Party,
    value: PhantomData<V>,
}

impl<V> ModelWord<V> {
    pub fn new(bus: &Rc<RefCell<Bus>>, storer: Party) -> Self {
        let address = bus.borrow_mut().add(storer);
        ModelWord { bus: Rc::clone(bus), address, storer, value: PhantomData }
    }

    /// On a line of its own.
    pub fn alone(bus: &Rc<RefCell<Bus>>, storer: Party) -> Self {
        bus.borrow_mut().line_break();
        ModelWord::new(bus, storer)
    }
}

impl<V: Copy + Into<u64> + TryFrom<u64>> Word for ModelWord<V> {
    type Value = V;
    fn load(&self, order: Ordering) -> V {
        meanwhile(self.storer.other());
        let value = self.bus.borrow_mut().load(self.address, order);
        V::try_from(value).ok().expect("what was stored")
    }
    fn store(&self, value: V, order: Ordering) {
        meanwhile(self.storer);
        self.bus.borrow_mut().store(self.address, value.into(), order);
    }
    fn flush(&self) {
        self.bus.borrow_mut().flush(self.address);
    }
}

/// Memory that is the model's.
#[derive(Clone, Copy, Debug)]
pub struct Modelled;

impl Memory for Modelled {
    type Word = ModelWord<u64>;
    type Half = ModelWord<u32>;
}
