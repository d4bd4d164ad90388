//! The record of a restore that has begun, and what was asked for by it.

use tidemark_proto::ClusterName;
use tidemark_proto::stored::job::RestoreBegun;

use super::plan::{RestorePlan, RestoreRequest};
use crate::job::Job;

/// The record of the restore that `job` carries out.
pub(super) fn begun_of(plan: &RestorePlan, job: &Job, epoch: u64) -> RestoreBegun {
    RestoreBegun {
        job: job.id(),
        epoch,
        started_millis: job.info().started_millis,
        source: plan.request.cluster.clone(),
        backup: plan.backup,
        in_place: u8::from(plan.request.in_place),
        salvage: u8::from(plan.request.salvage),
        keys: plan.request.keys.clone(),
        targets: plan.targets.iter().map(|t| t.node.clone()).collect(),
    }
}

/// What was asked for when another coordinator began it.
pub(super) fn request_of(begun: &RestoreBegun, with_users: bool, target: &ClusterName) -> RestoreRequest {
    RestoreRequest {
        cluster: begun.source.clone(),
        backup: begun.backup.to_string(),
        target: Some(target.clone()),
        in_place: begun.in_place != 0,
        keys: begun.keys.clone(),
        // It was made before the restore began, or was not wanted.
        no_safety_backup: true,
        salvage: begun.salvage != 0,
        with_users,
    }
}
