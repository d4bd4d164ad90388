//! Reading and appending the ledger of a cluster.
//!
//! Invariant: an entry counts only if its epoch is not below that of any entry before it. A writer appends at the next
//! free number by create-if-absent; who loses the number reads what won and looks again. Whoever meets a higher epoch
//! than its own is fenced and stops.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures::{StreamExt, TryStreamExt};
use tidemark_proto::frame;
use tidemark_proto::hash::Hash;
use tidemark_proto::id::{JobId, PackId};
use tidemark_proto::stored::envelope::ObjectKind;
use tidemark_proto::stored::ledger::{self, Backup, Body, Entry, Failed, Fence, LogPolicy, Policy};
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, Timestamp};

use super::Repository;

/// Entries read at once.
const PARALLEL_READS: usize = 16;

/// An entry as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The entry.
    pub entry: Entry,
    /// Its body, decoded.
    pub body: Body,
    /// Hash of its stored bytes.
    pub hash: Hash,
    /// Whether it counts: its epoch is not below an earlier entry's.
    pub counts: bool,
}

/// The ledger of one cluster, read up to some number.
#[derive(Debug, Clone)]
pub struct Ledger {
    repository: Repository,
    cluster: ClusterName,
    entries: Vec<Recorded>,
}

/// A backup that stands in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupRecord {
    /// Number of the entry.
    pub number: u64,
    /// When it was written, milliseconds since 1970.
    pub at_millis: u64,
    /// What it says.
    pub backup: Backup,
}

/// What may be deleted at any time, and may not be named by a later backup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condemned {
    /// Packs.
    pub packs: HashSet<PackId>,
    /// Manifest roots and pages.
    pub roots: HashSet<Hash>,
}

impl Ledger {
    /// Reads the ledger of `cluster`; an unknown cluster has an empty one.
    pub async fn load(repository: &Repository, cluster: &ClusterName) -> Result<Self> {
        let mut ledger = Self { repository: repository.clone(), cluster: cluster.clone(), entries: Vec::new() };
        ledger.refresh().await?;
        Ok(ledger)
    }

    /// Reads what was appended since.
    pub async fn refresh(&mut self) -> Result<()> {
        let listed = self.repository.store().list(&paths::ledger_dir(&self.cluster)).await?;
        let known = self.tail().0;
        let last = listed.iter().filter_map(|(p, _)| paths::number(p)).max().unwrap_or(0);
        if last < known {
            return Err(Error::damaged(format!(
                "the ledger of {} ends at {last}, but {known} was seen before: history is missing",
                self.cluster
            )));
        }
        let (repository, cluster) = (self.repository.clone(), self.cluster.clone());
        let read: Vec<(u64, Entry, Hash)> = futures::stream::iter(known + 1..=last)
            .map(|n| read_entry(&repository, &cluster, n))
            .buffered(PARALLEL_READS)
            .try_collect()
            .await?;
        for (_, entry, hash) in read {
            self.push(entry, hash)?;
        }
        Ok(())
    }

    fn push(&mut self, entry: Entry, hash: Hash) -> Result<()> {
        let (number, previous) = self.tail();
        if entry.number != number + 1 || entry.previous != previous {
            return Err(Error::damaged(format!(
                "ledger entry {} of {}: does not follow the entry before it",
                entry.number, self.cluster
            )));
        }
        let body = Body::decode(entry.kind, &entry.body)?;
        let counts = entry.epoch >= self.epoch();
        self.entries.push(Recorded { entry, body, hash, counts });
        Ok(())
    }

    /// Number and hash of the last entry; 0 and zero for an empty ledger.
    pub fn tail(&self) -> (u64, Hash) {
        self.entries.last().map_or((0, Hash::ZERO), |r| (r.entry.number, r.hash))
    }

    /// Highest epoch seen.
    pub fn epoch(&self) -> u64 {
        self.entries.iter().filter(|r| r.counts).map(|r| r.entry.epoch).next_back().unwrap_or(0)
    }

    /// Fences the ledger under `epoch`, unless it is so already: from here on nothing of an older coordinator counts.
    /// `Fenced` when a higher epoch wins meanwhile; one that stands already is left to [`Ledger::append`] to tell of.
    pub async fn take_over(&mut self, epoch: u64, now_millis: u64, coordinator: &str) -> Result<()> {
        if self.epoch() < epoch {
            let fence = Body::Fence(Fence { coordinator: coordinator.to_owned() });
            let _ = self.append(epoch, now_millis, &fence, |_| Ok(())).await?;
        }
        Ok(())
    }

    /// Appends `body` as the coordinator of `epoch`. `check` is asked after each look at the newest ledger whether the
    /// entry still holds. `Fenced` when a higher epoch stands in the ledger.
    pub async fn append(
        &mut self,
        epoch: u64,
        now_millis: u64,
        body: &Body,
        check: impl Fn(&Ledger) -> Result<()>,
    ) -> Result<&Recorded> {
        let (kind, archive) = body.encode();
        loop {
            if self.epoch() > epoch {
                return Err(Error::fenced(format!(
                    "epoch {epoch} is over for cluster {}: a coordinator with epoch {} has taken over",
                    self.cluster,
                    self.epoch()
                )));
            }
            check(self)?;
            let (last, previous) = self.tail();
            let entry = Entry {
                number: last + 1,
                previous,
                epoch,
                put_id: rand::random(),
                at_millis: now_millis,
                kind,
                body: archive.clone(),
            };
            let path = paths::ledger(&self.cluster, entry.number);
            let archived = frame::to_archive(&entry);
            let bytes = self.repository.seal_object(
                &self.cluster,
                ObjectKind::LedgerEntry,
                ledger::VERSION,
                &path,
                &archived,
            )?;
            let hash = Hash::of(&bytes);
            match self.repository.store().create(&path, bytes.into()).await {
                Ok(()) => {
                    self.push(entry, hash)?;
                    return Ok(self.entries.last().expect("just pushed"));
                }
                Err(e) if e.kind() == ErrorKind::Conflict => self.refresh().await?,
                Err(e) => return self.resolve(&entry, e).await,
            }
        }
    }

