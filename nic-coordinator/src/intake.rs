//! Where requests come from besides the private rings (SPEC 2.7): hints of who has work, and the shared ring.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use ring::queue::Kind;
use ring::queue::shared::{Found, Sealed};

use crate::mapping::{Common, MapError, Pushing};

/// How long a ticket of the shared ring may stay unpublished before the card passes it by (SPEC 2.8.4 allows 10 ms).
pub const GAP_US: u64 = 1000;
/// How often all functions are looked at, whatever the hints say.
pub const SCAN_EVERY_US: u64 = 1000;

/// Entries of the shared ring that one turn takes.
pub const SHARED_PER_TURN: usize = 256;

/// What the chosen queue needs, on one lcore: each looks at hints itself, the shared ring is taken by the logic's lcore.
#[derive(Debug)]
pub struct Intake {
    kind: Kind,
    /// None with [`Kind::PerProcess`].
    common: Option<Box<Common>>,
    /// Who may draw tickets of the shared ring.
    pushing: BTreeMap<u32, Pushing>,
    /// Tickets that were passed by, and who may still hold each.
    lost: Vec<Lost>,
    /// When all functions were last looked at.
    scanned_us: u64,
    /// When [`Intake::lost`] was last looked through.
    resolved_us: u64,
}

#[derive(Debug)]
struct Lost {
    ticket: u64,
    /// Functions that were in a push, and what their word said.
    suspects: Vec<(u32, u64)>,
}

impl Intake {
    /// For `kind`, over the common memory that all of them but [`Kind::PerProcess`] need.
    ///
    /// # Errors
    /// [`MapError`]: the common memory is missing, not of this version, or for another kind.
    pub fn new(kind: Kind, common: Option<OwnedFd>) -> Result<Intake, MapError> {
        let common = match (kind, common) {
            (Kind::PerProcess, None) => None,
            (Kind::Shared | Kind::Hybrid, Some(fd)) => Some(Box::new(Common::map(fd.as_fd())?)),
            _ => return Err(MapError::Header("common memory")),
        };
        let (pushing, lost) = Default::default();
        Ok(Intake { kind, common, pushing, lost, scanned_us: 0, resolved_us: 0 })
    }

    /// Which queue it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// True if all functions have to be looked at now; counts as done.
    pub fn scan_due(&mut self, now_us: u64) -> bool {
        let due = self.kind == Kind::PerProcess || now_us.saturating_sub(self.scanned_us) >= SCAN_EVERY_US;
        if due {
            self.scanned_us = now_us;
        }
        due
    }

    /// Calls `each` with the functions that say they have something for us.
    pub fn hints(&mut self, each: impl FnMut(u32)) {
        if let Some(common) = &mut self.common {
            common.hints(each);
        }
    }

    /// From now on `function` may draw tickets of the shared ring.
    pub fn watch(&mut self, function: u32, pushing: Pushing) {
        if self.kind == Kind::Shared {
            self.pushing.insert(function, pushing);
        }
    }

    /// `function` is gone.
    pub fn forget(&mut self, function: u32) {
        self.pushing.remove(&function);
    }

    /// Appends what is in the shared ring, within bounds, and tells the hosts how far it is free. After `patience_us` a ticket is
    /// passed by: how many were.
    pub fn take(&mut self, now_us: u64, patience_us: u64, found: &mut Vec<Sealed>) -> u64 {
        let Some(common) = self.common.as_mut().filter(|_| self.kind == Kind::Shared) else { return 0 };
        let mut gaps = 0;
        for _ in 0..SHARED_PER_TURN {
            match common.take(now_us, patience_us) {
                Found::Entry(entry) => found.push(entry),
                Found::Gap(ticket) => {
                    gaps += 1;
                    // One of these may hold it; all others were seen outside of a push.
                    let said = self.pushing.iter().map(|(function, word)| (*function, word.get()));
                    let suspects = said.filter(|(_, said)| said % 2 == 1).collect();
                    self.lost.push(Lost { ticket, suspects });
                }
                Found::Nothing => break,
            }
        }
        common.tell();
        self.resolve(now_us, found);
        gaps
    }

    /// When a ticket has to be passed by, if one is missing.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.common.as_ref()?.gap_until_us(GAP_US)
    }

    /// Gives slots back that nobody can publish in any more, now and then. What was published there all the same is appended to
    /// `found`.
    fn resolve(&mut self, now_us: u64, found: &mut Vec<Sealed>) {
        let Some(common) = self.common.as_mut().filter(|_| !self.lost.is_empty()) else { return };
        if now_us.saturating_sub(self.resolved_us) < GAP_US {
            return;
        }
        self.resolved_us = now_us;
        let pushing = &self.pushing;
        self.lost.retain_mut(|lost| {
            if !common.unresolved().any(|ticket| ticket == lost.ticket) {
                return false;
            }
            lost.suspects.retain(|(function, said)| pushing.get(function).map(Pushing::get) == Some(*said));
            if lost.suspects.is_empty() {
                found.extend(common.release(lost.ticket));
            }
            !lost.suspects.is_empty()
        });
    }
}
