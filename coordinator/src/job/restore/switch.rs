//! The switch of a restore: it only goes forward. Once the record of the switch is durable every node switches, however
//! often it or the coordinator is started anew meanwhile.

use std::time::Duration;

use tidemark_proto::id::JobId;
use tidemark_proto::stored::job::{RestoreEnded, RestoreSwitching, SwitchTarget};
use tidemark_proto::wire::control::{
    Done, ListJobs, OpenJobs, RestoreAbort, RestoreBegin, RestoreFinish, RestoreFinished, RestoreReady,
    RestoreVerified, RestoreVerify,
};
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result, Timestamp};

use super::begun::LeftRestore;
use super::kept::{Takers, takes_of};
use crate::context::{Context, Shared};
use crate::fleet::{DESCRIBE_DEADLINE, Member};
use crate::job::Job;
use crate::repository::{JobRecorder, Record};

/// Time for a node to open or drop its staging area.
pub(super) const BEGIN_DEADLINE: Duration = Duration::from_secs(60);
/// Time for a node to read everything back and switch.
pub(super) const FINISH_DEADLINE: Duration = Duration::from_secs(4 * 3600);
/// Attempts at a node's switch before the job ends; the node switches all the same when it comes back.
const ATTEMPTS: u32 = 10;
/// Wait between two attempts.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Which jobs are open on a node.
pub async fn open_jobs(context: &Context, member: &Member) -> Result<OpenJobs> {
    let head = context.head(JobId::default(), 0);
    context.fleet.command(member, head, &ListJobs {}, DESCRIBE_DEADLINE, |_| ()).await
}

/// Lets one node switch, or finds that it has. A node that is away is waited for.
pub async fn switch_node(
    context: &Context,
    cluster: &ClusterName,
    job: JobId,
    at: Timestamp,
    target: &SwitchTarget,
) -> Result<RestoreFinished> {
    let member = Member { cluster: cluster.clone(), node: target.node.clone() };
    let patience = context.config.backup.patience();
    for attempt in 1.. {
        context.fleet.wait_for(std::slice::from_ref(&member), patience).await?;
        match try_switch(context, &member, job, at, target).await {
            Err(e) if e.kind() == ErrorKind::Retry && attempt < ATTEMPTS => {
                tracing::warn!(%member, attempt, error = %e.report(), "the node has not switched yet: trying again");
                tokio::time::sleep(RETRY_WAIT).await;
            }
            done => return done,
        }
    }
    unreachable!("the last attempt returns")
}

async fn try_switch(
    context: &Context,
    member: &Member,
    job: JobId,
    at: Timestamp,
    target: &SwitchTarget,
) -> Result<RestoreFinished> {
    let (fleet, head, expect) = (&context.fleet, context.head(job, 1), target.expect);
    let finish = RestoreFinish { expect };
    match fleet.command(member, head.clone(), &finish, FINISH_DEADLINE, |_| ()).await {
        // The node was started anew: it knows the staging area, not the session; or it has switched already.
        Err(e) if e.kind() == ErrorKind::Conflict => {}
        done => return done,
    }
    if !open_jobs(context, member).await?.restores.contains(&job) {
        let description = fleet.describe(member, head).await?;
        return Ok(RestoreFinished { incarnation: description.incarnation, digest: expect });
    }
    let begin = RestoreBegin { at, slots: target.slots.clone(), in_place: 1, serve: context.bulk_address.clone() };
    let _: RestoreReady = fleet.command(member, head.clone(), &begin, BEGIN_DEADLINE, |_| ()).await?;
    let verify = RestoreVerify { expect };
    let _: RestoreVerified = fleet.command(member, head.clone(), &verify, FINISH_DEADLINE, |_| ()).await?;
    fleet.command(member, head, &finish, FINISH_DEADLINE, |_| ()).await
}

