//! Following a job: a progress bar on a terminal, plain lines elsewhere, the outcome at the end. All of it goes to
//! standard error; the result alone goes to standard output.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, error::ResultExt};

use super::output::{Format, count, duration, size};
use super::report;
use crate::client::ApiClient;
use crate::job::damage::Damage;
use crate::job::{Job, JobInfo, JobKind, JobState, Jobs};

/// Without a terminal a line is printed at most this often while the phase stays the same.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// The bar is drawn anew at least this often.
const TICK: Duration = Duration::from_millis(120);
/// Steps of the bar.
const BAR_STEPS: u64 = 1000;
/// Columns of the bar.
const BAR: &str = "{spinner} {prefix} [{bar:24}] {percent:>3}%  {msg}  ETA {eta}";
const SPINNER: &str = "{spinner} {prefix}  {msg}  {elapsed}";

/// Whether to wait for the end of the job.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct WaitArgs {
    /// Follow the job to its end (this is the default)
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Begin the job and come back at once
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
}

impl WaitArgs {
    /// Whether the job is followed.
    pub(crate) fn waits(self) -> bool {
        !self.no_wait
    }

    /// Follows a job that has begun, or says that it has.
    pub(crate) async fn end(self, client: &ApiClient, info: JobInfo, output: Format) -> Result<()> {
        if !self.waits() {
            return output.print(&info, |i| {
                format!("job {} has begun: `tidemark job show {} --wait` follows it", i.id, i.id)
            });
        }
        let info = follow(client, info, output).await?;
        outcome(&info, output)
    }
}

/// Prints how a job ended; one that did not succeed is an error of its kind.
pub(crate) fn outcome(info: &JobInfo, output: Format) -> Result<()> {
    match (info.state, output) {
        (JobState::Succeeded, _) => output.print(info, report::result).and(complete(info)),
        (_, Format::Json) => output.print(info, |_| String::new()).and(check(info)),
        (_, Format::Text) => check(info),
    }
}

/// `Incomplete` for a job that could do a part of its work alone.
fn complete(info: &JobInfo) -> Result<()> {
    let field = |name| info.result.as_ref().and_then(|r| r.get(name)).cloned().unwrap_or_default();
    if field("complete") != serde_json::json!(false) {
        return Ok(());
    }
    let missing: Damage = serde_json::from_value(field("missing")).unwrap_or_default();
    let what = match (missing.parts, &missing.regions) {
        (0, _) => format!("all records are there, and this is missing: {}", missing.words()),
        (parts, regions) => format!("{parts} parts are missing, of regions {regions}: they were damaged"),
    };
    Err(Error::new(ErrorKind::Incomplete, what))
}

/// The error of a job that ended with one.
pub(crate) fn check(info: &JobInfo) -> Result<()> {
    match (&info.error, info.state) {
        (_, JobState::Succeeded) => Ok(()),
        (_, JobState::Running) => Err(Error::retry(format!("job {} still runs", info.id))),
        (Some(error), _) => {
            let kind = ErrorKind::ALL.into_iter().find(|k| k.name() == error.kind).unwrap_or(ErrorKind::Bug);
            Err(Error::new(kind, format!("{} {}: {}", name(info.kind), info.id, error.message)))
        }
        (None, _) => Err(Error::bug(format!("{} {} failed without a reason", name(info.kind), info.id))),
    }
}

/// Follows a job to its end. Ctrl-C ends the following, not the job.
pub(crate) async fn follow(client: &ApiClient, info: JobInfo, output: Format) -> Result<JobInfo> {
    let id = info.id;
    let kind = info.kind;
    let mut view = View::new(&info, output);
    let done = tokio::select! {
        done = client.follow(&id, |info| view.show(info)) => done,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.or_kind(ErrorKind::Bug, "signal handler")?;
            Err(Error::cancelled(format!(
                "no longer following: {} {id} goes on. `tidemark job show {id} --wait` follows it again, \
                 `tidemark job cancel {id}` ends it",
                name(kind)
            )))
        }
    };
    view.clear();
    done
}

/// Runs a job in this process and shows it; answers how it ended. Ctrl-C ends it.
pub(crate) async fn run_here<F>(
    kind: JobKind,
    cluster: &ClusterName,
    output: Format,
    work: impl FnOnce(Arc<Job>) -> F,
) -> Result<JobInfo>
where
    F: Future<Output = Result<serde_json::Value>>,
{
    let (jobs, clock) = (Jobs::default(), SystemClock);
    let job = jobs.begin(kind, cluster, false, clock.millis())?;
    let mut view = View::new(&job.info(), output);
    let mut changes = job.watch();
    let mut work = std::pin::pin!(work(job.clone()));
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            // The sender lives in the job.
            Ok(()) = changes.changed() => view.show(&changes.borrow_and_update().clone()),
            Ok(()) = tokio::signal::ctrl_c(), if !job.cancel.is_cancelled() => job.cancel.cancel(),
        }
    };
    view.clear();
    jobs.end(&job, clock.millis(), result);
    Ok(job.info())
}

