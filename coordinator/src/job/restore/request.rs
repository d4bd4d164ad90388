//! A restore as it is asked for, and what it means: a backup, and the time that the log is laid over it for.

use futures::FutureExt;
use tidemark_common::expiry::ExpiryMode;
use tidemark_proto::{ClusterName, Error, Result, SlotSet, Timestamp};

use crate::log::{self, Point};
use crate::repository::{BackupRecord, Ledger, Repository};

/// The word for the newest backup.
pub(super) const LATEST: &str = "latest";

fn latest() -> String {
    LATEST.into()
}

/// A restore as it is asked for.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// Cluster whose backup is restored.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// The backup, by id or a unique beginning of it; `latest` is the newest.
    #[serde(default = "latest")]
    pub backup: String,
    /// A time instead of a backup, a raw timestamp: the newest restore point at or before it, by the log over the nearest
    /// backup. A backup named beside it is the one that the log is laid over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// `at` is taken as it is, by the clocks of the nodes, also where it is no consistent state of the cluster (Redis and Valkey).
    #[serde(default)]
    pub inexact: bool,
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
    /// Slots whose keys are restored, e.g. `0-5460,10000`; all where absent.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<SlotSet>,
    /// Databases whose keys are restored (Redis and Valkey); empty takes all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dbs: Vec<u64>,
    /// When keys expire (Redis and Valkey): `absolute`, when they did; `shift`, as long after the restore as they would have
    /// after the cut; `drop`, never.
    #[schema(value_type = String, example = "absolute")]
    #[serde(default)]
    pub expiry: ExpiryMode,
    /// Do not back up the present state before it is replaced in place.
    #[serde(default)]
    pub no_safety_backup: bool,
    /// Restore what is healthy of a damaged backup; without it a damaged backup is refused.
    #[serde(default)]
    pub salvage: bool,
    /// Set the users of the backup as well, when everything else is done. The agents' own user stays as it is.
    #[serde(default)]
    pub with_users: bool,
}

/// Finds a backup by `latest`, its id, or a unique beginning of it.
pub fn find_backup(ledger: &Ledger, wanted: &str) -> Result<BackupRecord> {
    let mut backups = ledger.backups();
    if wanted == LATEST {
        return backups.pop().ok_or_else(|| Error::not_found("the cluster has no backup"));
    }
    backups.retain(|b| !wanted.is_empty() && b.backup.job.to_string().starts_with(wanted));
    match backups.len() {
        0 => Err(Error::not_found(format!("no backup `{wanted}`: see `tidemark backup list`"))),
        1 => Ok(backups.remove(0)),
        n => Err(Error::request(format!("`{wanted}` fits {n} backups: give more of the id"))),
    }
}

/// The backup that a request means, and the point of time after its cut.
pub(super) async fn source(
    repository: &Repository,
    ledger: &Ledger,
    request: &RestoreRequest,
) -> Result<(BackupRecord, Option<Point>)> {
    let Some(at) = request.at else {
        return match request.inexact {
            true => Err(Error::request("inexact is for a time: name one by `at`")),
            false => Ok((find_backup(ledger, &request.backup)?, None)),
        };
    };
    let named = match request.backup.as_str() {
        "" | LATEST => None,
        wanted => Some(find_backup(ledger, wanted)?.backup.job),
    };
    let point = log::point_of(repository, ledger, Timestamp(at), named, request.inexact).boxed().await?;
    Ok((point.base.clone(), Some(point).filter(Point::is_logged)))
}
