//! `tidemark job`, and finding the job that a command means.

use clap::Subcommand;
use tidemark_proto::{ClusterName, Error, Result};

use super::connect::GlobalArgs;
use super::follow::{self, fraction, name, took};
use super::output::{Format, fields, listing, short, size};
use super::report;
use super::time;
use crate::client::ApiClient;
use crate::job::{JobInfo, JobKind, JobState};

/// `tidemark job`.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// List jobs that run or ended lately
    #[command(visible_alias = "ls")]
    List,
    /// Show a job
    Show {
        /// The job: id or a unique beginning of it; without one, the one that runs or else the last
        job: Option<String>,
        /// Follow it to its end; the exit code is that of the job
        #[arg(long)]
        wait: bool,
    },
    /// Cancel a job
    Cancel {
        /// The job: id or a unique beginning of it; the running one where there is one alone
        job: Option<String>,
    },
}

impl JobCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        let (client, output) = (global.client()?, global.output);
        match self {
            Self::List => {
                let now = client.status().await?.now;
                let now = tidemark_proto::Timestamp(now).millis();
                output.print(&client.jobs().await?, |jobs| list(jobs, now))
            }
            Self::Show { job, wait } => status(&client, None, job.as_deref(), None, wait, output).await,
            Self::Cancel { job } => cancel(&client, None, job.as_deref(), None, output).await,
        }
    }
}

/// Jobs as a table; `now` is milliseconds since 1970.
pub(crate) fn list(jobs: &[JobInfo], now: u64) -> String {
    let rows = jobs.iter().map(|j| {
        let done = fraction(j).map_or_else(|| "-".into(), |f| format!("{:.0}%", f * 100.0));
        [
            short(&j.id.to_string()),
            name(j.kind).into(),
            j.cluster.to_string(),
            j.state.name().into(),
            if j.state == JobState::Running { j.phase.clone() } else { "-".into() },
            done,
            time::seconds(j.started_millis),
            took(j, now),
        ]
    });
    listing(["JOB", "KIND", "CLUSTER", "STATE", "AT", "DONE", "BEGAN", "TOOK"], rows, "no job runs or ended lately")
}

/// Shows a job, or follows it to its end.
pub(crate) async fn status(
    client: &ApiClient,
    kind: Option<JobKind>,
    job: Option<&str>,
    cluster: Option<&ClusterName>,
    wait: bool,
    output: Format,
) -> Result<()> {
    let jobs = client.jobs().await?;
    // With nothing at work, the last one is what is asked about.
    let last = jobs.iter().find(|j| kind.is_none_or(|k| k == j.kind) && cluster.is_none_or(|c| *c == j.cluster));
    let last = last.filter(|_| job.is_none()).cloned();
    let info = find(jobs, kind, job, cluster).or_else(|e| match (e.kind(), last) {
        (tidemark_proto::ErrorKind::NotFound, Some(last)) => Ok(last),
        _ => Err(e),
    })?;
    if wait {
        let info = follow::follow(client, info, output).await?;
        return follow::outcome(&info, output);
    }
    let now = tidemark_proto::Timestamp(client.status().await?.now).millis();
    output.print(&info, |i| show(i, now))
}

/// Cancels a job.
pub(crate) async fn cancel(
    client: &ApiClient,
    kind: Option<JobKind>,
    job: Option<&str>,
    cluster: Option<&ClusterName>,
    output: Format,
) -> Result<()> {
    let info = find(client.jobs().await?, kind, job, cluster)?;
    if info.state != JobState::Running {
        let (what, id) = (name(info.kind), info.id);
        return Err(Error::conflict(format!("{what} {id} has ended already: it {}", info.state.name())));
    }
    let info = client.cancel_job(&info.id).await?;
    output.print(&info, |i| {
        format!("{} {} is told to end: `tidemark job show {} --wait` waits for it", name(i.kind), i.id, i.id)
    })
}

