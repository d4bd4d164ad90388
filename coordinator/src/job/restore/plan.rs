//! Planning a restore. The dry run prints this very value; the job carries out this very value.

use std::sync::Arc;

use futures::FutureExt;
use tidemark_common::glob::KeyFilter;
use tidemark_common::select::Selection;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::ledger::Backup;
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Error, NodeName, Result, SlotSet, Timestamp};

use super::kept::Takes;
use super::moving::settle;
use super::options::selection;
use super::request::{LATEST, RestoreRequest, source};
use super::share::Share;
use super::shares::{Shares, shares};
use super::types::{Taker, Types};
use crate::clones;
use crate::context::Context;
use crate::job::backup::tiling;
use crate::job::damage::{Damage, PartSet};
use crate::job::inspect::{Depth, Packs, Scope, inspect};
use crate::log::LogParts;
use crate::repository::{Ledger, Manifest, Repository};
use crate::serve::ServedLog;

/// Throughput assumed for the time estimate until a fleet's own is known, bytes a second and node.
const ASSUMED_RATE: u64 = 100 << 20;
/// Role of a node that follows another one.
const REPLICA: &str = "replica";

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
    /// The time that is restored, a raw timestamp, where it is not the cut; else 0.
    #[serde(default)]
    pub at: u64,
    /// Segments of the log that are read for it.
    #[serde(default)]
    pub log_segments: u64,
    /// Their bytes that are read.
    #[serde(default)]
    pub log_bytes: u64,
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
    /// What will be missing, as far as it is known without reading the packs; only a salvage goes on with any.
    #[serde(default)]
    pub missing: Damage,
    /// What will not be as it was.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What the job reads.
    #[serde(skip)]
    #[schema(ignore)]
    pub(super) sources: Option<Sources>,
}

impl RestorePlan {
    /// The request with the very backup that was planned, whatever `latest` means by the time it runs.
    pub fn pinned(&self) -> RestoreRequest {
        let at = (self.at > 0).then_some(self.at);
        RestoreRequest { backup: self.backup.to_string(), at, ..self.request.clone() }
    }

    /// The timestamp of the state that is restored.
    pub fn state(&self) -> Timestamp {
        Timestamp(self.at.max(self.cut))
    }

    /// What the target with this number is to load; `None` for a plan that was read from its printed form.
    pub fn share(&self, target: usize) -> Option<Share> {
        Some(self.sources.as_ref()?.share(target, &self.targets.get(target)?.slots))
    }
}

/// What the job reads; neither printed nor sent.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    pub(super) manifest: Manifest,
    /// For each target: the pages in which it has parts.
    pages: Vec<Vec<u32>>,
    /// Parts that are damaged and are left out.
    pub(super) bad: Arc<PartSet>,
    /// Parts of which no slot is wanted.
    unwanted: Arc<PartSet>,
    /// Which records are wanted.
    pub(super) selection: Selection,
    /// Whether all values can be loaded where they go.
    pub(super) types: Arc<Types>,
    /// What the backup keeps beside its records.
    pub(super) takes: Arc<Takes>,
    /// The log that is laid over it.
    pub(super) log: Option<Arc<LogParts>>,
    /// How it is given out: known when the job has looked at it.
    pub(super) served: Option<ServedLog>,
    /// What will not be as it was, known since then.
    pub(super) told: Vec<String>,
}

impl Sources {
    /// The share of the target with this number, which takes `slots`.
    pub(super) fn share(&self, target: usize, slots: &SlotSet) -> Share {
        let left_out = vec![self.bad.clone(), self.unwanted.clone()];
        Share::new(&self.manifest, self.pages[target].clone(), slots, left_out)
    }

    /// Number of the parts that are read.
    pub(super) fn parts(&self) -> u64 {
        let read = |number: &u32| !self.bad.contains(*number) && !self.unwanted.contains(*number);
        (0..self.manifest.parts()).filter(read).count() as u64
    }
}

/// A node that could take a share of a backup, as it describes itself.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The node.
    pub node: NodeName,
    /// Its engine.
    pub engine: String,
    /// Version of its engine or server.
    pub engine_version: String,
    /// Whether it follows another node and takes no writes.
    pub replica: bool,
    /// Slots that it owns; in a plan, those whose records it takes.
    pub slots: SlotSet,
    /// Slots that are moving to or from it.
    pub moving: SlotSet,
    /// Records that it holds now.
    pub records: u64,
}