/// Lets every node switch; the first error counts, after all have been tried.
pub(super) async fn switch_all(
    context: &Context,
    cluster: &ClusterName,
    switching: &RestoreSwitching,
) -> Result<Vec<RestoreFinished>> {
    let nodes = switching.targets.iter().map(|t| switch_node(context, cluster, switching.job, switching.at, t));
    let told = "the restored data stands on every node, but not every node has switched to it: \
                one that is away will as soon as it comes back";
    let done = futures::future::join_all(nodes).await;
    done.into_iter().collect::<Result<_>>().map_err(|e| e.context(told))
}

/// Goes on with a switch that another coordinator began. A salvage is never told of as complete.
pub async fn resume_switch(
    context: Shared,
    job: std::sync::Arc<Job>,
    (left, switching): (LeftRestore, RestoreSwitching),
    mut recorder: JobRecorder,
) -> Result<serde_json::Value> {
    let LeftRestore { begun, options, with_users, .. } = left;
    job.phase("switching");
    let cluster = job.info().cluster;
    let finished = switch_all(&context, &cluster, &switching).await?;
    let mut warnings = Vec::new();
    if with_users {
        job.phase("setting users");
        let nodes = switching.targets.iter().map(|t| t.node.clone()).collect();
        let takers = Takers { context: &context, cluster: &cluster, job: job.id(), nodes };
        warnings = match takes_of(&context, &begun.source, begun.backup).await {
            Ok(takes) => takers.set_users(&takes).await,
            Err(e) => vec![format!("users were not set: {}", e.report())],
        };
    }
    end(&context, &mut recorder, job.id(), None).await;
    let nodes = switching.targets.iter().zip(&finished).map(
        |(t, f)| serde_json::json!({"node": t.node, "records": f.digest.count, "incarnation": f.incarnation, "slots": t.slots}),
    );
    Ok(serde_json::json!({
        "cut": switching.at.0,
        "records": finished.iter().map(|f| f.digest.count).sum::<u64>(),
        "expired": options.map_or(Some(0), |options| options.expired),
        "nodes": nodes.collect::<Vec<_>>(),
        "resumed": true,
        "warnings": warnings,
        // What a salvage left out was known to the coordinator that began it: its log and the plan tell of it.
        "complete": begun.salvage == 0,
    }))
}

/// Puts every node back as it was, as far as they can be reached; one that is away is told when it comes back. Answers what
/// nodes say whose data of before is gone.
pub async fn abort_all(context: &Context, cluster: &ClusterName, job: JobId, nodes: &[NodeName]) -> Vec<String> {
    let abort = |node: &NodeName| {
        let member = Member { cluster: cluster.clone(), node: node.clone() };
        let head = context.head(job, 1);
        async move {
            let done =
                context.fleet.command::<_, Done>(&member, head, &RestoreAbort {}, BEGIN_DEADLINE, |_| ()).await;
            match done {
                Err(e) if e.kind() == ErrorKind::Conflict => Some(e.context(&member.node).report()),
                Err(e) => {
                    tracing::warn!(error = %e.report(), "the node drops its staging area when it comes back");
                    None
                }
                Ok(_) => None,
            }
        }
    };
    futures::future::join_all(nodes.iter().map(abort)).await.into_iter().flatten().collect()
}

/// The error that a restore ends with, with what nodes say that could not be put back.
pub(super) fn called_off(error: Error, stuck: &[String]) -> Error {
    if stuck.is_empty() {
        return error;
    }
    Error::new(error.kind(), format!("{}; {}", error.report(), stuck.join("; ")))
}

/// Notes that a restore is over.
pub(super) async fn end(context: &Context, recorder: &mut JobRecorder, job: JobId, error: Option<&Error>) {
    let reason = error.map(Error::report).unwrap_or_default();
    let ended = RestoreEnded { job, at_millis: context.now_millis(), reason };
    if let Err(e) = recorder.write(&Record::RestoreEnded(ended)).await {
        tracing::warn!(error = %e.report(), "the end of the restore could not be noted");
    }
}
