//! Between the logic and other hosts: what each says is brought to the other, and the data path hears what it has to set up for it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ring::hosts::{Ending, Path, Role};
use ring::msg::{ConnId, Status};

use crate::hosts::Hosts;
use crate::hosts::calls::{CallId, News, Wanted};
use crate::logic::remote::{RemoteIn, RemoteOut};
use crate::logic::segments::End;
use crate::logic::{Logic, Out};

/// How often it is asked whether a host is in reach.
const REACH_EVERY_US: u64 = 1000;

/// Whether bytes can go to and come from another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// They can.
    Ready,
    /// That is being found out.
    Pending,
    /// They can't.
    Never,
}

/// What moves the bytes between hosts. It is told of each connection from its first moment to its last; of as many that are not joined yet
/// as there are credits ([`crate::hosts::calls::Limits::setups`]).
///
/// It marks every end in the stream, behind what was written before: processes here are not told of the other end's end by other means.
pub trait DataPath {
    /// Whether the caller's host, as its path says, can be reached. Asked again while it is pending, which is not for ever.
    fn reach(&mut self, now_us: u64, caller: &Path) -> Reach;
    /// Makes our end of a connection reachable, and says how. A callee's only where its caller is in reach.
    ///
    /// # Errors
    /// The status of the refusal; then it is told of this connection's release at most.
    fn prepare(&mut self, conn: ConnId, ours: Role) -> Result<Path, Status>;
    /// The other end is there.
    fn join(&mut self, conn: ConnId, theirs: &Path);
    /// Our end is closed.
    fn our_end(&mut self, conn: ConnId, end: End);
    /// The other end is closed. A caller's [`Ending::Refused`]: it has never joined.
    fn their_end(&mut self, conn: ConnId, ending: Ending);
    /// The host with this card is lost, and with it all that was joined with it.
    fn lost(&mut self, card: Ipv4Addr);
    /// The next connection whose ends were both closed by their processes, as the other host's data path knows, too.
    fn next_ended(&mut self) -> Option<ConnId>;
    /// The connection is over for the logic: both ends are closed, or nothing came of it.
    fn release(&mut self, conn: ConnId);
    /// The next released connection whose memory nobody touches any more: it may be somebody else's.
    fn next_over(&mut self) -> Option<ConnId>;
    /// Nobody uses this segment any more.
    fn drop_segment(&mut self, segment: u32);
}

/// No data path: nobody can be reached.
#[derive(Clone, Copy, Debug)]
pub struct Nowhere;

impl DataPath for Nowhere {
    fn reach(&mut self, _: u64, _: &Path) -> Reach {
        Reach::Never
    }
    fn prepare(&mut self, _: ConnId, _: Role) -> Result<Path, Status> {
        Err(Status::NoListener)
    }
    fn join(&mut self, _: ConnId, _: &Path) {}
    fn our_end(&mut self, _: ConnId, _: End) {}
    fn their_end(&mut self, _: ConnId, _: Ending) {}
    fn lost(&mut self, _: Ipv4Addr) {}
    fn next_ended(&mut self) -> Option<ConnId> {
        None
    }
    fn release(&mut self, _: ConnId) {}
    fn next_over(&mut self) -> Option<ConnId> {
        None
    }
    fn drop_segment(&mut self, _: u32) {}
}

/// Calls that are between two answers.
#[derive(Debug, Default)]
pub struct Exchange {
    /// Calls from hosts that we don't know to reach yet.
    reaching: BTreeMap<CallId, Wanted>,
    /// How to reach callers whose calls are not answered.
    callers: BTreeMap<CallId, Path>,
    /// Ends whose calls are not answered.
    asking: BTreeMap<CallId, ConnId>,
}

