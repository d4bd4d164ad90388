//! Parts in groups that can be written one after another.

use std::collections::VecDeque;
use std::pin::Pin;

use futures::{Stream, StreamExt};
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::{Result, SlotSet};

use crate::repository::{Manifest, PageRead};

/// The parts of a manifest as knots: every record of a knot comes before every record of the next one.
pub(super) struct Knots {
    pages: Pin<Box<dyn Stream<Item = PageRead> + Send>>,
    held: VecDeque<PartEntry>,
    wanted: SlotSet,
}

impl Knots {
    /// Of the parts that hold any of these slots.
    pub(super) fn new(manifest: &Manifest, wanted: SlotSet) -> Self {
        Self { pages: Box::pin(manifest.pages()), held: VecDeque::new(), wanted }
    }

    /// The parts of the next knot, `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<PartEntry>>> {
        let mut knot = Vec::new();
        while self.fill().await? {
            let ends = self.held.front().is_none_or(|part| !ties(&knot, part));
            if ends && !knot.is_empty() {
                break;
            }
            knot.extend(self.held.pop_front());
        }
        Ok(Some(knot).filter(|k| !k.is_empty()))
    }

    async fn fill(&mut self) -> Result<bool> {
        while self.held.is_empty() {
            let Some(page) = self.pages.next().await else { return Ok(false) };
            let parts = page.numbered()?.map(|(_, part)| part);
            self.held.extend(parts.filter(|part| !part.slots.intersect(&self.wanted).is_empty()));
        }
        Ok(true)
    }
}

/// Whether records of `part`, which comes after those of `knot`, lie between theirs.
fn ties(knot: &[PartEntry], part: &PartEntry) -> bool {
    let first = part.slots.ranges().first().map_or(0, |r| r.0);
    // Key ranges of the same slots are in order; with slots of others between them, they are not.
    let follows = |p: &PartEntry| p.slots == part.slots && p.node == part.node && p.slots.ranges().len() == 1;
    let before = |p: &PartEntry| p.slots.ranges().last().is_none_or(|r| r.1 < first) || follows(p);
    !knot.iter().all(before)
}

#[cfg(test)]
mod tests {
    use tidemark_proto::hash::SetDigest;

    use super::*;

    fn part(node: u16, slots: &[(u16, u16)], lower: &str) -> PartEntry {
        PartEntry {
            region: 0,
            node,
            slots: SlotSet::from_ranges(slots.iter().copied()),
            lower: lower.into(),
            upper: vec![],
            digest: SetDigest::default(),
            live_bytes: 0,
            runs: vec![],
        }
    }

    #[test]
    fn interleaved_slots_tie_parts_and_neighbours_do_not() {
        let even = part(0, &[(0, 0), (2, 2)], "");
        let odd = part(1, &[(1, 1)], "");
        assert!(ties(std::slice::from_ref(&even), &odd));
        assert!(ties(std::slice::from_ref(&even), &part(0, &[(0, 0), (2, 2)], "k")));
        assert!(!ties(&[even, odd], &part(0, &[(3, 9)], "")));
        assert!(!ties(&[part(0, &[(3, 9)], "")], &part(0, &[(3, 9)], "k")));
        assert!(!ties(&[part(0, &[(3, 9)], "")], &part(1, &[(10, 12)], "")));
    }
}
