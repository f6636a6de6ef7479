//! Fork families and the segments between them: who may map what, and whose end of a wire is open.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use emulator::memory::{Mapping, sealed_memfd};
use emulator::packet;
use ring::bus::CARD_GROUP;
use ring::segment::{RING_BYTES, SegmentHeader, format, segment_bytes};
use rustix::net::SocketType;

use crate::inspect::{SegmentReport, Tails};

/// One segment: memory, and this side's and that side's end of the wire.
#[derive(Debug)]
struct Segment {
    groups: [u32; 2],
    memory: OwnedFd,
    /// `None` once that side's group is gone: the other side then sees a hangup as soon as the
    /// group's last process has closed its own copy, too.
    wires: [Option<OwnedFd>; 2],
}

/// Why a segment is not handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    /// Unknown, or of other groups; which of the two is nobody's business.
    #[error("this segment is not yours")]
    NotYours,
    /// The family had ended in between.
    #[error("the segment's process family had already ended")]
    Ended,
}

/// All groups and segments.
#[derive(Debug)]
pub struct Groups {
    /// Bytes of each ring of a connection with another host.
    far_ring_bytes: usize,
    last_group: u32,
    /// Processes (and forks on their way) of each group.
    holders: BTreeMap<u32, u32>,
    segments: BTreeMap<u32, Segment>,
    /// Segments of each group.
    of_group: BTreeMap<u32, BTreeSet<u32>>,
}

impl Groups {
    /// None yet. `far_ring_bytes`: bytes of each ring of a connection with another host.
    #[must_use]
    pub fn new(far_ring_bytes: usize) -> Groups {
        let (holders, segments, of_group) = Default::default();
        Groups { far_ring_bytes, last_group: 0, holders, segments, of_group }
    }

    /// Number for a new family. Held by nobody yet.
    pub fn fresh(&mut self) -> u32 {
        loop {
            self.last_group = self.last_group.wrapping_add(1).max(1);
            let group = self.last_group;
            if !self.holders.contains_key(&group) && !self.of_group.contains_key(&group) {
                return group;
            }
        }
    }

    /// One more holder.
    pub fn hold(&mut self, group: u32) {
        *self.holders.entry(group).or_default() += 1;
    }

    /// One holder less; with the last one, the group's ends of its wires are closed.
    pub fn release(&mut self, group: u32) {
        let Some(count) = self.holders.get_mut(&group) else { return };
        *count = count.saturating_sub(1);
        if *count > 0 {
            return;
        }
        self.holders.remove(&group);
        for segment in self.of_group.get(&group).into_iter().flatten() {
            if let Some(segment) = self.segments.get_mut(segment) {
                for (side, wire) in segment.groups.iter().zip(&mut segment.wires) {
                    if *side == group {
                        *wire = None;
                    }
                }
            }
        }
    }

    /// Makes the memory and the wire of a segment. One of the groups may be [`CARD_GROUP`].
    ///
    /// # Errors
    /// Out of descriptors or memory, a number that is taken, or a group that is gone.
    pub fn make_segment(&mut self, number: u32, client: u32, server: u32) -> io::Result<()> {
        if self.segments.contains_key(&number) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let lives = |group| group == CARD_GROUP || self.holders.contains_key(&group);
        if !lives(client) || !lives(server) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let far = [client, server].contains(&CARD_GROUP);
        let ring_bytes = if far { self.far_ring_bytes } else { RING_BYTES };
        let memory = sealed_memfd("ipc-direct-segment", segment_bytes(ring_bytes))?;
        let head = Mapping::new(&memory, size_of::<SegmentHeader>())?;
        format(head.region().get(0).ok_or(io::ErrorKind::InvalidData)?, number, ring_bytes);
        let (client_end, server_end) = packet::pair(SocketType::STREAM)?;
        let wires = [Some(client_end), Some(server_end)];
        let segment = Segment { groups: [client, server], memory, wires };
        self.segments.insert(number, segment);
        for group in [client, server] {
            self.of_group.entry(group).or_default().insert(number);
        }
        Ok(())
    }

    /// What a process of `group` gets that plays `side` (0: client, 1: server) in segment `number`: the
    /// memory, and its end of the wire. A family that is connected to itself plays both.
    ///
    /// # Errors
    /// [`Withheld`].
    pub fn hand_out(&self, number: u32, side: u32, group: u32) -> Result<[BorrowedFd<'_>; 2], Withheld> {
        let segment = self.segments.get(&number).ok_or(Withheld::NotYours)?;
        let mut sides = segment.groups.iter().zip(&segment.wires);
        let (owner, wire) = sides.nth(side as usize).ok_or(Withheld::NotYours)?;
        if *owner != group {
            return Err(Withheld::NotYours);
        }
        let wire = wire.as_ref().ok_or(Withheld::Ended)?;
        Ok([segment.memory.as_fd(), wire.as_fd()])
    }

    /// What the card gets of a segment that it has a side of, once: the memory, and its end of the wire.
    pub fn take_card_side(&mut self, number: u32) -> Option<(BorrowedFd<'_>, OwnedFd)> {
        let segment = self.segments.get_mut(&number)?;
        let side = segment.groups.iter().position(|group| *group == CARD_GROUP)?;
        let wire = segment.wires.get_mut(side)?.take()?;
        Some((segment.memory.as_fd(), wire))
    }

