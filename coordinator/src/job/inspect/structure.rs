//! The structure of a manifest while its pages go by: that its parts tile the backup, and, where pages cannot be read,
//! what of the backup the others hold.

use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::stored::paths;
use tidemark_proto::{Error, Result, SlotSet};

use super::Item;
use crate::job::backup::tiling::{self, Tiles};
use crate::repository::{Manifest, PageRead};

/// What was seen so far.
pub(super) struct Structure<'a> {
    manifest: &'a Manifest,
    /// Gone once it has found a fault, or a page was missing: what follows would be faults of that one.
    tiles: Option<Tiles>,
    /// Slots of which all parts were seen.
    whole: SlotSet,
    /// The group of parts with the same slots that is being seen: its node, slots and where its last part ends; `None`
    /// for a group whose beginning or middle is missing.
    group: Option<(u16, SlotSet, Vec<u8>)>,
    records: u64,
}

impl<'a> Structure<'a> {
    pub(super) fn new(manifest: &'a Manifest) -> Self {
        let taken = manifest.root().nodes.iter().map(|n| n.slots.clone()).collect();
        Self { manifest, tiles: Some(Tiles::new(taken)), whole: SlotSet::EMPTY, group: None, records: 0 }
    }

    /// The items of a page.
    pub(super) fn page(&mut self, page: PageRead) -> Vec<Item> {
        let object = paths::root(self.manifest.cluster(), &self.manifest.root().pages[page.index as usize].hash);
        let (first, parts) = (page.first, page.parts);
        let numbered = match page.numbered() {
            Ok(numbered) => numbered,
            Err(e) => {
                self.tiles = None;
                return vec![Item::Page(first, parts, object, e)];
            }
        };
        let mut items = Vec::with_capacity(parts as usize);
        for (number, part) in numbered {
            self.records = self.records.wrapping_add(part.digest.count);
            self.see(&part);
            if let Some(Err(e)) = self.tiles.as_mut().map(|tiles| tiles.push(&part)) {
                self.tiles = None;
                items.push(Item::Tiling(object.clone(), e));
            }
            items.push(Item::Part(number, Box::new(part)));
        }
        items
    }

    fn see(&mut self, part: &PartEntry) {
        let follows = self.group.take().filter(|(node, slots, at)| {
            *node == part.node && *slots == part.slots && !at.is_empty() && *at == part.lower
        });
        if follows.is_none() && !part.lower.is_empty() {
            return;
        }
        if part.upper.is_empty() {
            self.whole = self.whole.union(&part.slots);
        } else {
            self.group = Some((part.node, part.slots.clone(), part.upper.clone()));
        }
    }

    /// All pages were read: the parts tile the backup and hold what the root says.
    pub(super) fn finish(self) -> Result<()> {
        let root = self.manifest.root();
        let Some(tiles) = self.tiles else { return Ok(()) };
        tiling::slots(root.nodes.iter().map(|n| (n.node.as_str(), &n.slots)))
            .map_err(|e| Error::damaged(e.message()))?;
        tiles.finish()?;
        if self.records == root.totals.records {
            return Ok(());
        }
        Err(Error::damaged(format!("its parts hold {} records, it says {}", self.records, root.totals.records)))
    }

    /// Slots of which some part is in a page that cannot be read.
    pub(super) fn lost(self) -> SlotSet {
        SlotSet::all().minus(&self.whole)
    }
}
