//! Status and clusters.

use axum::Json;
use axum::extract::State;
use tidemark_proto::wire::control::Description;
use tidemark_proto::{ClusterName, Error, SlotSet};

use super::problem::{ApiError, Path, Problem};
use crate::catalog::{self, BackupItem};
use crate::context::Shared;
use crate::fleet::{Connected, Member};
use crate::job::backup::REPLICA;
use crate::job::{JobInfo, JobState};
use crate::log::{self, PitrStatus};
use crate::repository::Ledger;

/// How the coordinator stands.
#[derive(Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Status {
    /// Build.
    pub version: String,
    /// Name of the coordinator.
    pub name: String,
    /// Its epoch.
    pub epoch: u64,
    /// Why it may write no more; empty while it may.
    #[serde(default)]
    pub fenced: String,
    /// When it started, milliseconds since 1970.
    pub started_millis: u64,
    /// Its clock, a raw timestamp.
    pub now: u64,
    /// URL of the repository.
    pub repository: String,
    /// Clusters that are connected or have backups.
    pub clusters: Vec<ClusterItem>,
    /// Jobs at work.
    pub running_jobs: Vec<JobInfo>,
}

/// A cluster in a list.
#[derive(Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct ClusterItem {
    /// Name.
    pub cluster: String,
    /// Engine, empty while unknown.
    pub engine: String,
    /// Connected nodes.
    pub connected: u64,
    /// Nodes that the policy asks for.
    pub expected: u64,
    /// `available`, `restoring`, `degraded` (slots of nodes that are away are missing) or `away` (none is connected).
    pub state: String,
    /// Number of backups.
    pub backups: u64,
    /// Cut of the newest backup, a raw timestamp; 0 for none.
    pub last_cut: u64,
}

/// A node.
#[derive(Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct NodeItem {
    /// Name.
    pub node: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Its agent's build.
    pub build: String,
    /// `available`, `restoring` or empty.
    pub state: String,
    /// `primary`, `replica` or empty. Replicas take no part in backups.
    #[serde(default)]
    pub role: String,
    /// The connected primary that a replica follows; empty where that is not known.
    #[serde(default)]
    pub follows: String,
    /// Slots, e.g. `0-5460`.
    pub slots: String,
    /// Where clients of the store reach it.
    pub data_address: String,
    /// Live records, estimated.
    pub records: u64,
    /// Live bytes, estimated.
    pub bytes: u64,
    /// Id of its data.
    pub incarnation: String,
}

/// A cluster in full.
#[derive(Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct ClusterDetail {
    /// As in the list.
    #[serde(flatten)]
    pub item: ClusterItem,
    /// Slots of one region; 0 before the first backup.
    pub slots_per_region: u16,
    /// Its nodes.
    pub nodes: Vec<NodeItem>,
    /// Its newest backup.
    pub last_backup: Option<BackupItem>,
    /// Its log and what can be restored from it; none where none was ever kept.
    #[serde(default)]
    pub pitr: Option<PitrStatus>,
}

fn node_item(member: &Member, agent: &Connected) -> NodeItem {
    let d = agent.description.as_ref();
    NodeItem {
        node: member.node.to_string(),
        connected: true,
        build: agent.build.clone(),
        state: d.map(|d| d.state.clone()).unwrap_or_default(),
        role: d.map(|d| d.ownership.role.clone()).unwrap_or_default(),
        follows: String::new(),
        slots: d.map(|d| d.ownership.slots.to_string()).unwrap_or_default(),
        data_address: d.map(|d| d.data_address.clone()).unwrap_or_default(),
        records: d.map_or(0, |d| d.records),
        bytes: d.map_or(0, |d| d.bytes),
        incarnation: d.map(|d| d.incarnation.to_string()).unwrap_or_default(),
    }
}

/// The connected primary whose history a replica has: both count in it.
fn followed(agent: &Connected, members: &[(Member, Connected)]) -> Option<String> {
    let own = agent.description.as_ref().filter(|d| d.ownership.role == REPLICA)?;
    let leads = |d: &Description| d.ownership.role != REPLICA && d.position.history == own.position.history;
    let primary = members.iter().find(|(_, a)| a.description.as_ref().is_some_and(leads))?;
    Some(primary.0.node.to_string())
}

async fn detail(context: &Shared, cluster: &ClusterName) -> Result<ClusterDetail, Error> {
    let members = context.fleet.members(Some(cluster));
    let ledger = Ledger::load(&context.repository, cluster).await?;
    if members.is_empty() && ledger.entries().is_empty() {
        return Err(Error::not_found(format!("no cluster {cluster} is connected or has backups")));
    }
    let policy = ledger.policy();
    let mut nodes: Vec<_> = members.iter().map(|(m, a)| node_item(m, a)).collect();
    for (node, (_, agent)) in nodes.iter_mut().zip(&members) {
        node.follows = followed(agent, &members).unwrap_or_default();
    }
    let expected: Vec<String> = policy.map(|p| p.nodes.clone()).unwrap_or_default();
    for name in &expected {
        if !nodes.iter().any(|n| n.node == *name) {
            nodes.push(away(name.clone()));
        }
    }
    let described = members.iter().find_map(|(_, a)| a.description.as_ref().map(|d| d.engine.clone()));
    let state = match () {
        () if members.is_empty() => "away",
        () if nodes.iter().any(|n| n.state == "restoring") => "restoring",
        // Nodes of the last backup that others have taken over from are not missed.
        () if nodes.iter().any(|n| !n.connected) && !complete(&members) => "degraded",
        () => "available",
    };
    let item = ClusterItem {
        cluster: cluster.to_string(),
        engine: described.or_else(|| policy.map(|p| p.engine.clone())).unwrap_or_default(),
        connected: members.len() as u64,
        expected: expected.len().max(members.len()) as u64,
        state: state.into(),
        backups: ledger.backups().len() as u64,
        last_cut: ledger.backups().last().map_or(0, |b| b.backup.cut.0),
    };
    let slots_per_region = policy.map_or(0, |p| p.slots_per_region);
    Ok(ClusterDetail { item, slots_per_region, nodes, last_backup: None, pitr: None })
}

