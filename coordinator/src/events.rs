//! What happens in jobs, kept in the repository so that it can be read when the coordinator is long gone.
//!
//! Invariant: a job never waits for its events and never fails with them. They go through a bounded queue to one task
//! that writes them in batches; what does not fit or cannot be written is lost, counted and warned of. A crash loses
//! what was not written yet, at most [`BATCH_TIME`] of events. A job keeps at most [`MAX_PER_JOB`].

mod read;
mod writer;

use metrics::counter;
use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::ClusterName;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::events::Event;
use tokio::sync::mpsc;

use crate::metric_names::EVENTS_LOST;

pub use read::{EventItem, EventsQuery, MAX_LISTED, list};
pub use writer::{BATCH_EVENTS, BATCH_TIME, EventWriter, MAX_PER_JOB};

/// Events between the jobs and the task that writes them.
const QUEUE: usize = 1024;
/// Longest message of an event, in bytes.
pub const MAX_MESSAGE: usize = 2000;

/// An event on its way to the writer.
#[derive(Debug)]
struct Noted {
    cluster: ClusterName,
    job: JobId,
    kind: &'static str,
    event: Event,
    /// Nothing comes after it.
    last: bool,
}

/// Takes events from jobs. A default one keeps none.
#[derive(Debug, Clone, Default)]
pub struct EventSink(Option<mpsc::Sender<Noted>>);

/// A sink and what comes out of it.
pub fn channel() -> (EventSink, EventWriter) {
    let (send, receive) = mpsc::channel(QUEUE);
    (EventSink(Some(send)), EventWriter::new(receive))
}

/// The events of one job.
#[derive(Debug, Clone)]
pub struct JobLog {
    sink: EventSink,
    cluster: ClusterName,
    job: JobId,
    kind: &'static str,
}

impl EventSink {
    /// The events of a job of `kind`.
    pub fn of(&self, cluster: &ClusterName, job: JobId, kind: &'static str) -> JobLog {
        JobLog { sink: self.clone(), cluster: cluster.clone(), job, kind }
    }
}

impl JobLog {
    /// Notes that `what` happened (a word), at `node` or at none (empty).
    pub fn note(&self, what: &str, node: &str, message: impl Into<String>) {
        self.send(what, node, message.into(), false);
    }

    /// Notes the end of the job.
    pub fn end(&self, what: &str, message: impl Into<String>) {
        self.send(what, "", message.into(), true);
    }

    fn send(&self, what: &str, node: &str, mut message: String, last: bool) {
        let Some(sink) = &self.sink.0 else { return };
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        let (what, node) = (what.to_owned(), node.to_owned());
        let event = Event { at_millis: SystemClock.millis(), what, node, message };
        let noted = Noted { cluster: self.cluster.clone(), job: self.job, kind: self.kind, event, last };
        if sink.try_send(noted).is_err() {
            counter!(EVENTS_LOST).increment(1);
            tracing::warn!(job = %self.job, "an event of the job was lost: the object store does not keep up");
        }
    }
}
