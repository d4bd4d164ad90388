//! Job records: what a job stored so far, one revision after the other. Hints that may be lost.

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::frame;
use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::envelope::ObjectKind;
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::stored::{paths, repository as v1};
use tidemark_proto::{ClusterName, ErrorKind, Result, Timestamp};

use super::Repository;

/// Writes the record of one job.
#[derive(Debug)]
pub struct JobRecorder {
    repository: Repository,
    cluster: ClusterName,
    job: JobId,
    epoch: u64,
    cut: Timestamp,
    parent: Hash,
    revision: u64,
}

impl JobRecorder {
    /// A recorder that has written nothing.
    pub fn new(
        repository: &Repository,
        cluster: &ClusterName,
        job: JobId,
        epoch: u64,
        cut: Timestamp,
        parent: Hash,
    ) -> Self {
        let (repository, cluster) = (repository.clone(), cluster.clone());
        Self { repository, cluster, job, epoch, cut, parent, revision: 0 }
    }

    /// Writes the next revision, durable on return.
    pub async fn write(&mut self, parts: Vec<PartEntry>) -> Result<()> {
        let record = v1::JobRecord {
            job: self.job,
            cluster: self.cluster.clone(),
            epoch: self.epoch,
            at_millis: SystemClock.millis(),
            cut: self.cut,
            parent: self.parent,
            parts,
        };
        let path = paths::job(&self.cluster, &self.job, self.revision + 1);
        let body = frame::to_archive(&record);
        let bytes = self.repository.seal_object(&self.cluster, ObjectKind::JobRecord, v1::VERSION, &path, &body)?;
        self.repository.store().create(&path, bytes.into()).await?;
        self.revision += 1;
        Ok(())
    }
}

/// Reads one revision of a job record; `None` when it has gone meanwhile.
pub async fn read_job_record(
    repository: &Repository,
    cluster: &ClusterName,
    path: &str,
) -> Result<Option<v1::JobRecord>> {
    let bytes = match repository.store().get(path).await {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let body = repository.open_object(cluster, ObjectKind::JobRecord, v1::VERSION, path, &bytes);
    frame::from_archive(&body.map_err(|e| e.context(path))?).map(Some).map_err(|e| e.context(path))
}
