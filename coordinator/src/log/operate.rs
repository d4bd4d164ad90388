//! What operators do with the log of a cluster, and what they are told of it.

use tidemark_proto::id::JobId;
use tidemark_proto::stored::ledger::{Body, LOG_OFF, LOG_ON, LOG_PAUSED, LogPolicy};
use tidemark_proto::{ClusterName, Error, Result, Timestamp};

use super::index::Walk;
use super::lines::Lines;
use super::state::{NodeLag, SessionState};
use super::window::{Chains, Window, Windows};
use crate::context::{Context, Shared};
use crate::repository::{Ledger, Repository};

/// Engines whose agents stream changes.
const ENGINES_WITH_LOG: &[&str] = &["embedded", REDIS];
/// The one whose log is its stream of commands.
const REDIS: &str = "redis";

/// Whether the log of stores of this engine is their stream of commands, whose restore points are cuts.
pub(super) fn is_of_commands(engine: &str) -> bool {
    engine == REDIS
}

/// The engine of a cluster: as its policy says, or its nodes.
pub(super) async fn engine(context: &Context, cluster: &ClusterName, known: Option<&str>) -> Result<String> {
    if let Some(engine) = known {
        return Ok(engine.to_owned());
    }
    for (member, agent) in context.fleet.members(Some(cluster)) {
        let described = match agent.description {
            Some(description) => Ok(description.engine),
            None => context.fleet.describe(&member, context.head(JobId::default(), 0)).await.map(|d| d.engine),
        };
        if let Ok(engine) = described {
            return Ok(engine);
        }
    }
    Err(Error::retry(format!("no node of cluster {cluster} says of what kind it is")))
}

/// How a cluster's log is kept; what is left out stays as it is, or is as the configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnablePitr {
    /// Longest time from one segment to the next while there is news, in milliseconds (100 to 600000).
    #[serde(default)]
    pub interval_millis: Option<u64>,
    /// Bytes at which a segment is closed before that (1 MiB to 64 MiB).
    #[serde(default)]
    pub segment_bytes: Option<u64>,
    /// Longest time between segments when nothing changes, in milliseconds; at least the interval.
    #[serde(default)]
    pub idle_millis: Option<u64>,
}

/// What is done with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PitrChange {
    /// It is kept from now on.
    Enable(EnablePitr),
    /// It is kept no more; what is stored stays until it is collected.
    Disable,
    /// Nothing is streamed, but nodes keep what is not stored.
    Pause,
    /// It goes on.
    Resume,
}

/// A stretch of time any point of which can be restored. Times are raw timestamps.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct WindowItem {
    /// Its begin.
    pub earliest: u64,
    /// Its end.
    pub latest: u64,
    /// Ids of the backups that it can be restored from, oldest first.
    pub bases: Vec<String>,
    /// How many times in it can be restored, of stores where not any can (Redis and Valkey); 0: any.
    #[serde(default)]
    pub points: u64,
    /// Why it goes no further; empty while it does.
    pub ended: String,
}

impl WindowItem {
    fn of(window: &Window) -> Self {
        Self {
            earliest: window.earliest.0,
            latest: window.latest.0,
            bases: window.bases.iter().map(|(_, job)| job.to_string()).collect(),
            points: window.interval.points.as_ref().map_or(0, |points| points.count_from(window.earliest)),
            ended: window.interval.ended.clone().unwrap_or_default(),
        }
    }
}

/// How the log of a cluster stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct PitrStatus {
    /// The cluster.
    pub cluster: String,
    /// `on`, `paused` or `off`.
    pub state: String,
    /// Whether the newest window goes on.
    pub healthy: bool,
    /// Where the window ended, a raw timestamp, while it does not go on; 0 while it does, and when there was none yet.
    pub broken_since: u64,
    /// What hinders; empty for nothing.
    pub trouble: String,
    /// What can be restored, oldest first.
    pub windows: Vec<WindowItem>,
    /// What would be lost if all nodes were lost now, in milliseconds; 0 while nothing is streamed.
    pub rpo_millis: u64,
    /// The nodes.
    pub nodes: Vec<NodeLag>,
    /// Segments that stand.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Longest time between segments while there is news, in milliseconds.
    pub interval_millis: u64,
    /// Bytes at which a segment is closed before that.
    pub segment_bytes: u64,
    /// Longest time between segments when nothing changes, in milliseconds.
    pub idle_millis: u64,
}

