//! `tidemark demo`: a fleet on this machine that is backed up under load, lost, and restored into another shape, with a
//! proof at the end.
//!
//! What is proven: every record of the restored fleet equals the record of the lost fleet at the cut of the first
//! backup, read from the lost fleet itself before it was lost; and no step of a causal chain is there without the step
//! that it followed. Whatever way it ends, no process is left running and no folder is left behind, unless that was
//! asked for.

mod fleet;
mod place;
mod proof;
mod stopwatch;
mod summary;
mod writers;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tidemark_common::clock::SystemClock;
use tidemark_common::expiry::ExpiryMode;
use tidemark_proto::{Error, Result, Timestamp};

use crate::api::CreateBackup;
use crate::catalog::BackupDetail;
use crate::cli::{count, size};
use crate::job::restore::RestoreRequest;
use crate::job::{JobInfo, JobState};
use crate::kv;

use fleet::{AGENTS_AFTER, AGENTS_BEFORE, Fleet};
use place::Place;
use proof::State;
use stopwatch::Stopwatch;
use writers::Writers;

pub use summary::{BackupSummary, Proof, Summary};

/// Name of the cluster.
pub const CLUSTER: &str = "demo";
/// Writers run this long before a backup, so that it is taken under load.
const WRITE_ON: Duration = Duration::from_secs(2);

/// What to do.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Base records.
    pub records: u64,
    /// Folder to work in; a new temporary one where absent.
    pub dir: Option<PathBuf>,
    /// Leave everything running.
    pub keep: bool,
}

/// Runs the demo; `tell` is given a line for each thing that was done. Ending the future ends every process of it.
pub async fn run(options: &DemoOptions, tell: impl Fn(&str)) -> Result<Summary> {
    let start = Instant::now();
    let tell = |text: String| tell(&format!("{:>5.1} s  {text}", start.elapsed().as_secs_f64()));
    // Fields are dropped in the order of declaration: processes end before their folder goes.
    let agent_binary = crate::process::agent_binary()?;
    let place = Place::create(options.dir.as_deref(), SystemClock.time()).await?;
    let mut fleet = Fleet::start(&place, &agent_binary, &AGENTS_BEFORE).await?;
    tell(format!("a coordinator and {} nodes run, the repository is encrypted", AGENTS_BEFORE.len()));

    let router = fleet.router().await?;
    let loaded = writers::load_base(&router, options.records).await?;
    let rate = loaded.writes_per_second as u64;
    tell(format!("{} records are written, {} a second", count(loaded.writes), count(rate)));

    let writers = Writers::start(&router, options.records);
    let stopwatch = Stopwatch::start(&router);
    let (first, second) = back_up_twice(&fleet, &stopwatch, &tell).await?;
    let before = State::read(&router, Some(Timestamp(first.cut))).await?;
    tell(format!("what the first backup must hold is read from the nodes: {} records", count(before.len())));

    fleet.kill();
    // The writers find out by themselves that nobody answers any more.
    let ended = tokio::spawn(writers.stop());
    drop(stopwatch);
    place.wipe(&AGENTS_BEFORE)?;
    tell(format!("kill -9: the coordinator and all {} nodes are gone, their data is deleted", AGENTS_BEFORE.len()));

    let mut fleet = Fleet::start(&place, &agent_binary, &AGENTS_AFTER).await?;
    tell(format!("a new coordinator and {} empty nodes run", AGENTS_AFTER.len()));
    let restored_at = Instant::now();
    let restored = restore(&fleet, &first.id).await?;
    let restore_seconds = restored_at.elapsed().as_secs_f64();
    tell(format!("the first backup is restored in {restore_seconds:.1} s: {}", summary::progress(&restored)));

    let router = fleet.router().await?;
    let after = State::read(&router, None).await?;
    let causality = kv::check(&router, None).await?;
    let proof = Proof::of(&before, &after, &causality);
    tell(format!("{} records are compared one by one", count(proof.records)));
    let written = ended.await.map_err(|e| Error::bug("the writers broke off").with_source(e))?;
    drop(router);

    let mut summary = Summary {
        records: options.records,
        written_while_backing_up: written,
        nodes_before: AGENTS_BEFORE.len() as u64,
        nodes_after: AGENTS_AFTER.len() as u64,
        first,
        second,
        restore_seconds,
        restored_records: restored.progress.records,
        proof,
        seconds: start.elapsed().as_secs_f64(),
        kept: None,
    };
    if options.keep {
        summary.kept = Some(fleet.leave_running(place)?);
    } else {
        fleet.kill();
    }
    Ok(summary)
}

/// Two backups while clients write.
async fn back_up_twice(
    fleet: &Fleet,
    stopwatch: &Stopwatch,
    tell: &impl Fn(String),
) -> Result<(BackupSummary, BackupSummary)> {
    let mut backups = Vec::new();
    for name in ["first", "second"] {
        tokio::time::sleep(WRITE_ON).await;
        let taken = back_up(fleet, stopwatch).await?;
        tell(format!(
            "{name} backup, while clients write: {} read, {} sent, {} stored; the slowest write took {:.1} ms",
            size(taken.read_bytes),
            size(taken.sent_bytes),
            size(taken.stored_bytes),
            taken.slowest_write_micros as f64 / 1e3
        ));
        backups.push(taken);
    }
    Ok((backups.remove(0), backups.remove(0)))
}

/// Takes a backup through the API and sees how it ended.
async fn back_up(fleet: &Fleet, stopwatch: &Stopwatch) -> Result<BackupSummary> {
    let cluster = CLUSTER.parse()?;
    let begun = fleet.client().create_backup(&cluster, &CreateBackup::default()).await?;
    let info = ended(fleet, begun).await?;
    let detail: BackupDetail = fleet.client().backup(&cluster, &info.id.to_string()).await?;
    Ok(BackupSummary::of(&info, &detail, stopwatch))
}

async fn restore(fleet: &Fleet, backup: &str) -> Result<JobInfo> {
    let request = RestoreRequest {
        cluster: CLUSTER.parse()?,
        backup: backup.into(),
        inexact: false,
        target: None,
        in_place: false,
        keys: Vec::new(),
        slots: None,
        dbs: Vec::new(),
        expiry: ExpiryMode::Absolute,
        no_safety_backup: false,
        salvage: false,
        with_users: false,
        at: None,
    };
    ended(fleet, fleet.client().create_restore(&request).await?).await
}

async fn ended(fleet: &Fleet, begun: JobInfo) -> Result<JobInfo> {
    let info = fleet.client().follow(&begun.id, |_| ()).await?;
    match (&info.error, info.state) {
        (_, JobState::Succeeded) => Ok(info),
        (Some(error), _) => Err(Error::damaged(format!("the job did not succeed: {}", error.message))),
        (None, _) => Err(Error::bug("a job ended without a reason")),
    }
}
