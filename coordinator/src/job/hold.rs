//! Readers enter a hold into the ledger before they read, so that collection keeps what they need even when the backup is
//! deleted meanwhile.

use std::time::Duration;

use tidemark_proto::id::JobId;
use tidemark_proto::stored::ledger::{Body, Hold, Leave};
use tidemark_proto::{ClusterName, Error, Result};

use crate::context::Context;
use crate::repository::Ledger;

/// A hold ends by itself after this time: a reader that died keeps nothing for ever.
const LEASE: Duration = Duration::from_secs(24 * 3600);
/// A reader renews its hold this often.
const RENEW_EVERY: Duration = Duration::from_secs(6 * 3600);

async fn enter(context: &Context, cluster: &ClusterName, backup: JobId, reader: JobId) -> Result<()> {
    let mut ledger = context.ledger(cluster).await?;
    let now = context.now_millis();
    let body = Body::Hold(Hold { reader, backup, until_millis: now + LEASE.as_millis() as u64 });
    // A hold of ours that stands already keeps a backup that was deleted since.
    let readable = |seen: &Ledger| {
        let there = seen.backups().iter().any(|b| b.backup.job == backup) || seen.held(now).contains(&backup);
        if there { Ok(()) } else { Err(Error::not_found(format!("backup {backup} was deleted meanwhile"))) }
    };
    ledger.append(context.epoch, now, &body, readable).await.map(drop)
}

async fn leave(context: &Context, cluster: &ClusterName, reader: JobId) {
    let left = async {
        let mut ledger = context.ledger(cluster).await?;
        ledger
            .append(context.epoch, context.now_millis(), &Body::Leave(Leave { reader }), |_| Ok(()))
            .await
            .map(drop)
    };
    if let Err(e) = left.await {
        tracing::warn!(error = %e.report(), "a reader's hold stays until its lease ends");
    }
}

/// Runs `work`, which reads `backup`, under a hold of `reader`.
pub async fn reading<T>(
    context: &Context,
    cluster: &ClusterName,
    backup: JobId,
    reader: JobId,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    enter(context, cluster, backup, reader).await.map_err(|e| e.context("before the backup is read"))?;
    let mut work = std::pin::pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            () = tokio::time::sleep(RENEW_EVERY) => {
                if let Err(e) = enter(context, cluster, backup, reader).await {
                    tracing::warn!(error = %e.report(), "a reader's hold could not be renewed");
                }
            }
        }
    };
    leave(context, cluster, reader).await;
    done
}
