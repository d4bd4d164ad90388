//! The record of a restore that has begun, and what was asked for by it.

use tidemark_common::expiry::ExpiryMode;
use tidemark_proto::stored::job::{RestoreBegun, RestoreOptions};
use tidemark_proto::{ClusterName, Result, Timestamp};

use super::options::recorded;
use super::plan::RestorePlan;
use super::request::RestoreRequest;
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

/// What another coordinator noted of a restore that it began.
#[derive(Debug, Clone)]
pub struct LeftRestore {
    /// Its begin.
    pub begun: RestoreBegun,
    /// How it loads records, where not all of them as they are.
    pub options: Option<RestoreOptions>,
    /// Whether it sets users.
    pub with_users: bool,
    /// The time that it is of, where that is not its backup's cut.
    pub at: Option<Timestamp>,
}

/// What was asked for when another coordinator began it, and the moment from which times are counted.
pub(super) fn request_of(left: &LeftRestore, target: &ClusterName) -> Result<(RestoreRequest, u64)> {
    let LeftRestore { begun, options, with_users, at } = left;
    let request = RestoreRequest {
        cluster: begun.source.clone(),
        backup: begun.backup.to_string(),
        at: at.map(|at| at.0),
        // It is the time that was found.
        inexact: at.is_some(),
        target: Some(target.clone()),
        in_place: begun.in_place != 0,
        keys: begun.keys.clone(),
        slots: None,
        dbs: Vec::new(),
        expiry: ExpiryMode::Absolute,
        // It was made before the restore began, or was not wanted.
        no_safety_backup: true,
        salvage: begun.salvage != 0,
        with_users: *with_users,
    };
    match options {
        None => Ok((request, begun.started_millis)),
        Some(options) => recorded(request, options),
    }
}
