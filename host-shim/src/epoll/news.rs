//! The scan for news that peers left (SPEC 6.4), in the order of their arrival, as Linux's ready lists are.

use core::sync::atomic::{Ordering, fence};

use ring::segment::SLOTS;
use ring::stream::Memory as _;
use ring::{hint, wake};

use super::set::State;
use crate::handle::Stream;
use crate::segments::{self, Lane, Mapped};

/// Looks with news between two times that the senders' fences are taken back: who sleeps again asks for them again.
const RELAX_EVERY: u32 = 64;
/// A found slot and its stamp, later its age, are a byte each of one number.
const FOUND_MAX: usize = SLOTS as usize;
const _: () = assert!(FOUND_MAX <= 1 << u8::BITS);
/// Stamps of a greater age are taken for newer ones, which the stamp's byte does not tell apart.
const AGE_MAX: u8 = 127;

impl State {
    /// Takes the news of one lane from all segments; from each in the order of arrival.
    pub(super) fn scan(&mut self, lane: Lane) {
        for (_, m) in segments::all() {
            let lane = lane.of_segment(m);
            if m.is_quiet(lane) {
                continue;
            }
            let Some(first) = m.next_news(lane, 0) else { continue };
            self.found = self.found.wrapping_add(1);
            if self.found.is_multiple_of(RELAX_EVERY)
                && let Some(l) = m.ours().and_then(|side| side.lanes.get(lane))
            {
                l.sleeping.relax();
            }
            // Acquire: what came before these news, we see from here on.
            fence(Ordering::Acquire);
            if m.next_news(lane, first + 1).is_none() && m.next_news(lane, 0) == Some(first) {
                if take(m, lane, first).is_some() {
                    self.queue_slot(m, first);
                }
            } else {
                self.scan_several(m, lane);
            }
        }
    }

    /// More than one slot of `m` has news. A look finds them one after the other, and may pass a slot before its news come
    /// and find another's that came later still. So it looks twice: what it sees first bounds what it takes, and all
    /// that came before that is there the second time.
    fn scan_several(&mut self, m: &Mapped, lane: usize) {
        let Some((news, order)) =
            m.ours().and_then(|side| Some((side.news.get(lane)?, &side.lanes.get(lane)?.order)))
        else {
            return;
        };
        let mut seen = [0u8; FOUND_MAX];
        for slot in with_news(m, lane) {
            if let (Some(stamp), Some(flag)) = (seen.get_mut(slot), news.get(slot)) {
                // Acquire: pairs with the Release in `wake::post`. What its publisher saw before is seen the second time.
                *stamp = flag.load(Ordering::Acquire);
            }
        }
        // Relaxed: after the Acquire of each stamp, which is not newer.
        let order_seen = order.load(Ordering::Relaxed);
        let newest = seen.iter().filter(|s| **s != 0).map(|s| wake::age(order_seen, *s)).min().unwrap_or(0);
        let mut found = [[0u8; 2]; FOUND_MAX];
        let mut places = found.iter_mut();
        for slot in with_news(m, lane) {
            let before = seen.get(slot).copied().unwrap_or(0);
            let now = news.get(slot).map_or(0, |flag| flag.load(Ordering::Relaxed));
            if before == 0 && !(newest..=AGE_MAX).contains(&wake::age(order_seen, now)) {
                continue;
            }
            let (Some(stamp), Ok(low)) = (take(m, lane, slot), u8::try_from(slot)) else { continue };
            if let Some(place) = places.next() {
                // News that were there the first time keep their place, also when more have come to the slot since.
                *place = [wake::age(order_seen, if before == 0 { stamp } else { before }), low];
            }
        }
        let count = FOUND_MAX - places.len();
        let found = found.get_mut(..count).unwrap_or(&mut []);
        found.sort_unstable_by_key(|[age, slot]| (u8::MAX - *age, *slot));
        for [_, slot] in found.iter() {
            self.queue_slot(m, usize::from(*slot));
        }
    }

    /// Whose slot it is, is ready perhaps.
    fn queue_slot(&mut self, m: &Mapped, slot: usize) {
        if let Some(h) = m.owner(slot) {
            if let Some(s) = h.stream() {
                will_be_used(m, &s);
            }
            self.queue_all(h);
        }
    }
}

/// What a connection with news needs is asked for when its news are found: of many, it comes over while the first ones are looked at. Who
/// reads a message mostly answers.
fn will_be_used(m: &Mapped, s: &Stream) {
    let (input, output) = (s.in_ring(), s.out_ring());
    if let Some(header) = input.header(input.place(s.sock.reader().pos)) {
        hint::will_read(header);
    }
    if let Some(header) = output.header(output.place(s.sock.writer().tail)) {
        hint::will_write(header);
    }
    let watch = wake::lane(s.out_dir.rx_watch.load(Ordering::Relaxed));
    if let Some(theirs) = m.theirs() {
        theirs.will_leave_news(watch, s.conn.slot());
    }
}

/// The slots that have news in `lane`, in their own order.
fn with_news(m: &Mapped, lane: usize) -> impl Iterator<Item = usize> {
    core::iter::successors(m.next_news(lane, 0), move |slot| m.next_news(lane, slot + 1))
}

/// The stamp of a slot's news, which are taken by that. A slot that is not ours belongs to a forked relative: its news
/// are not ours to take.
fn take(m: &Mapped, lane: usize, slot: usize) -> Option<u8> {
    m.owner(slot)?;
    let stamp = wake::collect(m.ours()?.news.get(lane)?.get(slot)?);
    (stamp != 0).then_some(stamp)
}
