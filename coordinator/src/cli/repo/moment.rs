//! What direct verbs write: a backup, or a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::stored::ledger::Backup;
use tidemark_proto::{ClusterName, Result};

use super::direct::Chosen;
use crate::catalog;
use crate::cli::output::size;
use crate::cli::time::{self, TimeArg};
use crate::extract::Laid;
use crate::job::restore::{find_backup, open_manifest};
use crate::log::{self, Point};
use crate::repository::Manifest;

/// An opened backup, and the log over it where a time between two backups is wanted.
#[derive(Debug)]
pub(in crate::cli) struct Opened {
    pub(in crate::cli) cluster: ClusterName,
    pub(in crate::cli) backup: Backup,
    pub(in crate::cli) manifest: Manifest,
    point: Option<Point>,
}

impl Opened {
    /// Opens what is chosen; with `at` the newest restore point at or before that time, by this machine's clock.
    /// `NotFound`, with the earliest that there is, when the time is before all of them.
    pub(in crate::cli) async fn new(chosen: &Chosen, at: Option<TimeArg>) -> Result<Self> {
        let (repository, cluster) = chosen.repository().await?;
        let ledger = catalog::known(&repository, &cluster).await?;
        let (record, point) = match at {
            None => (find_backup(&ledger, chosen.name())?, None),
            Some(at) => {
                let wanted = at.resolve(SystemClock.millis())?;
                let point = Box::pin(log::point(&repository, &ledger, wanted, None)).await?;
                (point.base.clone(), Some(point))
            }
        };
        let manifest = open_manifest(&repository, &cluster, &record.backup).await?;
        Ok(Self { cluster, backup: record.backup, manifest, point })
    }

    /// The time that comes out, a raw timestamp.
    pub(in crate::cli) fn time(&self) -> u64 {
        self.point.as_ref().map_or(self.backup.cut, |p| p.at).0
    }

    /// The log to lay over the backup, if any. A time that was asked for is told on standard error. What does not fit into
    /// memory goes beside `out`, or to the system's folder for such where that is standard output.
    pub(in crate::cli) async fn laid(&self, out: Option<&Path>) -> Result<Option<Arc<Laid>>> {
        self.laid_by(out, None).await
    }

    /// The same; a log of commands is worked off by `program`, where that is given.
    pub(in crate::cli) async fn laid_by(
        &self,
        out: Option<&Path>,
        program: Option<String>,
    ) -> Result<Option<Arc<Laid>>> {
        let Some(point) = &self.point else { return Ok(None) };
        let (at, backup) = (time::exact(point.at), self.backup.job);
        if !point.is_logged() {
            eprintln!("restore point {at}: backup {backup}");
            return Ok(None);
        }
        let dir = out.map_or_else(std::env::temp_dir, beside);
        let laid = Box::pin(Laid::new(&self.manifest, point, &dir, program)).await?;
        eprintln!("restore point {at}: backup {backup} and {} of the log after it", size(laid.bytes()));
        Ok(Some(Arc::new(laid)))
    }
}

/// The folder that a file lies in.
fn beside(out: &Path) -> PathBuf {
    match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_lie_beside_the_output() {
        for (out, folder) in [("orders.jsonl", "."), ("a/b.jsonl", "a"), ("/b.jsonl", "/"), ("rdb/", ".")] {
            assert_eq!(beside(Path::new(out)), Path::new(folder), "{out}");
        }
    }
}
