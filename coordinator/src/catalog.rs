//! The catalog: backups as people and programs see them, read from ledger and manifests.

use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::kept::KeptThings;
use tidemark_proto::stored::ledger::Body;
use tidemark_proto::stored::manifest::{Root, Totals};
use tidemark_proto::{ClusterName, Error, Result};

use crate::context::Context;
use crate::job::restore::find_backup;
use crate::job::{JobInfo, JobKind, JobState};
use crate::kept::KeptSummary;
use crate::repository::{Ledger, Repository, read_kept, read_root, read_root_with_kept};

/// A backup in a list.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct BackupItem {
    /// Its id: that of the job that made it.
    pub id: String,
    /// The cluster.
    pub cluster: String,
    /// `manual` or `automatic`.
    #[serde(rename = "type")]
    pub made: String,
    /// `complete`, `failed` or `running`.
    pub state: String,
    /// Its cut, a raw timestamp; 0 where there is none.
    pub cut: u64,
    /// When it began, milliseconds since 1970.
    pub started_millis: u64,
    /// How long it took, milliseconds.
    pub duration_millis: u64,
    /// Bytes of live keys and values.
    pub data_bytes: u64,
    /// Bytes that it added to the repository.
    pub new_bytes: u64,
    /// Live records.
    pub records: u64,
    /// Number of nodes.
    pub nodes: u64,
    /// Why it failed; empty otherwise.
    pub reason: String,
}

/// A node's share in a backup, with the evidence of the cut.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct BackupNode {
    /// The node.
    pub node: String,
    /// Id of its data.
    pub incarnation: String,
    /// Version of its engine.
    pub engine_version: String,
    /// Slots taken from it.
    pub slots: String,
    /// History that both positions count in.
    pub history: String,
    /// Position at the first reading.
    pub held_at: u64,
    /// Position at the second reading; equal, or there was no cut.
    pub sealed_at: u64,
    /// Highest timestamp that it had issued.
    pub max_timestamp: u64,
    /// How long its writes were held, microseconds.
    pub held_micros: u64,
}

/// One backup in full.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct BackupDetail {
    /// As in the list.
    #[serde(flatten)]
    pub item: BackupItem,
    /// Engine of the cluster.
    pub engine: String,
    /// Name and hash of its manifest root.
    pub root: String,
    /// Root of the backup it builds on; empty for none.
    pub parent: String,
    /// Attempt at the cut that held.
    pub cut_attempt: u32,
    /// Slots of one region.
    pub slots_per_region: u16,
    /// Bytes read from the stores.
    pub read_bytes: u64,
    /// Bytes that a restore reads from the repository.
    pub stored_bytes: u64,
    /// Parts: all.
    pub parts: u64,
    /// Parts written as full runs.
    pub full_parts: u64,
    /// Parts that got a delta run.
    pub delta_parts: u64,
    /// Parts in which nothing had changed.
    pub same_parts: u64,
    /// The nodes with their evidence.
    pub node_evidence: Vec<BackupNode>,
    /// What they keep beside their records; absent for stores that keep nothing of the kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptSummary>,
}

fn made(manual: u8) -> String {
    if manual != 0 { "manual".into() } else { "automatic".into() }
}

fn item(root: &Root) -> BackupItem {
    BackupItem {
        id: root.job.to_string(),
        cluster: root.cluster.to_string(),
        made: made(root.manual),
        state: "complete".into(),
        cut: root.cut.0,
        started_millis: root.started_millis,
        duration_millis: root.finished_millis.saturating_sub(root.started_millis),
        data_bytes: root.totals.live_bytes,
        new_bytes: root.totals.new_bytes,
        records: root.totals.records,
        nodes: root.nodes.len() as u64,
        reason: String::new(),
    }
}

/// A root in full.
pub fn detail(root: &Root, hash: &Hash, kept: Option<KeptSummary>) -> BackupDetail {
    let Totals { read_bytes, stored_bytes, parts, full_parts, delta_parts, same_parts, .. } = root.totals;
    let nodes = root.nodes.iter().map(|n| BackupNode {
        node: n.node.to_string(),
        incarnation: n.incarnation.to_string(),
        engine_version: n.engine_version.clone(),
        slots: n.slots.to_string(),
        history: n.held.position.history.clone(),
        held_at: n.held.position.offset,
        sealed_at: n.sealed.position.offset,
        max_timestamp: n.held.max_timestamp.0,
        held_micros: n.held_micros,
    });
    BackupDetail {
        item: item(root),
        engine: root.engine.clone(),
        root: hash.to_string(),
        parent: if root.parent == Hash::ZERO { String::new() } else { root.parent.to_string() },
        cut_attempt: root.cut_attempt,
        slots_per_region: root.slots_per_region,
        read_bytes,
        stored_bytes,
        parts,
        full_parts,
        delta_parts,
        same_parts,
        node_evidence: nodes.collect(),
        kept,
    }
}

