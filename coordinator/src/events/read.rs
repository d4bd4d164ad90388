//! What happened, for people: events of jobs and entries of ledgers, in the order of time.

use tidemark_proto::stored::events::JobEvents;
use tidemark_proto::stored::ledger::{Body, LOG_OFF, LOG_PAUSED, Policy};
use tidemark_proto::{ClusterName, Error, ErrorKind, Result};

use crate::repository::{Ledger, Recorded, Repository, event_objects, read_events};

/// Events that are listed at most, the newest.
pub const MAX_LISTED: usize = 5000;
/// Events that are listed unless another number is asked for.
const DEFAULT_LISTED: usize = 500;
/// Objects of events read for one list, the newest of each cluster.
const MAX_OBJECTS: usize = 2000;

/// Which events.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Of this cluster; all without.
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterName>,
    /// Of this job: its id or a unique beginning of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The newest so many; 500 without, at most 5000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct EventItem {
    /// When, milliseconds since 1970.
    pub at_millis: u64,
    /// The cluster.
    pub cluster: String,
    /// The job; empty where it is of none.
    pub job: String,
    /// What the job does, or `ledger` for an entry of the ledger.
    pub kind: String,
    /// What happened, in a word.
    pub what: String,
    /// The node that it is about; empty for none.
    pub node: String,
    /// The words.
    pub message: String,
}

/// Lists events, oldest first, from the repository alone.
pub async fn list(repository: &Repository, query: &EventsQuery) -> Result<Vec<EventItem>> {
    let clusters = match &query.cluster {
        Some(cluster) => vec![cluster.clone()],
        None => repository.clusters().await?,
    };
    let mut items = Vec::new();
    for cluster in clusters {
        items.extend(of_jobs(repository, &cluster, query.job.as_deref()).await?);
        let ledger = Ledger::load(repository, &cluster).await?;
        items.extend(ledger.entries().iter().map(|r| of_entry(&cluster, r)));
    }
    if let Some(job) = &query.job {
        items.retain(|i| i.job.starts_with(job.as_str()));
        one_job(&items, job)?;
    }
    items.sort_by_key(|i| i.at_millis);
    let limit = query.limit.unwrap_or(DEFAULT_LISTED).min(MAX_LISTED);
    Ok(items.split_off(items.len().saturating_sub(limit)))
}

fn one_job(items: &[EventItem], wanted: &str) -> Result<()> {
    let mut jobs: Vec<_> = items.iter().map(|i| i.job.as_str()).collect();
    jobs.sort_unstable();
    jobs.dedup();
    match jobs.len() {
        1 => Ok(()),
        0 => Err(Error::not_found(format!("no events of a job `{wanted}` are kept"))),
        _ => Err(Error::request(format!("`{wanted}` fits several jobs, give more of the id: {}", jobs.join(", ")))),
    }
}

async fn of_jobs(repository: &Repository, cluster: &ClusterName, job: Option<&str>) -> Result<Vec<EventItem>> {
    let mut objects = event_objects(repository, cluster).await?;
    objects.retain(|o| job.is_none_or(|j| o.job.to_string().starts_with(j)));
    objects.truncate(MAX_OBJECTS);
    // In the order in which they were written: events of one time stay in theirs.
    objects.sort_by_key(|o| (o.job, o.revision));
    let read = read_events(repository, cluster, &objects).await?;
    Ok(read.into_iter().flat_map(|batch| of_batch(cluster, batch)).collect())
}

fn of_batch(cluster: &ClusterName, batch: JobEvents) -> impl Iterator<Item = EventItem> {
    let item = {
        let (cluster, job, kind) = (cluster.to_string(), batch.job.to_string(), batch.kind);
        move |at_millis: u64, what: &str, node: String, message: String| {
            let (cluster, job, kind) = (cluster.clone(), job.clone(), kind.clone());
            EventItem { at_millis, cluster, job, kind, what: what.into(), node, message }
        }
    };
    let first = batch.events.first().map_or(0, |e| e.at_millis);
    let lost = (batch.lost > 0)
        .then(|| item(first, "lost", String::new(), format!("{} events before were not kept", batch.lost)));
    lost.into_iter().chain(batch.events.into_iter().map(move |e| item(e.at_millis, &e.what, e.node, e.message)))
}

fn of_entry(cluster: &ClusterName, recorded: &Recorded) -> EventItem {
    let (job, what, message) = match &recorded.body {
        Body::Fence(f) => {
            (String::new(), "fence", format!("{} took over, epoch {}", f.coordinator, recorded.entry.epoch))
        }
        Body::Policy(Policy { engine, slots_per_region, nodes }) => (
            String::new(),
            "policy",
            format!("{engine}, {slots_per_region} slots a region, nodes {}", nodes.join(", ")),
        ),
        Body::Backup(b) => (b.job.to_string(), "backup", format!("complete, cut {}, root {}", b.cut, b.root)),
        Body::Delete(d) => (d.job.to_string(), "delete", "the backup is no restore point any more".into()),
        Body::Failed(f) => {
            (f.job.to_string(), "failed", format!("{} ({})", f.reason, ErrorKind::from_code(u64::from(f.code))))
        }
        Body::Condemn(c) => {
            let message = format!("{} packs and {} manifest objects given up", c.packs.len(), c.roots.len());
            (String::new(), "condemn", message)
        }
        Body::Hold(h) => (h.reader.to_string(), "hold", format!("backup {} is being read", h.backup)),
        Body::Leave(l) => (l.reader.to_string(), "leave", "the backup is not read any more".into()),
        Body::LogPolicy(p) => {
            let state = match p.state {
                LOG_OFF => "off",
                LOG_PAUSED => "paused",
                _ => "on",
            };
            let message = format!(
                "the log is {state}: a segment every {} ms or {} bytes, {} ms when idle",
                p.interval_millis, p.segment_bytes, p.idle_millis
            );
            (String::new(), "log", message)
        }
        Body::Trim(t) => (String::new(), "trim", format!("log segments below {} are not needed any more", t.below)),
        Body::Void(v) => (
            String::new(),
            "void",
            format!("log segment {} is lost, the window ends there: {}", v.segment, v.reason),
        ),
        Body::Unknown(kind) => (String::new(), "unknown", format!("kind {kind}: a newer build wrote it")),
    };
    let ignored = if recorded.counts { "" } else { " (ignored: written under an epoch that was over)" };
    EventItem {
        at_millis: recorded.entry.at_millis,
        cluster: cluster.to_string(),
        job,
        kind: "ledger".into(),
        what: what.into(),
        node: String::new(),
        message: format!("entry {}: {message}{ignored}", recorded.entry.number),
    }
}
