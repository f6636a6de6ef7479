//! Which place of a table to try next: places are used in turn, so that one that was just given back rests for a while (a
//! call that still holds on to it finds out), within a window that grows only when it is full, so that tables stay dense.

use core::sync::atomic::{AtomicUsize, Ordering};

/// Places of a table that never uses more.
const WINDOW_MIN: usize = 512;

/// See the module.
pub struct Places {
    next: AtomicUsize,
    window: AtomicUsize,
    max: usize,
}

impl Places {
    /// For a table of `max` places.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Places { next: AtomicUsize::new(0), window: AtomicUsize::new(WINDOW_MIN), max }
    }

    /// No place beyond this was ever tried.
    #[must_use]
    pub fn window(&self) -> usize {
        self.window.load(Ordering::Relaxed).min(self.max)
    }

    /// Places to try, one after the other: each of the window once, then those of a larger window, up to the whole table.
    pub fn candidates(&self) -> impl Iterator<Item = usize> + use<'_> {
        let mut left = self.window();
        core::iter::from_fn(move || {
            if left == 0 {
                let full = self.window();
                if full >= self.max {
                    return None;
                }
                // Everything below is taken: the new half comes next. Two threads may both get here; both see it larger.
                let _ = self.window.compare_exchange(full, full * 2, Ordering::Relaxed, Ordering::Relaxed);
                self.next.store(full, Ordering::Relaxed);
                left = self.window();
            }
            left -= 1;
            Some(self.next.fetch_add(1, Ordering::Relaxed) % self.window())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_tried_and_the_window_grows_only_when_it_must() {
        let places = Places::new(WINDOW_MIN * 4);
        let mut taken = vec![false; WINDOW_MIN * 4];
        for i in 0..taken.len() {
            let at = places.candidates().find(|at| !taken[*at]).expect("a place is free");
            taken[at] = true;
            assert!(places.window() <= (i + 1).next_power_of_two().max(WINDOW_MIN));
        }
        assert!(places.candidates().all(|at| taken[at]));
    }

    #[test]
    fn a_place_rests_before_it_is_used_again() {
        let places = Places::new(WINDOW_MIN);
        let first = places.candidates().next().expect("a place is free");
        let again = (0..WINDOW_MIN - 1).any(|_| places.candidates().next() == Some(first));
        assert!(!again);
    }
}
