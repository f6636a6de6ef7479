//! The writes of one connection that are under way: what they have not read yet, the process must not overwrite.

/// Writes of a connection under way at most, of those that its link has room for.
const WRITES_MAX: usize = 16;

/// Where the runs of the writes begin. They complete in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Writes([Option<u64>; WRITES_MAX]);

impl Writes {
    fn free(&self) -> Option<usize> {
        self.0.iter().position(Option::is_none)
    }

    pub(super) fn is_full(&self) -> bool {
        self.free().is_none()
    }

    /// What the next write is called, in its completion.
    pub(super) fn token(&self, connection: u32) -> u64 {
        u64::from(connection) << 32 | self.free().unwrap_or(WRITES_MAX) as u64
    }

    /// The next write has begun: its run begins at `start`.
    pub(super) fn begin(&mut self, start: u64) {
        if let Some(free) = self.free() {
            self.0[free] = Some(start);
        }
    }

    /// That write is complete.
    pub(super) fn end(&mut self, index: usize) {
        if let Some(write) = self.0.get_mut(index) {
            *write = None;
        }
    }

    /// Where the first run begins that is still read.
    pub(super) fn first(&self) -> Option<u64> {
        self.0.iter().flatten().min().copied()
    }
}

/// Which connection, and which of its writes.
pub(super) fn of_token(token: u64) -> (u32, usize) {
    // Both halves fit.
    #[allow(clippy::cast_possible_truncation)]
    ((token >> 32) as u32, (token & 0xffff_ffff) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_still_read_holds_the_rest() {
        let mut writes = Writes::default();
        assert_eq!(writes.first(), None);
        let tokens: Vec<_> = (0..WRITES_MAX as u64)
            .map(|at| {
                assert!(!writes.is_full());
                let token = writes.token(u32::MAX);
                writes.begin(at * 100);
                token
            })
            .collect();
        assert!(writes.is_full());
        for (done, first) in [(1, 0), (0, 200), (2, 300)] {
            let (connection, write) = of_token(tokens[done]);
            assert_eq!(connection, u32::MAX);
            writes.end(write);
            assert_eq!(writes.first(), Some(first));
        }
        // A token that was never given out ends nothing.
        writes.end(of_token(u64::MAX).1);
        assert_eq!(writes.first(), Some(300));
    }
}
