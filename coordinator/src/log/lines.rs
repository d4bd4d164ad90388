//! Which segments a session may merge yet: a line of a few words for each of the newest ones.

use std::collections::VecDeque;

use tidemark_proto::stored::log::SegmentRange;

use super::index::{Found, SegmentInfo};
use super::listing::Place;

/// Segments that are merged at a time.
pub(super) const FAN: usize = 16;
/// Largest merged segment, in bytes, about.
pub(super) const MOST_BYTES: u64 = 32 << 20;
/// The newest segments are left alone: their window is still in motion.
const LEAVE: usize = 4;
/// Most lines. What is older and was not merged by then is large, as a rule; the rest waits for the next session.
const MOST_LINES: usize = 64 << 10;

/// What merging asks of a segment.
#[derive(Debug, Clone, Copy)]
struct Line {
    range: SegmentRange,
    size: u64,
    epoch: u64,
    /// Whether it is there, and of one chain with the one before.
    goes_on: bool,
}

/// The newest segments, and what all of them come to.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: VecDeque<Line>,
    objects: u64,
    bytes: u64,
}

impl Lines {
    /// Takes what stands at the next number.
    pub(super) fn take(&mut self, found: &Found) {
        match found {
            Found::Segment(info) => self.push(info),
            Found::Lost { number, .. } => {
                self.add(Line { range: SegmentRange::one(*number), size: 0, epoch: 0, goes_on: false });
            }
        }
    }

    /// Takes the next segment.
    pub(super) fn push(&mut self, info: &SegmentInfo) {
        self.objects += 1;
        self.bytes += info.size;
        self.add(Line { range: info.range, size: info.size, epoch: info.epoch, goes_on: info.goes_on() });
    }

