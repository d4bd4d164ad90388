//! Job records: what a job stored so far and how far it is, one revision after the other. Hints that may be lost: without
//! them a job that a crash ended is void and the next one begins anew.

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::frame;
use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::envelope::{self, ObjectKind};
use tidemark_proto::stored::job::{
    self, BackupBegun, BackupCut, RestoreAt, RestoreBegun, RestoreEnded, RestoreOptions, RestoreSwitching,
    RestoreWithUsers,
};
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::stored::repository::JobRecord;
use tidemark_proto::stored::{paths, repository as v1};
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, Timestamp};

use super::Repository;

/// Revisions that are tried in a row: another coordinator may still write on a job that this one has taken over.
const MAX_TAKEN: u32 = 64;

/// One revision of a job's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A backup has begun.
    BackupBegun(BackupBegun),
    /// Its cut holds.
    BackupCut(BackupCut),
    /// Parts that it stored.
    Parts(JobRecord),
    /// A restore is about to touch its targets.
    RestoreBegun(RestoreBegun),
    /// How it loads records.
    RestoreOptions(RestoreOptions),
    /// It sets users too.
    RestoreWithUsers(RestoreWithUsers),
    /// It is of a time after its backup.
    RestoreAt(RestoreAt),
    /// It only goes forward from here on.
    RestoreSwitching(RestoreSwitching),
    /// It is over.
    RestoreEnded(RestoreEnded),
}

impl Record {
    fn encode(&self) -> (ObjectKind, u8, Vec<u8>) {
        use Record as R;
        let (kind, version, body) = match self {
            R::BackupBegun(b) => (ObjectKind::BackupBegun, job::VERSION, frame::to_archive(b)),
            R::BackupCut(b) => (ObjectKind::BackupCut, job::VERSION, frame::to_archive(b)),
            R::Parts(b) => (ObjectKind::JobRecord, v1::VERSION, frame::to_archive(b)),
            R::RestoreBegun(b) => (ObjectKind::RestoreBegun, job::VERSION, frame::to_archive(b)),
            R::RestoreOptions(b) => (ObjectKind::RestoreOptions, job::VERSION, frame::to_archive(b)),
            R::RestoreAt(b) => (ObjectKind::RestoreAt, job::VERSION, frame::to_archive(b)),
            R::RestoreWithUsers(b) => (ObjectKind::RestoreWithUsers, job::VERSION, frame::to_archive(b)),
            R::RestoreSwitching(b) => (ObjectKind::RestoreSwitching, job::VERSION, frame::to_archive(b)),
            R::RestoreEnded(b) => (ObjectKind::RestoreEnded, job::VERSION, frame::to_archive(b)),
        };
        (kind, version, body.into_vec())
    }

    fn decode(repository: &Repository, cluster: &ClusterName, path: &str, bytes: &[u8]) -> Result<Self> {
        let open = |kind, version| repository.open_object(cluster, kind, version, path, bytes);
        let kind = |k: ObjectKind| envelope::kind_of(bytes) == k as u8;
        let of = |k| open(k, job::VERSION);
        Ok(match () {
            () if kind(ObjectKind::BackupBegun) => {
                Self::BackupBegun(frame::from_archive(&of(ObjectKind::BackupBegun)?)?)
            }
            () if kind(ObjectKind::BackupCut) => Self::BackupCut(frame::from_archive(&of(ObjectKind::BackupCut)?)?),
            () if kind(ObjectKind::RestoreBegun) => {
                Self::RestoreBegun(frame::from_archive(&of(ObjectKind::RestoreBegun)?)?)
            }
            () if kind(ObjectKind::RestoreOptions) => {
                Self::RestoreOptions(frame::from_archive(&of(ObjectKind::RestoreOptions)?)?)
            }
            () if kind(ObjectKind::RestoreAt) => Self::RestoreAt(frame::from_archive(&of(ObjectKind::RestoreAt)?)?),
            () if kind(ObjectKind::RestoreWithUsers) => {
                Self::RestoreWithUsers(frame::from_archive(&of(ObjectKind::RestoreWithUsers)?)?)
            }
            () if kind(ObjectKind::RestoreSwitching) => {
                Self::RestoreSwitching(frame::from_archive(&of(ObjectKind::RestoreSwitching)?)?)
            }
            () if kind(ObjectKind::RestoreEnded) => {
                Self::RestoreEnded(frame::from_archive(&of(ObjectKind::RestoreEnded)?)?)
            }
            () => Self::Parts(frame::from_archive(&open(ObjectKind::JobRecord, v1::VERSION)?)?),
        })
    }
}

/// Writes the record of one job.
#[derive(Debug)]
pub struct JobRecorder {
    repository: Repository,
    cluster: ClusterName,
    job: JobId,
    epoch: u64,
    revision: u64,
}

impl JobRecorder {
    /// A recorder that goes on after `revision`; 0 for a new job.
    pub fn new(repository: &Repository, cluster: &ClusterName, job: JobId, epoch: u64, revision: u64) -> Self {
        let (repository, cluster) = (repository.clone(), cluster.clone());
        Self { repository, cluster, job, epoch, revision }
    }

    /// The last revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Writes the next revision, durable on return.
    pub async fn write(&mut self, record: &Record) -> Result<()> {
        let (kind, version, body) = record.encode();
        for _ in 0..MAX_TAKEN {
            self.revision += 1;
            let path = paths::job(&self.cluster, &self.job, self.revision);
            let bytes = self.repository.seal_object(&self.cluster, kind, version, &path, &body)?;
            match self.repository.store().create(&path, bytes.into()).await {
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                done => return done,
            }
        }
        Err(Error::fenced(format!("job {}: another coordinator goes on writing its record", self.job)))
    }

    /// Writes what a backup stored since the last revision.
    pub async fn parts(&mut self, cut: Timestamp, parent: Hash, parts: Vec<PartEntry>) -> Result<()> {
        let record = JobRecord {
            job: self.job,
            cluster: self.cluster.clone(),
            epoch: self.epoch,
            at_millis: SystemClock.millis(),
            cut,
            parent,
            parts,
        };
        self.write(&Record::Parts(record)).await
    }
}

/// Reads one revision of a job record; `None` when it has gone meanwhile.
pub async fn read_job_record(repository: &Repository, cluster: &ClusterName, path: &str) -> Result<Option<Record>> {
    let bytes = match repository.store().get(path).await {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    Record::decode(repository, cluster, path, &bytes).map(Some).map_err(|e| e.context(path))
}

/// Reads all revisions of a job's record, in order, and the number of the last.
pub async fn read_job(repository: &Repository, cluster: &ClusterName, job: &JobId) -> Result<(Vec<Record>, u64)> {
    let (mut records, mut last) = (Vec::new(), 0);
    for (path, _) in repository.store().list(&paths::job_dir(cluster, job)).await? {
        last = last.max(paths::number(&path).unwrap_or(0));
        records.extend(read_job_record(repository, cluster, &path).await?);
    }
    Ok((records, last))
}