    /// Forgets a segment; its memory lives on as long as processes map it.
    pub fn drop_segment(&mut self, number: u32) {
        let Some(segment) = self.segments.remove(&number) else { return };
        for group in segment.groups {
            if let Some(set) = self.of_group.get_mut(&group) {
                set.remove(&number);
                if set.is_empty() {
                    self.of_group.remove(&group);
                }
            }
        }
    }

    /// Groups that share a segment with `group`.
    #[must_use]
    pub fn neighbours(&self, group: u32) -> BTreeSet<u32> {
        let segments = self.of_group.get(&group).into_iter().flatten();
        segments.filter_map(|s| self.segments.get(s)).flat_map(|s| s.groups).collect()
    }

    /// What [`crate::inspect`] shows of every segment; `room` bounds the connections.
    #[must_use]
    pub fn inspect(
        &self,
        visible: impl Fn(u32) -> bool,
        tails: &Tails,
        mut room: usize,
    ) -> Vec<SegmentReport> {
        let mut seen = Vec::new();
        for (number, segment) in self.segments.iter().filter(|(_, s)| s.groups.into_iter().any(&visible)) {
            let wires = segment.wires.each_ref().map(Option::is_some);
            let sides = (segment.groups, wires);
            match SegmentReport::of(*number, sides, segment.memory.as_fd(), tails, room) {
                Ok(report) => {
                    room -= report.connections.len();
                    seen.push(report);
                }
                Err(e) => tracing::error!("segment {number} can't be looked at: {e}"),
            }
        }
        seen
    }

    /// Number of segments.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hung_up(fd: &OwnedFd) -> bool {
        matches!(rustix::io::read(fd, &mut [0u8; 8]), Ok(0))
    }

    #[test]
    fn only_the_two_sides_get_a_segment() {
        let mut groups = Groups::new(RING_BYTES);
        let [a, b, c] = [groups.fresh(), groups.fresh(), groups.fresh()];
        [a, b, c].into_iter().for_each(|g| groups.hold(g));
        groups.make_segment(7, a, b).unwrap();
        assert!(groups.hand_out(7, 0, a).is_ok() && groups.hand_out(7, 1, b).is_ok());
        for (number, side, group) in [(7, 0, c), (7, 1, c), (7, 1, a), (7, 0, b), (7, 2, a), (8, 0, a)] {
            assert_eq!(groups.hand_out(number, side, group).unwrap_err(), Withheld::NotYours);
        }
        assert_eq!(groups.neighbours(a), [a, b].into());
        assert!(groups.make_segment(7, a, b).is_err(), "a number is used once");
        assert!(groups.make_segment(9, a, 99).is_err(), "a group must exist");
        groups.drop_segment(7);
        assert_eq!(groups.hand_out(7, 0, a).unwrap_err(), Withheld::NotYours);
        assert!(groups.of_group.is_empty() && groups.segments() == 0);
    }

    #[test]
    fn the_last_of_a_family_hangs_up() {
        let mut groups = Groups::new(RING_BYTES);
        let (a, b) = (groups.fresh(), groups.fresh());
        [a, a, b].into_iter().for_each(|g| groups.hold(g));
        groups.make_segment(1, a, b).unwrap();
        let end = groups.hand_out(1, 1, b).unwrap()[1].try_clone_to_owned().unwrap();
        groups.release(a);
        assert!(!hung_up(&end), "one of the family is left");
        groups.release(a);
        assert!(hung_up(&end));
        assert_eq!(groups.hand_out(1, 0, a).unwrap_err(), Withheld::Ended);
    }

    #[test]
    fn the_card_has_a_side_of_its_own() {
        let mut groups = Groups::new(RING_BYTES);
        let a = groups.fresh();
        groups.hold(a);
        groups.make_segment(1, a, CARD_GROUP).unwrap();
        assert!(groups.hand_out(1, 0, a).is_ok());
        let end = groups.hand_out(1, 0, a).unwrap()[1].try_clone_to_owned().unwrap();
        let (_, wire) = groups.take_card_side(1).unwrap();
        assert!(groups.take_card_side(1).is_none(), "only once");
        assert_eq!(groups.hand_out(1, 1, a).unwrap_err(), Withheld::NotYours);
        drop(wire);
        assert!(hung_up(&end), "the card is gone");
        groups.make_segment(2, a, a).unwrap();
        assert!(groups.take_card_side(2).is_none(), "not the card's");
    }

    #[test]
    fn a_family_can_wake_itself() {
        let mut groups = Groups::new(RING_BYTES);
        let a = groups.fresh();
        groups.hold(a);
        groups.make_segment(1, a, a).unwrap();
        let [one, other] = [0, 1].map(|side| groups.hand_out(1, side, a).unwrap()[1]);
        rustix::io::write(one, b"!").unwrap();
        assert_eq!(rustix::io::read(other, &mut [0u8; 8]), Ok(1));
    }
}
