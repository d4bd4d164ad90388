//! The task that writes events.

use std::collections::HashMap;
use std::time::Duration;

use metrics::counter;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::events::Event;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Noted;
use crate::metric_names::EVENTS_LOST;
use crate::repository::{EventRecorder, Repository};

/// Events wait at most this long for others to be written with them.
pub const BATCH_TIME: Duration = Duration::from_secs(2);
/// A batch of a job is written when it holds this many events.
pub const BATCH_EVENTS: usize = 64;
/// Events kept of one job, its end beside them.
pub const MAX_PER_JOB: usize = 1000;
/// An end that was lost would keep a job's place for ever: so many jobs are followed at once.
const MAX_JOBS: usize = 1000;

/// Writes what comes out of an [`super::EventSink`].
#[derive(Debug)]
pub struct EventWriter {
    queue: mpsc::Receiver<Noted>,
    jobs: HashMap<JobId, OpenJob>,
}

#[derive(Debug)]
struct OpenJob {
    recorder: EventRecorder,
    waiting: Vec<Event>,
    /// Events taken so far.
    taken: usize,
    lost: u32,
    due: Instant,
    ended: bool,
}

impl EventWriter {
    pub(super) fn new(queue: mpsc::Receiver<Noted>) -> Self {
        Self { queue, jobs: HashMap::new() }
    }

    /// Writes until `shutdown` or until every sink is gone, and what is left then.
    pub async fn run(mut self, repository: Repository, epoch: u64, shutdown: CancellationToken) {
        let far = Duration::from_secs(3600);
        loop {
            let waiting = self.jobs.values().filter(|j| !j.waiting.is_empty());
            let due = waiting.map(|j| j.due).min().unwrap_or_else(|| Instant::now() + far);
            tokio::select! {
                biased;
                noted = self.queue.recv() => match noted {
                    Some(noted) => self.take(noted, &repository, epoch),
                    None => break,
                },
                () = shutdown.cancelled(), if !self.queue.is_closed() => self.queue.close(),
                () = sleep_until(due) => {}
            }
            self.write_due(Instant::now()).await;
        }
        for job in self.jobs.values_mut() {
            job.write().await;
        }
    }

    fn take(&mut self, noted: Noted, repository: &Repository, epoch: u64) {
        if self.jobs.len() >= MAX_JOBS && !self.jobs.contains_key(&noted.job) {
            return lose(1);
        }
        let job = self.jobs.entry(noted.job).or_insert_with(|| OpenJob {
            recorder: EventRecorder::new(repository, &noted.cluster, noted.job, noted.kind, epoch),
            waiting: Vec::new(),
            taken: 0,
            lost: 0,
            due: Instant::now(),
            ended: false,
        });
        if job.taken >= MAX_PER_JOB && !noted.last {
            job.lost += 1;
            return lose(1);
        }
        if job.waiting.is_empty() {
            job.due = Instant::now() + BATCH_TIME;
        }
        job.taken += 1;
        job.waiting.push(noted.event);
        if noted.last || job.waiting.len() >= BATCH_EVENTS {
            job.due = Instant::now();
        }
        job.ended |= noted.last;
    }

    async fn write_due(&mut self, now: Instant) {
        for job in self.jobs.values_mut().filter(|j| j.due <= now && !j.waiting.is_empty()) {
            job.write().await;
        }
        self.jobs.retain(|_, j| !j.ended);
    }
}

impl OpenJob {
    async fn write(&mut self) {
        let (events, lost) = (std::mem::take(&mut self.waiting), std::mem::take(&mut self.lost));
        let count = events.len();
        if count == 0 {
            return;
        }
        if let Err(e) = self.recorder.write(events, lost).await {
            self.lost = lost.saturating_add(count as u32);
            lose(count as u64);
            tracing::warn!(error = %e.report(), count, "events of a job could not be kept");
        }
    }
}

fn lose(count: u64) {
    counter!(EVENTS_LOST).increment(count);
}

#[cfg(test)]
mod tests {
    use tidemark_proto::ClusterName;

    use super::super::channel;
    use super::*;
    use crate::repository::{Repository, Store, StoreConfig, event_objects, event_objects_older, read_events};

    async fn repository() -> Repository {
        let store = Store::open(&StoreConfig { url: "memory:///".into(), ..StoreConfig::default() }).unwrap();
        Repository::init(store, None, 7).await.unwrap()
    }

    async fn kept(repository: &Repository, cluster: &ClusterName) -> Vec<(Vec<String>, u32)> {
        let mut objects = event_objects(repository, cluster).await.unwrap();
        objects.sort_by_key(|o| o.revision);
        let read = read_events(repository, cluster, &objects).await.unwrap();
        read.into_iter().map(|b| (b.events.into_iter().map(|e| e.what).collect(), b.lost)).collect()
    }

    #[tokio::test]
    async fn events_of_a_job_are_bounded_and_its_end_is_kept() {
        let (repository, cluster) = (repository().await, ClusterName::new("c").unwrap());
        let (sink, writer) = channel();
        let writer = tokio::spawn(writer.run(repository.clone(), 3, CancellationToken::new()));
        let log = sink.of(&cluster, JobId([7; 16]), "backup");
        drop(sink);
        for n in 0..MAX_PER_JOB + 20 {
            log.note("retry", "n1", format!("{n}"));
            tokio::task::yield_now().await;
        }
        log.end("failed", "ü".repeat(5000));
        drop(log);
        writer.await.unwrap();
        let batches = kept(&repository, &cluster).await;
        let count: usize = batches.iter().map(|(events, _)| events.len()).sum();
        assert_eq!((count, batches.last().unwrap().1), (MAX_PER_JOB + 1, 20));
        assert_eq!(batches.last().unwrap().0.last().unwrap(), "failed");
        assert!(batches.len() >= MAX_PER_JOB / BATCH_EVENTS, "{}", batches.len());
    }

    #[tokio::test]
    async fn a_batch_is_written_when_it_is_time_and_old_ones_are_listed() {
        let (repository, cluster) = (repository().await, ClusterName::new("c").unwrap());
        let (sink, writer) = channel();
        let writer = tokio::spawn(writer.run(repository.clone(), 3, CancellationToken::new()));
        let log = sink.of(&cluster, JobId([8; 16]), "backup");
        log.note("began", "", "");
        log.note("phase", "", "sending parts");
        let deadline = Instant::now() + Duration::from_secs(30);
        while kept(&repository, &cluster).await.is_empty() {
            assert!(Instant::now() < deadline, "nothing is written while the job runs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(kept(&repository, &cluster).await, [(vec!["began".to_owned(), "phase".to_owned()], 0)]);
        let at = event_objects(&repository, &cluster).await.unwrap()[0].at_millis;
        let day = 24 * 3600 * 1000;
        let older = async |days, now| event_objects_older(&repository, &cluster, days, now).await.unwrap().len();
        assert_eq!((older(30, at + 30 * day).await, older(30, at + 30 * day + 1).await), (0, 1));
        drop((log, sink));
        writer.await.unwrap();
    }
}
