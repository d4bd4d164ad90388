//! Repository check: everything that the ledger of a cluster names is there and whole, as far as that can be told
//! without reading the packs (that is what verification does): entries, roots, pages, tiling, and the packs by size.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemark_proto::id::PackId;
use tidemark_proto::stored::envelope::CHECKSUM_LEN;
use tidemark_proto::stored::manifest::{PartEntry, Root};
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Error, ErrorKind, Result};

use super::Job;
use super::backup::tiling;
use super::restore::read_parts;
use crate::context::Shared;
use crate::repository::{BackupRecord, Ledger, read_root};

/// Problems that are listed in the error.
const SHOWN: usize = 20;

/// Runs the check; what is damaged is listed in the error.
pub async fn run(context: Shared, job: Arc<Job>, cluster: ClusterName) -> Result<serde_json::Value> {
    job.phase("reading the ledger");
    let ledger = Ledger::load(&context.repository, &cluster).await?;
    job.phase("listing packs");
    let listed = context.repository.store().list(&paths::packs_dir(&cluster)).await?;
    let stored_bytes: u64 = listed.iter().map(|(_, size)| size).sum();
    let sizes: BTreeMap<String, u64> = listed.into_iter().collect();
    let backups = ledger.backups();
    job.phase("reading manifests");
    job.update(|i| i.progress.total_parts = backups.len() as u64);
    let mut damage = Vec::new();
    for (done, record) in backups.iter().enumerate() {
        if job.cancel.is_cancelled() {
            return Err(Error::cancelled("the check was cancelled"));
        }
        match check_backup(&context, &cluster, record, &sizes).await {
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
            "packs": sizes.len(), "pack_bytes": stored_bytes,
        }));
    }
    let shown: Vec<_> = damage.iter().take(SHOWN).cloned().collect();
    Err(Error::damaged(format!("{} of {} backups are damaged: {}", damage.len(), backups.len(), shown.join("; "))))
}

async fn check_backup(
    context: &Shared,
    cluster: &ClusterName,
    record: &BackupRecord,
    sizes: &BTreeMap<String, u64>,
) -> Result<()> {
    let root = read_root(&context.repository, cluster, &record.backup.root).await?;
    if root.cut != record.backup.cut || root.job != record.backup.job {
        return Err(Error::damaged("the manifest root is not that of the ledger entry"));
    }
    let parts = read_parts(context, cluster, &root).await?;
    whole(&root, &parts)?;
    let mut ends: BTreeMap<PackId, u64> = BTreeMap::new();
    for extent in parts.iter().flat_map(|p| &p.runs).flat_map(|r| r.extents.iter().chain([&r.index])) {
        let end = ends.entry(extent.pack).or_default();
        *end = (*end).max(extent.offset + extent.len);
    }
    for (pack, end) in ends {
        let path = paths::pack(cluster, &pack);
        match sizes.get(&path) {
            None => return Err(Error::damaged(format!("{path} is missing"))),
            Some(size) if *size < end + CHECKSUM_LEN as u64 => {
                return Err(Error::damaged(format!("{path} is cut short to {size} bytes")));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn whole(root: &Root, parts: &[PartEntry]) -> Result<()> {
    let taken: Vec<_> = root.nodes.iter().map(|n| n.slots.clone()).collect();
    let named = root.nodes.iter().map(|n| (n.node.as_str(), &n.slots));
    tiling::slots(named).map_err(|e| Error::damaged(e.message()))?;
    tiling::parts(parts, &taken)?;
    let records: u64 = parts.iter().map(|p| p.digest.count).sum();
    if records == root.totals.records {
        return Ok(());
    }
    Err(Error::damaged(format!("its parts hold {records} records, its root says {}", root.totals.records)))
}