/// A root in full, as JSON.
pub fn backup_value(root: &Root, hash: &Hash, kept: Option<&KeptThings>) -> serde_json::Value {
    serde_json::to_value(detail(root, hash, kept.map(KeptSummary::of))).unwrap_or_default()
}

/// All backups of a cluster, newest first: complete, failed and running.
pub async fn list(context: &Context, cluster: &ClusterName) -> Result<Vec<BackupItem>> {
    let mut items = recorded(&context.repository, cluster).await?;
    let running = |j: &JobInfo| j.kind == JobKind::Backup && j.state == JobState::Running && j.cluster == *cluster;
    // One whose entry stands already only tells the nodes.
    let entered: std::collections::HashSet<String> = items.iter().map(|i| i.id.clone()).collect();
    let open = context.jobs.list().into_iter().filter(running).filter(|j| !entered.contains(&j.id.to_string()));
    items.extend(open.map(|j| BackupItem {
        state: "running".into(),
        duration_millis: context.now_millis().saturating_sub(j.started_millis),
        data_bytes: j.progress.bytes,
        new_bytes: j.progress.wire_bytes,
        records: j.progress.records,
        ..blank(j.id, cluster, j.started_millis)
    }));
    items.sort_by_key(|i| std::cmp::Reverse(i.started_millis));
    Ok(items)
}

/// Backups that the repository knows of, newest first: complete and failed. Reads the ledger and the roots, no pages.
pub async fn recorded(repository: &Repository, cluster: &ClusterName) -> Result<Vec<BackupItem>> {
    let ledger = known(repository, cluster).await?;
    let mut items = Vec::new();
    for record in ledger.backups() {
        items.push(item(&read_root(repository, cluster, &record.backup.root).await?));
    }
    for (ended, failed) in ledger.failures() {
        items.push(BackupItem {
            made: made(failed.manual),
            state: "failed".into(),
            duration_millis: ended.saturating_sub(failed.started_millis),
            reason: failed.reason,
            ..blank(failed.job, cluster, failed.started_millis)
        });
    }
    items.sort_by_key(|i| std::cmp::Reverse(i.started_millis));
    Ok(items)
}

fn blank(id: JobId, cluster: &ClusterName, started_millis: u64) -> BackupItem {
    BackupItem {
        id: id.to_string(),
        cluster: cluster.to_string(),
        made: made(1),
        state: String::new(),
        cut: 0,
        started_millis,
        duration_millis: 0,
        data_bytes: 0,
        new_bytes: 0,
        records: 0,
        nodes: 0,
        reason: String::new(),
    }
}

/// Whether a log was ever kept for a cluster.
pub async fn has_log(repository: &Repository, cluster: &ClusterName) -> Result<bool> {
    Ok(Ledger::load(repository, cluster).await?.log_policy().is_some())
}

/// The ledger of a cluster that has one; `NotFound` otherwise.
pub async fn known(repository: &Repository, cluster: &ClusterName) -> Result<Ledger> {
    let ledger = Ledger::load(repository, cluster).await?;
    if ledger.entries().is_empty() {
        return Err(Error::not_found(format!("cluster {cluster} has never been backed up")));
    }
    Ok(ledger)
}

/// One backup in full, from ledger, root and kept things alone.
pub async fn show(repository: &Repository, cluster: &ClusterName, backup: &str) -> Result<BackupDetail> {
    let ledger = known(repository, cluster).await?;
    let record = find_backup(&ledger, backup)?;
    let (root, kept) = read_root_with_kept(repository, cluster, &record.backup.root).await?;
    let kept = match kept {
        None => None,
        // The rest of the backup is as good without it.
        Some(kept) => Some(match read_kept(repository, cluster, &kept).await {
            Ok(things) => KeptSummary::of(&things),
            Err(e) => KeptSummary::unreadable(e.report()),
        }),
    };
    Ok(detail(&root, &record.backup.root, kept))
}

/// Marks a backup as deleted: it is no restore point any more. What only it needs is garbage from then on.
pub async fn delete(context: &Context, cluster: &ClusterName, backup: &str) -> Result<BackupItem> {
    // Before the ledger is fenced: a name without a ledger must not get one.
    let _ = find_backup(&known(&context.repository, cluster).await?, backup)?;
    let mut ledger = context.ledger(cluster).await?;
    let record = find_backup(&ledger, backup)?;
    let root = read_root(&context.repository, cluster, &record.backup.root).await?;
    let job = record.backup.job;
    let body = Body::Delete(tidemark_proto::stored::ledger::Delete { job });
    let _ = ledger
        .append(context.epoch, context.now_millis(), &body, |seen| {
            let there = seen.backups().iter().any(|b| b.backup.job == job);
            if there { Ok(()) } else { Err(Error::not_found(format!("backup {job} was deleted meanwhile"))) }
        })
        .await?;
    crate::telemetry::note_ledger(cluster, &ledger);
    Ok(item(&root))
}
