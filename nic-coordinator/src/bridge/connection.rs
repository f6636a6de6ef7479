//! One connection: from the process's ring to the other bridge, and from the other bridge to the process's ring (SPEC 4.10).

use std::sync::Arc;

use fabric::memory::{Region, Remote};
use ring::atomic::Ordering;
use ring::link::{Body, ITEM_MAX};
use ring::relay::{self, Run};
use ring::segment::{HEAD_BYTES, state};
use ring::stream::{Memory as _, Violation, Writer};

use super::link::Link;
use super::segment::{Outside, View, copy_in, copy_out};
use super::writes::Writes;

/// Bytes of one connection in one turn, so that the others get theirs, and of one write: the first are on their way while the process
/// writes the rest.
const BURST_BYTES: u64 = 128 * 1024;
/// The part of a ring that is told at once when it is consumed. Less is told with what goes anyway.
const TELL_PART: u64 = 4;

/// The other host's end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Far {
    /// The number that its bridge has given it.
    pub connection: u32,
    /// The registration of its slot's two rings.
    pub rings: Remote,
}

/// Who says the first thing about a connection: whoever joins last, as the other one may not be known there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// This bridge.
    Us,
    /// The other one.
    Them,
}

/// What a turn of a connection has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing more to say.
    Idle,
    /// More, when the others had their turns.
    More,
    /// More, when the link has room.
    Blocked,
    /// More, when the other process has read something, or a write is complete.
    Waiting,
}

/// A connection.
#[allow(clippy::struct_excessive_bools)] // each is one fact
pub(super) struct Connection {
    number: u32,
    pub(super) view: View,
    /// `None` until it is joined.
    pub(super) link: Option<usize>,
    /// Both rings of our slot.
    rings: Arc<Region>,
    far: Option<Far>,
    /// What we say first says that we have joined.
    greets: bool,
    /// The other bridge knows our number only: nothing is said before it has said something.
    heard: bool,
    /// The process's records up to there are with the other bridge, or on their way.
    relayed: u64,
    /// Nobody reads them here any more up to there, and the process was told.
    freed: u64,
    /// Those between the two that are still read.
    writes: Writes,
    /// The other process has consumed that much.
    credit: u64,
    /// There is more than the other process's ring, or `writes`, has room for.
    waiting: bool,
    /// Our position in the ring that the process reads.
    writer: Writer,
    /// The other bridge was told that the process has consumed that much.
    told: u64,
    /// The process's state that the other bridge was told.
    state_told: u32,
    /// That the process does not read any more was told: shut down, or closed.
    shut_told: bool,
    closed_told: bool,
    /// The other process has closed: what ours has written is lost.
    far_closed: bool,
    /// The process is dead.
    gone: bool,
    /// The connection is reset; the other bridge may have to be told.
    pub(super) broken: bool,
    done_told: bool,
    /// The other bridge says and writes nothing more for it.
    pub(super) far_done: bool,
    /// It waits for a turn.
    pub(super) queued: bool,
    /// It is in the list of those that get another look.
    pub(super) listed: bool,
}

impl Connection {
    pub(super) fn new(number: u32, view: View, rings: Arc<Region>) -> Connection {
        view.open();
        Connection {
            number,
            view,
            link: None,
            rings,
            far: None,
            greets: false,
            heard: false,
            relayed: 0,
            freed: 0,
            writes: Writes::default(),
            credit: 0,
            waiting: false,
            writer: Writer::default(),
            told: 0,
            state_told: state::OPEN,
            shut_told: false,
            closed_told: false,
            far_closed: false,
            gone: false,
            broken: false,
            done_told: false,
            far_done: false,
            queued: false,
            listed: false,
        }
    }

    pub(super) fn join(&mut self, link: usize, far: Far, speaker: Speaker) {
        (self.link, self.far) = (Some(link), Some(far));
        self.greets = speaker == Speaker::Us;
        self.heard = self.greets;
    }

    pub(super) fn process_is_gone(&mut self) {
        self.gone = true;
    }

    /// Neither bridge says anything more: the slots may be used again.
    pub(super) fn is_over(&self) -> bool {
        self.done_told && self.far_done
    }

    /// Something of the other bridge's may have to be answered without our process doing anything.
    pub(super) fn wants_turn(&self) -> bool {
        !self.heard || self.waiting || self.broken || self.far_closed || self.far_done
    }

    /// Ends it at our process as a reset, and says so to the other bridge.
    pub(super) fn reset(&mut self, outside: &mut impl Outside) {
        if !self.broken {
            self.broken = true;
            self.view.reset(outside);
        }
    }

