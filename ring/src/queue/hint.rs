//! Who has work (SPEC 2.9): a count for each function, and one for each group of functions, in host memory.
//!
//! Nothing is ever cleared, because the card does no read-modify-write across the bus: it compares with what it saw last.
//! What is in there is a hint. A liar makes the card look at a function for nothing; who is left out is found by the
//! card's regular scan.

use super::{CommonMemory, FUNCTIONS, GROUP};
use crate::atomic::{AtomicU16, AtomicU32, Ordering};
use crate::side::Fetched;

/// Host side: one function's mark.
#[derive(Debug)]
pub struct Hint<'a> {
    group: &'a AtomicU32,
    mark: &'a AtomicU16,
    count: u16,
}

/// Card side: compares all marks with what they were.
#[derive(Debug)]
pub struct Watcher<'a> {
    groups: Fetched<'a, [AtomicU32]>,
    marks: Fetched<'a, [AtomicU16]>,
    seen_groups: [u32; FUNCTIONS / GROUP],
    seen_marks: [u16; FUNCTIONS],
}

impl<'a> Hint<'a> {
    /// The mark of `function`; `None`: there is no such number.
    #[must_use]
    pub fn of(common: &'a CommonMemory, function: u32) -> Option<Hint<'a>> {
        let function = function as usize;
        let mark = common.marks.get(function)?;
        Some(Hint::new(common.groups.get(function / GROUP)?, mark))
    }

    /// Over these two words.
    #[must_use]
    pub fn new(group: &'a AtomicU32, mark: &'a AtomicU16) -> Hint<'a> {
        // The number may have been another function's: any other value than the last one is news, and a look for nothing is all
        // that an accidental one costs.
        Hint { group, mark, count: mark.load(Ordering::Relaxed) }
    }

    /// What was stored before this is there when the card looks because of it.
    #[inline]
    pub fn raise(&mut self) {
        self.count = self.count.wrapping_add(1);
        // Release: pairs with the Acquire in `collect`; who sees the mark sees the entry before it. The card may see it before the
        // count, because of another function of the group. A plain store: this host alone writes the word.
        self.mark.store(self.count, Ordering::Release);
        // Release: likewise; who sees the count sees the mark. On the bus, this locked instruction also drains write-combining
        // buffers and earlier posted writes (SPEC 2.9.4).
        self.group.fetch_add(1, Ordering::Release);
    }
}

impl<'a> Watcher<'a> {
    /// Has seen nothing yet.
    #[must_use]
    pub fn new(common: &'a CommonMemory) -> Watcher<'a> {
        Watcher::over(&common.groups[..], &common.marks[..])
    }

    /// Over these counts; missing ones are taken as quiet.
    #[must_use]
    pub fn over(
        groups: impl Into<Fetched<'a, [AtomicU32]>>,
        marks: impl Into<Fetched<'a, [AtomicU16]>>,
    ) -> Watcher<'a> {
        let (groups, marks) = (groups.into(), marks.into());
        Watcher { groups, marks, seen_groups: [0; FUNCTIONS / GROUP], seen_marks: [0; FUNCTIONS] }
    }

    /// Calls `each` with every function that had news since the last call, in ascending order. One line is read if nobody has.
    #[inline]
    pub fn collect(&mut self, mut each: impl FnMut(u32)) {
        let seen = self.seen_groups.iter_mut().zip(self.seen_marks.chunks_mut(GROUP));
        let groups = self.groups.iter().zip(self.marks.chunks(GROUP));
        for (group, ((count, marks), (seen_count, seen_marks))) in groups.zip(seen).enumerate() {
            // Acquire: pairs with the Release in `raise`. Read before the marks: one that changes in between changes this count
            // after it, and is found by the next call at the latest.
            let now = count.fetch(Ordering::Acquire);
            if now == *seen_count {
                continue;
            }
            *seen_count = now;
            for (index, (mark, seen)) in marks.iter().zip(seen_marks).enumerate() {
                // Acquire: pairs with the Release in `raise`.
                let now = mark.fetch(Ordering::Acquire);
                if now != *seen {
                    *seen = now;
                    each(u32::try_from(group * GROUP + index).unwrap_or(0));
                }
            }
        }
    }
}
