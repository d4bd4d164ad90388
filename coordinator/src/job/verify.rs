//! Verification: reads blocks back, opens every seal, and compares the records of each part with the manifest.

use std::sync::Arc;

use futures::{FutureExt, StreamExt};
use rand::RngExt;
use tidemark_common::run::Merge;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::stored::run::SEAL_BLOCK;
use tidemark_proto::wire::control::Progress;
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result};

use super::Job;
use super::restore::find_backup;
use crate::blocks::{RunBlocks, sealer};
use crate::part;
use crate::repository::{Ledger, Manifest, Repository};

/// Damaged parts that an error lists.
const SHOWN: usize = 20;
/// Parts checked at once.
const PARALLEL_PARTS: usize = 2;

/// Every part is checked, in percent.
pub const ALL: f64 = 100.0;

/// A verification as it is asked for.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// The cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// The backup, by id, a unique beginning of it, or `latest`.
    pub backup: String,
    /// Share of the parts to check, in percent (0 < sample <= 100); parts are drawn at random.
    #[serde(default = "all")]
    pub sample: f64,
}

fn all() -> f64 {
    ALL
}

/// Runs a verification; what is damaged is listed in the error.
pub async fn run(repository: Repository, job: Arc<Job>, request: VerifyRequest) -> Result<serde_json::Value> {
    if !(request.sample > 0.0 && request.sample <= 100.0) {
        return Err(Error::request("sample: more than 0 and at most 100 percent"));
    }
    job.phase("reading the manifest");
    let ledger = Ledger::load(&repository, &request.cluster).await?;
    let record = find_backup(&ledger, &request.backup)?;
    let manifest = Manifest::open(&repository, &request.cluster, &record.backup.root).await?;
    job.phase("reading back");
    let found = tokio::select! {
        checked = check_parts(&manifest, request.sample, &job) => checked?,
        () = job.cancel.cancelled() => return Err(Error::cancelled("the verification was cancelled")),
    };
    found.whole().map_err(|e| e.context(format_args!("backup {}", manifest.root().job)))?;
    Ok(serde_json::json!({
        "backup": manifest.root().job, "parts": manifest.parts(), "checked_parts": found.checked,
        "records": found.records, "bytes": found.bytes,
    }))
}

/// What a verification found. Its size does not grow with the number of parts.
#[derive(Debug, Default)]
pub struct Findings {
    /// Parts that were looked at.
    pub checked: u64,
    /// Parts that are damaged.
    pub damaged: u64,
    /// Regions of the damaged parts, as a set of numbers.
    pub regions: Vec<u16>,
    /// What is wrong with the first of them.
    pub faults: Vec<String>,
    /// Records read.
    pub records: u64,
    /// Bytes of keys, meta and values read.
    pub bytes: u64,
}

impl Findings {
    fn fault(&mut self, parts: u64, regions: &[u16], what: String) {
        self.damaged += parts;
        for region in regions {
            if let Err(at) = self.regions.binary_search(region) {
                self.regions.insert(at, *region);
            }
        }
        if self.faults.len() < SHOWN {
            self.faults.push(what);
        }
    }

    /// An error that lists what is damaged, if anything is.
    pub fn whole(&self) -> Result<()> {
        if self.damaged == 0 {
            return Ok(());
        }
        let (damaged, checked, shown) = (self.damaged, self.checked, self.faults.join("; "));
        Err(Error::damaged(format!("{damaged} of {checked} parts are damaged: {shown}")))
    }
}

