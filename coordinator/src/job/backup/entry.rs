//! What a backup job writes into the ledger, and the rules it goes by. Nothing here knows a job that runs: the
//! simulation (`tests/src/sim`) appends by the same functions.

use std::collections::HashSet;

use tidemark_proto::hash::Hash;
use tidemark_proto::id::PackId;
use tidemark_proto::stored::ledger::{Backup, Body, Failed};
use tidemark_proto::{Error, Result};

use crate::repository::Ledger;

/// What came of writing a failure.
#[derive(Debug)]
pub enum FailureEntry {
    /// The ledger tells of it.
    Written,
    /// The ledger knew how the job ended; with a root: it made this backup after all. Its own write, which looked lost,
    /// had won, or a coordinator that took the job over has made another one of it: only the root tells.
    Settled(Option<Hash>),
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
        true => FailureEntry::Settled(ledger.all_backups().find(|b| b.job == job).map(|b| b.root)),
        false => FailureEntry::Lost(e),
    }
}

#[cfg(test)]
mod tests {
    use tidemark_proto::id::JobId;
    use tidemark_proto::{ClusterName, ErrorKind, Timestamp};

    use super::*;
    use crate::repository::{Repository, Store, StoreConfig};

    fn backup(job: JobId, root: u8, cut: u64) -> Backup {
        Backup { job, cut: Timestamp(cut), root: Hash([root; 32]), parent: Hash::ZERO }
    }

    fn failed(job: JobId) -> Failed {
        Failed { job, started_millis: 0, code: 1, reason: "lost".into(), manual: 1 }
    }

    #[tokio::test]
    async fn a_fenced_coordinator_learns_whose_backup_stands() {
        let store = Store::open(&StoreConfig { url: "memory:///".into(), ..StoreConfig::default() }).unwrap();
        let repository = Repository::init(store, None, 1).await.unwrap();
        let cluster = ClusterName::new("c").unwrap();
        let job = JobId::from_u128(1);
        let mut old = Ledger::load(&repository, &cluster).await.unwrap();
        old.take_over(1, 0, "old").await.unwrap();
        let mut new = Ledger::load(&repository, &cluster).await.unwrap();
        new.take_over(2, 0, "new").await.unwrap();
        append_backup(&mut new, (2, 0), backup(job, 2, 5), &HashSet::new()).await.unwrap();

        let e = append_backup(&mut old, (1, 0), backup(job, 1, 5), &HashSet::new()).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Fenced);
        // The job made a backup, but not the one that this coordinator would tell of.
        let entry = append_failure(&mut old, (1, 0), failed(job)).await;
        assert!(matches!(entry, FailureEntry::Settled(Some(root)) if root == Hash([2; 32])), "{entry:?}");
        let entry = append_failure(&mut old, (1, 0), failed(JobId::from_u128(2))).await;
        assert!(matches!(&entry, FailureEntry::Lost(e) if e.kind() == ErrorKind::Fenced), "{entry:?}");
    }

    #[tokio::test]
    async fn a_job_ends_once_and_cuts_only_rise() {
        let store = Store::open(&StoreConfig { url: "memory:///".into(), ..StoreConfig::default() }).unwrap();
        let repository = Repository::init(store, None, 1).await.unwrap();
        let mut ledger = Ledger::load(&repository, &ClusterName::new("c").unwrap()).await.unwrap();
        let (first, second) = (JobId::from_u128(1), JobId::from_u128(2));
        append_backup(&mut ledger, (1, 0), backup(first, 1, 5), &HashSet::new()).await.unwrap();
        let again = append_backup(&mut ledger, (1, 0), backup(second, 2, 5), &HashSet::new()).await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Conflict);
        assert!(matches!(append_failure(&mut ledger, (1, 0), failed(second)).await, FailureEntry::Written));
        assert!(matches!(append_failure(&mut ledger, (1, 0), failed(second)).await, FailureEntry::Settled(None)));
        assert_eq!((ledger.all_backups().count(), ledger.failures().len()), (1, 1));
    }
}