fn show(i: &JobInfo, now: u64) -> String {
    let p = &i.progress;
    let part = |n: u64, total: u64| if total > 0 { format!("{n} of {total}") } else { n.to_string() };
    let bytes = match p.total_bytes {
        0 => size(p.bytes),
        total => format!("{} of {}", size(p.bytes), size(total)),
    };
    let head = fields(&[
        ("job", i.id.to_string()),
        ("kind", format!("{} of cluster {}", name(i.kind), i.cluster)),
        ("state", i.state.name().into()),
        ("at", if i.state == JobState::Running { i.phase.clone() } else { String::new() }),
        ("began", time::seconds(i.started_millis)),
        ("took", took(i, now)),
        ("parts", part(p.parts, p.total_parts)),
        ("bytes", format!("{bytes}, {} sent", size(p.wire_bytes))),
        ("error", i.error.as_ref().map(|e| format!("{} ({})", e.message, e.kind)).unwrap_or_default()),
    ]);
    if i.state == JobState::Succeeded { format!("{head}\n{}", report::result(i)) } else { head }
}

/// The job of that id or beginning, or the only one that runs.
fn find(
    mut jobs: Vec<JobInfo>,
    kind: Option<JobKind>,
    wanted: Option<&str>,
    cluster: Option<&ClusterName>,
) -> Result<JobInfo> {
    let what = kind.map_or("job", name);
    jobs.retain(|j| kind.is_none_or(|k| k == j.kind) && cluster.is_none_or(|c| *c == j.cluster));
    match wanted {
        Some(id) => jobs.retain(|j| !id.is_empty() && j.id.to_string().starts_with(id)),
        None => jobs.retain(|j| j.state == JobState::Running),
    }
    let ids = || jobs.iter().map(|j| format!("{} of {}", j.id, j.cluster)).collect::<Vec<_>>().join(", ");
    match (jobs.len(), wanted) {
        (1, _) => Ok(jobs.remove(0)),
        (0, Some(id)) => {
            Err(Error::not_found(format!("no {what} `{id}` runs or ended lately: see `tidemark job list`")))
        }
        (0, None) => Err(Error::not_found(format!(
            "no {what} runs: see `tidemark job list` for those that ended, and name one"
        ))),
        (_, Some(id)) => Err(Error::request(format!("`{id}` fits several, give more of the id: {}", ids()))),
        (_, None) => Err(Error::request(format!("which {what}? These run: {}", ids()))),
    }
}

#[cfg(test)]
mod tests {
    use tidemark_proto::ErrorKind;
    use tidemark_proto::id::JobId;

    use super::*;
    use crate::job::JobProgress;

    fn job(id: u8, kind: JobKind, cluster: &str, state: JobState) -> JobInfo {
        JobInfo {
            id: JobId([id; 16]),
            kind,
            cluster: cluster.parse().unwrap(),
            state,
            phase: "storing".into(),
            started_millis: 0,
            finished_millis: None,
            progress: JobProgress { parts: 1, total_parts: 2, ..Default::default() },
            error: None,
            result: None,
        }
    }

    #[test]
    fn the_only_running_job_needs_no_id() {
        let jobs = || {
            vec![
                job(1, JobKind::Backup, "a", JobState::Running),
                job(2, JobKind::Restore, "b", JobState::Running),
                job(3, JobKind::Backup, "a", JobState::Succeeded),
            ]
        };
        let kind = |found: Result<JobInfo>| found.map_err(|e| e.kind()).map(|j| j.id.0[0]);
        let (backup, restore) = (Some(JobKind::Backup), Some(JobKind::Restore));
        assert_eq!(kind(find(jobs(), backup, None, None)), Ok(1));
        assert_eq!(kind(find(jobs(), restore, None, None)), Ok(2));
        assert_eq!(kind(find(jobs(), None, None, None)), Err(ErrorKind::Request));
        assert_eq!(kind(find(jobs(), None, None, Some(&"b".parse().unwrap()))), Ok(2));
        assert_eq!(kind(find(jobs(), None, Some("0303"), None)), Ok(3), "ended ones by id");
        assert_eq!(kind(find(jobs(), None, Some("0"), None)), Err(ErrorKind::Request));
        assert_eq!(kind(find(jobs(), restore, Some("0303"), None)), Err(ErrorKind::NotFound));
        assert_eq!(kind(find(jobs(), Some(JobKind::Verify), None, None)), Err(ErrorKind::NotFound));
    }

    #[test]
    fn jobs_are_lines() {
        let text = list(&[job(1, JobKind::Backup, "orders", JobState::Running)], 2500);
        assert!(
            text.lines().nth(1).unwrap().starts_with("01010101  backup  orders   running  storing  50%"),
            "{text}"
        );
        assert!(list(&[], 0).starts_with("no job"));
    }
}
