//! Which segments lead from a backup to a time: a line of a few words for each of them, none for others.

use std::collections::HashMap;

use tidemark_proto::{NodeName, Timestamp};

use super::index::SegmentInfo;
use super::listing::Place;
use super::window::Interval;

/// A segment with changes after `from`.
#[derive(Debug)]
struct Lead {
    place: Place,
    /// Its changes lie after this.
    after: Timestamp,
    /// They go up to this.
    to: Timestamp,
}

/// Segments with changes after one time and up to another.
#[derive(Debug)]
pub(super) struct Leading {
    from: Timestamp,
    wanted: Timestamp,
    closed: HashMap<NodeName, Timestamp>,
    leads: Vec<Lead>,
}

impl Leading {
    /// After `from`, and up to `wanted`.
    pub(super) fn new(from: Timestamp, wanted: Timestamp) -> Self {
        Self { from, wanted, closed: HashMap::new(), leads: Vec::new() }
    }

    /// Takes the next segment.
    pub(super) fn take(&mut self, segment: &SegmentInfo) {
        // What a node gave lies after what it had closed before, and up to what it closed with this.
        let news = segment.nodes.iter().filter(|n| n.closed > self.from);
        let before = |node| self.closed.get(node).copied().unwrap_or_default();
        let span = news.map(|n| (before(&n.node), n.closed)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        if let Some((after, to)) = span.filter(|(after, _)| *after < self.wanted) {
            self.leads.push(Lead { place: (segment.range, segment.size), after, to });
        }
        for node in &segment.nodes {
            match self.closed.get_mut(&node.node) {
                Some(closed) => *closed = node.closed,
                None => drop(self.closed.insert(node.node.clone(), node.closed)),
            }
        }
    }

    /// Those of an interval that lead from a backup, not before `from`, to a time, not after what is wanted.
    pub(super) fn through(&self, interval: &Interval, from: Timestamp, at: Timestamp) -> Vec<Place> {
        let inside = |(range, _): &Place| range.last >= interval.first && range.first <= interval.last;
        let leads = |lead: &&Lead| lead.to > from && lead.after < at && inside(&lead.place);
        self.leads.iter().filter(leads).map(|lead| lead.place).collect()
    }
}

#[cfg(test)]
mod tests {
    use tidemark_proto::stored::log::SegmentRange;
    use tidemark_proto::{Incarnation, SlotSet};

    use super::super::index::NodeSpan;
    use super::*;

    fn segment(number: u64, nodes: &[(&str, u64)]) -> SegmentInfo {
        let node = |(name, closed): &(&str, u64)| NodeSpan {
            node: NodeName::new(*name).unwrap(),
            incarnation: Incarnation::from_u128(1),
            slots: SlotSet::all(),
            from: 0,
            to: 0,
            closed: Timestamp(*closed),
            begins: false,
            branches: false,
        };
        let nodes = nodes.iter().map(node).collect();
        SegmentInfo { range: SegmentRange::one(number), size: number, nodes, ..SegmentInfo::default() }
    }

    #[test]
    fn only_what_lies_between_is_kept() {
        let through = |from, wanted, interval: (u64, u64), at| {
            let mut leading = Leading::new(Timestamp(from), Timestamp(wanted));
            for n in 1..=9u64 {
                // `b` is behind, and comes with every third.
                let nodes = [("a", n * 10), ("b", (n * 10).saturating_sub(25))];
                leading.take(&segment(n, if n % 3 == 0 { &nodes } else { &nodes[..1] }));
            }
            let kept = leading.leads.len();
            let (first, last) = interval;
            let (start, end) = (Timestamp::ZERO, Timestamp::MAX);
            let interval = Interval { start, end, first, last, ended: None, points: None };
            let places = leading.through(&interval, Timestamp(from), Timestamp(at));
            (kept, places.iter().map(|(range, _)| range.last).collect::<Vec<_>>())
        };
        assert_eq!(through(45, 50, (1, 9), 50), (2, vec![5, 9]), "of `b` the ninth has what came after 35");
        assert_eq!(through(45, 90, (1, 9), 50), (5, vec![5, 9]));
        assert_eq!(through(45, 50, (5, 8), 50).1, [5]);
        assert_eq!(through(0, 90, (1, 9), 90).0, 9);
    }
}
