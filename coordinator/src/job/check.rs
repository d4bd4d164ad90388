//! Repository check: everything that the repository and the ledger of a cluster name is there and whole, as far as that
//! can be told without reading the packs (that is what verification does): description, keys, epochs, ledger, roots,
//! pages, tiling, packs by size, job records.

mod top;

use std::sync::Arc;

use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Error, Result};

use super::Job;
use super::damage::{Damage, SHOWN};
use super::inspect::{self, Depth, Packs, Scope};
use super::restore::open_manifest;
use crate::history::Seen;
use crate::repository::{BackupRecord, Ledger, Repository};

/// Runs the check. `seen` is the highest ledger entry that anybody was told of, `lost` are log segments that do not hold. What is damaged is listed in the error,
/// and in the job's result for programs.
pub async fn run(
    repository: Repository,
    job: Arc<Job>,
    cluster: ClusterName,
    seen: Option<Seen>,
    lost: Vec<(u64, String)>,
) -> Result<serde_json::Value> {
    job.phase("reading the small objects");
    let mut objects = Damage::default();
    top::repository(&repository, &mut objects).await?;
    top::job_records(&repository, &cluster, &mut objects).await?;
    for (number, why) in lost {
        top::blame(&mut objects, paths::log(&cluster, number), why);
    }
    job.phase("reading the ledger");
    let ledger = match Ledger::load(&repository, &cluster).await {
        Ok(ledger) => ledger,
        Err(e) if inspect::is_damage(&e) => {
            top::blame(&mut objects, paths::ledger_dir(&cluster), e.report());
            return Err(Error::damaged(format!("no backup of {cluster} can be found: {}", objects.words())));
        }
        Err(e) => return Err(e),
    };
    if let Some(Err(e)) = seen.map(|seen| seen.check(&cluster, &ledger)) {
        top::blame(&mut objects, paths::ledger_dir(&cluster), e.report());
    }
    top::epochs_of(&repository, &cluster, &ledger, &mut objects).await?;
    job.phase("listing packs");
    let packs = Packs::list(&repository, &cluster).await?;
    let backups = ledger.backups();
    job.phase("reading manifests");
    job.update(|i| i.progress.total_parts = backups.len() as u64);
    let mut damaged = Vec::new();
    for (done, record) in backups.iter().enumerate() {
        if job.cancel.is_cancelled() {
            return Err(Error::cancelled("the check was cancelled"));
        }
        let damage = check_backup(&repository, &cluster, record, &packs).await?;
        if !damage.is_none() {
            damaged.push((record.backup.job, damage));
        }
        job.update(|i| i.progress.parts = done as u64 + 1);
    }
    let result = serde_json::json!({
        "cluster": cluster, "ledger_entries": ledger.entries().len(), "backups": backups.len(),
        "packs": packs.len(), "pack_bytes": packs.bytes(), "objects": objects.faults,
        "damaged_backups": damaged.iter().map(|(b, d)| serde_json::json!({"backup": b, "damage": d})).collect::<Vec<_>>(),
    });
    if damaged.is_empty() && objects.is_none() {
        return Ok(result);
    }
    job.update(|i| i.result = Some(result));
    let mut words = if objects.is_none() { Vec::new() } else { vec![objects.words()] };
    words.extend(damaged.iter().take(SHOWN).map(|(backup, damage)| format!("backup {backup}: {}", damage.words())));
    Err(Error::damaged(format!("{} of {} backups are damaged: {}", damaged.len(), backups.len(), words.join("; "))))
}

async fn check_backup(
    repository: &Repository,
    cluster: &ClusterName,
    record: &BackupRecord,
    packs: &Packs,
) -> Result<Damage> {
    match open_manifest(repository, cluster, &record.backup).await {
        Ok(manifest) => {
            let scope = Scope::default();
            let mut damage = inspect::inspect(&manifest, packs, Depth::Objects, scope, None).await?.damage;
            inspect::kept(&manifest, &mut damage).await?;
            Ok(damage)
        }
        Err(e) if inspect::is_damage(&e) => {
            let mut damage = Damage::default();
            top::blame(&mut damage, paths::root(cluster, &record.backup.root), e.report());
            Ok(damage)
        }
        Err(e) => Err(e),
    }
}
