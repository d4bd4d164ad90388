//! The segments of a cluster as they lie in the repository, oldest first: their footers, without the chunks.
//!
//! There may be very many: whoever needs all of them walks over them and keeps what it needs itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use tidemark_proto::hash::Hash;
use tidemark_proto::stored::log::{BEGINS_BRANCH, Segment, SegmentRange};
use tidemark_proto::{ClusterName, Incarnation, NodeName, Result, SlotSet, Timestamp};

use super::listing::{Listing, Outcome, is_loss, read};
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
            hash: hash_of(segment, hash),
            previous: segment.previous,
            nodes: segment.nodes.iter().map(span).collect(),
        }
    }

    /// The same with restore points.
    pub fn with_points(self, points: Option<Vec<Timestamp>>) -> Self {
        Self { points, ..self }
    }

    /// Whether it is of one chain with the segment before it.
    pub(super) fn goes_on(&self) -> bool {
        !self.nodes.iter().any(|n| n.begins || n.branches)
    }
}

/// What the segment behind this one names.
pub(super) fn hash_of(segment: &Segment, footer: Hash) -> Hash {
    if segment.range().is_merged() { segment.stands_for } else { footer }
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

/// Where a log ends, as far as it was read.
#[derive(Debug, Clone, Default)]
pub(super) struct Tip {
    /// The number that comes next.
    next: u64,
    begun: bool,
    hash: Option<Hash>,
    epoch: u64,
    void: BTreeMap<u64, String>,
}

impl Tip {
    /// The begin of a log, behind what was trimmed.
    pub(super) fn new(ledger: &Ledger) -> Self {
        Self { next: ledger.trimmed(), void: ledger.void_segments(), ..Self::default() }
    }

    /// The number that comes next.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether there is nothing yet.
    pub(super) fn is_empty(&self) -> bool {
        !self.begun
    }

    /// Hash of the last footer; `None` when there is none to go by.
    pub(super) fn hash(&self) -> Option<Hash> {
        self.hash
    }

    /// Highest epoch of any segment.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes note of a segment that was written just now.
    pub(super) fn written(&mut self, info: &SegmentInfo) {
        (self.next, self.begun, self.hash) = (info.range.last + 1, true, Some(info.hash));
        self.epoch = self.epoch.max(info.epoch);
    }

    /// Takes what was read at the next numbers; answers what stands there.
    fn take(&mut self, range: SegmentRange, read: Result<ReadSegment>, out: &mut VecDeque<Found>) -> Result<()> {
        // The first ones may have been trimmed away: only a hole between two is a loss.
        if !self.begun {
            self.next = range.first;
        }
        for missing in self.next..range.first {
            self.hash = None;
            out.push_back(Found::Lost { number: missing, why: "is missing, but later ones are there".into() });
        }
        let number = range.last;
        let void = self.void.range(range.first..=range.last).next().map(|(_, why)| why.clone());
        let found = match (read, void) {
            (Ok(_), Some(why)) => Found::Lost { number, why },
            (Ok(read), None) => {
                let info = SegmentInfo::of(&read.segment, read.hash, read.size).with_points(read.points);
                match self.hash {
                    Some(hash) if hash != info.previous => {
                        Found::Lost { number, why: "does not follow the segment before it".into() }
                    }
                    _ => Found::Segment(info),
                }
            }
            (Err(e), _) if is_loss(&e) => Found::Lost { number, why: e.report() },
            (Err(e), _) => return Err(e),
        };
        match &found {
            Found::Segment(info) => self.written(info),
            Found::Lost { .. } => (self.next, self.begun, self.hash) = (number + 1, true, None),
        }
        out.push_back(found);
        Ok(())
    }
}

/// Reads the footers of a log one after the other, and holds those that are under way alone.
pub struct Walk {
    outcomes: BoxStream<'static, Vec<Outcome>>,
    ready: VecDeque<Found>,
    tip: Tip,
}

impl Walk {
    /// Over all segments that `ledger` has not given up.
    pub async fn over(repository: &Repository, ledger: &Ledger) -> Result<Self> {
        Self::from(repository, ledger.cluster(), Tip::new(ledger)).await
    }

    /// Over what came since.
    pub(super) async fn from(repository: &Repository, cluster: &ClusterName, tip: Tip) -> Result<Self> {
        let listing = Arc::new(Listing::read(repository, cluster).await?);
        let places = Listing::cover_from(listing.clone(), tip.next);
        let (repository, cluster) = (repository.clone(), cluster.clone());
        let reads = places.map(move |place| read(repository.clone(), cluster.clone(), listing.clone(), place));
        let outcomes = futures::stream::iter(reads).buffered(PARALLEL_READS).boxed();
        Ok(Self { outcomes, ready: VecDeque::new(), tip })
    }

    /// What stands at the next number; `None` at the end. One that is missing or damaged is told as lost; an error means that the
    /// store does not answer.
    pub async fn next(&mut self) -> Result<Option<Found>> {
        loop {
            if let Some(found) = self.ready.pop_front() {
                return Ok(Some(found));
            }
            let Some(outcomes) = self.outcomes.next().await else { return Ok(None) };
            for (range, read) in outcomes {
                self.tip.take(range, read, &mut self.ready)?;
            }
        }
    }

    /// Where the log ends, at the end of the walk.
    pub(super) fn tip(self) -> Tip {
        self.tip
    }
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").field("tip", &self.tip).finish_non_exhaustive()
    }
}
