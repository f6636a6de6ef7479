//! Where requests come from besides the private rings (SPEC 2.7): hints of who has work, and the shared ring.

use std::os::fd::{AsFd, OwnedFd};

use ring::queue::Kind;
use ring::queue::shared::{Found, Sealed};

use crate::mapping::{Common, MapError};

/// How long a ticket of the shared ring may stay unpublished before the card passes it by (SPEC 2.8.4 allows 10 ms).
pub const GAP_US: u64 = 1000;
/// How often all functions are looked at, whatever the hints say.
pub const SCAN_EVERY_US: u64 = 1000;

/// What the chosen queue needs.
#[derive(Debug)]
pub struct Intake {
    kind: Kind,
    /// None with [`Kind::PerProcess`].
    common: Option<Box<Common>>,
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
        Ok(Intake { kind, common, lost: Vec::new(), scanned_us: 0, resolved_us: 0 })
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

    /// Appends the functions that say they have something for us.
    pub fn hints(&mut self, to: &mut Vec<u32>) {
        if let Some(common) = &mut self.common {
            common.hints(|function| to.push(function));
        }
    }

    /// The next entry of the shared ring. After `patience_us` a ticket is passed by.
    pub fn take(&mut self, now_us: u64, patience_us: u64) -> Found {
        match &mut self.common {
            Some(common) if self.kind == Kind::Shared => common.take(now_us, patience_us),
            _ => Found::Nothing,
        }
    }

    /// Tells the hosts how far the shared ring is free.
    pub fn tell(&mut self) {
        if let Some(common) = self.common.as_mut().filter(|_| self.kind == Kind::Shared) {
            common.tell();
        }
    }

    /// When a ticket has to be passed by, if one is missing.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.common.as_ref()?.gap_until_us(GAP_US)
    }

    /// A ticket was passed by; one of `suspects` may hold it, all others were seen outside of a push.
    pub fn lost(&mut self, ticket: u64, suspects: Vec<(u32, u64)>) {
        self.lost.push(Lost { ticket, suspects });
    }

    /// Gives slots back that nobody can publish in any more, now and then. `pushing`: what a function's word says; `None`: it
    /// is gone. What was published there all the same is appended to `found`.
    pub fn resolve(&mut self, now_us: u64, pushing: impl Fn(u32) -> Option<u64>, found: &mut Vec<Sealed>) {
        let Some(common) = self.common.as_mut().filter(|_| !self.lost.is_empty()) else { return };
        if now_us.saturating_sub(self.resolved_us) < GAP_US {
            return;
        }
        self.resolved_us = now_us;
        self.lost.retain_mut(|lost| {
            if !common.unresolved().any(|ticket| ticket == lost.ticket) {
                return false;
            }
            lost.suspects.retain(|(function, said)| pushing(*function) == Some(*said));
            if lost.suspects.is_empty() {
                found.extend(common.release(lost.ticket));
            }
            !lost.suspects.is_empty()
        });
    }
}
