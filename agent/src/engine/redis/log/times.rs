//! The timestamps of the commands of a batch: when each came, but above the one before it.
//!
//! Those of a transaction lie within one millisecond, so that a time between two milliseconds divides none.

use tidemark_proto::Timestamp;
use tidemark_proto::time::LOGICAL_MAX;

/// A transaction whose end has not come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    /// End of the command before it.
    pub(super) to: u64,
    /// How many commands were found before it, and bytes that were added.
    pub(super) found: (usize, usize),
    last: Timestamp,
}

/// Gives out timestamps.
#[derive(Debug)]
pub(super) struct Times {
    /// The last one.
    pub(super) last: Timestamp,
    most: Timestamp,
    open: Option<Open>,
}

impl Times {
    /// Above `last`; of what came later than `most` from there on, one by one.
    pub(super) fn new(last: Timestamp, most: Timestamp) -> Self {
        Self { last, most, open: None }
    }

    fn least(&self, millis: u64) -> Timestamp {
        self.last.next().max(Timestamp::new(millis, 0).min(self.most))
    }

    /// That of a command that came then.
    pub(super) fn next(&mut self, millis: u64) -> Timestamp {
        self.last = self.least(millis);
        self.last
    }

    /// A transaction begins behind the offset `to`.
    pub(super) fn begin(&mut self, to: u64, found: (usize, usize)) {
        self.open = Some(Open { to, found, last: self.last });
    }

    /// It ends, with what came then: where its commands begin, and the first of their timestamps, when it is not too large for them to
    /// lie together.
    pub(super) fn end(&mut self, millis: u64, found: usize) -> Option<(usize, Timestamp)> {
        let open = self.open.take()?;
        let count = (found - open.found.0) as u64;
        if count == 0 || count > LOGICAL_MAX + 1 {
            return None;
        }
        self.last = open.last;
        let mut first = self.least(millis);
        if first.logical() + count - 1 > LOGICAL_MAX {
            // By less than it has commands: there is room for twice as many as can come up to a cut.
            first = Timestamp::new(first.millis() + 1, 0);
        }
        self.last = Timestamp(first.0 + count - 1);
        Some((open.found.0, first))
    }

    /// The transaction that is open at the end of what has come is left for later.
    pub(super) fn leave(&mut self) -> Option<Open> {
        let open = self.open.take()?;
        self.last = open.last;
        Some(open)
    }

    /// The transaction that is open.
    pub(super) fn open(&self) -> Option<Open> {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64, logical: u64) -> Timestamp {
        Timestamp::new(millis, logical)
    }

    #[test]
    fn a_transaction_lies_within_a_millisecond() {
        let mut times = Times::new(at(9, LOGICAL_MAX - 2), Timestamp::MAX);
        assert_eq!(times.next(5), at(9, LOGICAL_MAX - 1));
        times.begin(100, (1, 0));
        assert_eq!((times.next(5), times.next(5)), (at(9, LOGICAL_MAX), at(10, 0)), "as if it were none");
        assert_eq!(times.end(5, 3), Some((1, at(10, 0))));
        assert_eq!(times.next(5), at(10, 2));
        // The time of its end counts.
        times.begin(200, (4, 0));
        let _ = times.next(11);
        assert_eq!(times.end(12, 5), Some((4, at(12, 0))));
        // One that is open is as if it had not begun.
        times.begin(300, (5, 0));
        let _ = times.next(12);
        assert_eq!(times.leave().map(|open| (open.to, open.found)), Some((300, (5, 0))));
        assert_eq!((times.last, times.end(12, 6)), (at(12, 0), None));
        // More than a millisecond takes.
        times.begin(400, (5, 0));
        let _ = times.next(12);
        assert_eq!(times.end(12, 5 + LOGICAL_MAX as usize + 2), None);
        assert_eq!(times.last, at(12, 1));
    }

    #[test]
    fn what_comes_before_a_cut_stays_below_it() {
        // Of commands that came late; room is for twice as many.
        let (most, count) = (at(20, LOGICAL_MAX - 1), 10);
        let mut times = Times::new(at(7, 0), most);
        for n in 0..count / 2 {
            times.begin(0, (2 * n, 0));
            let _ = (times.next(99), times.next(99));
            let (_, first) = times.end(99, 2 * n + 2).unwrap();
            assert_eq!(first.millis(), times.last.millis());
        }
        assert!(times.last.0 <= most.0 + 2 * count as u64);
    }
}
