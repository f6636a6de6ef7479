//! A bad wire, as a queue on virtual time: frames go in, and come out late, in another order, twice or not at all.
//!
//! Everything that it does follows from its seed and the times at which frames come.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How bad a wire is, in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Badness {
    /// Frames that are lost, in percent.
    pub loss_percent: f64,
    /// Frames that come twice, in percent.
    pub duplicate_percent: f64,
    /// Frames that are held back for [`HELD_BACK_US`], so that later ones overtake them, in percent.
    pub reorder_percent: f64,
    /// How long every frame takes, in milliseconds.
    pub delay_ms: f64,
    /// Up to so much longer, evenly distributed, in milliseconds.
    pub jitter_ms: f64,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Badness {
    /// Whether frames simply pass.
    #[must_use]
    pub fn is_none(&self) -> bool {
        Badness { seed: 0, ..*self } == Badness::default()
    }

    /// Checks the ranges: percentages from 0 to 100, times from 0 to 10 seconds.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        let percentages = [self.loss_percent, self.duplicate_percent, self.reorder_percent];
        if percentages.iter().any(|p| !(0.0..=100.0).contains(p)) {
            return Err("loss, duplicates and reordering are percentages: from 0 to 100".into());
        }
        if [self.delay_ms, self.jitter_ms].iter().any(|ms| !(0.0..=10_000.0).contains(ms)) {
            return Err("delay and jitter are from 0 to 10000 ms".into());
        }
        Ok(())
    }
}

/// How long a reordered frame is held back.
pub const HELD_BACK_US: u64 = 2_000;
/// Frames that a wire holds at most; more are lost, as in a full queue of a switch.
pub const FRAMES_MAX: usize = 4096;

/// One direction of a wire that carries `F`.
#[derive(Debug)]
pub struct Wire<F> {
    badness: Badness,
    random: u64,
    /// By the time it comes out, then in the order of coming in.
    frames: BTreeMap<(u64, u64), F>,
    entered: u64,
}

impl<F: Clone> Wire<F> {
    /// A wire without frames.
    #[must_use]
    pub fn new(badness: Badness) -> Wire<F> {
        Wire { badness, random: badness.seed, frames: BTreeMap::new(), entered: 0 }
    }

    /// splitmix64 (Steele, Lea, Flood 2014), as a number from 0 up to 1.
    #[allow(clippy::cast_precision_loss)] // 53 bits fit
    fn random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn happens(&mut self, percent: f64) -> bool {
        self.random() * 100.0 < percent
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within 0 and 20 s
    fn due_us(&mut self, now_us: u64) -> u64 {
        let ms = self.badness.delay_ms + self.random() * self.badness.jitter_ms;
        let held_back_us = if self.happens(self.badness.reorder_percent) { HELD_BACK_US } else { 0 };
        now_us + (ms * 1000.0) as u64 + held_back_us
    }

    /// A frame comes in.
    pub fn put(&mut self, now_us: u64, frame: F) {
        if self.happens(self.badness.loss_percent) {
            return;
        }
        let copies = if self.happens(self.badness.duplicate_percent) { 2 } else { 1 };
        for _ in 0..copies {
            if self.frames.len() < FRAMES_MAX {
                let due_us = self.due_us(now_us);
                self.entered += 1;
                self.frames.insert((due_us, self.entered), frame.clone());
            }
        }
    }

    /// A frame that has arrived by now.
    pub fn take(&mut self, now_us: u64) -> Option<F> {
        let first = self.frames.first_entry()?;
        (first.key().0 <= now_us).then(|| first.remove())
    }

    /// When the next frame arrives.
    #[must_use]
    pub fn next_us(&self) -> Option<u64> {
        self.frames.keys().next().map(|(due_us, _)| *due_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends 10,000 numbers, one each 10 µs, and lists what arrives, in order.
    fn send(badness: Badness) -> Vec<u32> {
        let mut wire = Wire::new(badness);
        let mut arrived = Vec::new();
        for number in 0..10_000 {
            let now_us = u64::from(number) * 10;
            wire.put(now_us, number);
            arrived.extend(std::iter::from_fn(|| wire.take(now_us)));
        }
        while let Some(at) = wire.next_us() {
            arrived.extend(wire.take(at));
        }
        arrived
    }

    fn none() -> Badness {
        Badness { seed: 7, ..Badness::default() }
    }

    #[test]
    fn a_good_wire_changes_nothing() {
        assert!(none().is_none());
        assert!(send(none()).into_iter().eq(0..10_000));
        assert!(send(Badness { delay_ms: 3.0, ..none() }).into_iter().eq(0..10_000));
    }

    #[test]
    fn what_is_lost_is_about_what_was_asked_for() {
        let arrived = send(Badness { loss_percent: 10.0, ..none() }).len();
        assert!((8_800..9_200).contains(&arrived), "{arrived}");
        assert!(send(Badness { loss_percent: 100.0, ..none() }).is_empty());
    }

    #[test]
    fn duplicates_are_copies() {
        let mut arrived = send(Badness { duplicate_percent: 50.0, ..none() });
        assert!((14_500..15_500).contains(&arrived.len()), "{}", arrived.len());
        arrived.dedup();
        assert!(arrived.into_iter().eq(0..10_000));
    }

    #[test]
    fn reordered_frames_come_later_and_only_they() {
        let arrived = send(Badness { reorder_percent: 5.0, ..none() });
        let late = arrived.windows(2).filter(|w| w[1] < w[0]).count();
        assert!((300..700).contains(&late), "{late}");
        let mut sorted = arrived;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..10_000));
    }

    #[test]
    fn jitter_keeps_within_its_bounds_and_a_seed_repeats_it() {
        let badness = Badness { delay_ms: 1.0, jitter_ms: 1.0, ..none() };
        let mut wire = Wire::new(badness);
        for _ in 0..FRAMES_MAX + 10 {
            wire.put(0, ());
        }
        assert_eq!(wire.frames.len(), FRAMES_MAX);
        assert!(wire.frames.keys().all(|(due_us, _)| (1_000..=2_000).contains(due_us)));
        assert_eq!(send(badness), send(badness));
        assert_ne!(send(badness), send(Badness { seed: 8, ..badness }));
    }

    #[test]
    fn ranges_are_checked() {
        assert!(none().check().is_ok());
        assert!(Badness { loss_percent: 101.0, ..none() }.check().is_err());
        assert!(Badness { delay_ms: -1.0, ..none() }.check().is_err());
        assert!(Badness { jitter_ms: f64::NAN, ..none() }.check().is_err());
    }
}
