//! The scan for news that peers left (SPEC 6.4), in the order of their arrival, as Linux's ready lists are.

use core::sync::atomic::Ordering;

use ring::segment::SLOTS;
use ring::wake;

use super::set::State;
use crate::segments::{self, Mapped};

/// A found slot and its stamp, later its age, are a byte each of one number.
const FOUND_MAX: usize = SLOTS as usize;
const _: () = assert!(FOUND_MAX <= 1 << u8::BITS);

impl State {
    /// Takes the news of one lane from all segments; from each in the order of arrival.
    pub(super) fn scan(&mut self, lane: usize) {
        for (_, m) in segments::all() {
            let Some(first) = m.next_news(lane, 0) else { continue };
            match m.next_news(lane, first + 1) {
                None => {
                    if take(m, lane, first).is_some() {
                        self.queue_slot(m, first);
                    }
                }
                Some(_) => self.scan_several(m, lane, first),
            }
        }
    }

    /// At least two slots of `m`, the first being `first`, have news.
    fn scan_several(&mut self, m: &Mapped, lane: usize, first: usize) {
        let Some(order) = m.ours().and_then(|side| side.lanes.get(lane)).map(|lane| &lane.order) else {
            return;
        };
        let mut found = [[0u8; 2]; FOUND_MAX];
        let mut places = found.iter_mut();
        let mut next = Some(first);
        while let Some(slot) = next {
            next = m.next_news(lane, slot + 1);
            let (Some(stamp), Ok(low)) = (take(m, lane, slot), u8::try_from(slot)) else { continue };
            if let Some(place) = places.next() {
                *place = [stamp, low];
            }
        }
        let count = FOUND_MAX - places.len();
        // Relaxed: after the Acquire of each collected stamp.
        let newest = order.load(Ordering::Relaxed);
        let found = found.get_mut(..count).unwrap_or(&mut []);
        for [stamp, _] in found.iter_mut() {
            *stamp = wake::age(newest, *stamp);
        }
        found.sort_unstable_by_key(|[age, slot]| (u8::MAX - *age, *slot));
        for [_, slot] in found.iter() {
            self.queue_slot(m, usize::from(*slot));
        }
    }

    /// Whose slot it is, is ready perhaps.
    fn queue_slot(&mut self, m: &Mapped, slot: usize) {
        if let Some(h) = m.owner(slot) {
            self.queue_all(h);
        }
    }
}

/// The stamp of a slot's news, which are taken by that. A slot that is not ours belongs to a forked relative: its news
/// are not ours to take.
fn take(m: &Mapped, lane: usize, slot: usize) -> Option<u8> {
    m.owner(slot)?;
    let stamp = wake::collect(m.ours()?.news.get(lane)?.get(slot)?);
    (stamp != 0).then_some(stamp)
}
