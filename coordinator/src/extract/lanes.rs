//! Writing a knot: the parts of each node follow each other in a lane, the lanes are merged.

use std::collections::VecDeque;

use tidemark_common::record::{record_hash, record_hash_of, slot_of_record};
use tidemark_common::run::{Entry, LongValue, Merge};
use tidemark_common::select::Selection;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::{Error, Result};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{Extracted, Output};
use crate::part::{self, Blocks, LongValues};
use crate::repository::Manifest;

/// Records between two looks at the cancellation token.
const CANCEL_EVERY: u64 = 1024;

/// Parts whose records lie between each other.
pub(super) struct Knot {
    manifest: Manifest,
    lanes: Vec<Lane>,
}

/// The parts of one node, in order.
struct Lane {
    at: Option<Open>,
    waiting: VecDeque<PartEntry>,
}

/// The part that a lane is at.
struct Open {
    part: PartEntry,
    merge: Merge<Blocks>,
    digest: SetDigest,
}

impl Knot {
    /// Opens the first part of each lane.
    pub(super) async fn open(manifest: Manifest, parts: Vec<PartEntry>) -> Result<Self> {
        let mut lanes: Vec<VecDeque<PartEntry>> = Vec::new();
        for part in parts {
            let own = |l: &&mut VecDeque<PartEntry>| l[0].node == part.node && l[0].slots == part.slots;
            match lanes.iter_mut().find(own) {
                Some(lane) => lane.push_back(part),
                None => lanes.push(VecDeque::from([part])),
            }
        }
        let mut knot = Self { manifest, lanes: Vec::new() };
        for mut waiting in lanes {
            let first = waiting.pop_front().ok_or_else(|| Error::bug("a lane without a part"))?;
            let at = Some(Open::new(&knot.manifest, first).await?);
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
        cancel: &CancellationToken,
    ) -> Result<Extracted> {
        let runtime = Handle::current();
        for lane in &mut self.lanes {
            lane.advance(&self.manifest, &runtime)?;
        }
        while let Some(lane) = self.first() {
            let merge = self.lanes[lane].at.as_ref().map(|open| &open.merge);
            let merge = merge.ok_or_else(|| Error::bug("a lane at its end"))?;
            let (entry, long) = (merge.current(), merge.long());
            sum.read += 1;
            if sum.read.is_multiple_of(CANCEL_EVERY) && cancel.is_cancelled() {
                return Err(Error::cancelled("the extraction was ended"));
            }
            if selection.takes(&entry)? && output.write(&entry, long)? {
                let (meta, value) = entry.put.unwrap_or_default();
                sum.records += 1;
                let value = long.map_or(value.len() as u64, LongValue::len);
                sum.bytes += (entry.key.len() + meta.len()) as u64 + value;
            }
            self.lanes[lane].advance(&self.manifest, &runtime)?;
        }
        Ok(sum)
    }

    /// The lane with the smallest record.
    fn first(&self) -> Option<usize> {
        let heads = self.lanes.iter().enumerate().filter_map(|(i, lane)| Some((lane.current()?, i)));
        heads.min_by(|(a, _), (b, _)| (a.slot, a.key).cmp(&(b.slot, b.key))).map(|(_, i)| i)
    }
}

impl Lane {
    fn current(&self) -> Option<Entry<'_>> {
        self.at.as_ref().map(|open| open.merge.current())
    }

    /// Goes to the next record, be it in the next part; at the end of a part it is compared with the manifest.
    fn advance(&mut self, manifest: &Manifest, runtime: &Handle) -> Result<()> {
        while let Some(open) = &mut self.at {
            let region = open.part.region;
            if open.advance().map_err(|e| e.context(format_args!("region {region}")))? {
                return Ok(());
            }
            let next = self.waiting.pop_front();
            self.at = next.map(|part| runtime.block_on(Open::new(manifest, part))).transpose()?;
        }
        Ok(())
    }
}

impl Open {
    async fn new(manifest: &Manifest, part: PartEntry) -> Result<Self> {
        let opened = part::open(manifest.repository(), manifest.cluster(), &part, LongValues::Spooled).await;
        let opened = opened.map_err(|e| e.context(format_args!("region {}", part.region)))?;
        // It ends with the merge, whose end of the channel it notices.
        drop(tokio::spawn(opened.pump));
        Ok(Self { part, merge: opened.merge, digest: SetDigest::default() })
    }

    /// Goes to the next record; `false` at the end of a part that is what the manifest says.
    fn advance(&mut self) -> Result<bool> {
        if !self.merge.advance()? {
            part::compare(&self.part, self.digest)?;
            return Ok(false);
        }
        let entry = self.merge.current();
        let (meta, value) = entry.put.unwrap_or_default();
        if slot_of_record(entry.key, meta) != entry.slot || !self.part.slots.contains(entry.slot) {
            return Err(Error::damaged(format!("a record stands under slot {} that is not its own", entry.slot)));
        }
        self.digest.add(match self.merge.long() {
            Some(long) => record_hash_of(entry.key, meta, long)?,
            None => record_hash(entry.key, meta, value),
        });
        Ok(true)
    }
}