    /// Its turn: says what there is to say. True beside the turn: a look behind a heavy barrier is due.
    pub(super) fn turn(&mut self, link: &mut Link, outside: &mut impl Outside) -> (Turn, bool) {
        let Some(far) = self.far.filter(|_| self.heard && !self.done_told) else {
            return (Turn::Idle, false);
        };
        // Nothing is consumed yet: says no more than that we are there.
        if self.greets && !say(link, &far, &Body::Consumed(0)) {
            return (Turn::Blocked, false);
        }
        self.greets = false;
        if !self.broken {
            let turn = self.relay(&far, link);
            self.free(outside);
            match turn {
                Ok(turn) => return turn,
                // The process, or the other host, says what can't be.
                Err(Violation) => self.reset(outside),
            }
        }
        self.done_told = say(link, &far, &Body::Reset);
        (if self.done_told { Turn::Idle } else { Turn::Blocked }, false)
    }

    fn relay(&mut self, far: &Far, link: &mut Link) -> Result<(Turn, bool), Violation> {
        self.waiting = false;
        // The state before the records: what is published before an end is seen by whoever saw the end (SPEC 4.5.2).
        let open = self.view.is_open();
        let state = if open { self.view.out_state() } else { state::OPEN };
        let turn = if open { self.relay_records(far, link)? } else { Turn::Idle };
        let (input, input_ring) = self.view.input();
        let consumed = relay::consumed(input_ring, input, &mut self.writer)?;
        let closed = if self.gone { Some(false) } else { self.view.reader_closed() };
        if turn == Turn::Blocked || !self.say_consumed(far, link, consumed, closed.is_some()) {
            return Ok((Turn::Blocked, false));
        }
        // As the kernel does for the dead: what they have not read makes it a reset.
        let state = match (state, consumed != self.writer.tail) {
            (state::OPEN, true) if self.gone => state::RST,
            (state::OPEN, false) if self.gone => state::FIN,
            (state::FIN, true) if self.gone => state::FIN_RST,
            (state, _) => state,
        };
        if !self.say_ends(far, link, closed, state, turn == Turn::Idle) {
            return Ok((Turn::Blocked, false));
        }
        self.waiting = turn == Turn::Waiting;
        let due = self.told + self.tell_bytes();
        let armed = self.view.watch_consumption(due);
        // Most of what is read between the look and the watch is seen here; the rest by the look behind a barrier.
        let (input, input_ring) = self.view.input();
        let again = armed && relay::consumed(input_ring, input, &mut self.writer)? >= due;
        Ok((if again { Turn::More } else { turn }, armed))
    }

    /// Relays what the process has written, up to a burst.
    fn relay_records(&mut self, far: &Far, link: &mut Link) -> Result<Turn, Violation> {
        let mut burst = 0;
        while burst < BURST_BYTES {
            let ring = self.view.out().1;
            // The word behind it needs room in the other ring, too.
            let room = (self.credit + ring.size()).saturating_sub(self.relayed + 8);
            let Some(run) = relay::next_run(ring, self.relayed, self.freed, room.min(BURST_BYTES))? else {
                return Ok(Turn::Idle);
            };
            // For somebody who has closed it is lost, as on a network.
            if !self.far_closed {
                if run.len > room || self.writes.is_full() {
                    return Ok(Turn::Waiting);
                }
                if !self.send(far, link, &run)? {
                    return Ok(Turn::Blocked);
                }
            }
            self.relayed += run.len;
            burst += run.len;
        }
        Ok(Turn::More)
    }

    /// Tells the process what nobody reads here any more.
    fn free(&mut self, outside: &mut impl Outside) {
        let freed = self.writes.first().unwrap_or(self.relayed);
        if freed > self.freed {
            self.freed = freed;
            // Release: the bytes before it are not read here any more.
            self.view.out().0.consumed.store(freed, Ordering::Release);
            self.view.tell_writer(outside, Some(freed));
        }
    }

    /// A write of ours is complete.
    pub(super) fn written(&mut self, write: usize, outside: &mut impl Outside) {
        self.writes.end(write);
        if !self.broken {
            self.free(outside);
        }
    }

