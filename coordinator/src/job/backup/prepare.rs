//! Before and after a backup job: what it works with, and the record of its failure.

use std::collections::HashSet;

use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::ledger::{Failed, Policy};
use tidemark_proto::{Error, NodeName, Result};

use super::BackupRequest;
use super::entry::{FailureEntry, append_failure};
use super::members::{Preference, Team, gather};
use super::parents::Parent;
use crate::context::{Context, Shared};
use crate::job::Job;
use crate::repository::Ledger;

/// What a backup works with.
pub(super) struct Prepared {
    /// The nodes that take part.
    pub(super) nodes: Vec<NodeName>,
    /// Where their agents run.
    pub(super) hosts: Vec<String>,
    /// Connected nodes that take no part, with the reason.
    pub(super) others: Vec<String>,
    /// Those of the nodes that stand in for their primary.
    pub(super) stand_ins: HashSet<NodeName>,
    /// How the cluster is protected from this backup on.
    pub(super) policy: Policy,
    /// The backup whose runs it builds on.
    pub(super) parent: Option<Parent>,
}

/// Asks the nodes, reads policy and parent.
pub(super) async fn prepare(
    context: &Shared,
    job: &Job,
    request: &BackupRequest,
    ledger: &Ledger,
) -> Result<Prepared> {
    job.phase("reading the ledger");
    let parent = Parent::newest(&context.repository, &request.cluster, ledger).await?;
    let parent = parent.filter(|_| !request.full);
    let preference = Preference {
        // Whose log goes on must take part: the cut leaves its mark there.
        before: context.logs.lanes(&request.cluster),
        parent: parent.as_ref().map(Parent::nodes).unwrap_or_default(),
        replicas: context.config.backup.prefer_replicas,
    };
    let team = gather(context, job.id(), &request.cluster, &preference).await?;
    let (engine, names) = (team.engine.clone(), team_names(&team));
    let slots_per_region = match ledger.policy() {
        Some(p) if p.engine != engine => {
            return Err(Error::conflict(format!(
                "cluster {} was {} and is now {engine}",
                request.cluster, p.engine
            )));
        }
        Some(p) => p.slots_per_region,
        None => context.config.backup.slots_per_region,
    };
    let policy = Policy { engine, slots_per_region, nodes: names };
    let Team { nodes, hosts, others, bytes, stand_ins, .. } = team;
    if parent.is_none() {
        // A full backup reads about what the nodes hold; what a delta reads is not known before.
        job.update(|i| i.progress.total_bytes = bytes);
    }
    Ok(Prepared { nodes, hosts, others, stand_ins, policy, parent })
}

/// The nodes of a team as a policy names them.
pub(super) fn team_names(team: &Team) -> Vec<String> {
    team.nodes.iter().map(NodeName::to_string).collect()
}

/// Writes the failure of a job (its id and start, milliseconds since 1970) into the ledger, so that history tells of it.
/// Answers the root of the backup that the job made after all, when the ledger knows of one; see [`FailureEntry::Settled`].
pub async fn record_failure(
    context: &Context,
    ledger: &mut Ledger,
    (job, started_millis): (JobId, u64),
    manual: bool,
    error: &Error,
) -> Option<Hash> {
    let code = error.kind().code();
    let failed = Failed { job, started_millis, code, reason: error.report(), manual: u8::from(manual) };
    match append_failure(ledger, (context.epoch, context.now_millis()), failed).await {
        FailureEntry::Written => {
            crate::telemetry::note_ledger(ledger.cluster(), ledger);
            None
        }
        FailureEntry::Settled(root) => root,
        FailureEntry::Lost(e) => {
            tracing::error!(error = %e.report(), "the failure of a backup could not be recorded");
            None
        }
    }
}
