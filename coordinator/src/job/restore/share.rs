//! The share of one node in a restore: its parts, in batches, read from the manifest's pages as they are needed.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use tidemark_proto::stored::manifest::{PartEntry, RunEntry};
use tidemark_proto::wire::control::RunSource;
use tidemark_proto::{ClusterName, Result, SlotSet};

use crate::job::damage::PartSet;
use crate::repository::{Keyring, Manifest, PageRead};

/// Bytes of records that one command hands out, at most (one part may pass it).
const BATCH_BYTES: u64 = 16 << 30;
/// Parts that one command hands out, at most: what is in the coordinator's memory for each node.
const BATCH_PARTS: usize = 256;

/// Parts with their numbers, as one command hands them out.
pub type Batch = Vec<(u32, Arc<PartEntry>)>;

/// What a node still has to take.
pub struct Share {
    slots: SlotSet,
    left_out: Vec<Arc<PartSet>>,
    pages: Pin<Box<dyn Stream<Item = PageRead> + Send>>,
    /// Read and not handed out yet: what was left of a page.
    held: VecDeque<(u32, PartEntry)>,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Share").field("slots", &self.slots).field("held", &self.held.len()).finish_non_exhaustive()
    }
}

impl Share {
    /// The parts with some of `slots`, of the pages `pages`, but for those that are left out.
    pub(super) fn new(manifest: &Manifest, pages: Vec<u32>, slots: &SlotSet, left_out: Vec<Arc<PartSet>>) -> Self {
        let pages = Box::pin(manifest.some_pages(pages));
        Self { slots: slots.clone(), left_out, pages, held: VecDeque::new() }
    }

    /// The next batch: parts in the manifest's order, the largest of the batch first; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Batch>> {
        let (mut batch, mut bytes) = (Batch::new(), 0);
        while batch.len() < BATCH_PARTS && self.fill().await? {
            let next = self.held.front().map_or(0, |(_, part)| part.live());
            if !batch.is_empty() && bytes + next > BATCH_BYTES {
                break;
            }
            bytes += next;
            batch.extend(self.held.pop_front().map(|(number, part)| (number, Arc::new(part))));
        }
        // The last ones to end are then small ones.
        batch.sort_by_key(|(_, part)| std::cmp::Reverse(part.live()));
        Ok(Some(batch).filter(|b| !b.is_empty()))
    }

    /// Reads on until a part is at hand; `false` at the end.
    async fn fill(&mut self) -> Result<bool> {
        while self.held.is_empty() {
            let Some(page) = self.pages.next().await else { return Ok(false) };
            let own = page.numbered()?.filter(|(number, part)| {
                !self.left_out.iter().any(|out| out.contains(*number))
                    && !part.slots.intersect(&self.slots).is_empty()
            });
            self.held.extend(own);
        }
        Ok(true)
    }
}

/// The runs of a part with what opens them; the backup is of cluster `source`.
pub(super) fn runs(keys: &Keyring, source: &ClusterName, part: &PartEntry) -> Result<Vec<RunSource>> {
    let one = |(number, run): (usize, &RunEntry)| {
        Ok(RunSource {
            number: number as u32,
            blocks: run.blocks,
            run_tag: keys.run_tag(source, part.region, &part.lower, &run.salt),
            key: keys.subkey(run.key_id, &run.salt)?,
            encrypt: u8::from(run.key_id != 0),
        })
    };
    part.runs.iter().enumerate().map(one).collect()
}
