//! What the committer leaves in memory for the reader of the log: which slots have news since when, and how many bytes
//! were committed by when. It begins when the store is opened; what came before is found in the change index.

use std::collections::VecDeque;

use tidemark_proto::{Incarnation, Timestamp};

/// Bytes between two marks.
const MARK_EVERY: u64 = 256 << 10;
/// Most marks: those of 16 GiB. The oldest goes first, and what lies before it counts as not covered.
const MAX_MARKS: usize = 64 << 10;
const SLOTS: usize = tidemark_proto::slot::SLOT_COUNT as usize;

/// Where the log stands: how much of it there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    at: Timestamp,
    /// Bytes committed up to and including `at`, since the trail began.
    bytes: u64,
}

/// The trail of one incarnation.
#[derive(Debug)]
pub(super) struct Trail {
    incarnation: Incarnation,
    /// It holds what was committed after this.
    start: Timestamp,
    /// Of what came before: the bytes from this time on.
    earlier: Option<(Timestamp, u64)>,
    /// Highest timestamp of any commit in each slot; zero for none.
    newest: Box<[Timestamp]>,
    /// Ascending; the first says where the trail begins.
    marks: VecDeque<Mark>,
    bytes: u64,
    /// Up to here nobody needs the log, and the most bytes that are kept for it from there on; `None` without a log.
    kept: Option<(Timestamp, u64)>,
}

/// One group of commits, as the committer saw it.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Slots that were written, in any order, with repeats.
    pub(super) slots: Vec<u16>,
    /// Bytes of keys and values.
    pub(super) bytes: u64,
}

impl Trail {
    /// An empty one that begins after `start`.
    pub(super) fn new(incarnation: Incarnation, start: Timestamp) -> Self {
        Self {
            incarnation,
            start,
            earlier: None,
            newest: vec![Timestamp::ZERO; SLOTS].into_boxed_slice(),
            marks: VecDeque::from([Mark { at: start, bytes: 0 }]),
            bytes: 0,
            kept: None,
        }
    }

    /// Whether it is of this data.
    pub(super) fn is_of(&self, incarnation: Incarnation) -> bool {
        self.incarnation == incarnation
    }

    /// Takes note of a group that ends at `at`.
    pub(super) fn note(&mut self, group: &Group, at: Timestamp) {
        for slot in &group.slots {
            self.newest[usize::from(*slot)] = at;
        }
        self.bytes += group.bytes;
        if self.bytes - self.marks.back().map_or(0, |m| m.bytes) >= MARK_EVERY {
            if self.marks.len() == MAX_MARKS {
                let _ = self.marks.pop_front();
            }
            self.marks.push_back(Mark { at, bytes: self.bytes });
        }
    }

    /// Whether everything after `from` is in it.
    pub(super) fn covers(&self, from: Timestamp) -> bool {
        self.marks.front().is_some_and(|m| m.at <= from)
    }

    /// Slots with news after `from`, ascending.
    pub(super) fn slots(&self, from: Timestamp) -> Vec<u16> {
        let news = self.newest.iter().enumerate().filter(|(_, at)| **at > from);
        news.map(|(slot, _)| slot as u16).collect()
    }

    /// Bytes committed up to `at`, rounded down to a mark.
    fn bytes_at(&self, at: Timestamp) -> u64 {
        let after = self.marks.partition_point(|m| m.at <= at);
        after.checked_sub(1).map_or(0, |i| self.marks[i].bytes)
    }

    /// Where a read of about `most` bytes after `from` ends, `None` at the end of the log; and the bytes behind that.
    pub(super) fn reach(&self, from: Timestamp, most: u64) -> (Option<Timestamp>, u64) {
        let goal = self.bytes_at(from).saturating_add(most);
        if self.bytes <= goal {
            return (None, 0);
        }
        let next = self.marks.partition_point(|m| m.bytes < goal || m.at <= from);
        match self.marks.get(next) {
            Some(mark) => (Some(mark.at), self.bytes - mark.bytes),
            None => (None, 0),
        }
    }

    /// A log is kept from `durable` on, in at most `spool` bytes.
    pub(super) fn keep(&mut self, durable: Timestamp, spool: u64) {
        self.kept = Some((durable, spool));
    }

    /// No log is kept.
    pub(super) fn let_go(&mut self) {
        self.kept = None;
    }

