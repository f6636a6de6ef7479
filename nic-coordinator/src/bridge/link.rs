//! A link to the bridge of another host: one endpoint, the message that is being gathered, and who wants to say something.
//!
//! *Gathering.* Items go into one message until a turn ends. Then it is sent, unless the link is busy: several messages of ours
//! are under way, or the other bridge has not said that it took them. So an idle link sends at once, and a busy one gathers.
//!
//! *Room.* A message needs a receive that the other bridge has posted. Each message says how many its sender has taken, modulo 2^32; one
//! receive stays for a message that says only that, so that both sides can always go on.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fabric::endpoint::{Completion, Down, Endpoint, PostError};
use fabric::memory::{Region, Remote};

use ring::link::{self, Builder, HEAD_BYTES, Items, Malformed};
use ring::segment::HEAD_BYTES as SLOT_HEAD_BYTES;

/// Messages under way from which a link counts as busy.
const BUSY_MESSAGES: usize = 4;

/// Runs up to this size go inside of the message however busy the link is.
const SHORT_BYTES: u64 = 6 * 1024;
const _: () = assert!(SLOT_HEAD_BYTES as u64 <= SHORT_BYTES);
/// Bytes of writes in one turn of a link.
const TURN_BYTES: usize = 256 * 1024;
/// Room of a message for what is gathered beside the longest run in it.
pub const GATHERED_BYTES: usize = 10 * 1024;

/// A link.
pub(super) struct Link {
    endpoint: Endpoint,
    /// Runs up to this size may go inside of the message, instead of a write and a message behind it.
    inline_bytes: u64,
    /// Receives that the other bridge posts.
    peer_receives: u32,
    /// Bytes of the message that is being gathered.
    filled: usize,
    /// Messages sent, and how many of them the other bridge has taken; messages taken, and how many it was told. Modulo 2^32.
    sent: u32,
    acknowledged: u32,
    taken: u32,
    told: u32,
    /// Bytes of the writes begun in this turn.
    written: usize,
    /// Connections that may have something to say, in the order of their turns.
    pub(super) ready: VecDeque<u32>,
    pub(super) down: Option<Down>,
}

impl Link {
    pub(super) fn new(endpoint: Endpoint, peer_receives: u32) -> Link {
        let inline = endpoint.message_bytes().saturating_sub(GATHERED_BYTES);
        Link {
            endpoint,
            inline_bytes: inline as u64,
            // One of two may be gathered behind; one is for saying how many were taken.
            peer_receives: peer_receives.max(4),
            filled: HEAD_BYTES,
            sent: 0,
            acknowledged: 0,
            taken: 0,
            told: 0,
            written: 0,
            ready: VecDeque::new(),
            down: None,
        }
    }

    pub(super) fn endpoint(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }

    /// Takes what has come. `each` says whether a message's items could be taken apart.
    pub(super) fn receive(&mut self, mut each: impl FnMut(News<'_>) -> Result<(), Malformed>) -> Received {
        let (mut taken, mut acknowledged, mut malformed) = (self.taken, self.acknowledged, false);
        let sent = self.sent;
        let result = self.endpoint.poll(|completion| {
            let bytes = match completion {
                Completion::Received(bytes) => bytes,
                Completion::Written(token) => {
                    malformed |= each(News::Written(token)).is_err();
                    return;
                }
            };
            taken = taken.wrapping_add(1);
            let parsed = link::parse(bytes).and_then(|(count, items)| {
                // Between what was known and what was sent, modulo 2^32; an older one can't come, since messages are in order.
                let news = count.wrapping_sub(acknowledged);
                if news > sent.wrapping_sub(acknowledged) {
                    return Err(Malformed);
                }
                acknowledged = count;
                each(News::Items(items))
            });
            malformed |= parsed.is_err();
        });
        (self.taken, self.acknowledged) = (taken, acknowledged);
        match result {
            Ok(_) if malformed => Received::Malformed,
            Ok(count) => Received::Completions(count),
            Err(down) => Received::Down(down),
        }
    }

    /// See [`Endpoint::wait_fds`].
    pub(super) fn wait_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.endpoint.wait_fds().into_iter().flatten()
    }

    /// Whether a run of `bytes` goes inside of the message. Longer ones do on a quiet link, which they reach sooner so; on a busy one
    /// it is copies that count.
    pub(super) fn takes_inline(&self, bytes: u64) -> bool {
        let quiet = || self.endpoint.sending() + self.endpoint.writing() == 0;
        bytes <= SHORT_BYTES || bytes <= self.inline_bytes && quiet()
    }