/// Whether the connected nodes own every slot.
fn complete(members: &[(Member, Connected)]) -> bool {
    let slots = members.iter().filter_map(|(_, a)| a.description.as_ref()).map(|d| &d.ownership.slots);
    slots.fold(SlotSet::EMPTY, |all, s| all.union(s)) == SlotSet::all()
}

fn away(node: String) -> NodeItem {
    NodeItem {
        node,
        connected: false,
        build: String::new(),
        state: String::new(),
        role: String::new(),
        follows: String::new(),
        slots: String::new(),
        data_address: String::new(),
        records: 0,
        bytes: 0,
        incarnation: String::new(),
    }
}

/// Every cluster that is connected or has a ledger.
pub(crate) async fn items(context: &Shared) -> Result<Vec<ClusterItem>, Error> {
    let mut names = context.repository.clusters().await?;
    names.extend(context.fleet.members(None).into_iter().map(|(m, _)| m.cluster));
    names.sort();
    names.dedup();
    let mut out = Vec::new();
    for name in names {
        match detail(context, &name).await {
            Ok(detail) => out.push(detail.item),
            // A folder without a ledger is no cluster.
            Err(e) if e.kind() == tidemark_proto::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

/// How the coordinator stands
#[utoipa::path(get, path = "/status", responses((status = 200, body = Status), (status = "default", body = Problem)))]
pub(super) async fn status(State(context): State<Shared>) -> Result<Json<Status>, ApiError> {
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        name: context.config.name.clone(),
        epoch: context.epoch,
        fenced: context.fenced.get().cloned().unwrap_or_default(),
        started_millis: context.started_millis,
        now: context.clock.now().0,
        repository: context.repository.store().url().into(),
        clusters: items(&context).await?,
        running_jobs: context.jobs.list().into_iter().filter(|j| j.state == JobState::Running).collect(),
    }))
}

/// All clusters
#[utoipa::path(get, path = "/clusters", responses((status = 200, body = Vec<ClusterItem>), (status = "default", body = Problem)))]
pub(super) async fn list(State(context): State<Shared>) -> Result<Json<Vec<ClusterItem>>, ApiError> {
    Ok(Json(items(&context).await?))
}

/// What a node holds that only the end of a job takes away.
#[derive(Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct NodeJobs {
    /// The node.
    pub node: String,
    /// Backups whose pins or indexes it keeps.
    pub backups: Vec<String>,
    /// The restore that it is in.
    pub restores: Vec<String>,
}

/// What jobs left open on the connected nodes of a cluster
#[utoipa::path(get, path = "/clusters/{cluster}/open-jobs", params(("cluster" = String, Path)),
    responses((status = 200, body = Vec<NodeJobs>), (status = "default", body = Problem)))]
pub(super) async fn open_jobs(
    State(context): State<Shared>,
    Path(cluster): Path<ClusterName>,
) -> Result<Json<Vec<NodeJobs>>, ApiError> {
    let mut nodes = Vec::new();
    for (member, _) in context.fleet.members(Some(&cluster)) {
        let open = crate::job::restore::open_jobs(&context, &member).await?;
        let names = |jobs: Vec<tidemark_proto::id::JobId>| jobs.iter().map(ToString::to_string).collect();
        nodes.push(NodeJobs {
            node: member.node.to_string(),
            backups: names(open.backups),
            restores: names(open.restores),
        });
    }
    Ok(Json(nodes))
}

/// One cluster in full
#[utoipa::path(get, path = "/clusters/{cluster}", params(("cluster" = String, Path)),
    responses((status = 200, body = ClusterDetail), (status = "default", body = Problem)))]
pub(super) async fn show(
    State(context): State<Shared>,
    Path(cluster): Path<ClusterName>,
) -> Result<Json<ClusterDetail>, ApiError> {
    for (member, _) in context.fleet.members(Some(&cluster)) {
        // Fresh where the agent answers, the last answer where it does not.
        let _ = context.fleet.describe(&member, context.head(Default::default(), 0)).await;
    }
    let mut detail = detail(&context, &cluster).await?;
    if detail.item.backups > 0 {
        let newest = catalog::list(&context, &cluster).await?;
        detail.last_backup = newest.into_iter().find(|b| b.state == "complete");
    }
    if context.logs.is_running(&cluster) || catalog::has_log(&context.repository, &cluster).await? {
        detail.pitr = Some(log::status(&context, &cluster).await?);
    }
    Ok(Json(detail))
}
