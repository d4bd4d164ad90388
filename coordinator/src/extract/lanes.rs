//! Writing a knot: the parts of each node follow each other in a lane, the lanes are merged.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use tidemark_common::overlay::Overlay;
use tidemark_common::record::{record_hash, record_hash_of, slot_of_record};
use tidemark_common::redis::fold::Folded;
use tidemark_common::run::{Entry, LongValue, Merge};
use tidemark_common::select::Selection;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::{Error, Result};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::laid::PartOver;
use super::{Extracted, Laid, OPEN_AHEAD, Output};
use crate::part::{self, Blocks, LongValues};
use crate::repository::Manifest;

/// Records between two looks at the cancellation token.
const CANCEL_EVERY: u64 = 1024;

/// What is extracted.
pub(super) struct Source {
    pub(super) manifest: Manifest,
    pub(super) laid: Option<Arc<Laid>>,
    pub(super) cancel: CancellationToken,
}

/// Parts whose records lie between each other.
pub(super) struct Knot {
    source: Arc<Source>,
    lanes: Vec<Lane>,
}

/// The parts of one node, in order.
struct Lane {
    at: Option<Open>,
    waiting: VecDeque<PartEntry>,
}

/// The part that a lane is at, with the log that lies over it.
struct Open {
    part: PartEntry,
    merge: Merge<Blocks>,
    overlay: Overlay,
    /// Says which records of the merge do not count, under a log of commands.
    folded: Option<Arc<Folded>>,
    /// The value of the log's record at hand, where it is long.
    over_long: Option<LongValue>,
    /// Whether the merge stands at a record that was not written yet.
    below: bool,
    /// Whether the log does.
    over: bool,
    /// Where the current record is.
    at: Side,
    digest: SetDigest,
}

/// The side of a part that a record is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Neither: it is before its first record.
    Begin,
    Below,
    Over,
}

impl Knot {
    /// Opens the first part of each lane.
    pub(super) async fn open(source: Arc<Source>, parts: Vec<PartEntry>) -> Result<Self> {
        let mut lanes: Vec<VecDeque<PartEntry>> = Vec::new();
        for part in parts {
            let own = |l: &&mut VecDeque<PartEntry>| l[0].node == part.node && l[0].slots == part.slots;
            match lanes.iter_mut().find(own) {
                Some(lane) => lane.push_back(part),
                None => lanes.push(VecDeque::from([part])),
            }
        }
        let (count, mut knot) = (lanes.len(), Self { source, lanes: Vec::new() });
        for mut waiting in lanes {
            let first = waiting.pop_front().ok_or_else(|| Error::bug("a lane without a part"))?;
            let at = Some(Open::new(&knot.source, first, count).await?);
            knot.lanes.push(Lane { at, waiting });
        }
        Ok(knot)
    }

    /// Writes its records, adding to `sum`. Blocks: for a thread of its own within the runtime.
    pub(super) fn write(
        mut self,
        selection: &Selection,
        output: &mut impl Output,
        mut sum: Extracted,
    ) -> Result<Extracted> {
        let (runtime, count) = (Handle::current(), self.lanes.len());
        for lane in &mut self.lanes {
            lane.advance(&self.source, count, &runtime)?;
        }
        while let Some(lane) = self.first()? {
            let open = self.lanes[lane].at.as_ref();
            let (entry, long) = open.ok_or_else(|| Error::bug("a lane at its end"))?.current()?;
            sum.read += 1;
            if sum.read.is_multiple_of(CANCEL_EVERY) && self.source.cancel.is_cancelled() {
                return Err(Error::cancelled("the extraction was ended"));
            }
            if selection.takes(&entry)? && output.write(&entry, long)? {
                let (meta, value) = entry.put.unwrap_or_default();
                sum.records += 1;
                let value = long.map_or(value.len() as u64, LongValue::len);
                sum.bytes += (entry.key.len() + meta.len()) as u64 + value;
            }
            self.lanes[lane].advance(&self.source, count, &runtime)?;
        }
        Ok(sum)
    }

