//! Planning a restore. The dry run prints this very value; the job carries out this very value.

use futures::{FutureExt, StreamExt, TryStreamExt};
use tidemark_common::glob::KeyFilter;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::manifest::{PartEntry, Root};
use tidemark_proto::{ClusterName, Error, NodeName, Result, SlotSet};

use crate::context::Context;
use crate::fleet::Member;
use crate::job::backup::tiling;
use crate::repository::{BackupRecord, Ledger, read_page, read_root};

/// Throughput assumed for the time estimate until a fleet's own is known, bytes a second and node.
const ASSUMED_RATE: u64 = 100 << 20;
/// Disk that a loaded byte takes while old and new data lie side by side, in percent.
const DISK_PERCENT: u64 = 130;
/// Pages read at once.
const PARALLEL_PAGES: usize = 4;

/// A restore as it is asked for.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// Cluster whose backup is restored.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// The backup, by id or a unique beginning of it; `latest` is the newest.
    pub backup: String,
    /// Cluster to restore onto; the same where absent.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    pub target: Option<ClusterName>,
    /// Present data may be replaced.
    #[serde(default)]
    pub in_place: bool,
    /// Key globs; `!` in front excludes; empty takes all.
    #[serde(default)]
    pub keys: Vec<String>,
    /// Do not back up the present state before it is replaced in place.
    #[serde(default)]
    pub no_safety_backup: bool,
}

/// What a node takes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct PlanNode {
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeName,
    /// Slots that it will hold.
    #[schema(value_type = String)]
    pub slots: SlotSet,
    /// Parts that it reads.
    pub parts: u64,
    /// Bytes of keys and values that it loads, estimated where a part is split over nodes.
    pub bytes: u64,
    /// Disk that it needs beside the present data, estimated.
    pub disk_bytes: u64,
    /// Records that it holds now.
    pub present_records: u64,
}

/// The plan of a restore.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct RestorePlan {
    /// What was asked for.
    pub request: RestoreRequest,
    /// The backup.
    #[schema(value_type = String)]
    pub backup: JobId,
    /// Its cut, a raw timestamp.
    pub cut: u64,
    /// Nodes of the backup.
    pub source_nodes: u64,
    /// Nodes that take it.
    pub targets: Vec<PlanNode>,
    /// Records of the backup.
    pub records: u64,
    /// Bytes of keys and values of the backup.
    pub bytes: u64,
    /// Bytes that are read from the object store (more where a part goes to several nodes).
    pub stored_bytes: u64,
    /// Seconds, estimated.
    pub estimated_seconds: u64,
    /// What stands against it; empty when it can run.
    pub problems: Vec<String>,
    /// Part entries and root, for the job.
    #[serde(skip)]
    #[schema(ignore)]
    pub(super) sources: Option<Sources>,
}

impl RestorePlan {
    /// The request with the very backup that was planned, whatever `latest` means by the time it runs.
    pub fn pinned(&self) -> RestoreRequest {
        RestoreRequest { backup: self.backup.to_string(), ..self.request.clone() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Sources {
    pub(super) parts: Vec<PartEntry>,
}

/// Finds a backup by `latest`, its id, or a unique beginning of it.
pub fn find_backup(ledger: &Ledger, wanted: &str) -> Result<BackupRecord> {
    let mut backups = ledger.backups();
    if wanted == "latest" {
        return backups.pop().ok_or_else(|| Error::not_found("the cluster has no backup"));
    }
    backups.retain(|b| !wanted.is_empty() && b.backup.job.to_string().starts_with(wanted));
    match backups.len() {
        0 => Err(Error::not_found(format!("no backup `{wanted}`: see `tidemark backup list`"))),
        1 => Ok(backups.remove(0)),
        n => Err(Error::request(format!("`{wanted}` fits {n} backups: give more of the id"))),
    }
}

/// All part entries of a backup.
pub async fn read_parts(context: &Context, cluster: &ClusterName, root: &Root) -> Result<Vec<PartEntry>> {
    let pages: Vec<_> = futures::stream::iter(root.pages.clone())
        .map(|page| {
            let (repository, cluster) = (context.repository.clone(), cluster.clone());
            async move { read_page(&repository, &cluster, &page).await }.boxed()
        })
        .buffered(PARALLEL_PAGES)
        .try_collect()
        .await?;
    Ok(pages.into_iter().flat_map(|p| p.parts).collect())
}

/// Plans a restore. Errors are about the request; what stands against running it is listed in the plan.
pub async fn plan(context: &Context, request: RestoreRequest) -> Result<RestorePlan> {
    let _ = KeyFilter::new(&request.keys)?;
    let ledger = Ledger::load(&context.repository, &request.cluster).await?;
    let record = find_backup(&ledger, &request.backup)?;
    let root = read_root(&context.repository, &request.cluster, &record.backup.root).await?;
    let parts = read_parts(context, &request.cluster, &root).await?;
    let target = request.target.clone().unwrap_or_else(|| request.cluster.clone());
    let mut problems = Vec::new();
    let mut targets = Vec::new();
    for (member, _) in context.fleet.members(Some(&target)) {
        targets.push(plan_node(context, &member, &parts, &root, &mut problems).await?);
    }
    let owners = targets.iter().map(|t| (t.node.as_str(), &t.slots));
    match targets.is_empty() {
        true => problems.push(format!("no node of cluster {target} is connected")),
        false => problems.extend(tiling::slots(owners).err().map(|e| e.message().to_owned())),
    }
    let full: Vec<_> = targets.iter().filter(|t| t.present_records > 0).map(|t| t.node.as_str()).collect();
    if !full.is_empty() && !request.in_place {
        problems.push(format!("{} hold data: empty them or restore with --in-place", full.join(", ")));
    }
    let most = targets.iter().map(|t| t.bytes).max().unwrap_or(0);
    Ok(RestorePlan {
        backup: record.backup.job,
        cut: root.cut.0,
        source_nodes: root.nodes.len() as u64,
        records: root.totals.records,
        bytes: root.totals.live_bytes,
        stored_bytes: root.totals.stored_bytes,
        estimated_seconds: most.div_ceil(ASSUMED_RATE),
        targets,
        problems,
        request,
        sources: Some(Sources { parts }),
    })
}

async fn plan_node(
    context: &Context,
    member: &Member,
    parts: &[PartEntry],
    root: &Root,
    problems: &mut Vec<String>,
) -> Result<PlanNode> {
    let description = context.fleet.describe(member, context.head(JobId::default(), 0)).await?;
    if description.engine != root.engine && !(embedded_like(&description.engine) && embedded_like(&root.engine)) {
        problems.push(format!("node {} is {}, the backup is of {}", member.node, description.engine, root.engine));
    }
    let slots = description.ownership.slots.clone();
    let (mut count, mut bytes) = (0, 0);
    for part in parts {
        let share = part.slots.intersect(&slots);
        if !share.is_empty() {
            count += 1;
            bytes += part.live_bytes * u64::from(share.len()) / u64::from(part.slots.len().max(1));
        }
    }
    Ok(PlanNode {
        node: member.node.clone(),
        slots,
        parts: count,
        bytes,
        disk_bytes: bytes * DISK_PERCENT / 100,
        present_records: description.records,
    })
}

/// The embedded store and the reference store in memory hold the same records.
fn embedded_like(engine: &str) -> bool {
    matches!(engine, "embedded" | "memory")
}