/// Changes the log of a cluster.
pub async fn change(context: &Shared, cluster: &ClusterName, change: &PitrChange) -> Result<PitrStatus> {
    let mut ledger = match Ledger::load(&context.repository, cluster).await? {
        ledger if ledger.entries().is_empty() && context.fleet.members(Some(cluster)).is_empty() => {
            return Err(Error::not_found(format!(
                "no cluster {cluster}: none of its agents is connected, and it has no backups"
            )));
        }
        _ => context.ledger(cluster).await?,
    };
    let now = ledger.log_policy().cloned();
    if matches!(change, PitrChange::Enable(_)) {
        refuse_without_log(context, cluster, ledger.policy().map(|p| p.engine.clone())).await?;
    }
    if let Some(wanted) = wanted(context, now.as_ref(), change)? {
        let (epoch, at, body) = (context.epoch, context.now_millis(), Body::LogPolicy(wanted));
        let written = ledger.append(epoch, at, &body, |_| Ok(())).await;
        let _ = written.inspect_err(|e| context.note(e))?;
    }
    context.logs.apply(context, cluster, &context.shutdown).await?;
    status(context, cluster).await
}

/// `Unsupported` for a cluster whose nodes have no log.
async fn refuse_without_log(context: &Context, cluster: &ClusterName, known: Option<String>) -> Result<()> {
    let mut engines: Vec<String> = known.into_iter().collect();
    for (member, agent) in context.fleet.members(Some(cluster)) {
        engines.push(match agent.description {
            Some(description) => description.engine,
            None => context.fleet.describe(&member, context.head(JobId::default(), 0)).await?.engine,
        });
    }
    for engine in engines {
        if !ENGINES_WITH_LOG.contains(&engine.as_str()) {
            return Err(Error::unsupported(format!(
                "stores of engine `{engine}` have no log yet: protect cluster {cluster} by backups (`tidemark backup create`), \
                 whose cuts are its restore points"
            )));
        }
    }
    Ok(())
}

/// The policy after a change; `None` where it is so already.
fn wanted(context: &Context, now: Option<&LogPolicy>, change: &PitrChange) -> Result<Option<LogPolicy>> {
    let config = &context.config.pitr;
    let mut policy = now.cloned().unwrap_or(LogPolicy {
        state: LOG_OFF,
        interval_millis: config.interval_ms,
        segment_bytes: config.segment_mib << 20,
        idle_millis: config.idle_ms,
    });
    let before = policy.clone();
    policy.state = match change {
        PitrChange::Enable(_) => LOG_ON,
        PitrChange::Disable => LOG_OFF,
        PitrChange::Pause if before.state != LOG_OFF => LOG_PAUSED,
        PitrChange::Resume if before.state != LOG_OFF => LOG_ON,
        PitrChange::Pause | PitrChange::Resume => {
            return Err(Error::conflict("the log of this cluster is off: turn it on with `tidemark pitr enable`"));
        }
    };
    if let PitrChange::Enable(enable) = change {
        policy.interval_millis = enable.interval_millis.unwrap_or(policy.interval_millis);
        policy.segment_bytes = enable.segment_bytes.unwrap_or(policy.segment_bytes);
        policy.idle_millis = enable.idle_millis.unwrap_or_else(|| policy.idle_millis.max(policy.interval_millis));
    }
    if !(100..=600_000).contains(&policy.interval_millis) || policy.idle_millis < policy.interval_millis {
        return Err(Error::request("the interval is 100 to 600000 ms, the one when idle at least as long"));
    }
    if !(1 << 20..=64 << 20).contains(&policy.segment_bytes) {
        return Err(Error::request("a segment is closed at 1 MiB to 64 MiB"));
    }
    Ok((policy != before || now.is_none()).then_some(policy))
}

