//! Which objects of a log there are, and which of them to read: merged ones where they stand for others.

use std::collections::BTreeMap;

use tidemark_proto::stored::log::SegmentRange;
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, ErrorKind, Result};

use crate::repository::{ReadSegment, Repository};

/// What a range came to when it was read.
pub(super) type Outcome = (SegmentRange, Result<ReadSegment>);

/// The objects of a log with their sizes in bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Listing {
    plain: BTreeMap<u64, u64>,
    /// By the first number, then the last.
    merged: BTreeMap<SegmentRange, u64>,
}

impl Listing {
    pub(super) async fn read(repository: &Repository, cluster: &ClusterName) -> Result<Self> {
        let store = repository.store();
        // Merged ones last: what one of them stands for may be deleted once it is there.
        let plain = store.list(&paths::log_dir(cluster)).await?;
        let merged = store.list(&paths::merged_log_dir(cluster)).await?;
        let range = |path: &str| paths::merged_log_of(path).map(|(first, last)| SegmentRange { first, last });
        Ok(Self {
            plain: plain.iter().filter_map(|(path, size)| Some((paths::number(path)?, *size))).collect(),
            merged: merged.iter().filter_map(|(path, size)| Some((range(path)?, *size))).collect(),
        })
    }

    /// The objects that hold everything from number `next` on, ascending; numbers that nothing stands for are left out.
    pub(super) fn cover(&self, next: u64) -> Vec<(SegmentRange, u64)> {
        let mut out = Vec::new();
        let mut at = next;
        loop {
            let from = SegmentRange { first: at, last: 0 };
            // Of those that begin first the widest.
            let first = self.merged.range(from..).next().map(|(range, _)| range.first);
            let widest = first.and_then(|first| {
                self.merged
                    .range(SegmentRange { first, last: 0 }..=SegmentRange { first, last: u64::MAX })
                    .next_back()
            });
            let plain = self.plain.range(at..).next();
            let next = match (widest, plain) {
                (Some((range, size)), Some((number, _))) if range.first <= *number => (*range, *size),
                (_, Some((number, size))) => (SegmentRange::one(*number), *size),
                (Some((range, size)), None) => (*range, *size),
                (None, None) => return out,
            };
            at = next.0.last + 1;
            out.push(next);
        }
    }

    /// The segments that a merged one stands for, where all of them are still there.
    pub(super) fn alone(&self, range: SegmentRange) -> Vec<(SegmentRange, u64)> {
        let inside: Vec<_> =
            self.plain.range(range.first..=range.last).map(|(n, size)| (SegmentRange::one(*n), *size)).collect();
        let whole = range.is_merged() && inside.len() as u64 == range.last - range.first + 1;
        if whole { inside } else { Vec::new() }
    }

    /// Key and size of every object that stands for numbers below `below` alone, or that a merged one stands for.
    pub(super) fn needless(&self, cluster: &ClusterName, below: u64, superseded: bool) -> Vec<(String, u64)> {
        let cover: Vec<SegmentRange> = self.cover(below).into_iter().map(|(range, _)| range).collect();
        let covered = |range: &SegmentRange| {
            let at = cover.partition_point(|c| c.last < range.first);
            cover.get(at).is_some_and(|c| c != range && c.first <= range.first && c.last >= range.last)
        };
        let all = self.plain.iter().map(|(n, size)| (SegmentRange::one(*n), *size));
        let all = all.chain(self.merged.iter().map(|(range, size)| (*range, *size)));
        let goes = |range: &SegmentRange| range.last < below || (superseded && covered(range));
        all.filter(|(range, _)| goes(range)).map(|(range, size)| (range.path(cluster), size)).collect()
    }
}

/// Whether what was asked for is not there or cannot be read, as against a store that does not answer.
pub(super) fn is_loss(error: &tidemark_proto::Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Unsupported)
}

/// Reads the footer of an object; where a merged one is lost, those of the segments that it stands for.
pub(super) async fn read(
    repository: &Repository,
    cluster: &ClusterName,
    (range, size): (SegmentRange, u64),
    alone: Vec<(SegmentRange, u64)>,
) -> Vec<Outcome> {
    let read = repository.read_segment(cluster, range, size).await;
    match &read {
        Err(e) if is_loss(e) && !alone.is_empty() => {}
        _ => return vec![(range, read)],
    }
    let mut out = Vec::new();
    for (range, size) in alone {
        out.push((range, repository.read_segment(cluster, range, size).await));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(plain: &[u64], merged: &[(u64, u64)]) -> Listing {
        Listing {
            plain: plain.iter().map(|n| (*n, 1)).collect(),
            merged: merged.iter().map(|(first, last)| (SegmentRange { first: *first, last: *last }, 2)).collect(),
        }
    }

    fn cover(listing: &Listing, next: u64) -> Vec<(u64, u64)> {
        listing.cover(next).into_iter().map(|(range, _)| (range.first, range.last)).collect()
    }

    #[test]
    fn merged_ones_are_read_where_they_stand_for_others() {
        let all = listing(&[1, 2, 3, 4, 5, 6, 7], &[(2, 3), (2, 5)]);
        assert_eq!(cover(&all, 1), [(1, 1), (2, 5), (6, 6), (7, 7)]);
        assert_eq!(cover(&all, 6), [(6, 6), (7, 7)]);
        assert_eq!(cover(&listing(&[7], &[(2, 5)]), 1), [(2, 5), (7, 7)], "6 is missing");
        assert_eq!(cover(&listing(&[], &[]), 1), []);
        assert_eq!(cover(&listing(&[3, 4], &[(1, 2), (2, 4)]), 1), [(1, 2), (3, 3), (4, 4)], "one that overlaps");
    }

    #[test]
    fn what_goes_is_below_or_stood_for() {
        let cluster = ClusterName::new("c").unwrap();
        let all = listing(&[1, 2, 3, 4, 5, 6], &[(2, 3), (2, 5)]);
        let goes = |below, superseded| all.needless(&cluster, below, superseded).len();
        assert_eq!((goes(1, false), goes(2, false)), (0, 1));
        assert_eq!(goes(1, true), 5, "2 to 5, and the smaller merged one");
        assert_eq!(goes(6, true), 7, "all but 6");
        assert_eq!(all.alone(SegmentRange { first: 2, last: 5 }).len(), 4);
        assert!(all.alone(SegmentRange { first: 6, last: 7 }).is_empty());
    }
}