    /// The lane with the smallest record.
    fn first(&self) -> Result<Option<usize>> {
        let mut first: Option<(usize, Entry<'_>)> = None;
        for (i, lane) in self.lanes.iter().enumerate() {
            let Some(open) = &lane.at else { continue };
            let (entry, _) = open.current()?;
            if first.as_ref().is_none_or(|(_, f)| (entry.slot, entry.key) < (f.slot, f.key)) {
                first = Some((i, entry));
            }
        }
        Ok(first.map(|(i, _)| i))
    }
}

impl Lane {
    /// Goes to the next record, be it in the next part; at the end of a part it is compared with the manifest.
    fn advance(&mut self, source: &Source, lanes: usize, runtime: &Handle) -> Result<()> {
        while let Some(open) = &mut self.at {
            let region = open.part.region;
            if open.advance().map_err(|e| e.context(format_args!("region {region}")))? {
                return Ok(());
            }
            // Before the next one takes memory for its log.
            self.at = None;
            let next = self.waiting.pop_front();
            self.at = next.map(|part| runtime.block_on(Open::new(source, part, lanes))).transpose()?;
        }
        Ok(())
    }
}

impl Open {
    /// Opens a part of a knot with so many lanes.
    async fn new(source: &Source, part: PartEntry, lanes: usize) -> Result<Self> {
        let named = |e: Error| e.context(format_args!("region {}", part.region));
        let manifest = &source.manifest;
        let PartOver { overlay, folded } = match &source.laid {
            // The knot that is written, and those that wait.
            Some(laid) => laid
                .over(manifest.repository(), &part, lanes * (OPEN_AHEAD + 1), &source.cancel)
                .await
                .map_err(named)?,
            None => PartOver::empty(),
        };
        let opened = part::open(manifest.repository(), manifest.cluster(), &part, LongValues::Spooled).await;
        let opened = opened.map_err(named)?;
        // It ends with the merge, whose end of the channel it notices.
        drop(tokio::spawn(opened.pump));
        let (merge, digest) = (opened.merge, SetDigest::default());
        let (below, over, at, over_long) = (false, false, Side::Begin, None);
        Ok(Self { part, merge, overlay, folded, over_long, below, over, at, digest })
    }

    /// The current record. Only after [`Self::advance`] answered `true`.
    fn current(&self) -> Result<(Entry<'_>, Option<&LongValue>)> {
        if self.at == Side::Below {
            return Ok((self.merge.current(), self.merge.long()));
        }
        let over = self.overlay.current()?;
        Ok((Entry { slot: over.slot, key: over.key, put: over.put }, self.over_long.as_ref()))
    }

    /// Goes to the next record; `false` at the end of a part that is, without the log, what the manifest says.
    fn advance(&mut self) -> Result<bool> {
        if self.at != Side::Over {
            self.step_below()?;
        }
        if self.at != Side::Below {
            self.step_over()?;
        }
        loop {
            let order = match (self.below, self.over) {
                (false, false) => return Ok(false),
                (true, false) => Ordering::Less,
                (false, true) => Ordering::Greater,
                (true, true) => {
                    let (below, over) = (self.merge.current(), self.overlay.current()?);
                    (below.slot, below.key).cmp(&(over.slot, over.key))
                }
            };
            match order {
                Ordering::Less => {
                    self.at = Side::Below;
                    return Ok(true);
                }
                // What the log says of the key is newer.
                Ordering::Equal => self.step_below()?,
                Ordering::Greater if self.overlay.current()?.put.is_some() => {
                    self.at = Side::Over;
                    return Ok(true);
                }
                Ordering::Greater => self.step_over()?,
            }
        }
    }

    /// Goes to the next record below that counts.
    fn step_below(&mut self) -> Result<()> {
        loop {
            self.read_below()?;
            if !self.below || PartOver::keeps(self.folded.as_deref(), &self.merge.current())? {
                return Ok(());
            }
        }
    }

    fn read_below(&mut self) -> Result<()> {
        self.below = self.merge.advance()?;
        if !self.below {
            return part::compare(&self.part, self.digest);
        }
        let entry = self.merge.current();
        let (meta, value) = entry.put.unwrap_or_default();
        self.own(&entry, meta)?;
        self.digest.add(match self.merge.long() {
            Some(long) => record_hash_of(entry.key, meta, long)?,
            None => record_hash(entry.key, meta, value),
        });
        Ok(())
    }

    fn step_over(&mut self) -> Result<()> {
        self.over = self.overlay.advance()?;
        if self.over {
            self.over_long = self.overlay.long()?;
            let over = self.overlay.current()?;
            let entry = Entry { slot: over.slot, key: over.key, put: over.put };
            self.own(&entry, over.put.unwrap_or_default().0)?;
        }
        Ok(())
    }

    /// `Damaged` for a record under a slot that is not its own.
    fn own(&self, entry: &Entry<'_>, meta: &[u8]) -> Result<()> {
        if slot_of_record(entry.key, meta) == entry.slot && self.part.slots.contains(entry.slot) {
            return Ok(());
        }
        Err(Error::damaged(format!("a record stands under slot {} that is not its own", entry.slot)))
    }
}
