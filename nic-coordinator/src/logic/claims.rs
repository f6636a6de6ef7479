//! Connections that the kernel has made (SPEC 3.10): one end is offered, the process with the other end claims it, and
//! both get memory that they share. Who they are to each other the kernel has told each of them.

use ring::bus::AGENT_FUNCTION;
use ring::msg::{Addr, Completion, ConnId, Status};

use super::functions::{CLIENT, Holder, SERVER, Stand};
use super::segments::{Asker, Conn, Lingers, Waiting, Wanted};
use super::{Logic, Out, announce, reply};

/// Who the kernel says is at the other end (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process id.
    pub pid: u32,
    /// User id.
    pub uid: u32,
}

/// An end of a connection that may be claimed.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Tells offers of one number apart.
    pub id: u64,
    /// Who may claim it: his family.
    pub peer: Peer,
    /// His name: whoever accepts on a listener of that name and his may claim it, too.
    pub name: u64,
}

impl Offer {
    fn stand(&self) -> Stand {
        (self.peer.pid, self.peer.uid, self.name)
    }
}

impl Logic {
    pub(super) fn note_offer(
        &mut self,
        f: u32,
        token: u32,
        serial: u32,
        (peer, name): (Peer, u64),
        out: &mut Vec<Out>,
    ) {
        let offer = Offer { id: self.offers_ever, peer, name };
        let status = self.try_offer(f, serial, offer).err().unwrap_or(Status::Ok);
        reply(out, f, token, Completion::Done { status, value: 0 });
    }

    fn try_offer(&mut self, f: u32, serial: u32, offer: Offer) -> Result<(), Status> {
        let family = self.functions.family_of(offer.peer.pid, offer.peer.uid);
        // Nobody could ever claim it.
        family.or_else(|| self.functions.groups_for(offer.stand()).next()).ok_or(Status::NoListener)?;
        let function = self.functions.get_mut(f).ok_or(Status::BadRequest)?;
        if function.offers.len() >= self.limits.conns_per_function {
            return Err(Status::Quota);
        }
        function.offers.insert(serial, offer);
        self.offers_ever += 1;
        Ok(())
    }

    pub(super) fn retract(&mut self, f: u32, serial: u32) {
        if let Some(function) = self.functions.get_mut(f) {
            function.offers.remove(&serial);
        }
    }

    pub(super) fn claim(
        &mut self,
        f: u32,
        token: u32,
        (offerer, serial): (u32, u32),
        peer: Peer,
        out: &mut Vec<Out>,
    ) {
        if let Err(status) = self.try_claim(f, token, (offerer, serial), peer, out) {
            refuse(out, f, token, status);
        }
    }

    fn try_claim(
        &mut self,
        f: u32,
        token: u32,
        (offerer, serial): (u32, u32),
        peer: Peer,
        out: &mut Vec<Out>,
    ) -> Result<(), Status> {
        let (mine, theirs) = (self.functions.get(f), self.functions.get(offerer));
        let (mine, theirs) = mine.zip(theirs).ok_or(Status::Empty)?;
        let offer = theirs.offers.get(&serial).copied().ok_or(Status::Empty)?;
        let (mine, theirs) = (mine.identity, theirs.identity);
        let family = |peer: Peer| self.functions.family_of(peer.pid, peer.uid);
        if mine.netns != theirs.netns
            || family(peer) != Some(theirs.group)
            || (family(offer.peer) != Some(mine.group)
                && !self.functions.groups_for(offer.stand()).any(|group| group == mine.group))
        {
            return Err(Status::Denied);
        }
        if !self.may_hold_more(f) || !self.may_hold_more(offerer) {
            return Err(Status::Quota);
        }
        let asker = Asker::Process { function: f, token };
        let waiting = Waiting { asker, wanted: Wanted::Claim { offerer, serial, id: offer.id } };
        self.find_room([theirs.group, mine.group], waiting, out)
    }

    /// A new segment for two groups, if they may have one more, and whoever waits for it.
    pub(super) fn make_segment(
        &mut self,
        [client_group, server_group]: [u32; 2],
        of_pair: usize,
        waiting: Waiting,
        out: &mut Vec<Out>,
    ) -> Result<(), Status> {
        if of_pair >= self.limits.segments_per_pair || self.segments.len() >= self.limits.segments {
            return Err(Status::Quota);
        }
        let segment = self.segments.make(client_group, server_group);
        announce(out, AGENT_FUNCTION, Completion::MakeSegment { segment, client_group, server_group });
        self.wait_for(segment, waiting)
    }

    /// Opens the connection, and tells both.
    pub(super) fn pair(&mut self, segment: u32, waiting: Waiting, out: &mut Vec<Out>) -> Result<(), Status> {
        let Waiting {
            asker: Asker::Process { function: f, token },
            wanted: Wanted::Claim { offerer, serial, id },
        } = waiting
        else {
            return Err(Status::BadRequest);
        };
        // Time may have passed: the offer may be gone, and its number in use again.
        let offered = self.functions.get(offerer).and_then(|f| f.offers.get(&serial));
        if offered.is_none_or(|offer| offer.id != id) {
            return Err(Status::Empty);
        }
        let holders = [vec![Holder::Function(offerer)], vec![Holder::Function(f)]];
        let none = Addr::default();
        let (listener, queued, ends) = (0, false, [None; 2]);
        let (remote, lingers) = (None, Lingers::No);
        let conn = Conn { holders, client: none, server: none, listener, queued, ends, remote, lingers };
        let conn = self.segments.open(segment, conn).ok_or(Status::Quota)?;
        if let Some(function) = self.functions.get_mut(offerer) {
            function.offers.remove(&serial);
            function.holdings.conns.insert((conn, CLIENT));
        }
        if let Some(function) = self.functions.get_mut(f) {
            function.holdings.conns.insert((conn, SERVER));
        }
        reply(out, f, token, Completion::Claimed { status: Status::Ok, conn });
        announce(out, offerer, Completion::Paired { serial, conn });
        Ok(())
    }
}

pub(super) fn refuse(out: &mut Vec<Out>, function: u32, token: u32, status: Status) {
    reply(out, function, token, Completion::Claimed { status, conn: ConnId(0) });
}
