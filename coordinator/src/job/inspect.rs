//! Inspecting a backup: page by page and part by part, as deep as is wanted, what is damaged and what it hits.
//!
//! Nothing that is read stops an inspection but an error that says nothing of the data (network, credentials).

mod part;
mod structure;

use std::sync::Arc;

use futures::{FutureExt, StreamExt};
use rand::RngExt;
use tidemark_common::run::Entry;
use tidemark_proto::id::PackId;
use tidemark_proto::stored::envelope::CHECKSUM_LEN;
use tidemark_proto::stored::manifest::{Extent, PartEntry};
use tidemark_proto::stored::paths;
use tidemark_proto::wire::control::Progress;
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result, SlotSet};

use super::Job;
use super::damage::{Damage, PartSet};
use crate::repository::{Manifest, Repository};

use structure::Structure;

/// Every part is inspected, in percent.
pub const ALL: f64 = 100.0;

/// What of a backup is inspected.
#[derive(Debug, Clone)]
pub struct Scope {
    /// About so many percent of the parts, drawn at random.
    pub percent: f64,
    /// Parts without any of these slots are passed over.
    pub slots: SlotSet,
    /// Sees every record that is read.
    pub check: Option<Arc<dyn RecordCheck>>,
}

/// Looks at records beside what an inspection looks for.
pub trait RecordCheck: std::fmt::Debug + Send + Sync {
    /// A record of a part that may be found damaged yet; without its value where that is a long one. It keeps to itself what it thinks of it; an error says that the
    /// record is damaged.
    fn see(&self, entry: &Entry<'_>) -> Result<()>;
}

impl Default for Scope {
    fn default() -> Self {
        Self { percent: ALL, slots: SlotSet::all(), check: None }
    }
}

/// How deep an inspection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Pages, tiling, and every pack by its size in the store's list.
    Objects,
    /// Also the index of every run.
    Indexes,
    /// Also every block and every record: nothing is left that a restore could trip over.
    Blocks,
}

impl Depth {
    /// Parts inspected at once.
    fn parallel(self) -> usize {
        match self {
            Self::Objects => 1,
            Self::Indexes => 16,
            Self::Blocks => 2,
        }
    }
}

/// The packs of a cluster with their sizes, ascending by id.
#[derive(Debug, Clone)]
pub struct Packs {
    sizes: Arc<Vec<(PackId, u64)>>,
}

impl Packs {
    /// Lists them.
    pub async fn list(repository: &Repository, cluster: &ClusterName) -> Result<Self> {
        let pack = |path: &str, size| Some((paths::pack_id(path)?, size));
        let mut sizes = repository.store().list_as(&paths::packs_dir(cluster), pack).await?;
        sizes.sort_unstable();
        Ok(Self { sizes: Arc::new(sizes) })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.sizes.iter().map(|(_, size)| size).sum()
    }

    /// Whether a pack is long enough for an extent; if not, what is wrong with it.
    fn holds(&self, extent: &Extent) -> std::result::Result<(), String> {
        let found = self.sizes.binary_search_by_key(&extent.pack, |(id, _)| *id);
        let end = extent.offset.saturating_add(extent.len).saturating_add(CHECKSUM_LEN as u64);
        match found.ok().map(|at| self.sizes[at].1) {
            None => Err("is missing".into()),
            Some(size) if size < end => Err(format!("is cut short to {size} bytes")),
            Some(_) => Ok(()),
        }
    }
}

/// What an inspection came to.
#[derive(Debug, Default)]
pub struct Inspection {
    /// What is damaged.
    pub damage: Damage,
    /// The damaged parts.
    pub bad: PartSet,
    /// Parts looked at.
    pub checked: u64,
    /// Records read (by [`Depth::Blocks`] alone).
    pub records: u64,
    /// Bytes of keys, meta and values read.
    pub bytes: u64,
}

impl Inspection {
    /// An error that lists what is damaged, if anything is.
    pub fn whole(&self) -> Result<()> {
        self.damage.whole(self.checked)
    }
}

/// What is inspected: a part, or what stands in for parts that cannot be read.
enum Item {
    Part(u32, Box<PartEntry>),
    Page(u32, u32, String, Error),
    Tiling(String, Error),
}

/// What came of an item.
enum Found {
    Good { records: u64, bytes: u64 },
    Bad { object: String, error: Error },
}

