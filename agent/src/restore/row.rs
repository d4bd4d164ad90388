//! Parts that a store loads in a row, as one: see [`crate::engine::PartLoader::then`].

use std::sync::Arc;

use tidemark_proto::hash::SetDigest;
use tidemark_proto::wire::control::RestorePart;
use tidemark_proto::{Result, SlotSet};
use tokio::sync::OwnedRwLockReadGuard;

use super::LoadJob;
use super::feed::Feed;

/// Bytes of records of one row, about; a part may pass it. What is loaded again after a crash.
const ROW_BYTES: u64 = 64 << 20;
/// Rows for each that is loaded at a time, at least: so that all end at about the same time.
const ROWS_EACH: usize = 4;

/// A row being loaded.
pub(super) struct Row {
    pub(super) feed: Feed,
    /// An abort waits until the feed is gone: it is dropped before this.
    _loading: OwnedRwLockReadGuard<()>,
}

impl Row {
    /// Begins with part `number`.
    pub(super) fn begin(job: &Arc<LoadJob>, number: u32, loading: OwnedRwLockReadGuard<()>) -> Result<Self> {
        Ok(Self { feed: Feed::begin(job, number)?, _loading: loading })
    }

    /// Ends the part with the digest of its source and goes on with part `next`, or makes all of the row durable. Answers
    /// the digest of what was put.
    pub(super) fn end(mut self, source: SetDigest, next: Option<u32>) -> Result<(SetDigest, Option<Self>)> {
        match next {
            Some(next) => Ok((self.feed.then(source, next)?, Some(self))),
            None => Ok((self.feed.finish(source)?, None)),
        }
    }
}

fn bounds(slots: &SlotSet) -> Option<(u16, u16)> {
    Some((slots.ranges().first()?.0, slots.ranges().last()?.1))
}

/// Puts parts into rows, by ascending slots. Parts whose slots are not one behind the other are not in one row: only the
/// coordinator knows which of them has the lower keys.
pub(super) fn rows(mut parts: Vec<RestorePart>, concurrency: usize) -> Vec<Vec<RestorePart>> {
    let most = (parts.len() / (ROWS_EACH * concurrency.max(1))).max(1);
    parts.sort_by_key(|part| (bounds(&part.slots), part.number));
    let mut rows: Vec<Vec<RestorePart>> = Vec::new();
    let mut bytes = 0;
    for part in parts {
        let behind = |last: &RestorePart| match (bounds(&last.slots), bounds(&part.slots)) {
            (Some((_, last)), Some((first, _))) => last < first,
            _ => false,
        };
        match rows.last_mut() {
            Some(row) if row.len() < most && bytes + part.bytes <= ROW_BYTES && row.last().is_some_and(behind) => {
                bytes += part.bytes;
                row.push(part);
            }
            _ => {
                bytes = part.bytes;
                rows.push(vec![part]);
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u32, (first, last): (u16, u16), bytes: u64) -> RestorePart {
        RestorePart { number, slots: SlotSet::range(first, last), runs: Vec::new(), bytes }
    }

    fn numbers(parts: Vec<RestorePart>, concurrency: usize) -> Vec<Vec<u32>> {
        rows(parts, concurrency).iter().map(|row| row.iter().map(|p| p.number).collect()).collect()
    }

    #[test]
    fn rows_ascend_and_are_bounded() {
        let small = |n: u16| part(u32::from(n), (n * 64, n * 64 + 63), 1000);
        let shuffled: Vec<_> = (0..16u16).map(|n| small(n * 7 % 16)).collect();
        assert_eq!(
            numbers(shuffled.clone(), 1),
            vec![vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9, 10, 11], vec![12, 13, 14, 15]]
        );
        assert!(numbers(shuffled.clone(), 2).iter().all(|row| row.len() == 2));
        assert!(numbers(shuffled, 16).iter().all(|row| row.len() == 1), "few parts, many at once");
        let large = (0..16u16).map(|n| part(u32::from(n), (n, n), ROW_BYTES / 2)).collect();
        assert!(numbers(large, 1).iter().all(|row| row.len() == 2), "no more bytes than a row may have");
    }

    #[test]
    fn parts_of_the_same_slots_are_apart() {
        let mut parts: Vec<_> = (0..14u16).map(|n| part(u32::from(n), (n * 2, n * 2 + 1), 10)).collect();
        // A region that was divided by keys, and one that ends inside another.
        parts.extend([part(20, (28, 40), 10), part(21, (28, 40), 10), part(22, (35, 50), 10)]);
        let rows = numbers(parts, 1);
        assert_eq!(rows[rows.len() - 3..], [vec![12, 13, 20], vec![21], vec![22]]);
        assert_eq!(rows.iter().flatten().count(), 17);
    }
}
