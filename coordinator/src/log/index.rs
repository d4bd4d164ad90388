//! The segments of a cluster as they lie in the repository: their footers, without the chunks.

use futures::StreamExt;
use tidemark_proto::hash::Hash;
use tidemark_proto::stored::log::Segment;
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, ErrorKind, Incarnation, NodeName, Result, SlotSet, Timestamp};

use crate::repository::{ReadSegment, Repository};

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
}

/// A segment without its chunks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number.
    pub number: u64,
    /// Bytes of the object.
    pub size: u64,
    /// Epoch of the coordinator that wrote it.
    pub epoch: u64,
    /// When, milliseconds since 1970.
    pub at_millis: u64,
    /// Hash of its sealed footer.
    pub hash: Hash,
    /// Hash of the sealed footer of the one before.
    pub previous: Hash,
    /// Nodes with news.
    pub nodes: Vec<NodeSpan>,
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
            begins: n.begins != 0,
        };
        Self {
            number: segment.number,
            size,
            epoch: segment.epoch,
            at_millis: segment.at_millis,
            hash,
            previous: segment.previous,
            nodes: segment.nodes.iter().map(span).collect(),
        }
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
}

impl LogIndex {
    /// Reads the footers of all segments of `cluster` from number `first` on. One that is missing or damaged is an entry
    /// of its own; an error means that the store does not answer.
    pub async fn load(repository: &Repository, cluster: &ClusterName, first: u64) -> Result<Self> {
        let mut index = Self { entries: Vec::new(), next: first.max(1) };
        index.refresh(repository, cluster).await?;
        Ok(index)
    }

    /// Reads what came since.
    pub async fn refresh(&mut self, repository: &Repository, cluster: &ClusterName) -> Result<()> {
        let listed = repository.store().list(&paths::log_dir(cluster)).await?;
        let mut numbers: Vec<(u64, u64)> =
            listed.iter().filter_map(|(path, size)| Some((paths::number(path)?, *size))).collect();
        numbers.retain(|(number, _)| *number >= self.next);
        numbers.sort_unstable();
        let reads = numbers
            .into_iter()
            .map(|(number, size)| async move { (number, repository.read_segment(cluster, number, size).await) });
        let mut reads = futures::stream::iter(reads).buffered(PARALLEL_READS);
        while let Some((number, read)) = reads.next().await {
            self.take(number, read)?;
        }
        Ok(())
    }

    fn take(&mut self, number: u64, read: Result<ReadSegment>) -> Result<()> {
        // The first ones may have been trimmed away: only a hole between two is a loss.
        if self.entries.is_empty() {
            self.next = number;
        }
        for missing in self.next..number {
            self.entries.push(Found::Lost { number: missing, why: "is missing, but later ones are there".into() });
        }
        self.next = number + 1;
        let found = match read {
            Ok(read) => {
                let info = SegmentInfo::of(&read.segment, read.hash, read.size);
                match self.last_hash() {
                    Some(hash) if hash != info.previous => {
                        Found::Lost { number, why: "does not follow the segment before it".into() }
                    }
                    _ => Found::Segment(info),
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Unsupported) => {
                Found::Lost { number, why: e.report() }
            }
            Err(e) => return Err(e),
        };
        self.entries.push(found);
        Ok(())
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
        self.next = info.number + 1;
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

    /// The segments that can be read.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &SegmentInfo> {
        self.entries.iter().filter_map(|found| match found {
            Found::Segment(info) => Some(info),
            Found::Lost { .. } => None,
        })
    }
}
