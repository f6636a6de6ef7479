//! Between the logic and other hosts: what each says is brought to the other, and the data path hears what it has to set up for it.

use std::collections::BTreeMap;

use ring::hosts::{Ending, Path};
use ring::msg::{ConnId, Status};

use crate::hosts::Hosts;
use crate::hosts::calls::{CallId, News, Wanted};
use crate::logic::remote::{RemoteIn, RemoteOut};
use crate::logic::segments::End;
use crate::logic::{Logic, Out};

/// What moves the bytes between hosts. It is told of each connection from its first moment to its last; of as many that are not joined yet
/// as there are credits ([`crate::hosts::calls::Limits::setups`]).
pub trait DataPath {
    /// Makes our end of a connection reachable, and says how.
    ///
    /// # Errors
    /// The status of the refusal; then it is not told of this connection any more.
    fn prepare(&mut self, conn: ConnId) -> Result<Path, Status>;
    /// The other end is there.
    fn join(&mut self, conn: ConnId, theirs: &Path);
    /// The connection is over, joined or not, and its memory is somebody else's.
    fn release(&mut self, conn: ConnId);
}

/// Calls that are between two answers.
#[derive(Debug, Default)]
pub struct Exchange {
    /// How to reach callers whose calls are not answered.
    callers: BTreeMap<CallId, Path>,
    /// Ends whose calls are not answered.
    asking: BTreeMap<CallId, ConnId>,
}

impl Exchange {
    /// True when no call is between two answers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.callers.is_empty() && self.asking.is_empty()
    }

    /// Brings everything where it belongs, until there is no more. `out`: what the logic says to functions here.
    pub fn turn(
        &mut self,
        now_us: u64,
        (logic, hosts): (&mut Logic, &mut Hosts),
        data: &mut impl DataPath,
        out: &mut Vec<Out>,
    ) {
        loop {
            let said = logic.take_remote();
            let quiet = said.is_empty();
            for word in said {
                self.tell(now_us, word, (logic, hosts), data, out);
            }
            match hosts.next_news(now_us) {
                Some(news) => self.hear(news, logic, data, out),
                None if quiet => return,
                None => {}
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
            RemoteOut::Connect { id, conn, dst, src } => match (id, data.prepare(conn)) {
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
                let prepared = answer.and_then(|conn| Ok((conn, data.prepare(conn)?)));
                if let (Ok((conn, _)), Some(caller)) = (prepared, caller) {
                    data.join(conn, &caller);
                }
                if answer.is_ok() && prepared.is_err() {
                    logic.handle_remote(RemoteIn::Closed { id, end: End::Unmarked }, out);
                }
                hosts.answer(now_us, id, prepared.map(|(_, path)| path));
            }
            RemoteOut::Close { id, end } => hosts.close(now_us, id, ending(end)),
            RemoteOut::Release { conn } => data.release(conn),
        }
    }

    fn hear(&mut self, news: News, logic: &mut Logic, data: &mut impl DataPath, out: &mut Vec<Out>) {
        let input = match news {
            News::Connect { id, wanted: Wanted { dst, src, path }, .. } => {
                self.callers.insert(id, path);
                RemoteIn::Connect { id, dst, src }
            }
            News::Answered { id, answer } => {
                if let (Some(conn), Ok(theirs)) = (self.asking.remove(&id), answer) {
                    data.join(conn, &theirs);
                }
                RemoteIn::Answered { id, answer: answer.map(|_| ()) }
            }
            News::Closed { id, ending } => RemoteIn::Closed { id, end: end(ending) },
        };
        logic.handle_remote(input, out);
    }
}

fn ending(end: End) -> Ending {
    match end {
        End::Marked => Ending::Marked,
        End::Unmarked => Ending::Unmarked,
        End::Refused => Ending::Refused,
    }
}

fn end(ending: Ending) -> End {
    match ending {
        Ending::Marked => End::Marked,
        Ending::Unmarked => End::Unmarked,
        Ending::Refused => End::Refused,
    }
}
