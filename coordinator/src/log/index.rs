//! The segments of a cluster as they lie in the repository: their footers, without the chunks.

use std::collections::BTreeMap;

use futures::StreamExt;
use tidemark_proto::hash::Hash;
use tidemark_proto::stored::log::{BEGINS_BRANCH, Segment, SegmentRange};
use tidemark_proto::{ClusterName, Incarnation, NodeName, Result, SlotSet, Timestamp};

use super::listing::{Listing, is_loss, read};
use crate::repository::{Ledger, ReadSegment, Repository};

/// Footers read at once.
const PARALLEL_READS: usize = 16;

/// What one node gave to a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpan {
    /// Its name.
    pub node: NodeName,
    /// Id of its data.
    pub incarnation: Incarnation,
    /// Slots it owns.
    pub slots: SlotSet,
    /// Position after which it goes on.
    pub from: u64,
    /// Position up to which it goes.
    pub to: u64,
    /// Time up to which it goes.
    pub closed: Timestamp,
    /// Nothing connects it with what came before.
    pub begins: bool,
    /// It goes on where another node, another history or other slots were.
    pub branches: bool,
}

/// A segment without its chunks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number, or those that it stands for.
    pub range: SegmentRange,
    /// Bytes of the object.
    pub size: u64,
    /// Epoch of the coordinator that wrote it.
    pub epoch: u64,
    /// When, milliseconds since 1970.
    pub at_millis: u64,
    /// What the segment behind it names: the hash of its sealed footer, of a merged one that of the last it stands for.
    pub hash: Hash,
    /// Hash of the sealed footer of the one before.
    pub previous: Hash,
    /// Nodes with news.
    pub nodes: Vec<NodeSpan>,
    /// Restore points that it makes whole, of a log that has not any time as one.
    pub points: Option<Vec<Timestamp>>,
}

impl SegmentInfo {
    /// What `segment`, whose object has `size` bytes and whose footer has `hash`, is without its chunks.
    pub fn of(segment: &Segment, hash: Hash, size: u64) -> Self {
        let span = |n: &tidemark_proto::stored::log::SegmentNode| NodeSpan {
            node: n.node.clone(),
            incarnation: n.incarnation,
            slots: n.slots.clone(),
            from: n.from,
            to: n.to,
            closed: n.closed,
            begins: n.begins == 1,
            branches: n.begins == BEGINS_BRANCH,
        };
        Self {
            points: None,
            range: segment.range(),
            size,
            epoch: segment.epoch,
            at_millis: segment.at_millis,
            hash: if segment.range().is_merged() { segment.stands_for } else { hash },
            previous: segment.previous,
            nodes: segment.nodes.iter().map(span).collect(),
        }
    }
}

impl SegmentInfo {
    /// The same with restore points.
    pub fn with_points(self, points: Option<Vec<Timestamp>>) -> Self {
        Self { points, ..self }
    }
}

/// What stands at a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A segment.
    Segment(SegmentInfo),
    /// Nothing that can be read.
    Lost {
        /// The number.
        number: u64,
        /// What is wrong.
        why: String,
    },
}

/// All segments of a cluster, ascending by number.
#[derive(Debug, Clone, Default)]
pub struct LogIndex {
    entries: Vec<Found>,
    next: u64,
    void: BTreeMap<u64, String>,
}

impl LogIndex {
    /// Reads the footers of all segments that `ledger` has not given up. One that is missing or damaged is an entry of its
    /// own; an error means that the store does not answer.
    pub async fn load(repository: &Repository, ledger: &Ledger) -> Result<Self> {
        let mut index = Self { entries: Vec::new(), next: ledger.trimmed(), void: ledger.void_segments() };
        index.refresh(repository, ledger.cluster()).await?;
        Ok(index)
    }

    /// Reads what came since.
    pub async fn refresh(&mut self, repository: &Repository, cluster: &ClusterName) -> Result<()> {
        let listing = Listing::read(repository, cluster).await?;
        let wanted = listing.cover(self.next);
        let reads = wanted.into_iter().map(|(range, size)| {
            let alone = listing.alone(range);
            read(repository, cluster, (range, size), alone)
        });
        let mut reads = futures::stream::iter(reads).buffered(PARALLEL_READS);
        while let Some(outcomes) = reads.next().await {
            for (range, read) in outcomes {
                self.take(range, read)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, range: SegmentRange, read: Result<ReadSegment>) -> Result<()> {
        // The first ones may have been trimmed away: only a hole between two is a loss.
        if self.entries.is_empty() {
            self.next = range.first;
        }
        for missing in self.next..range.first {
            self.entries.push(Found::Lost { number: missing, why: "is missing, but later ones are there".into() });
        }
        self.next = range.last + 1;
        let number = range.last;
        let found = match read {
            Ok(_) if self.void.range(range.first..=range.last).next().is_some() => {
                let why = self.void.range(range.first..=range.last).next().map(|(_, why)| why.clone());
                Found::Lost { number, why: why.unwrap_or_default() }
            }
            Ok(read) => {
                let info = SegmentInfo::of(&read.segment, read.hash, read.size).with_points(read.points);
                match self.last_hash() {
                    Some(hash) if hash != info.previous => {
                        Found::Lost { number, why: "does not follow the segment before it".into() }
                    }
                    _ => Found::Segment(info),
                }
            }
            Err(e) if is_loss(&e) => Found::Lost { number, why: e.report() },
            Err(e) => return Err(e),
        };
        self.entries.push(found);
        Ok(())
    }

    /// A merged segment stands for others from now on.
    pub fn replace(&mut self, merged: SegmentInfo) {
        let range = merged.range;
        let inside = |found: &Found| match found {
            Found::Segment(s) => s.range.first >= range.first && s.range.last <= range.last,
            Found::Lost { .. } => false,
        };
        let Some(at) = self.entries.iter().position(inside) else { return };
        self.entries.retain(|found| !inside(found));
        self.entries.insert(at, Found::Segment(merged));
    }

    /// Hash of the last footer; `None` when there is none to go by.
    pub fn last_hash(&self) -> Option<Hash> {
        match self.entries.last()? {
            Found::Segment(info) => Some(info.hash),
            Found::Lost { .. } => None,
        }
    }

    /// Takes note of a segment that was written just now.
    pub fn push(&mut self, info: SegmentInfo) {
        self.next = info.range.last + 1;
        self.entries.push(Found::Segment(info));
    }

    /// The number that comes next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Highest epoch of any segment.
    pub fn epoch(&self) -> u64 {
        self.segments().map(|s| s.epoch).max().unwrap_or(0)
    }

    /// What stands at each number.
    pub fn entries(&self) -> &[Found] {
        &self.entries
    }

    /// Number of the objects that can be read, and their bytes.
    pub fn extent(&self) -> (u64, u64) {
        self.segments().fold((0, 0), |(count, bytes), segment| (count + 1, bytes + segment.size))
    }

    /// The segments that can be read.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &SegmentInfo> {
        self.entries.iter().filter_map(|found| match found {
            Found::Segment(info) => Some(info),
            Found::Lost { .. } => None,
        })
    }
}
