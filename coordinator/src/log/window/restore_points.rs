//! The restore points of an interval, in bounded memory: a log that is kept for a year has millions.

use std::collections::BTreeSet;

use tidemark_proto::Timestamp;

/// Newest points that are kept, of an interval that goes on: those of a day.
pub(super) const RECENT: usize = 16 << 10;
/// The same, of one that has ended.
pub(super) const RECENT_OF_ENDED: usize = 1 << 10;

/// Which points are asked for later, however old they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Those at which backups were cut.
    pub(super) cuts: BTreeSet<Timestamp>,
    /// The newest one at or before this.
    pub(super) wanted: Option<Timestamp>,
}

/// The times that can be restored: all of the newest, and of the older ones those that are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestorePoints {
    /// Of the older ones, ascending, each with how many lie before it.
    older: Vec<(Timestamp, u64)>,
    /// How many lie before `recent`.
    before: u64,
    recent: Vec<Timestamp>,
}

impl RestorePoints {
    /// Takes a point. The cut of a backup may be told a moment after a later one.
    pub(super) fn insert(&mut self, at: Timestamp) {
        match self.recent.first() {
            Some(first) if *first > at && self.before > 0 => {
                let place = self.older.partition_point(|(older, _)| *older < at);
                let count = self.older.get(place).map_or(self.before, |(_, count)| *count);
                if self.older.get(place).is_none_or(|(older, _)| *older != at) {
                    self.older.insert(place, (at, count));
                }
            }
            _ => {
                let place = self.recent.partition_point(|point| *point < at);
                if self.recent.get(place) != Some(&at) {
                    self.recent.insert(place, at);
                }
            }
        }
    }

    /// Forgets all but the newest `most`, and what is asked for.
    pub(super) fn thin(&mut self, most: usize, asked: &Asked) {
        let gone = self.recent.len().saturating_sub(most);
        let sought = asked.wanted.and_then(|w| self.recent[..gone].partition_point(|at| *at <= w).checked_sub(1));
        for (i, at) in self.recent.drain(..gone).enumerate() {
            if Some(i) == sought || asked.cuts.contains(&at) {
                self.older.push((at, self.before + i as u64));
            }
        }
        self.before += gone as u64;
        self.recent.shrink_to(2 * most);
    }

    /// How many are kept in full.
    pub(super) fn kept(&self) -> usize {
        self.recent.len()
    }

    /// The newest one at or before `wanted`: of the newest ones, or where this is what was asked for.
    pub fn latest(&self, wanted: Timestamp) -> Option<Timestamp> {
        let recent = self.recent[..self.recent.partition_point(|at| *at <= wanted)].last().copied();
        let older = || self.older[..self.older.partition_point(|(at, _)| *at <= wanted)].last().map(|(at, _)| *at);
        recent.or_else(older)
    }

    /// Whether this is one: one of the newest, or the cut of a backup.
    pub fn has(&self, at: Timestamp) -> bool {
        self.recent.binary_search(&at).is_ok() || self.older.binary_search_by_key(&at, |(at, _)| *at).is_ok()
    }

    /// How many there are from `at` on, which is one of them.
    pub fn count_from(&self, at: Timestamp) -> u64 {
        let older = self.older.get(self.older.partition_point(|(older, _)| *older < at));
        let recent = self.before + self.recent.partition_point(|point| *point < at) as u64;
        let first = older.map_or(recent, |(_, count)| *count);
        (self.before + self.recent.len() as u64).saturating_sub(first)
    }

    #[cfg(test)]
    pub(super) fn newest(&self) -> &[Timestamp] {
        &self.recent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_known_however_old_it_is() {
        let asked = Asked { cuts: [40, 700].map(Timestamp).into(), wanted: Some(Timestamp(255)) };
        let mut points = RestorePoints::default();
        // Those in tens, up to 1000; the cut of a backup is told late.
        for at in (1..=100).filter(|n| *n != 4).map(|n| n * 10) {
            points.insert(Timestamp(at));
            if at == 60 {
                points.insert(Timestamp(40));
                points.insert(Timestamp(40));
            }
            if points.kept() > 20 {
                points.thin(10, &asked);
            }
        }
        points.thin(10, &asked);
        assert_eq!(points.newest().first(), Some(&Timestamp(910)));
        assert!([40, 700, 910, 1000].iter().all(|at| points.has(Timestamp(*at))));
        assert!(!points.has(Timestamp(50)) && !points.has(Timestamp(915)));
        assert_eq!(points.latest(Timestamp(255)), Some(Timestamp(250)));
        assert_eq!(points.latest(Timestamp(955)), Some(Timestamp(950)));
        assert_eq!((points.latest(Timestamp::MAX), points.latest(Timestamp(5))), (Some(Timestamp(1000)), None));
        let counts = [10, 40, 700, 910, 1000].map(|at| points.count_from(Timestamp(at)));
        assert_eq!(counts[1..], [97, 31, 10, 1]);
        assert!(points.older.len() < 20, "{points:?}");

        // The cut of a backup that is told when all around it is forgotten.
        points.insert(Timestamp(333));
        assert!(points.has(Timestamp(333)) && points.count_from(Timestamp(700)) == 31);
    }
}