/// A kind of job in words.
pub(crate) fn name(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Backup => "backup",
        JobKind::Restore => "restore",
        JobKind::Verify => "verification",
        JobKind::Check => "repository check",
        JobKind::Collect => "collection",
    }
}

/// How far a job is, 0 to 1, as far as its totals are known.
pub(crate) fn fraction(info: &JobInfo) -> Option<f64> {
    let p = &info.progress;
    let (done, all) = if p.total_bytes > 0 { (p.bytes, p.total_bytes) } else { (p.parts, p.total_parts) };
    (all > 0).then(|| (done as f64 / all as f64).min(1.0))
}

/// The counts of a job in words; `rate` is bytes a second.
fn counts(info: &JobInfo, rate: u64) -> String {
    let p = &info.progress;
    let mut words = vec![match p.total_bytes {
        0 => size(p.bytes),
        total => format!("{} of {}", size(p.bytes), size(total)),
    }];
    if p.wire_bytes > 0 {
        words.push(format!("{} sent", size(p.wire_bytes)));
    }
    if p.records > 0 {
        words.push(format!("{} records", count(p.records)));
    }
    if rate > 0 {
        words.push(format!("{}/s", size(rate)));
    }
    words.join(", ")
}

/// Bytes a second since the first bytes came.
#[derive(Debug, Default)]
struct Rate {
    first: Option<(Instant, u64)>,
}

impl Rate {
    fn take(&mut self, now: Instant, bytes: u64) -> u64 {
        if bytes == 0 {
            return 0;
        }
        let (since, before) = *self.first.get_or_insert((now, bytes));
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        if seconds < 0.2 { 0 } else { (bytes.saturating_sub(before) as f64 / seconds) as u64 }
    }
}

fn style(template: &str) -> Option<ProgressStyle> {
    ProgressStyle::with_template(template).ok().map(|s| s.progress_chars("=> "))
}

enum View {
    Bar(ProgressBar, Rate),
    Lines { phase: String, last: Option<Instant>, rate: Rate, what: String },
    Silent,
}

impl View {
    fn new(info: &JobInfo, output: Format) -> Self {
        let what = format!("{} of {}", name(info.kind), info.cluster);
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(BAR_STEPS).with_prefix(what).with_message(info.phase.clone());
            let bar = style(SPINNER).map_or(bar.clone(), |style| bar.with_style(style));
            bar.enable_steady_tick(TICK);
            return Self::Bar(bar, Rate::default());
        }
        match output {
            Format::Text => Self::Lines { phase: String::new(), last: None, rate: Rate::default(), what },
            Format::Json => Self::Silent,
        }
    }

    fn show(&mut self, info: &JobInfo) {
        let now = Instant::now();
        match self {
            Self::Bar(bar, rate) => {
                let rate = rate.take(now, info.progress.bytes);
                let template = if fraction(info).is_some() { BAR } else { SPINNER };
                if let Some(style) = style(template) {
                    bar.set_style(style);
                }
                bar.set_position((fraction(info).unwrap_or(0.0) * BAR_STEPS as f64) as u64);
                bar.set_message(format!("{}: {}", info.phase, counts(info, rate)));
            }
            Self::Lines { phase, last, rate, what } => {
                let rate = rate.take(now, info.progress.bytes);
                let due = last.is_none_or(|at| now.duration_since(at) >= LINE_EVERY);
                let ended = info.state != JobState::Running;
                if (*phase == info.phase && !due) || ended {
                    return;
                }
                info.phase.clone_into(phase);
                *last = Some(now);
                eprintln!("{}", line(what, info, rate));
            }
            Self::Silent => {}
        }
    }

    fn clear(&self) {
        if let Self::Bar(bar, _) = self {
            bar.finish_and_clear();
        }
    }
}

fn line(what: &str, info: &JobInfo, rate: u64) -> String {
    match fraction(info) {
        _ if info.progress.bytes == 0 && info.progress.parts == 0 => format!("{what}: {}", info.phase),
        Some(f) => format!("{what}: {}, {:.0} %, {}", info.phase, f * 100.0, counts(info, rate)),
        None => format!("{what}: {}, {}", info.phase, counts(info, rate)),
    }
}

/// How long a job took, or has taken until `now` (milliseconds since 1970).
pub(crate) fn took(info: &JobInfo, now: u64) -> String {
    duration(info.finished_millis.unwrap_or(now).saturating_sub(info.started_millis))
}

#[cfg(test)]
mod tests;
