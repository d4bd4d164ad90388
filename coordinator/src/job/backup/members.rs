//! Who takes part in a backup: the connected nodes are asked what they are and what they could stand in for; [`choose`] has
//! the rules.

use std::collections::HashSet;
use std::time::Duration;

use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::Description;
use tidemark_proto::{ClusterName, Error, NodeName, Result};

use super::choose::choose;
use super::core::needs_base;
use crate::context::Context;
use crate::fleet::Member;
use crate::job::Job;

/// Wait before the nodes are asked again, while slots have no owner that is connected.
const GATHER_AGAIN: Duration = Duration::from_secs(1);

/// State of a node that can be backed up.
pub(super) const AVAILABLE: &str = "available";
/// Role of a node that follows another one.
pub const REPLICA: &str = "replica";

/// The nodes of a backup.
#[derive(Debug, Default)]
pub(crate) struct Team {
    /// Those that take part.
    pub(crate) nodes: Vec<NodeName>,
    /// Versions of their stores.
    pub(crate) versions: Vec<String>,
    /// Primaries without slots, and the versions of their stores: slots may move to them.
    pub(crate) empty: Vec<(NodeName, String)>,
    /// Where their agents run.
    pub(crate) hosts: Vec<String>,
    /// Those that are connected and take no part, with the reason.
    pub(crate) others: Vec<String>,
    /// Their engine.
    pub(crate) engine: String,
    /// Live bytes that they hold together, estimated.
    pub(crate) bytes: u64,
    /// Whether they are available and their slots are all slots, each once.
    pub(crate) whole: bool,
    /// Those of the nodes that stand in for the primary they follow.
    pub(crate) stand_ins: HashSet<NodeName>,
}

/// Who is asked first where several nodes can be backed up for the same slots.
#[derive(Debug, Default)]
pub(crate) struct Preference {
    /// Nodes of the round before: their bases may stand.
    pub(crate) before: Vec<NodeName>,
    /// Nodes of the parent backup: they know what has changed since.
    pub(crate) parent: Vec<NodeName>,
    /// Then replicas, so that primaries need not fork; else primaries.
    pub(crate) replicas: bool,
}

/// Asks all connected nodes of the cluster what they are, and chooses.
pub(crate) async fn gather(
    context: &Context,
    job: JobId,
    cluster: &ClusterName,
    preference: &Preference,
) -> Result<Team> {
    let members = context.fleet.members(Some(cluster));
    if members.is_empty() {
        return Err(Error::conflict(format!("no node of cluster {cluster} is connected")));
    }
    let asked = members.iter().map(|(member, _)| context.fleet.describe(member, context.head(job, 0)));
    let answers = futures::future::join_all(asked).await;
    let answers: Vec<_> = members.into_iter().map(|(member, _)| member.node).zip(answers).collect();
    let sources = sources(context, job, cluster, &answers).await;
    let mut team = choose(cluster, answers, sources, preference)?;
    let host = |node: &NodeName| context.fleet.host(&Member { cluster: cluster.clone(), node: node.clone() });
    team.hosts = team.nodes.iter().map(host).collect();
    Ok(team)
}

/// What the nodes that are no primaries could be backed up for, where the engine has such nodes.
async fn sources(
    context: &Context,
    job: JobId,
    cluster: &ClusterName,
    answers: &[(NodeName, Result<Description>)],
) -> Vec<(NodeName, Result<Description>)> {
    let moves = answers.iter().any(|(_, a)| a.as_ref().is_ok_and(|d| needs_base(&d.engine)));
    // Where nobody answers, it is the nodes' own answers that count.
    let asked = answers.iter().filter(|(_, a)| moves && a.as_ref().map_or(true, |d| d.ownership.role == REPLICA));
    let asked: Vec<&NodeName> = asked.map(|(node, _)| node).collect();
    let ask = asked.iter().map(|node| {
        let member = Member { cluster: cluster.clone(), node: (*node).clone() };
        async move { context.fleet.describe_source(&member, context.head(job, 0)).await }
    });
    let answers = futures::future::join_all(ask).await;
    asked.into_iter().cloned().zip(answers).collect()
}

/// As [`gather`], until the connected nodes own all slots or `patience` has passed: a failover or a move of slots takes a
/// while. Then as they are.
pub(super) async fn gather_whole(
    context: &Context,
    job: &Job,
    cluster: &ClusterName,
    preference: &Preference,
    patience: Duration,
) -> Result<Team> {
    let whole = async {
        loop {
            // What made the round end needs a moment, also where the nodes look whole: no round is spent on it at once.
            tokio::time::sleep(GATHER_AGAIN).await;
            match gather(context, job.id(), cluster, preference).await {
                Ok(team) if team.whole => return team,
                Ok(_) => {}
                Err(e) => tracing::debug!(error = %e.report(), "the nodes are not yet known again"),
            }
        }
    };
    tokio::select! {
        biased;
        () = job.cancel.cancelled() => Err(Error::cancelled("the backup was cancelled")),
        whole = tokio::time::timeout(patience, whole) => match whole {
            Ok(team) => Ok(team),
            Err(_) => gather(context, job.id(), cluster, preference).await,
        },
    }
}