    fn add(&mut self, line: Line) {
        if self.lines.len() == MOST_LINES {
            let _ = self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Number of the objects that can be read, and their bytes.
    pub(super) fn extent(&self) -> (u64, u64) {
        (self.objects, self.bytes)
    }

    /// A merged segment stands for others from now on.
    pub(super) fn replace(&mut self, merged: &SegmentInfo) {
        let range = merged.range;
        let first = self.lines.partition_point(|line| line.range.first < range.first);
        let end = self.lines.partition_point(|line| line.range.last <= range.last);
        if first >= end {
            return;
        }
        for line in self.lines.drain(first..end) {
            (self.objects, self.bytes) = (self.objects - 1, self.bytes - line.size);
        }
        let line = Line { range, size: merged.size, epoch: merged.epoch, goes_on: merged.goes_on() };
        self.lines.insert(first, line);
        (self.objects, self.bytes) = (self.objects + 1, self.bytes + merged.size);
    }

    /// A stretch to merge, if there is one: of one tier, chained, and not too large.
    pub(super) fn candidate(&self) -> Option<Vec<Place>> {
        let (mut run, mut bytes): (VecDeque<&Line>, u64) = (VecDeque::new(), 0);
        for line in self.lines.iter().take(self.lines.len().saturating_sub(LEAVE)) {
            let fits = |last: &&Line| {
                tier(last.range) == tier(line.range)
                    && last.epoch <= line.epoch
                    && last.range.last + 1 == line.range.first
            };
            if !line.goes_on || !run.back().is_none_or(fits) {
                (run, bytes) = (VecDeque::new(), 0);
            }
            if !line.goes_on || line.size > MOST_BYTES / 2 {
                continue;
            }
            run.push_back(line);
            bytes += line.size;
            while bytes > MOST_BYTES {
                bytes -= run.pop_front().map_or(bytes, |first| first.size);
            }
            if run.len() == FAN {
                return Some(run.into_iter().map(|line| (line.range, line.size)).collect());
            }
        }
        None
    }
}

/// How often a segment was merged: it stands for about `FAN` to the power of this many.
fn tier(range: SegmentRange) -> u32 {
    (range.last - range.first + 1).ilog(FAN as u64)
}

#[cfg(test)]
mod tests {
    use tidemark_proto::{Incarnation, NodeName, SlotSet, Timestamp};

    use super::super::index::NodeSpan;
    use super::*;

    fn info(first: u64, last: u64, size: u64, begins: bool) -> SegmentInfo {
        let node = NodeSpan {
            node: NodeName::new("n").unwrap(),
            incarnation: Incarnation::from_u128(1),
            slots: SlotSet::all(),
            from: first,
            to: last,
            closed: Timestamp(last),
            begins,
            branches: false,
        };
        SegmentInfo { range: SegmentRange { first, last }, size, epoch: 1, nodes: vec![node], ..Default::default() }
    }

    fn lines(infos: &[SegmentInfo]) -> Lines {
        let mut lines = Lines::default();
        infos.iter().for_each(|info| lines.push(info));
        lines
    }

    fn ranges(infos: &[SegmentInfo]) -> Option<(u64, u64)> {
        let stretch = lines(infos).candidate()?;
        assert_eq!(stretch.len(), FAN);
        Some((stretch[0].0.first, stretch[FAN - 1].0.last))
    }

    #[test]
    fn stretches_are_of_one_tier_and_the_newest_are_left_alone() {
        let plain = |from: u64, to: u64| (from..=to).map(|n| info(n, n, 1000, false)).collect::<Vec<_>>();
        assert_eq!(ranges(&plain(1, 19)), None);
        assert_eq!(ranges(&plain(1, 20)), Some((1, 16)));
        let merged = [vec![info(1, 16, 9000, false)], plain(17, 36)].concat();
        assert_eq!(ranges(&merged), Some((17, 32)));
        let tiers: Vec<_> = (0..16).map(|i| info(i * 16 + 1, i * 16 + 16, 9000, false)).collect();
        assert_eq!(ranges(&[tiers, plain(257, 260)].concat()), Some((1, 256)));
    }

    #[test]
    fn breaks_and_large_ones_are_not_merged() {
        let mut infos: Vec<_> = (1..=40u64).map(|n| info(n, n, 1000, n == 10)).collect();
        assert_eq!(ranges(&infos), Some((11, 26)), "behind a break");
        infos[14].size = MOST_BYTES;
        assert_eq!(ranges(&infos), Some((16, 31)), "behind a large one");
        infos.iter_mut().for_each(|i| i.size = MOST_BYTES / 8);
        assert_eq!(ranges(&infos), None, "sixteen are too much");
    }

    #[test]
    fn a_merged_one_takes_the_place_of_others_and_one_that_is_lost_divides() {
        let infos: Vec<_> = (1..=20u64).map(|n| info(n, n, 1000, false)).collect();
        let mut all = lines(&infos);
        all.replace(&info(1, 16, 9000, false));
        assert_eq!(all.extent(), (5, 4000 + 9000));
        all.replace(&info(30, 40, 9000, false));
        assert_eq!((all.extent(), all.lines.len()), ((5, 13_000), 5), "of none that is known");
        let mut lost = lines(&infos[..8]);
        lost.take(&Found::Lost { number: 9, why: String::new() });
        infos[9..].iter().for_each(|info| lost.push(info));
        (21..=29).for_each(|n| lost.push(&info(n, n, 1000, false)));
        assert_eq!((lost.candidate().map(|c| c[0].0.first), lost.extent().0), (Some(10), 28));
    }

    #[test]
    fn the_oldest_lines_go() {
        let mut all = Lines::default();
        (1..=MOST_LINES as u64 + 100).for_each(|n| all.push(&info(n, n, 10, false)));
        assert_eq!((all.lines.len(), all.extent().0), (MOST_LINES, MOST_LINES as u64 + 100));
        let stretch = all.candidate().unwrap();
        assert_eq!(stretch[0].0.first, 101);
        let merged = SegmentRange { first: 101, last: 116 };
        all.replace(&SegmentInfo { range: merged, size: 5, ..info(1, 1, 5, false) });
        assert_eq!(all.extent(), (MOST_LINES as u64 + 85, (MOST_LINES as u64 + 84) * 10 + 5));
    }
}