/// Opens the manifest of a backup. `Damaged` when it cannot be read: then nothing can be restored from that backup.
pub async fn open_manifest(repository: &Repository, cluster: &ClusterName, backup: &Backup) -> Result<Manifest> {
    let named = |e: Error| e.context(format_args!("backup {}", backup.job));
    let manifest = Manifest::open(repository, cluster, &backup.root).await.map_err(named)?;
    let root = manifest.root();
    if root.cut == backup.cut && root.job == backup.job && root.cluster == *cluster {
        return Ok(manifest);
    }
    let path = paths::root(cluster, &backup.root);
    Err(named(Error::damaged(format!("{path}: is not the manifest that the ledger names"))))
}

/// Plans a restore. Errors are about the request; what stands against running it is listed in the plan.
pub async fn plan(context: &Context, request: RestoreRequest) -> Result<RestorePlan> {
    plan_as(context, request, false).await
}

/// Plans a restore that was begun: what empty nodes hold by now is what it has loaded.
pub(super) async fn plan_again(context: &Context, request: RestoreRequest) -> Result<RestorePlan> {
    plan_as(context, request, true).await
}

/// The nodes of a cluster, as they describe themselves now.
pub(super) async fn candidates(context: &Context, target: &ClusterName) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for (member, _) in context.fleet.members(Some(target)) {
        let described = context.fleet.describe(&member, context.head(JobId::default(), 0)).await?;
        found.push(Candidate {
            node: member.node,
            engine: described.engine,
            engine_version: described.engine_version,
            replica: described.ownership.role == REPLICA,
            slots: described.ownership.slots,
            moving: described.ownership.moving,
            records: described.records,
        });
    }
    Ok(found)
}

async fn plan_as(context: &Context, request: RestoreRequest, begun: bool) -> Result<RestorePlan> {
    let _ = KeyFilter::new(&request.keys)?;
    let ledger = Ledger::load(&context.repository, &request.cluster).await?;
    if let Err(e) = context.history.check(&request.cluster, &ledger) {
        // Who names a backup gets that one; what was the latest nobody knows.
        if request.backup == LATEST {
            return Err(e.context("which backup is the latest? Name one by its id"));
        }
        tracing::warn!(error = %e.report(), "planning a restore all the same");
    }
    let (record, point) = source(&context.repository, &ledger, &request).await?;
    let manifest = open_manifest(&context.repository, &request.cluster, &record.backup).await?;
    let target = request.target.clone().unwrap_or_else(|| request.cluster.clone());
    let mut candidates = candidates(context, &target).await?;
    if begun && !request.in_place {
        candidates.iter_mut().for_each(|c| c.records = 0);
    }
    let slots_per_region = manifest.root().slots_per_region;
    let nodes: Vec<_> = candidates.iter().map(|c| (c.node.clone(), c.engine.clone())).collect();
    let mut plan = plan_onto(manifest, candidates, request).await?;
    if !begun {
        plan.problems.extend(clones::in_the_way(context, &target, &nodes).await);
    }
    if let Some(point) = point {
        let log = point.log(&context.repository, &plan.request.cluster, slots_per_region).boxed().await?;
        (plan.at, plan.log_segments, plan.log_bytes) = (point.at.0, point.segments(), log.bytes);
        plan.stored_bytes += log.bytes;
        if let Some(sources) = &mut plan.sources {
            sources.log = Some(log);
        }
    }
    Ok(plan)
}