    /// Relays one run. False: the link has no room now.
    fn send(&mut self, far: &Far, link: &mut Link, run: &Run) -> Result<bool, Violation> {
        let (out, ring) = self.view.out();
        let (start, first, urgent) = (self.relayed, run.first, run.urgent);
        if urgent {
            // Relaxed: seen with the record (Acquire), or a later one.
            let word = out.urgent.load(Ordering::Relaxed);
            if !say(link, far, &Body::Urgent(word)) {
                return Ok(false);
            }
        }
        // Behind the first header.
        let bytes = usize::try_from(run.len - 8).unwrap_or(0);
        if link.takes_inline(run.len) {
            let at = ring.place(start).plus(8);
            return Ok(link.say(ITEM_MAX + bytes, |message| {
                message
                    .add_inline(far.connection, start, first, urgent, bytes, |room| copy_out(ring, at, room))
            }));
        }
        // First the room for saying it: what is written and not said would have to be written again.
        if !link.reserve(ITEM_MAX) {
            return Ok(false);
        }
        let offset = (start & (ring.size() - 1)) + 8;
        let at = self.view.out_ring_at() + usize::try_from(offset).unwrap_or(0);
        let token = self.writes.token(self.number);
        let written = link.write(&self.rings, at, bytes, &far.rings, at as u64, token);
        if !written.map_err(|_| Violation)? {
            return Ok(false);
        }
        self.writes.begin(start);
        Ok(say(link, far, &Body::Run { start, first, len: run.len, urgent }))
    }

    /// What is consumed is told if it is as much as that.
    fn tell_bytes(&self) -> u64 {
        self.view.input().1.size() / TELL_PART
    }

    /// Tells how far the process has read, if that is due. False: the link has no room now.
    fn say_consumed(&mut self, far: &Far, link: &mut Link, consumed: u64, closed: bool) -> bool {
        let due = closed || link.is_gathering() || consumed - self.told >= self.tell_bytes();
        if consumed != self.told && due {
            if !say(link, far, &Body::Consumed(consumed)) {
                return false;
            }
            self.told = consumed;
        }
        true
    }

    /// Tells that the process does not read any more, and, behind all records, that it does not write any more.
    fn say_ends(&mut self, far: &Far, link: &mut Link, closed: Option<bool>, state: u32, all: bool) -> bool {
        if let Some(shut) = closed {
            let told = if shut { &mut self.shut_told } else { &mut self.closed_told };
            *told = *told || say(link, far, &Body::ReaderClosed { shut });
            if !*told {
                return false;
            }
        }
        if !all {
            return true;
        }
        if state != self.state_told {
            if !say(link, far, &Body::State(state)) {
                return false;
            }
            self.state_told = state;
        }
        if self.closed_told && state != state::OPEN {
            self.done_told = say(link, far, &Body::Done);
            return self.done_told;
        }
        true
    }

    /// Takes an item of the other bridge's.
    ///
    /// # Errors
    /// [`Violation`]: it is impossible.
    pub(super) fn take(&mut self, body: &Body<'_>, outside: &mut impl Outside) -> Result<(), Violation> {
        if self.far_done {
            return Err(Violation);
        }
        self.heard = true;
        match *body {
            Body::Reset => {
                self.reset(outside);
                self.far_done = true;
            }
            Body::Done => (self.far_done, self.far_closed) = (true, true),
            // What was on its way when we ended it.
            _ if self.broken => {}
            // The head is no part of the registration.
            Body::Run { start, .. } if start < HEAD_BYTES as u64 => return Err(Violation),
            Body::Run { start, first, len, urgent } => self.place(start, first, len, urgent, &[], outside)?,
            Body::Inline { start, first, urgent, rest } => {
                self.place(start, first, rest.len() as u64 + 8, urgent, rest, outside)?;
            }
            Body::Consumed(position) => {
                if position < self.credit || position > self.relayed {
                    return Err(Violation);
                }
                self.credit = position;
            }
            Body::State(state) => {
                self.view.end_input(state);
                self.view.tell_reader(outside, false);
                if state != state::FIN {
                    self.view.tell_writer(outside, None);
                }
            }
            // Relaxed: published by the record behind it.
            Body::Urgent(word) => self.view.input().0.urgent.store(word, Ordering::Relaxed),
            Body::ReaderClosed { shut } => {
                self.view.close_out(shut);
                self.far_closed |= !shut;
                self.view.tell_writer(outside, None);
            }
        }
        Ok(())
    }

    /// Puts a run into the ring that the process reads: `inline`, or written there before.
    fn place(
        &mut self,
        start: u64,
        first: u64,
        len: u64,
        urgent: bool,
        inline: &[u8],
        outside: &mut impl Outside,
    ) -> Result<(), Violation> {
        if start != self.writer.tail {
            return Err(Violation);
        }
        let (input, ring) = self.view.input();
        relay::place(ring, input, &mut self.writer, first, len, |at| copy_in(ring, at, inline))?;
        self.view.tell_reader(outside, urgent);
        Ok(())
    }

    /// The link is over: a reset here, and nobody to tell it to.
    pub(super) fn link_is_down(&mut self, outside: &mut impl Outside) {
        self.reset(outside);
        (self.done_told, self.far_done) = (true, true);
    }
}

/// Says one thing. False: the link has no room now.
fn say(link: &mut Link, far: &Far, body: &Body<'_>) -> bool {
    link.say(ITEM_MAX, |message| message.add(far.connection, body))
}
