//! What a session looks after beside its segments: a backup for its window to begin from, and few objects instead of many.

use std::time::{Duration, Instant};

use tidemark_proto::{ClusterName, ErrorKind, Result, Timestamp};

use super::merge;
use super::session::Session;
use super::state::Published;
use crate::context::Shared;
use crate::job::{JobKind, backup};
use crate::repository::Ledger;

/// A window that has no base is looked at this often.
const BASE_EVERY: Duration = Duration::from_secs(5);
/// One that has a base, too: its backup may be deleted.
const BASE_CHECK: Duration = Duration::from_secs(60);
/// So often that time doubles, with each backup that was begun and did not become a base.
const MOST_DOUBLINGS: u32 = 7;
/// Looks for segments to merge.
const MERGE_EVERY: Duration = Duration::from_secs(2);
/// Wait after a merge that failed.
const MERGE_AGAIN: Duration = Duration::from_secs(60);

impl Session {
    /// Takes a backup where the window has none to begin from: after a break, and when the last one was deleted.
    pub(super) fn look_after_base(&mut self) {
        let Some(interval) = self.chains.open().filter(|_| Instant::now() >= self.base_at) else { return };
        let (context, cluster, published) = (self.context.clone(), self.cluster.clone(), self.published.clone());
        let start = interval.start;
        let known = published.has_base(start);
        // One that fails again and again is begun ever more seldom: each leaves an entry in the ledger.
        let in_vain = published.bases_in_vain(known).min(MOST_DOUBLINGS);
        self.base_at = Instant::now() + if known { BASE_CHECK } else { BASE_EVERY * 2u32.pow(in_vain) };
        drop(tokio::spawn(async move {
            if let Err(e) = base(&context, &cluster, start, &published).await {
                tracing::warn!(%cluster, error = %e.report(), "the window has no base, and none can be taken now");
            }
        }));
    }

    /// Merges small segments in the background, one stretch at a time.
    pub(super) async fn look_after_size(&mut self) {
        if let Some(merging) = self.merging.take_if(|task| task.is_finished()) {
            match merging.await {
                Ok(Ok(info)) => {
                    tracing::debug!(first = info.range.first, last = info.range.last, "segments of the log merged");
                    self.lines.replace(&info);
                }
                Ok(Err(e)) => {
                    tracing::warn!(error = %e.report(), "segments of the log cannot be merged now; trying again");
                    self.merge_at = Instant::now() + MERGE_AGAIN;
                }
                Err(e) => tracing::error!(error = %e, "merging segments panicked: report this"),
            }
        }
        if self.merging.is_some() || Instant::now() < self.merge_at {
            return;
        }
        self.merge_at = Instant::now() + MERGE_EVERY;
        if let Some(stretch) = self.lines.candidate() {
            let (repository, cluster) = (self.context.repository.clone(), self.cluster.clone());
            let now = self.context.now_millis();
            // The next look comes at once: there may be more to merge after a long time without.
            self.merge_at = Instant::now();
            let work = move || merge::merge(&repository, &cluster, &stretch, now);
            self.merging = Some(tokio::task::spawn_blocking(work));
        }
    }
}

/// Sees whether a backup stands whose cut is at or above `start`, and begins one if none does and none is under way.
async fn base(context: &Shared, cluster: &ClusterName, start: Timestamp, published: &Published) -> Result<()> {
    let ledger = Ledger::load(&context.repository, cluster).await?;
    let cuts: Vec<_> = ledger.backups().into_iter().map(|b| (b.backup.cut, b.backup.job)).collect();
    let found = cuts.iter().any(|(cut, _)| *cut >= start);
    published.cuts(cluster, cuts);
    if found {
        return Ok(());
    }
    let request = backup::BackupRequest { cluster: cluster.clone(), full: false, manual: false };
    let run = context.clone();
    match crate::job::start(context, JobKind::Backup, cluster, true, move |job| backup::run(run, job, request)) {
        Ok(info) => {
            published.base_begun();
            tracing::info!(%cluster, job = %info.id, "the window has no base: taking a backup");
            Ok(())
        }
        // Another job is at work: the next look decides.
        Err(e) if e.kind() == ErrorKind::Conflict => Ok(()),
        Err(e) => Err(e),
    }
}
