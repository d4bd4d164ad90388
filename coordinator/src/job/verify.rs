//! Verification: reads blocks back, opens every seal, and compares the records of each part with the manifest.

use std::sync::Arc;

use tidemark_proto::{ClusterName, Error, Result};

use super::Job;
use super::inspect::{self, ALL, Depth, Packs, Scope};
use super::restore::{find_backup, open_manifest};
use crate::repository::{Ledger, Repository};

/// A verification as it is asked for.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// The cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// The backup, by id, a unique beginning of it, or `latest`.
    pub backup: String,
    /// Share of the parts to check, in percent (0 < sample <= 100); parts are drawn at random.
    #[serde(default = "all")]
    pub sample: f64,
}

fn all() -> f64 {
    ALL
}

/// Runs a verification. What is damaged is listed in the error, and in the job's result for programs.
pub async fn run(repository: Repository, job: Arc<Job>, request: VerifyRequest) -> Result<serde_json::Value> {
    if !(request.sample > 0.0 && request.sample <= 100.0) {
        return Err(Error::request("sample: more than 0 and at most 100 percent"));
    }
    job.phase("reading the manifest");
    let ledger = Ledger::load(&repository, &request.cluster).await?;
    let record = find_backup(&ledger, &request.backup)?;
    let manifest = open_manifest(&repository, &request.cluster, &record.backup).await?;
    let packs = Packs::list(&repository, &request.cluster).await?;
    let scope = Scope { percent: request.sample, ..Scope::default() };
    job.phase("reading back");
    let mut found = tokio::select! {
        found = inspect::inspect(&manifest, &packs, Depth::Blocks, scope, Some(&job)) => found?,
        () = job.cancel.cancelled() => return Err(Error::cancelled("the verification was cancelled")),
    };
    inspect::kept(&manifest, &mut found.damage).await?;
    let backup = record.backup.job;
    let result = serde_json::json!({
        "backup": backup, "parts": manifest.parts(), "checked_parts": found.checked,
        "records": found.records, "bytes": found.bytes, "damage": found.damage,
    });
    if let Err(e) = found.whole() {
        job.update(|i| i.result = Some(result));
        return Err(e.context(format_args!("backup {backup}")));
    }
    Ok(result)
}
