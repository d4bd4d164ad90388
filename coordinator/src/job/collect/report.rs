//! What a collection came to.

use std::collections::BTreeMap;

use tidemark_proto::ClusterName;

use super::live::Live;
use super::sweep::{Garbage, Listing};

/// What a collection did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct CollectReport {
    /// The cluster.
    pub cluster: String,
    /// Nothing was touched.
    pub dry_run: bool,
    /// Backups that stand.
    pub backups: u64,
    /// Deleted backups that are kept because somebody reads or builds on them.
    pub held_backups: u64,
    /// Jobs whose end the ledger does not know: what they stored is kept.
    pub open_jobs: u64,
    /// Packs that go.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// Manifest roots and pages that go.
    pub manifest_objects: u64,
    /// Their bytes.
    pub manifest_bytes: u64,
    /// Job records that go.
    pub job_records: u64,
    /// Objects with events of jobs that are kept no longer.
    pub event_objects: u64,
    /// Log segments that go: no backup that stands leads to what is in them.
    #[serde(default)]
    pub log_segments: u64,
    /// Their bytes.
    #[serde(default)]
    pub log_bytes: u64,
    /// Unfinished files of dead writers that went (a folder as repository only).
    pub staged_files: u64,
    /// Bytes of packs that stay.
    pub kept_bytes: u64,
    /// Bytes in packs that stay which nobody needs: they go when the rest of their pack does.
    pub dead_bytes: u64,
}

impl CollectReport {
    pub(super) fn of(
        cluster: &ClusterName,
        dry_run: bool,
        listing: &Listing,
        live: &Live,
        garbage: &Garbage,
    ) -> Self {
        let kept: BTreeMap<_, _> = listing.packs.iter().filter(|(id, _)| !garbage.packs.contains_key(id)).collect();
        // A pack that is being written now is no one's yet: all of it counts as needed.
        let dead = |(id, size): (&&_, &&u64)| live.packs.get(id).map_or(0, |needed| size.saturating_sub(*needed));
        Self {
            cluster: cluster.to_string(),
            dry_run,
            backups: live.backups,
            held_backups: live.held,
            open_jobs: live.open_jobs.len() as u64,
            packs: garbage.packs.len() as u64,
            pack_bytes: garbage.packs.values().sum(),
            manifest_objects: garbage.roots.len() as u64,
            manifest_bytes: garbage.roots.values().sum(),
            job_records: garbage.records.len() as u64,
            event_objects: garbage.events.len() as u64,
            log_segments: 0,
            log_bytes: 0,
            staged_files: 0,
            kept_bytes: kept.values().copied().sum(),
            dead_bytes: kept.iter().map(dead).sum(),
        }
    }
}
