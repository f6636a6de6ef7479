//! Completions of one function that wait for credit.
//!
//! What the function asked for bounds its answers, but not the news of others' arrivals and accepts: while it takes
//! nothing, its siblings may go on for ever. So of two `Ready` of a listener the newer one replaces the older, unless an
//! answer to `Accept` on that listener stands between them: that speaks of the queue, too, and the last word counts.

use std::collections::BTreeMap;

use ring::msg::Completion;

use crate::latency::Delayed;
use crate::logic::Out;

/// A queue of tokens and completions.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: Delayed<Out>,
    /// How many have been taken out: the place of the first one that waits.
    taken: usize,
    /// For each listener of which the last word that waits is a `Ready`: its place.
    ready: BTreeMap<u32, usize>,
}

impl Outbox {
    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True when none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds one at the end, for `due_ns` or when the one before it is due, or updates the `Ready` that waits.
    pub fn push(&mut self, news: &Out, due_ns: u64) {
        if let Some(listener) = news.listener {
            if !matches!(news.completion, Completion::Ready { .. }) {
                self.ready.remove(&listener);
            } else if let Some(place) = self.ready.get(&listener) {
                if let Some(older) = self.waiting.get_mut(place.wrapping_sub(self.taken)) {
                    *older = *news;
                }
                return;
            } else {
                self.ready.insert(listener, self.taken.wrapping_add(self.waiting.len()));
            }
        }
        self.waiting.push(due_ns, *news);
    }

    /// The first one, if it is due: token and completion.
    #[must_use]
    pub fn front(&self, now_ns: u64) -> Option<(u32, Completion)> {
        self.waiting.front(now_ns).map(|news| (news.token, news.completion))
    }

    /// The first one is not due yet.
    #[must_use]
    pub fn is_delayed(&self, now_ns: u64) -> bool {
        !self.is_empty() && self.waiting.front(now_ns).is_none()
    }

    /// Takes the first one out.
    pub fn pop(&mut self) {
        let Some(news) = self.waiting.pop(u64::MAX) else { return };
        if let Some(listener) = news.listener
            && self.ready.get(&listener) == Some(&self.taken)
        {
            self.ready.remove(&listener);
        }
        self.taken = self.taken.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use ring::msg::{Addr, ConnId, Status};

    use super::*;

    fn ready(listener: u32, waiting: bool) -> Out {
        let completion = Completion::Ready { listener, waiting };
        Out { function: 1, token: 0, completion, listener: Some(listener) }
    }

    fn accepted(listener: u32) -> Out {
        let (peer, local) = (Addr::default(), Addr::default());
        let completion =
            Completion::Accepted { status: Status::Empty, conn: ConnId(0), peer, local, more: false };
        Out { function: 1, token: 7, completion, listener: Some(listener) }
    }

    fn all(outbox: &mut Outbox) -> Vec<Completion> {
        std::iter::from_fn(|| {
            let (_, completion) = outbox.front(0)?;
            outbox.pop();
            Some(completion)
        })
        .collect()
    }

    #[test]
    fn the_newest_ready_replaces_the_one_that_waits() {
        let mut outbox = Outbox::default();
        for waiting in [true, false, true, true, false] {
            outbox.push(&ready(5, waiting), 0);
            outbox.push(&ready(6, true), 0);
        }
        assert_eq!(outbox.len(), 2);
        assert_eq!(all(&mut outbox), [ready(5, false).completion, ready(6, true).completion]);
        assert!(outbox.is_empty() && outbox.ready.is_empty());
    }

    #[test]
    fn a_ready_that_was_taken_is_followed_by_another() {
        let mut outbox = Outbox::default();
        for _ in 0..3 {
            outbox.push(&ready(5, true), 0);
            outbox.push(&ready(6, true), 0);
            outbox.pop();
            outbox.push(&ready(5, true), 0);
            assert_eq!(all(&mut outbox), [ready(6, true).completion, ready(5, true).completion]);
        }
    }

    #[test]
    fn an_answer_to_accept_is_followed_by_what_came_after_it() {
        let mut outbox = Outbox::default();
        let said = [ready(5, true), accepted(5), ready(5, true), accepted(6), ready(5, false)];
        said.iter().for_each(|news| outbox.push(news, 0));
        let [first, answer, _, other, last] = said.map(|news| news.completion);
        assert_eq!(all(&mut outbox), [first, answer, last, other]);
        assert!(outbox.ready.is_empty());
    }
}
