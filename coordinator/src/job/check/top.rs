//! The small objects that are not part of a backup: description, keys, epochs, job records.

use std::collections::BTreeMap;

use tidemark_proto::id::JobId;
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, ErrorKind, Result, SlotSet};

use crate::job::damage::Damage;
use crate::job::inspect::is_damage;
use crate::repository::{Ledger, Repository, read_job_record};

/// Notes a fault that hits no part by itself.
pub(super) fn blame(damage: &mut Damage, object: String, cause: String) {
    damage.add(object, 0, &SlotSet::EMPTY, 1, cause);
}

/// Description, keys and epochs are there and are those of this repository.
pub(super) async fn repository(repository: &Repository, damage: &mut Damage) -> Result<()> {
    for (object, read) in [
        (paths::REPOSITORY.to_owned(), repository.check_description().await),
        (paths::KEYS.to_owned(), repository.check_keys().await),
    ] {
        note(damage, object, read)?;
    }
    let mut expected = 1;
    for (path, _) in repository.store().list(paths::EPOCHS).await? {
        let Some(number) = paths::number(&path) else { continue };
        for missing in expected..number {
            blame(damage, paths::epoch(missing), "is missing, but later ones are there".into());
        }
        expected = number + 1;
        note(damage, path.clone(), repository.check_epoch(&path).await)?;
    }
    Ok(())
}

/// The epoch that wrote the end of the ledger was taken: else the next coordinator would take it once more.
pub(super) async fn epochs_of(
    repository: &Repository,
    cluster: &ClusterName,
    ledger: &Ledger,
    damage: &mut Damage,
) -> Result<()> {
    let (taken, used) = (repository.highest_epoch().await?, ledger.epoch());
    if used > taken {
        blame(damage, paths::epoch(used), format!("is missing: the ledger of {cluster} has entries of it"));
    }
    Ok(())
}

/// Job records open, and none is missing between others. They are hints: no backup is hit, but collection needs those of
/// open jobs.
pub(super) async fn job_records(repository: &Repository, cluster: &ClusterName, damage: &mut Damage) -> Result<()> {
    let mut next: BTreeMap<JobId, u64> = BTreeMap::new();
    for (path, _) in repository.store().list(&paths::jobs_dir(cluster)).await? {
        let (Some(job), Some(number)) = (paths::job_of(&path), paths::number(&path)) else { continue };
        let expected = next.insert(job, number + 1).unwrap_or(1);
        for missing in expected..number {
            blame(damage, paths::job(cluster, &job, missing), "is missing, but later ones are there".into());
        }
        let read = read_job_record(repository, cluster, &path).await;
        note(damage, path, read.map(drop))?;
    }
    Ok(())
}

fn note(damage: &mut Damage, object: String, read: Result<()>) -> Result<()> {
    match read {
        Err(e) if is_damage(&e) || e.kind() == ErrorKind::Config => blame(damage, object, e.report()),
        other => other?,
    }
    Ok(())
}