/// Reads about `percent` of the parts of a backup whole and checks them, telling `job` how far it is.
pub async fn check_parts(manifest: &Manifest, percent: f64, job: &Arc<Job>) -> Result<Findings> {
    let parts = u64::from(manifest.parts());
    let mut draw = Draw::new(parts, percent);
    let counts = Counts { job: job.clone(), sum: std::sync::Mutex::default() };
    job.update(|i| {
        i.progress.total_parts = draw.wanted;
        i.progress.total_bytes = manifest.root().totals.live_bytes / parts.max(1) * draw.wanted;
    });
    let mut checks = manifest
        .pages()
        .flat_map(|page| {
            let (index, count) = (page.index, page.parts);
            let items: Vec<Item> = match page.numbered() {
                Ok(parts) => parts.map(|(_, part)| Item::Part(Box::new(part))).collect(),
                Err(e) => vec![Item::Page(index, count, e)],
            };
            futures::stream::iter(items)
        })
        .filter(|item| std::future::ready(!matches!(item, Item::Part(_)) || draw.take()))
        .map(|item| check(manifest, item).boxed())
        .buffer_unordered(PARALLEL_PARTS);
    let mut found = Findings::default();
    while let Some((parts, region, result)) = checks.next().await {
        found.checked += parts;
        match result {
            Ok((records, bytes)) => {
                found.records += records;
                found.bytes += bytes;
                counts.add(records, bytes);
            }
            Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => match region {
                Some(region) => found.fault(parts, &[region], format!("region {region}: {}", e.report())),
                None => found.fault(parts, &[], e.report()),
            },
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// What is checked: a part, or a page that cannot be read.
enum Item {
    Part(Box<PartEntry>),
    Page(u32, u32, Error),
}

/// Checks an item: number of its parts, region where it is one alone, and its records and their bytes.
async fn check(manifest: &Manifest, item: Item) -> (u64, Option<u16>, Result<(u64, u64)>) {
    let (repository, cluster) = (manifest.repository(), manifest.cluster());
    match item {
        Item::Page(index, parts, e) => {
            (u64::from(parts), None, Err(e.context(format_args!("page {index} with {parts} parts"))))
        }
        Item::Part(part) => match check_part(repository, cluster, &part).await {
            Err(e) if e.kind() == ErrorKind::Damaged => {
                (1, Some(part.region), Err(locate(repository, cluster, &part, e).await))
            }
            checked => (1, Some(part.region), checked),
        },
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

struct Counts {
    job: Arc<Job>,
    sum: std::sync::Mutex<Progress>,
}

impl Counts {
    fn add(&self, records: u64, bytes: u64) {
        let mut sum = self.sum.lock().expect("counts");
        sum.records += records;
        sum.bytes += bytes;
        sum.parts += 1;
        let name = NodeName::new("repository").expect("a valid name");
        self.job.progress_of(&name, sum.clone());
    }
}

/// Reads a part whole; answers its records and their bytes.
async fn check_part(repository: &Repository, cluster: &ClusterName, part: &PartEntry) -> Result<(u64, u64)> {
    let opened = part::open(repository, cluster, part).await?;
    let merge = opened.merge;
    let (checked, ()) = tokio::join!(tokio::task::spawn_blocking(move || digest(merge)), opened.pump);
    let (digest, bytes) = checked.map_err(|e| Error::bug("checking a part").with_source(e))??;
    part::compare(part, digest)?;
    Ok((digest.count, bytes))
}

/// Finds the block that does not open, so that the error names its pack; the merge of a part only knows that one does not.
async fn locate(repository: &Repository, cluster: &ClusterName, part: &PartEntry, error: Error) -> Error {
    for run in &part.runs {
        // A run whose index does not open names its pack itself.
        let Ok(blocks) = RunBlocks::open(repository, cluster, part, run).await else { return error };
        let Ok(sealer) = sealer(repository, cluster, part, run) else { return error };
        for span in blocks.spans(0..run.blocks) {
            let Ok(read) = blocks.read(span.clone()).await else { return error };
            for (number, block) in span.zip(read) {
                if sealer.open(SEAL_BLOCK, number, &mut block.to_vec()).is_err() {
                    return error.context(blocks.place(number));
                }
            }
        }
    }
    error
}

fn digest<S: tidemark_common::run::BlockSource>(mut merge: Merge<S>) -> Result<(SetDigest, u64)> {
    let (mut digest, mut bytes) = (SetDigest::default(), 0);
    while merge.advance()? {
        let entry = merge.current();
        let (meta, value) = entry.put.unwrap_or_default();
        digest.add(tidemark_common::run::record_hash(entry.key, meta, value));
        bytes += (entry.key.len() + meta.len() + value.len()) as u64;
    }
    Ok((digest, bytes))
}
