//! What is needed: everything that backups, readers and open jobs name.

use std::collections::{BTreeMap, HashMap, HashSet};

use tidemark_proto::hash::Hash;
use tidemark_proto::id::{JobId, PackId};
use tidemark_proto::{ClusterName, Result};

use super::sweep::Listing;
use crate::context::Context;
use crate::repository::{Ledger, Names, Record, read_job_record, read_page, read_root_with_kept};

/// What must stay.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// Packs, each with the bytes in it that are needed. Every pack is written by one job, and what is needed of it only
    /// shrinks from backup to backup: the most that any backup needs is what all of them need.
    pub(super) packs: HashMap<PackId, u64>,
    /// Manifest roots and pages, and kept things.
    pub(super) roots: HashSet<Hash>,
    /// Records of jobs that the ledger does not know the end of.
    pub(super) open_jobs: HashSet<JobId>,
    /// Backups that stand.
    pub(super) backups: u64,
    /// Deleted backups that somebody reads or builds on.
    pub(super) held: u64,
}

impl Live {
    /// Reads every manifest that counts, page by page.
    pub(super) async fn read(
        context: &Context,
        cluster: &ClusterName,
        ledger: &Ledger,
        drawn: &Names,
        listing: &Listing,
    ) -> Result<Self> {
        let mut live = Self::default();
        let mut builds_on = drawn.parents.clone();
        live.open_jobs(context, cluster, ledger, listing, &mut builds_on).await?;
        let standing: HashSet<JobId> = ledger.backups().iter().map(|b| b.backup.job).collect();
        let held = ledger.held(context.now_millis());
        for backup in ledger.all_backups() {
            match standing.contains(&backup.job) {
                true => live.backups += 1,
                false if held.contains(&backup.job) || builds_on.contains(&backup.root) => live.held += 1,
                false => continue,
            }
            let named = |e: tidemark_proto::Error| e.context(format_args!("backup {}", backup.job));
            live.backup(context, cluster, backup.root).await.map_err(named)?;
        }
        Ok(live)
    }

    /// What jobs stored that may still be resumed.
    async fn open_jobs(
        &mut self,
        context: &Context,
        cluster: &ClusterName,
        ledger: &Ledger,
        listing: &Listing,
        builds_on: &mut HashSet<Hash>,
    ) -> Result<()> {
        for (job, records) in &listing.jobs {
            if ledger.is_settled(*job) {
                continue;
            }
            let (mut parts, mut ended) = (Vec::new(), false);
            for (path, _) in records {
                match read_job_record(&context.repository, cluster, path).await? {
                    Some(Record::BackupCut(cut)) => drop(builds_on.insert(cut.parent)),
                    Some(Record::Parts(stored)) => parts.extend(stored.parts),
                    Some(Record::RestoreEnded(_)) => ended = true,
                    _ => {}
                }
            }
            if ended {
                continue;
            }
            let _ = self.open_jobs.insert(*job);
            for extent in parts.iter().flat_map(|p| &p.runs).flat_map(|r| r.extents.iter().chain([&r.index])) {
                *self.packs.entry(extent.pack).or_default() += extent.len;
            }
        }
        Ok(())
    }

    async fn backup(&mut self, context: &Context, cluster: &ClusterName, hash: Hash) -> Result<()> {
        let (root, kept) = read_root_with_kept(&context.repository, cluster, &hash).await?;
        self.roots.extend([Some(hash), kept.map(|k| k.hash)].into_iter().flatten());
        let mut own: BTreeMap<PackId, u64> = BTreeMap::new();
        for page in &root.pages {
            let _ = self.roots.insert(page.hash);
            for (pack, bytes) in read_page(&context.repository, cluster, page).await?.packs {
                *own.entry(pack).or_default() += bytes;
            }
        }
        for (pack, bytes) in own {
            let most = self.packs.entry(pack).or_default();
            *most = (*most).max(bytes);
        }
        Ok(())
    }
}