impl Exchange {
    /// True when no call is between two answers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reaching.is_empty() && self.callers.is_empty() && self.asking.is_empty()
    }

    /// True while a call waits for its host to be in reach.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.reaching.is_empty()
    }

    /// When [`Exchange::turn`] is due, even if nothing happens.
    #[must_use]
    pub fn due_us(&self, now_us: u64) -> Option<u64> {
        self.waits().then_some(now_us + REACH_EVERY_US)
    }

    /// Brings everything where it belongs, until there is no more. `out`: what the logic says to functions here.
    pub fn turn(
        &mut self,
        now_us: u64,
        (logic, hosts): (&mut Logic, &mut Hosts),
        data: &mut impl DataPath,
        out: &mut Vec<Out>,
    ) {
        for (id, wanted) in std::mem::take(&mut self.reaching) {
            self.reach(now_us, id, wanted, (logic, hosts), data, out);
        }
        loop {
            let mut quiet = true;
            while let Some(conn) = data.next_ended() {
                if let Some((id, _)) = logic.segments().get(conn).and_then(|open| open.remote) {
                    hosts.end(now_us, id);
                }
            }
            while let Some(conn) = data.next_over() {
                logic.handle_remote(RemoteIn::Over { conn }, out);
            }
            for word in logic.take_remote() {
                quiet = false;
                self.tell(now_us, word, (logic, hosts), data, out);
            }
            if let Some(news) = hosts.next_news(now_us) {
                quiet = false;
                self.hear(now_us, news, (logic, hosts), data, out);
            }
            if quiet {
                return;
            }
        }
    }

    fn tell(
        &mut self,
        now_us: u64,
        word: RemoteOut,
        (logic, hosts): (&mut Logic, &mut Hosts),
        data: &mut impl DataPath,
        out: &mut Vec<Out>,
    ) {
        match word {
            RemoteOut::Connect { id, conn, dst, src } => match (id, data.prepare(conn, Role::Caller)) {
                (CallId::Out(number), Ok(path)) => {
                    self.asking.insert(id, conn);
                    hosts.connect(now_us, number, Wanted { dst, src, path });
                }
                (_, answer) => {
                    let status = answer.err().unwrap_or(Status::BadRequest);
                    logic.handle_remote(RemoteIn::Answered { id, answer: Err(status) }, out);
                }
            },
            RemoteOut::Answer { id, answer } => {
                let caller = self.callers.remove(&id);
                let prepared = answer.and_then(|conn| Ok((conn, data.prepare(conn, Role::Callee)?)));
                if let (Ok((conn, _)), Some(caller)) = (prepared, caller) {
                    data.join(conn, &caller);
                }
                if answer.is_ok() && prepared.is_err() {
                    logic.handle_remote(RemoteIn::Closed { id, end: End::Unmarked }, out);
                }
                hosts.answer(now_us, id, prepared.map(|(_, path)| path));
            }
            RemoteOut::Close { id, conn, end } => {
                data.our_end(conn, end);
                hosts.close(now_us, id, ending(end));
            }
            RemoteOut::Release { conn } => data.release(conn),
            RemoteOut::Drop { segment } => data.drop_segment(segment),
        }
    }

    fn hear(
        &mut self,
        now_us: u64,
        news: News,
        (logic, hosts): (&mut Logic, &mut Hosts),
        data: &mut impl DataPath,
        out: &mut Vec<Out>,
    ) {
        let input = match news {
            News::Connect { id, wanted, .. } => {
                return self.reach(now_us, id, wanted, (logic, hosts), data, out);
            }
            News::Answered { id, answer } => {
                if let (Some(conn), Ok(theirs)) = (self.asking.remove(&id), answer) {
                    data.join(conn, &theirs);
                }
                RemoteIn::Answered { id, answer: answer.map(|_| ()) }
            }
            News::Closed { id, ending } => {
                if self.reaching.remove(&id).is_some() {
                    // The logic has never heard of it.
                    return hosts.answer(now_us, id, Err(Status::NoListener));
                }
                match logic.remote().conn(id) {
                    Some(conn) => {
                        data.their_end(conn, ending);
                        RemoteIn::Closed { id, end: End::Marked }
                    }
                    None => RemoteIn::Closed { id, end: End::Unmarked },
                }
            }
            News::Lost { card } => return data.lost(card),
            News::Nobody { address } => RemoteIn::Reachable { address, reachable: false },
            News::Somebody { address } => RemoteIn::Reachable { address, reachable: true },
        };
        logic.handle_remote(input, out);
    }

    /// Another host's call comes to the logic once bytes can come and go.
    fn reach(
        &mut self,
        now_us: u64,
        id: CallId,
        wanted: Wanted,
        (logic, hosts): (&mut Logic, &mut Hosts),
        data: &mut impl DataPath,
        out: &mut Vec<Out>,
    ) {
        let Wanted { dst, src, path } = wanted;
        match data.reach(now_us, &path) {
            Reach::Pending => {
                self.reaching.insert(id, wanted);
            }
            Reach::Never => hosts.answer(now_us, id, Err(Status::NoHost)),
            Reach::Ready => {
                self.callers.insert(id, path);
                logic.handle_remote(RemoteIn::Connect { id, dst, src }, out);
            }
        }
    }
}

fn ending(end: End) -> Ending {
    match end {
        End::Marked => Ending::Marked,
        End::Unmarked => Ending::Unmarked,
        End::Refused => Ending::Refused,
    }
}
