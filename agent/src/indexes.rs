//! Where key indexes lie: the current ones named by part hash, those of a running backup in a folder of its job.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::{ErrorKind, Result, error::ResultExt};

/// The folder of key indexes.
#[derive(Debug)]
pub struct IndexStore {
    dir: PathBuf,
}

impl IndexStore {
    /// Opens the folder; what an earlier process left waiting is dropped.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let dir = state_dir.join("key-index");
        let _ = std::fs::remove_dir_all(dir.join("waiting"));
        std::fs::create_dir_all(dir.join("current"))
            .or_kind(ErrorKind::Config, format_args!("{}", dir.display()))?;
        Ok(Self { dir })
    }

    /// The index that lists the state of a part.
    pub fn current(&self, part: &Hash) -> PathBuf {
        self.dir.join("current").join(part.to_string())
    }

    /// Whether there is none: then every part will be sent whole.
    pub fn is_empty(&self) -> bool {
        let first = std::fs::read_dir(self.dir.join("current")).map(|mut folder| folder.next().is_none());
        first.unwrap_or(true)
    }

    /// Where the index of a running backup is written.
    pub fn waiting(&self, job: JobId, region: u16, lower: &[u8]) -> PathBuf {
        self.dir.join("waiting").join(job.to_string()).join(format!("{region}-{}", Hash::of(lower)))
    }

    /// Where the index of a part of `base` that is sent before the cut is written.
    pub fn early(&self, job: JobId, base: u64, region: u16, lower: &[u8]) -> PathBuf {
        self.dir.join("waiting").join(job.to_string()).join(format!("early-{base}-{region}-{}", Hash::of(lower)))
    }

    /// Jobs whose indexes wait for their end.
    pub fn jobs(&self) -> Vec<JobId> {
        let Ok(folders) = std::fs::read_dir(self.dir.join("waiting")) else { return Vec::new() };
        folders.flatten().filter_map(|f| f.file_name().to_string_lossy().parse().ok()).collect()
    }

    /// Makes room for the indexes of `job`.
    pub fn begin(&self, job: JobId) -> Result<()> {
        let dir = self.dir.join("waiting").join(job.to_string());
        std::fs::create_dir_all(&dir).or_kind(ErrorKind::Full, format_args!("{}", dir.display()))
    }

    /// The backup is committed: its indexes become current, all others go. A missing one only costs a full run.
    pub fn commit(&self, job: JobId, parts: &[(u16, Vec<u8>, Hash)]) -> Result<()> {
        for (region, lower, hash) in parts {
            let _ = std::fs::rename(self.waiting(job, *region, lower), self.current(hash));
        }
        let keep: HashSet<String> = parts.iter().map(|(_, _, hash)| hash.to_string()).collect();
        let current = self.dir.join("current");
        for entry in std::fs::read_dir(&current).or_kind(ErrorKind::Retry, "key indexes")?.flatten() {
            if !keep.contains(entry.file_name().to_string_lossy().as_ref()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        self.drop_waiting(job);
        Ok(())
    }

    /// The backup failed: its indexes go.
    pub fn drop_waiting(&self, job: JobId) {
        let _ = std::fs::remove_dir_all(self.dir.join("waiting").join(job.to_string()));
    }
}
