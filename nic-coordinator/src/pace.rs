//! How long to look for more work before a sleep: learned from when work came so far.
//!
//! To look costs a processor that the host's programs may want; to sleep costs a doorbell, two changes of threads, and the time until the
//! next request is seen. So it is worth to look while enough of the recent work came soon after the work before it.

/// What all work coming soon counts as.
const ALWAYS: u64 = 1 << 16;
/// From this on it is worth to look.
const WORTH: u64 = ALWAYS / 10 * 6;
/// The weight of the latest gap is one in so many.
const MEMORY: u64 = 16;

/// When the last work was, and whether more comes soon.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For how long to look.
    spin_us: u64,
    worked_us: u64,
    /// How much of the work came within that time, or was there when this thread came back from a yield: of [`ALWAYS`].
    soon: u64,
    /// Since the last work there was a sleep.
    slept: bool,
    /// Something is known to come: until this time it is looked for in any case.
    due_us: u64,
}

impl Pace {
    /// Looks for `spin_us`, and expects that it is worth it.
    pub fn new(spin_us: u64) -> Self {
        Pace { spin_us, worked_us: 0, soon: ALWAYS, slept: false, due_us: 0 }
    }

    /// There was work.
    pub fn worked(&mut self, now_us: u64) {
        let late = self.slept && now_us.saturating_sub(self.worked_us) >= self.spin_us;
        self.soon = self.soon - self.soon / MEMORY + if late { 0 } else { ALWAYS / MEMORY };
        (self.worked_us, self.slept) = (now_us, false);
    }

    /// There was a sleep.
    pub fn slept(&mut self) {
        self.slept = true;
    }

    /// Something is about to come.
    pub fn expect(&mut self, now_us: u64) {
        self.due_us = now_us + self.spin_us;
    }

    /// True when it is time to sleep.
    pub fn is_over(&self, now_us: u64) -> bool {
        let looks = self.soon >= WORTH && now_us.saturating_sub(self.worked_us) < self.spin_us;
        !looks && now_us >= self.due_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPIN_US: u64 = 50;

    /// A pace after `count` more pieces of work, each so long after the one before.
    fn after(pace: Pace, count: u64, gap_us: u64) -> Pace {
        (0..count).fold(pace, |mut pace, _| {
            pace.slept();
            pace.worked(pace.worked_us + gap_us);
            pace
        })
    }

    fn looks(pace: &Pace) -> bool {
        !pace.is_over(pace.worked_us)
    }

    #[test]
    fn looks_while_work_comes_soon_and_not_when_it_comes_late() {
        let busy = after(Pace::new(SPIN_US), 1_000, 10);
        assert!(looks(&busy) && busy.is_over(busy.worked_us + SPIN_US));
        let seldom = after(busy, 10, 1_000);
        assert!(!looks(&seldom));
        assert!(looks(&after(seldom, 20, 10)));
    }

    #[test]
    fn one_late_piece_of_work_is_no_reason_to_sleep() {
        assert!(looks(&after(after(Pace::new(SPIN_US), 100, 10), 1, 1_000_000)));
    }

    #[test]
    fn what_came_while_this_thread_had_no_processor_came_soon() {
        let mut pace = Pace::new(SPIN_US);
        (0..100).for_each(|i| pace.worked(i * 1_000));
        assert!(looks(&pace));
    }

    #[test]
    fn looks_for_what_is_expected_in_any_case() {
        let mut seldom = after(Pace::new(SPIN_US), 100, 1_000);
        let now_us = seldom.worked_us + 500;
        seldom.expect(now_us);
        assert!(!seldom.is_over(now_us + SPIN_US - 1) && seldom.is_over(now_us + SPIN_US));
    }
}
