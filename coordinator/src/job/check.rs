//! Repository check: everything that the ledger of a cluster names is there and whole, as far as that can be told
//! without reading the packs (that is what verification does): entries, roots, pages, tiling, and the packs by size.

use std::sync::Arc;

use futures::StreamExt;
use tidemark_proto::id::PackId;
use tidemark_proto::stored::envelope::CHECKSUM_LEN;
use tidemark_proto::stored::manifest::Extent;
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Error, ErrorKind, Result};

use super::Job;
use super::backup::tiling::{self, Tiles};
use crate::repository::{BackupRecord, Ledger, Manifest, Repository};

/// Problems that are listed in the error.
const SHOWN: usize = 20;

/// Runs the check; what is damaged is listed in the error.
pub async fn run(repository: Repository, job: Arc<Job>, cluster: ClusterName) -> Result<serde_json::Value> {
    job.phase("reading the ledger");
    let ledger = Ledger::load(&repository, &cluster).await?;
    job.phase("listing packs");
    let packs = Packs::list(&repository, &cluster).await?;
    let backups = ledger.backups();
    job.phase("reading manifests");
    job.update(|i| i.progress.total_parts = backups.len() as u64);
    let mut damage = Vec::new();
    for (done, record) in backups.iter().enumerate() {
        if job.cancel.is_cancelled() {
            return Err(Error::cancelled("the check was cancelled"));
        }
        match check_backup(&repository, &cluster, record, &packs).await {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                damage.push(format!("backup {}: {}", record.backup.job, e.report()));
            }
            Err(e) => return Err(e),
        }
        job.update(|i| i.progress.parts = done as u64 + 1);
    }
    if damage.is_empty() {
        return Ok(serde_json::json!({
            "cluster": cluster, "ledger_entries": ledger.entries().len(), "backups": backups.len(),
            "packs": packs.sizes.len(), "pack_bytes": packs.sizes.iter().map(|(_, size)| size).sum::<u64>(),
        }));
    }
    let shown: Vec<_> = damage.iter().take(SHOWN).cloned().collect();
    Err(Error::damaged(format!("{} of {} backups are damaged: {}", damage.len(), backups.len(), shown.join("; "))))
}

/// The packs of a cluster with their sizes, ascending by id.
struct Packs {
    sizes: Vec<(PackId, u64)>,
}

impl Packs {
    async fn list(repository: &Repository, cluster: &ClusterName) -> Result<Self> {
        let pack = |path: &str, size| Some((paths::pack_id(path)?, size));
        let mut sizes = repository.store().list_as(&paths::packs_dir(cluster), pack).await?;
        sizes.sort_unstable();
        Ok(Self { sizes })
    }

    fn check(&self, cluster: &ClusterName, extent: &Extent) -> Result<()> {
        let found = self.sizes.binary_search_by_key(&extent.pack, |(id, _)| *id);
        let size = found.ok().map(|at| self.sizes[at].1);
        let end = extent.offset.saturating_add(extent.len).saturating_add(CHECKSUM_LEN as u64);
        match size {
            Some(size) if size >= end => Ok(()),
            None => Err(Error::damaged(format!("{} is missing", paths::pack(cluster, &extent.pack)))),
            Some(size) => {
                let path = paths::pack(cluster, &extent.pack);
                Err(Error::damaged(format!("{path} is cut short to {size} bytes")))
            }
        }
    }
}

async fn check_backup(
    repository: &Repository,
    cluster: &ClusterName,
    record: &BackupRecord,
    packs: &Packs,
) -> Result<()> {
    let manifest = Manifest::open(repository, cluster, &record.backup.root).await?;
    let root = manifest.root();
    if root.cut != record.backup.cut || root.job != record.backup.job {
        return Err(Error::damaged("the manifest root is not that of the ledger entry"));
    }
    let taken: Vec<_> = root.nodes.iter().map(|n| n.slots.clone()).collect();
    let named = root.nodes.iter().map(|n| (n.node.as_str(), &n.slots));
    tiling::slots(named).map_err(|e| Error::damaged(e.message()))?;
    let (mut tiles, mut records) = (Tiles::new(&taken), 0u64);
    let mut pages = manifest.pages();
    while let Some(page) = pages.next().await {
        for (_, part) in page.numbered()? {
            tiles.push(&part)?;
            records = records.wrapping_add(part.digest.count);
            for extent in part.runs.iter().flat_map(|r| r.extents.iter().chain([&r.index])) {
                packs.check(cluster, extent)?;
            }
        }
    }
    tiles.finish()?;
    if records == root.totals.records {
        return Ok(());
    }
    Err(Error::damaged(format!("its parts hold {records} records, its root says {}", root.totals.records)))
}