    fn under_way(&self) -> u32 {
        self.sent.wrapping_sub(self.acknowledged)
    }

    /// Makes room for `bytes` in the message that is being gathered. False: not now.
    pub(super) fn reserve(&mut self, bytes: usize) -> bool {
        let max = self.endpoint.message_bytes();
        if self.filled + bytes > max && !self.send_gathered() {
            return false;
        }
        self.filled + bytes <= max && self.endpoint.outgoing().is_some()
    }

    /// Adds to the message that is being gathered. False: nothing was added, there is no room now.
    pub(super) fn say(&mut self, bytes: usize, add: impl FnOnce(&mut Builder<'_>) -> bool) -> bool {
        if !self.reserve(bytes) {
            return false;
        }
        let Some(room) = self.endpoint.outgoing() else { return false };
        let mut builder = Builder::new(room, self.filled);
        let added = add(&mut builder);
        self.filled = builder.len();
        added
    }

    /// Something is being gathered: what is added to it costs no message.
    pub(super) fn is_gathering(&self) -> bool {
        self.filled > HEAD_BYTES
    }

    /// Begins a write, ahead of the next message; [`News::Written`] has the token. False: not now.
    pub(super) fn write(
        &mut self,
        source: &Arc<Region>,
        at: usize,
        len: usize,
        target: &Remote,
        target_at: u64,
        token: u64,
    ) -> Result<bool, Outside> {
        match self.endpoint.write(source, at, len, target, target_at, token) {
            Ok(()) => {
                self.written += len;
                Ok(true)
            }
            Err(PostError::Full) => Ok(false),
            Err(PostError::Outside) => Err(Outside),
            Err(PostError::Down(down)) => {
                self.down = Some(down);
                Ok(false)
            }
        }
    }

    /// What is written is to be said before more is: the other process can read it meanwhile.
    pub(super) fn has_written_enough(&self) -> bool {
        self.written >= TURN_BYTES
    }

    /// After the items of a turn: sends them unless the link is busy, and says what was taken if that is due.
    pub(super) fn end_turn(&mut self) {
        self.written = 0;
        let busy = self.endpoint.sending() >= BUSY_MESSAGES || self.under_way() >= self.peer_receives / 2;
        if self.is_gathering() && !busy {
            self.send_gathered();
        }
        let untold = self.taken.wrapping_sub(self.told);
        if untold >= self.peer_receives / 4 {
            self.tell_taken();
        }
    }

    /// Says how many were taken, with what is gathered or, if there is no room for that, alone.
    fn tell_taken(&mut self) {
        if self.send_gathered() || self.under_way() >= self.peer_receives {
            return;
        }
        let mut head = [0; HEAD_BYTES];
        link::seal(&mut head, self.taken);
        let result = self.endpoint.send_short(head);
        self.sent(result);
    }

    /// Sends what is gathered. False: not now.
    fn send_gathered(&mut self) -> bool {
        if !self.is_gathering() || self.under_way() + 1 >= self.peer_receives {
            return false;
        }
        let Some(room) = self.endpoint.outgoing() else { return false };
        link::seal(room, self.taken);
        let result = self.endpoint.send(self.filled);
        let sent = self.sent(result);
        if sent {
            self.filled = HEAD_BYTES;
        }
        sent
    }

    /// A message was sent, or not.
    fn sent(&mut self, result: Result<(), PostError>) -> bool {
        match result {
            Ok(()) => {
                self.sent = self.sent.wrapping_add(1);
                self.told = self.taken;
                true
            }
            Err(PostError::Full | PostError::Outside) => false,
            Err(PostError::Down(down)) => {
                self.down = Some(down);
                false
            }
        }
    }

    /// Nothing waits for a turn, or to be sent.
    pub(super) fn is_idle(&self) -> bool {
        self.ready.is_empty() && !self.is_gathering()
    }
}

/// The other bridge has registered less than it says the ring has.
#[derive(Debug)]
pub(super) struct Outside;

/// What has come.
pub(super) enum News<'a> {
    /// A message's.
    Items(Items<'a>),
    /// The write with that token is complete: its bytes are not needed here any more.
    Written(u64),
}

/// What a look at the endpoint has brought.
pub(super) enum Received {
    /// So many completions.
    Completions(usize),
    /// A message that is none.
    Malformed,
    /// The link is over.
    Down(Down),
}