    /// A put that ended with an error may have won all the same. When the entry is not there it may still come: who then
    /// wins its number with another entry knows that it never will.
    async fn resolve(&mut self, entry: &Entry, error: Error) -> Result<&Recorded> {
        let told = "appending to the ledger";
        if let Err(e) = self.refresh().await {
            tracing::warn!(error = %e.report(), "the ledger cannot be read after a write to it failed");
            return Err(error.context(told));
        }
        let ours = self.entries.iter().position(|r| r.entry.put_id == entry.put_id);
        ours.map(|i| &self.entries[i]).ok_or_else(|| error.context(told))
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Every entry.
    pub fn entries(&self) -> &[Recorded] {
        &self.entries
    }

    fn counting(&self) -> impl DoubleEndedIterator<Item = &Recorded> {
        self.entries.iter().filter(|r| r.counts)
    }

    /// The newest policy.
    pub fn policy(&self) -> Option<&Policy> {
        self.counting().rev().find_map(|r| match &r.body {
            Body::Policy(p) => Some(p),
            _ => None,
        })
    }

    /// Whether and how the log is kept: the newest word on it.
    pub fn log_policy(&self) -> Option<&LogPolicy> {
        self.counting().rev().find_map(|r| match &r.body {
            Body::LogPolicy(p) => Some(p),
            _ => None,
        })
    }

    /// The first log segment that is not given up.
    pub fn trimmed(&self) -> u64 {
        let below = self.counting().filter_map(|r| match &r.body {
            Body::Trim(t) => Some(t.below),
            _ => None,
        });
        below.max().unwrap_or(1)
    }

    /// Log segments that cannot be read, and why.
    pub fn void_segments(&self) -> BTreeMap<u64, String> {
        let void = self.counting().filter_map(|r| match &r.body {
            Body::Void(v) => Some((v.segment, v.reason.clone())),
            _ => None,
        });
        void.collect()
    }

    /// Backups that were not deleted, oldest first.
    pub fn backups(&self) -> Vec<BackupRecord> {
        let deleted: HashSet<JobId> = self
            .counting()
            .filter_map(|r| match &r.body {
                Body::Delete(d) => Some(d.job),
                _ => None,
            })
            .collect();
        self.counting()
            .filter_map(|r| match &r.body {
                Body::Backup(b) if !deleted.contains(&b.job) => {
                    Some(BackupRecord { number: r.entry.number, at_millis: r.entry.at_millis, backup: b.clone() })
                }
                _ => None,
            })
            .collect()
    }

    /// Whether the ledger says how the job ended: with a backup (deleted or not) or without one.
    pub fn is_settled(&self, job: JobId) -> bool {
        self.counting().any(|r| match &r.body {
            Body::Backup(b) => b.job == job,
            Body::Failed(f) => f.job == job,
            _ => false,
        })
    }

    /// Backups that readers hold at `now_millis`, deleted ones included.
    pub fn held(&self, now_millis: u64) -> HashSet<JobId> {
        let mut holds: HashMap<JobId, JobId> = HashMap::new();
        for recorded in self.counting() {
            match &recorded.body {
                Body::Hold(h) if h.until_millis > now_millis => drop(holds.insert(h.reader, h.backup)),
                Body::Hold(h) => drop(holds.remove(&h.reader)),
                Body::Leave(l) => drop(holds.remove(&l.reader)),
                _ => {}
            }
        }
        holds.into_values().collect()
    }

    /// Every backup that ever stood, deleted ones included, oldest first.
    pub fn all_backups(&self) -> impl Iterator<Item = &Backup> {
        self.counting().filter_map(|r| match &r.body {
            Body::Backup(b) => Some(b),
            _ => None,
        })
    }

    /// What was condemned.
    pub fn condemned(&self) -> Condemned {
        let mut all = Condemned::default();
        for recorded in self.counting() {
            if let Body::Condemn(c) = &recorded.body {
                all.packs.extend(&c.packs);
                all.roots.extend(&c.roots);
            }
        }
        all
    }

    /// The highest cut of any backup, deleted ones included.
    pub fn last_cut(&self) -> Timestamp {
        let cuts = self.counting().filter_map(|r| match &r.body {
            Body::Backup(b) => Some(b.cut),
            _ => None,
        });
        cuts.max().unwrap_or(Timestamp::ZERO)
    }

    /// Failed backup jobs, oldest first, with the time they ended.
    pub fn failures(&self) -> Vec<(u64, Failed)> {
        self.counting()
            .filter_map(|r| match &r.body {
                Body::Failed(f) => Some((r.entry.at_millis, f.clone())),
                _ => None,
            })
            .collect()
    }
}

async fn read_entry(repository: &Repository, cluster: &ClusterName, number: u64) -> Result<(u64, Entry, Hash)> {
    let path = paths::ledger(cluster, number);
    let bytes = repository.store().get(&path).await.map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::damaged(format!("{path} is missing, but later entries are there")),
        _ => e,
    })?;
    let hash = Hash::of(&bytes);
    let body = repository
        .open_object(cluster, ObjectKind::LedgerEntry, ledger::VERSION, &path, &bytes)
        .map_err(|e| e.context(&path))?;
    let entry: Entry = frame::from_archive(&body).map_err(|e| e.context(&path))?;
    if entry.number != number {
        return Err(Error::damaged(format!("{path}: holds entry {}", entry.number)));
    }
    Ok((number, entry, hash))
}