/// Plans a restore of `manifest` onto these nodes. The manifest is read page by page.
pub async fn plan_onto(
    manifest: Manifest,
    candidates: Vec<Candidate>,
    request: RestoreRequest,
) -> Result<RestorePlan> {
    let root = manifest.root();
    // They get what their primaries load.
    let (replicas, mut candidates): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|c| c.replica);
    let selection = selection(&request, &root.engine)?;
    let mut problems: Vec<String> = candidates
        .iter()
        .filter(|c| !fits(&c.engine, &root.engine))
        .map(|c| format!("node {} is {}, the backup is of {}", c.node, c.engine, root.engine))
        .collect();
    let (unsettled, mut warnings) = settle(&mut candidates);
    problems.extend(unsettled);
    let packs = Packs::list(manifest.repository(), manifest.cluster()).await?;
    let scope = Scope { slots: selection.slots.clone(), ..Scope::default() };
    let found = inspect(&manifest, &packs, Depth::Objects, scope, None).boxed().await?;
    if !request.salvage {
        found.whole().map_err(|e| refused(&manifest, e))?;
    }
    let types = types(&manifest, &candidates, &selection);
    let (bad, mut missing) = (Arc::new(found.bad), found.damage);
    let takes = Takes::read(&manifest).await?;
    warnings.extend(takes.warnings.iter().cloned());
    note_lost(&mut missing, &takes);
    if request.with_users {
        problems.extend(takes.problem(root.job));
    }
    let Shares { nodes: targets, pages, unwanted } = shares(&manifest, &candidates, &bad, &selection.slots).await?;
    let unwanted = Arc::new(unwanted);
    let owners = targets.iter().map(|t| (t.node.as_str(), &t.slots));
    match targets.is_empty() {
        true if replicas.is_empty() => {
            let target = request.target.as_ref().unwrap_or(&request.cluster);
            problems.push(format!("no node of cluster {target} is connected"));
        }
        _ => problems.extend(tiling::slots(owners).err().map(|e| e.message().to_owned())),
    }
    if !problems.is_empty() {
        let told = |c: &Candidate| {
            format!("the server of node {} is a read-only replica: an agent beside its primary is needed", c.node)
        };
        problems.extend(replicas.iter().map(told));
    }
    let full: Vec<_> = targets.iter().filter(|t| t.present_records > 0).map(|t| t.node.as_str()).collect();
    if !full.is_empty() && !request.in_place {
        problems.push(format!("{} hold data: empty them or restore with --in-place", full.join(", ")));
    }
    let most = targets.iter().map(|t| t.bytes).max().unwrap_or(0);
    Ok(RestorePlan {
        backup: root.job,
        cut: root.cut.0,
        at: 0,
        log_segments: 0,
        log_bytes: 0,
        source_nodes: root.nodes.len() as u64,
        records: root.totals.records,
        bytes: root.totals.live_bytes,
        stored_bytes: root.totals.stored_bytes,
        estimated_seconds: most.div_ceil(ASSUMED_RATE),
        targets,
        problems,
        missing,
        warnings,
        request,
        sources: Some(Sources {
            manifest,
            pages,
            bad,
            unwanted,
            selection,
            types,
            takes: Arc::new(takes),
            log: None,
            served: None,
            told: Vec::new(),
        }),
    })
}

/// What looks at the types of values on their way to `candidates`.
fn types(manifest: &Manifest, candidates: &[Candidate], selection: &Selection) -> Arc<Types> {
    let taker = |c: &Candidate| {
        let (node, slots, server) = (c.node.clone(), c.slots.clone(), c.engine_version.clone());
        Taker { node, slots, server }
    };
    let sources = manifest.root().nodes.iter().map(|node| node.engine_version.clone()).collect();
    Types::new(candidates.iter().map(taker).collect(), sources, selection.clone())
}

/// Kept things that cannot be read stop no restore: they are missing.
pub(super) fn note_lost(missing: &mut Damage, takes: &Takes) {
    if let Some((object, cause)) = &takes.lost {
        let cause = format!("libraries of functions, users and settings cannot be read: {cause}");
        missing.add(object.clone(), 0, &SlotSet::EMPTY, 1, cause);
    }
}

/// The refusal of a damaged backup.
pub(super) fn refused(manifest: &Manifest, error: Error) -> Error {
    let told =
        "it is not restored (nothing was touched; a salvage restores what is healthy and leaves the rest out)";
    error.context(format_args!("backup {}: {told}", manifest.root().job))
}

/// Whether records of a backup of `source` can be loaded by `engine`. The embedded store and the reference store in
/// memory hold the same records.
fn fits(engine: &str, source: &str) -> bool {
    let embedded_like = |engine: &str| matches!(engine, "embedded" | "memory");
    engine == source || (embedded_like(engine) && embedded_like(source))
}