/// What can be restored of a cluster, from what is durable alone.
pub async fn windows(repository: &Repository, ledger: &Ledger) -> Result<(Windows, Vec<Window>)> {
    let windows = at_rest(repository, ledger).await?.windows;
    let restorable = windows.restorable(&cuts(ledger));
    Ok((windows, restorable))
}

/// Cuts of the backups that stand, ascending.
pub fn cuts(ledger: &Ledger) -> Vec<(Timestamp, JobId)> {
    let mut cuts: Vec<_> = ledger.backups().iter().map(|b| (b.backup.cut, b.backup.job)).collect();
    cuts.sort_unstable();
    cuts
}

/// How the log of a cluster stands.
pub async fn status(context: &Context, cluster: &ClusterName) -> Result<PitrStatus> {
    let ledger = Ledger::load(&context.repository, cluster).await?;
    let policy = ledger.log_policy();
    let state = match policy.map(|p| p.state) {
        Some(LOG_ON) => "on",
        Some(LOG_PAUSED) => "paused",
        _ => "off",
    };
    let running = context.logs.state(cluster, context.now_millis()).filter(|_| state == "on");
    let (running, trouble) = running.unwrap_or_default();
    let streams = running.is_some();
    let session = match running {
        Some(session) => session,
        // Nothing runs, or not yet: what lies in the repository is all there is to tell.
        None => at_rest(&context.repository, &ledger).await?,
    };
    let windows = session.windows;
    let restorable = windows.restorable(&cuts(&ledger));
    let goes_on = restorable.last().is_some_and(|w| w.interval.ended.is_none());
    let last_end = restorable.last().map_or(0, |w| w.latest.0);
    let waiting = match streams {
        true => (!goes_on).then(|| why_not(&session.open, &session.nodes)),
        false => (state == "on").then(|| "the log is being taken up".into()),
    };
    Ok(PitrStatus {
        cluster: cluster.to_string(),
        state: state.into(),
        healthy: streams && goes_on && trouble.is_none(),
        broken_since: if streams && !goes_on { last_end } else { 0 },
        trouble: trouble.or(waiting).unwrap_or_default(),
        windows: restorable.iter().map(WindowItem::of).collect(),
        rpo_millis: session.nodes.iter().map(|n| n.lag_millis).max().unwrap_or(0),
        nodes: session.nodes,
        segments: session.segments,
        bytes: session.bytes,
        interval_millis: policy.map_or(0, |p| p.interval_millis),
        segment_bytes: policy.map_or(0, |p| p.segment_bytes),
        idle_millis: policy.map_or(0, |p| p.idle_millis),
    })
}

/// What a log holds, from what lies in the repository alone.
async fn at_rest(repository: &Repository, ledger: &Ledger) -> Result<SessionState> {
    let cuts = cuts(ledger).into_iter().map(|(cut, _)| cut);
    let (mut chains, mut lines) = (Chains::seeking(cuts, None), Lines::default());
    let mut walk = Walk::over(repository, ledger).await?;
    while let Some(found) = walk.next().await? {
        chains.take(&found);
        lines.take(&found);
    }
    let (segments, bytes) = lines.extent();
    Ok(SessionState { windows: chains.windows(), segments, bytes, ..SessionState::default() })
}

/// Why nothing can be restored yet from the log as it goes on.
fn why_not(open: &Option<super::window::Interval>, nodes: &[NodeLag]) -> String {
    let away: Vec<_> = nodes.iter().filter(|n| !n.streaming).map(|n| n.node.as_str()).collect();
    match open {
        Some(_) => "a backup to begin from is not there yet: it is taken by itself".into(),
        None if away.is_empty() => "the log of nodes that own all slots together has not begun yet".into(),
        None => format!("no stream from node {}", away.join(", ")),
    }
}