    /// Bytes that are kept for the log beyond what it may take; 0 when it is within bounds, or not known to pass them.
    pub(super) fn excess(&self) -> u64 {
        let Some((durable, spool)) = self.kept else { return 0 };
        let earlier = self.earlier.filter(|_| durable < self.start).map_or(0, |(_, bytes)| bytes);
        (earlier + self.bytes - self.bytes_at(durable)).saturating_sub(spool)
    }

    /// The stretch of what came before the trail that must be counted to know: what was kept for the log when the store was
    /// opened, and again where what was counted is durable in part and too much otherwise. With the bytes that are enough.
    pub(super) fn uncounted(&self) -> Option<(Timestamp, Timestamp, u64)> {
        let (durable, spool) = self.kept.filter(|(durable, _)| *durable < self.start)?;
        let known = self.earlier.is_some_and(|(from, _)| from == durable || self.excess() == 0);
        (!known).then_some((durable, self.start, spool))
    }

    /// It was counted from `from` on.
    pub(super) fn counted(&mut self, from: Timestamp, bytes: u64) {
        self.earlier = Some((from, bytes));
    }

    /// Bytes committed from one time to another.
    pub(super) fn bytes_between(&self, from: Timestamp, to: Timestamp) -> u64 {
        self.bytes_at(to).saturating_sub(self.bytes_at(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(slots: &[u16], bytes: u64) -> Group {
        Group { slots: slots.to_vec(), bytes }
    }

    #[test]
    fn reads_are_cut_at_marks_and_the_spool_is_bounded() {
        let mut trail = Trail::new(Incarnation::from_u128(1), Timestamp(10));
        assert!(trail.covers(Timestamp(10)) && !trail.covers(Timestamp(9)));
        for i in 0..8u64 {
            trail.note(&group(&[i as u16], MARK_EVERY), Timestamp(20 + i));
        }
        assert_eq!(trail.slots(Timestamp(25)), [6, 7]);
        assert_eq!(trail.reach(Timestamp(10), u64::MAX), (None, 0));
        assert_eq!(trail.reach(Timestamp(10), 3 * MARK_EVERY), (Some(Timestamp(22)), 5 * MARK_EVERY));
        assert_eq!(
            trail.reach(Timestamp(22), 1),
            (Some(Timestamp(23)), 4 * MARK_EVERY),
            "at least one mark further"
        );
        assert_eq!(trail.reach(Timestamp(27), 1), (None, 0));
        assert_eq!(trail.excess(), 0);
        trail.keep(Timestamp(24), MARK_EVERY);
        assert_eq!(trail.excess(), 2 * MARK_EVERY);
        trail.let_go();
        assert_eq!(trail.excess(), 0);
    }

    #[test]
    fn what_came_before_is_counted_once_and_again_before_it_is_dropped() {
        let mut trail = Trail::new(Incarnation::from_u128(1), Timestamp(100));
        assert_eq!(trail.uncounted(), None, "nothing is kept");
        trail.keep(Timestamp(40), 1000);
        assert_eq!((trail.uncounted(), trail.excess()), (Some((Timestamp(40), Timestamp(100), 1000)), 0));
        trail.counted(Timestamp(40), 900);
        assert_eq!((trail.uncounted(), trail.excess()), (None, 0));
        // A part of it is durable; what is new is no more than the spool takes beside the rest.
        trail.keep(Timestamp(60), 1000);
        trail.note(&group(&[1], 500), Timestamp(120));
        assert_eq!((trail.excess(), trail.uncounted().map(|(from, ..)| from.0)), (400, Some(60)));
        trail.counted(Timestamp(60), 300);
        assert_eq!((trail.excess(), trail.uncounted()), (0, None));
        trail.note(&group(&[1], 400), Timestamp(130));
        assert_eq!((trail.excess(), trail.uncounted()), (200, None), "it was counted from there on");
        trail.keep(Timestamp(100), 1000);
        assert_eq!((trail.excess(), trail.uncounted()), (0, None), "all of it is durable");
    }

    #[test]
    fn the_oldest_marks_go() {
        let mut trail = Trail::new(Incarnation::from_u128(1), Timestamp(0));
        for i in 1..=MAX_MARKS as u64 {
            trail.note(&group(&[1], MARK_EVERY), Timestamp(i));
        }
        assert!(!trail.covers(Timestamp(0)) && trail.covers(Timestamp(1)));
    }
}
