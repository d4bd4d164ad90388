//! Events of jobs in the repository: one object for each batch. Hints that may be lost.

use futures::{FutureExt, StreamExt, TryStreamExt};
use tidemark_proto::frame;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::envelope::ObjectKind;
use tidemark_proto::stored::events::{self, Event, JobEvents};
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, ErrorKind, Result};

use super::Repository;

/// Objects read at once.
const PARALLEL_READS: usize = 16;

/// Writes the events of one job.
#[derive(Debug)]
pub struct EventRecorder {
    repository: Repository,
    cluster: ClusterName,
    job: JobId,
    kind: String,
    epoch: u64,
    revision: u64,
}

impl EventRecorder {
    /// A recorder that has written nothing.
    pub fn new(repository: &Repository, cluster: &ClusterName, job: JobId, kind: &str, epoch: u64) -> Self {
        let (repository, cluster, kind) = (repository.clone(), cluster.clone(), kind.to_owned());
        Self { repository, cluster, job, kind, epoch, revision: 0 }
    }

    /// Writes the next revision: `events`, and how many before them were `lost`.
    pub async fn write(&mut self, events: Vec<Event>, lost: u32) -> Result<()> {
        let (cluster, kind) = (self.cluster.clone(), self.kind.clone());
        let body = JobEvents { job: self.job, cluster, kind, epoch: self.epoch, events, lost };
        let archive = frame::to_archive(&body);
        loop {
            self.revision += 1;
            let path = paths::events(&self.cluster, &self.job, self.revision);
            let (kind, version) = (ObjectKind::JobEvents, events::VERSION);
            let bytes = self.repository.seal_object(&self.cluster, kind, version, &path, &archive)?;
            match self.repository.store().create(&path, bytes.into()).await {
                // Something was noted after the job's end: it goes behind what is there.
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                done => return done,
            }
        }
    }
}

/// Events of a job as they lie in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvents {
    /// Key of the object.
    pub path: String,
    /// The job.
    pub job: JobId,
    /// Which batch, from 1.
    pub revision: u64,
    /// When it was written, milliseconds since 1970 by the store's clock.
    pub at_millis: u64,
}

/// All event objects of a cluster, newest first.
pub async fn event_objects(repository: &Repository, cluster: &ClusterName) -> Result<Vec<StoredEvents>> {
    let listed = repository.store().list_times(&paths::events_dir(cluster)).await?;
    let known = listed.into_iter().filter_map(|(path, at_millis)| {
        let (job, revision) = paths::events_of(&path)?;
        Some(StoredEvents { path, job, revision, at_millis })
    });
    let mut objects: Vec<_> = known.collect();
    objects.sort_by_key(|o| std::cmp::Reverse((o.at_millis, o.job, o.revision)));
    Ok(objects)
}

/// The event objects of a cluster that were written more than `days` days before `now_millis`, oldest first: what a
/// collection of garbage may remove.
pub async fn event_objects_older(
    repository: &Repository,
    cluster: &ClusterName,
    days: u64,
    now_millis: u64,
) -> Result<Vec<StoredEvents>> {
    let limit = now_millis.saturating_sub(days.saturating_mul(24 * 3600 * 1000));
    let mut objects = event_objects(repository, cluster).await?;
    objects.retain(|o| o.at_millis < limit);
    objects.reverse();
    Ok(objects)
}

/// Reads event objects, in their order. One that is gone meanwhile is left out; one that does not open is `Damaged`.
pub async fn read_events(
    repository: &Repository,
    cluster: &ClusterName,
    objects: &[StoredEvents],
) -> Result<Vec<JobEvents>> {
    let reads: Vec<_> = objects.iter().map(|o| read_one(repository, cluster, &o.path).boxed()).collect();
    let read: Vec<Option<JobEvents>> = futures::stream::iter(reads).buffered(PARALLEL_READS).try_collect().await?;
    Ok(read.into_iter().flatten().collect())
}

async fn read_one(repository: &Repository, cluster: &ClusterName, path: &str) -> Result<Option<JobEvents>> {
    let bytes = match repository.store().get(path).await {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let opened = repository.open_object(cluster, ObjectKind::JobEvents, events::VERSION, path, &bytes);
    let body = opened.map_err(|e| e.context(path))?;
    frame::from_archive(&body).map(Some).map_err(|e| e.context(path))
}
