//! What a backup job writes into the ledger, and the rules it goes by. Nothing here knows a job that runs: the
//! simulation (`tests/src/sim`) appends by the same functions.

use std::collections::HashSet;

use tidemark_proto::id::PackId;
use tidemark_proto::stored::ledger::{Backup, Body, Failed};
use tidemark_proto::{Error, Result};

use crate::repository::Ledger;

/// What came of writing a failure.
#[derive(Debug)]
pub enum FailureEntry {
    /// The ledger tells of it.
    Written,
    /// The ledger knew how the job ended; `true`: it made a backup after all, a write that looked lost had won.
    Settled(bool),
    /// It could not be written.
    Lost(Error),
}

/// Appends the entry that makes `backup`, whose manifest names `packs`, a backup. `Conflict` when a later cut stands or
/// a pack was given up meanwhile, `Fenced` as [`Ledger::append`].
pub async fn append_backup(
    ledger: &mut Ledger,
    (epoch, now_millis): (u64, u64),
    backup: Backup,
    packs: &HashSet<PackId>,
) -> Result<()> {
    let cut = backup.cut;
    ledger
        .append(epoch, now_millis, &Body::Backup(backup), |seen| {
            if seen.last_cut() >= cut {
                let last = seen.last_cut();
                return Err(Error::conflict(format!("cut {cut} is not above the last one in the ledger, {last}")));
            }
            // Whoever collects may delete these at any time: a late backup that names them would have a hole.
            match seen.condemned().packs.intersection(packs).next() {
                None => Ok(()),
                Some(pack) => Err(Error::conflict(format!(
                    "pack {pack}, which this backup names, was given up for collection meanwhile: take it again"
                ))),
            }
        })
        .await
        .map(drop)
}

/// Appends the failure of a job unless the ledger knows its end.
pub async fn append_failure(ledger: &mut Ledger, (epoch, now_millis): (u64, u64), failed: Failed) -> FailureEntry {
    let job = failed.job;
    let unsettled = |seen: &Ledger| match seen.is_settled(job) {
        true => Err(Error::conflict("the ledger knows how this job ended")),
        false => Ok(()),
    };
    let Err(e) = ledger.append(epoch, now_millis, &Body::Failed(failed), unsettled).await else {
        return FailureEntry::Written;
    };
    match ledger.is_settled(job) {
        true => FailureEntry::Settled(ledger.all_backups().any(|b| b.job == job)),
        false => FailureEntry::Lost(e),
    }
}