/// Inspects the parts of a backup that are in `scope`, and tells `job` how far it is.
pub async fn inspect(
    manifest: &Manifest,
    packs: &Packs,
    depth: Depth,
    scope: Scope,
    job: Option<&Arc<Job>>,
) -> Result<Inspection> {
    let parts = u64::from(manifest.parts());
    let mut draw = Draw::new(parts, scope.percent);
    let counts = Counts { job, sum: Progress::default() };
    counts.begin(draw.wanted, manifest.root().totals.live_bytes / parts.max(1) * draw.wanted);
    let structure = std::sync::Mutex::new(Structure::new(manifest));
    let items = manifest.pages().flat_map(|page| {
        let items = structure.lock().expect("structure").page(page);
        futures::stream::iter(items)
    });
    let mut found = items
        .filter(|item| {
            std::future::ready(match item {
                Item::Part(_, part) => !part.slots.intersect(&scope.slots).is_empty() && draw.take(),
                _ => true,
            })
        })
        .map(|item| part::look(manifest, packs, depth, scope.check.as_ref(), item).boxed())
        .buffer_unordered(depth.parallel());
    let mut inspection = Inspector { manifest, counts, sum: Inspection::default(), lost_pages: Vec::new() };
    while let Some((item, found)) = found.next().await {
        inspection.take(item, found?);
    }
    drop(found);
    Ok(inspection.end(structure.into_inner().expect("structure")))
}

/// Looks at what the nodes of a backup keep beside their records; damage to it hits no part.
pub async fn kept(manifest: &Manifest, damage: &mut Damage) -> Result<()> {
    match (manifest.kept().await, manifest.kept_ref()) {
        (Err(e), Some(kept)) if is_damage(&e) => {
            damage.add(paths::root(manifest.cluster(), &kept.hash), 0, &SlotSet::EMPTY, 1, e.report());
            Ok(())
        }
        (read, _) => read.map(drop),
    }
}

struct Inspector<'a> {
    manifest: &'a Manifest,
    counts: Counts<'a>,
    sum: Inspection,
    lost_pages: Vec<(String, u32, String)>,
}

impl Inspector<'_> {
    fn take(&mut self, item: Item, found: Found) {
        let each = self.manifest.root().slots_per_region;
        match (item, found) {
            (Item::Part(number, part), found) => {
                self.sum.checked += 1;
                match found {
                    Found::Good { records, bytes } => {
                        self.sum.records += records;
                        self.sum.bytes += bytes;
                        self.counts.add(records, bytes);
                    }
                    Found::Bad { object, error } => {
                        self.sum.bad.insert(number);
                        self.sum.damage.add(object, 1, &part.slots, each, error.report());
                    }
                }
            }
            (Item::Page(first, parts, object, error), _) => {
                self.sum.checked += u64::from(parts);
                (first..first + parts).for_each(|number| self.sum.bad.insert(number));
                self.lost_pages.push((object, parts, error.report()));
            }
            (Item::Tiling(object, error), _) => {
                self.sum.damage.add(object, 0, &Default::default(), each, error.report());
            }
        }
    }

    /// What pages that cannot be read have hit is what no other page has.
    fn end(mut self, structure: Structure) -> Inspection {
        let each = self.manifest.root().slots_per_region;
        let root = paths::root(self.manifest.cluster(), self.manifest.hash());
        if self.lost_pages.is_empty() {
            if let Err(error) = structure.finish() {
                self.sum.damage.add(root, 0, &Default::default(), each, error.report());
            }
            return self.sum;
        }
        let lost = structure.lost();
        for (object, parts, cause) in self.lost_pages {
            self.sum.damage.add(object, u64::from(parts), &lost, each, format!("{cause} ({parts} parts)"));
        }
        self.sum
    }
}

/// Whether an error says that the data is damaged (and not that it cannot be reached at the moment).
pub(crate) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Unsupported)
}

struct Counts<'a> {
    job: Option<&'a Arc<Job>>,
    sum: Progress,
}

impl Counts<'_> {
    fn begin(&self, parts: u64, bytes: u64) {
        let totals = |job: &Arc<Job>| {
            job.update(|i| (i.progress.total_parts, i.progress.total_bytes) = (parts, bytes));
        };
        self.job.into_iter().for_each(totals);
    }

    fn add(&mut self, records: u64, bytes: u64) {
        self.sum.records += records;
        self.sum.bytes += bytes;
        self.sum.parts += 1;
        if let Some(job) = self.job {
            job.progress_of(&NodeName::new("repository").expect("a valid name"), self.sum.clone());
        }
    }
}

/// Draws parts at random as they come by, so that exactly the wanted number is drawn of all.
struct Draw {
    left: u64,
    wanted: u64,
    missing: u64,
}

impl Draw {
    /// About `percent` of `parts`, at least one.
    fn new(parts: u64, percent: f64) -> Self {
        let wanted = ((parts as f64 * percent / 100.0).ceil() as u64).clamp(1, parts.max(1));
        Self { left: parts, wanted, missing: wanted }
    }

    /// Whether the next one is drawn.
    fn take(&mut self) -> bool {
        let drawn = self.left > 0 && rand::rng().random_range(0..self.left) < self.missing;
        self.left = self.left.saturating_sub(1);
        self.missing -= u64::from(drawn);
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_wanted_number_is_drawn() {
        for (parts, percent, wanted) in [(1, 1.0, 1), (100, 5.0, 5), (100, 100.0, 100), (3, 50.0, 2), (0, 100.0, 0)]
        {
            let mut draw = Draw::new(parts, percent);
            assert_eq!((0..parts).filter(|_| draw.take()).count() as u64, wanted, "{percent} % of {parts}");
        }
    }
}
