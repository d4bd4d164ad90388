//! Which objects of a log there are, and which of them to read: merged ones where they stand for others.

use std::sync::Arc;

use tidemark_proto::stored::log::SegmentRange;
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, ErrorKind, Result};

use crate::repository::{ReadSegment, Repository};

/// What a range came to when it was read.
pub(super) type Outcome = (SegmentRange, Result<ReadSegment>);
/// Where a segment lies: its range, and bytes of the object.
pub(super) type Place = (SegmentRange, u64);

/// The objects of a log with their sizes in bytes: of each a few words in memory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// By number.
    plain: Vec<(u64, u64)>,
    /// By the first number, then the last.
    merged: Vec<Place>,
}

impl Listing {
    pub(super) async fn read(repository: &Repository, cluster: &ClusterName) -> Result<Self> {
        let store = repository.store();
        // Merged ones last: what one of them stands for may be deleted once it is there.
        let plain = |path: &str, size| Some((paths::number(path)?, size));
        let mut plain = store.list_as(&paths::log_dir(cluster), plain).await?;
        let merged = |path: &str, size| {
            let (first, last) = paths::merged_log_of(path)?;
            Some((SegmentRange { first, last }, size))
        };
        let mut merged = store.list_as(&paths::merged_log_dir(cluster), merged).await?;
        plain.sort_unstable();
        merged.sort_unstable();
        Ok(Self { plain, merged })
    }

    /// The plain ones with these numbers.
    fn within(&self, first: u64, last: u64) -> &[(u64, u64)] {
        let from = self.plain.partition_point(|(number, _)| *number < first);
        let rest = &self.plain[from..];
        &rest[..rest.partition_point(|(number, _)| *number <= last)]
    }

    /// The object that holds number `at`, or what comes behind it where nothing stands for it.
    fn next_from(&self, at: u64) -> Option<Place> {
        // Of those that begin first the widest.
        let merged = &self.merged[self.merged.partition_point(|(range, _)| range.first < at)..];
        let first = merged.first().map(|(range, _)| range.first);
        let widest = merged.iter().take_while(|(range, _)| Some(range.first) == first).last();
        let plain = self.within(at, u64::MAX).first();
        match (widest, plain) {
            (Some(place), Some((number, _))) if place.0.first <= *number => Some(*place),
            (_, Some((number, size))) => Some((SegmentRange::one(*number), *size)),
            (Some(place), None) => Some(*place),
            (None, None) => None,
        }
    }

    /// The objects that hold everything from number `next` on, ascending; numbers that nothing stands for are left out.
    fn cover(&self, next: u64) -> impl Iterator<Item = Place> {
        let following = |place: &Place| self.next_from(place.0.last + 1);
        std::iter::successors(self.next_from(next), following)
    }

    /// The same, on its own.
    pub(super) fn cover_from(this: Arc<Self>, next: u64) -> impl Iterator<Item = Place> {
        let mut at = next;
        std::iter::from_fn(move || {
            let place = this.next_from(at)?;
            at = place.0.last + 1;
            Some(place)
        })
    }

    /// The segments that a merged one stands for, where all of them are still there.
    fn alone(&self, range: SegmentRange) -> Vec<Place> {
        let inside = if range.is_merged() { self.within(range.first, range.last) } else { &[] };
        match inside.len() as u64 == range.last - range.first + 1 {
            true => inside.iter().map(|(n, size)| (SegmentRange::one(*n), *size)).collect(),
            false => Vec::new(),
        }
    }

    /// Key and size of every object that stands for numbers below `below` alone, or that a merged one stands for.
    pub(super) fn needless(&self, cluster: &ClusterName, below: u64, superseded: bool) -> Vec<(String, u64)> {
        let cover: Vec<SegmentRange> = self.cover(below).map(|(range, _)| range).collect();
        let covered = |range: &SegmentRange| {
            let at = cover.partition_point(|c| c.last < range.first);
            cover.get(at).is_some_and(|c| c != range && c.first <= range.first && c.last >= range.last)
        };
        let all = self.plain.iter().map(|(n, size)| (SegmentRange::one(*n), *size));
        let all = all.chain(self.merged.iter().copied());
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
    repository: Repository,
    cluster: ClusterName,
    listing: Arc<Listing>,
    (range, size): Place,
) -> Vec<Outcome> {
    let read = repository.read_segment(&cluster, range, size).await;
    let alone = match &read {
        Err(e) if is_loss(e) => listing.alone(range),
        _ => Vec::new(),
    };
    if alone.is_empty() {
        return vec![(range, read)];
    }
    let mut out = Vec::new();
    for (range, size) in alone {
        out.push((range, repository.read_segment(&cluster, range, size).await));
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
        listing.cover(next).map(|(range, _)| (range.first, range.last)).collect()
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
