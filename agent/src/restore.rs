//! Restore on a node: stage beside the present data, load parts, read back, switch.

mod feed;
mod fetch;
mod load;
mod log;
mod options;
mod row;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use tidemark_common::crash;
use tidemark_common::glob::KeyFilter;
use tidemark_common::overlay::Wanted;
use tidemark_common::redis::fold::Idle;
use tidemark_common::select::Selection;
use tidemark_proto::wire::control::{
    CommandHead, Done, LoadedPart, PartBounds, RestoreBegin, RestoreBeginAs, RestoreCounted, RestoreFinish,
    RestoreFinished, RestorePart, RestoreParts, RestorePartsDone, RestorePartsLogged, RestoreReady,
    RestoreVerified, RestoreVerify,
};
use tidemark_proto::{Error, ErrorKind, Result, SlotSet};
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, RestoreSession};
use crate::blocking;
use crate::daemon::RESTORING;
use crate::engine::Loader;
use crate::snapshot::Counters;
use load::load_row;

/// Attempts at one part within a command.
const PART_ATTEMPTS: u32 = 4;
/// Time for parts to end when their command has.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Records between two looks at the cancellation token.
const CANCEL_EVERY: u64 = 1024;

/// A restore that was begun for some slots is to go on with others.
pub(crate) fn other_slots(begun: &impl std::fmt::Display, now: &SlotSet) -> Error {
    Error::unsupported(format!(
        "this node began the restore with slots {begun} and is to go on with {now}: slots have moved meanwhile; restore again"
    ))
}

fn loaded_parts(loader: &dyn Loader) -> Result<Vec<LoadedPart>> {
    Ok(loader.loaded()?.into_iter().map(|(number, source, loaded)| LoadedPart { number, source, loaded }).collect())
}

/// Opens (or reopens) the staging area of the job, to load all records as they are.
pub(crate) async fn begin(agent: Arc<Agent>, head: CommandHead, begin: RestoreBegin) -> Result<RestoreReady> {
    let options = options::usual();
    begin_as(agent, head, RestoreBeginAs { begin, options }).await
}

/// Opens (or reopens) the staging area of the job.
pub(crate) async fn begin_as(
    agent: Arc<Agent>,
    head: CommandHead,
    command: RestoreBeginAs,
) -> Result<RestoreReady> {
    let RestoreBeginAs { begin, options } = command;
    let (selection, expiry) = options::of(options, begin.at)?;
    blocking(move || {
        if let Some(mut session) = agent.restore_session(&head.job) {
            if session.slots != begin.slots {
                return Err(other_slots(&session.slots, &begin.slots));
            }
            // A coordinator that was started anew gives its data elsewhere.
            session.serve = begin.serve;
            let loaded = loaded_parts(session.loader.as_ref())?;
            agent.set_restore_session(head.job, Some(session));
            return Ok(RestoreReady { loaded });
        }
        // Before the store changes: clients must hear of a restore and not of a store that fails them.
        agent.gate.shut(RESTORING);
        let opened = agent.engine.restore(head.job, begin.slots.clone(), begin.in_place != 0);
        let loader: Arc<dyn Loader> = match opened {
            Ok(loader) => loader.into(),
            Err(e) => {
                agent.open_unless_restoring();
                return Err(e);
            }
        };
        crash::point("agent.restore-begun");
        let loaded = loaded_parts(loader.as_ref())?;
        let session = RestoreSession {
            loader,
            slots: begin.slots,
            at: begin.at,
            serve: begin.serve,
            selection,
            expiry,
            loading: Arc::default(),
            verified: Arc::default(),
        };
        agent.set_restore_session(head.job, Some(session));
        tracing::info!(job = %head.job, loaded = loaded.len(), "restore begun: clients are refused until it ends");
        Ok(RestoreReady { loaded })
    })
    .await
}

fn session(agent: &Agent, head: &CommandHead) -> Result<RestoreSession> {
    agent.restore_session(&head.job).ok_or_else(|| Error::conflict("this node has not begun that restore"))
}

/// Waits until no part is being loaded: one whose command has ended still ends its present record.
async fn settled(session: &RestoreSession) -> Result<()> {
    let last = tokio::time::timeout(SETTLE_TIMEOUT, session.loading.write()).await;
    last.map(drop).map_err(|_| Error::retry("a part is still being loaded"))
}

/// What the parts of one command share.
struct LoadJob {
    agent: Arc<Agent>,
    head: CommandHead,
    session: RestoreSession,
    selection: Selection,
    /// The log to lay over each part, by its number.
    logs: HashMap<u32, Wanted>,
    /// Parts at once: those that are loaded, and those that are opened meanwhile.
    at_once: usize,
    /// Servers that work logs of commands off.
    idle: Arc<Idle>,
    counters: Arc<Counters>,
    cancel: CancellationToken,
}

/// Loads the command's parts, those loaded before excepted.
pub(crate) async fn load(
    agent: Arc<Agent>,
    head: CommandHead,
    command: RestoreParts,
    counters: Arc<Counters>,
    cancel: CancellationToken,
) -> Result<RestorePartsDone> {
    load_with(agent, head, (command, HashMap::new()), counters, cancel).await
}

/// The same, with the log laid over the parts.
pub(crate) async fn load_logged(
    agent: Arc<Agent>,
    head: CommandHead,
    command: RestorePartsLogged,
    counters: Arc<Counters>,
    cancel: CancellationToken,
) -> Result<RestorePartsDone> {
    let RestorePartsLogged { parts, after, at, bounds } = command;
    if agent.engine.log().is_none() && agent.engine.scratch_server().is_none() {
        return Err(Error::unsupported("this kind of store takes no log: restore a backup"));
    }
    if bounds.len() != parts.parts.len() {
        return Err(Error::request("a command with other parts than bounds of parts"));
    }
    let wanted = |(part, bounds): (&RestorePart, PartBounds)| {
        let (lower, upper) = (bounds.lower, bounds.upper);
        (part.number, Wanted { after, at, slots: part.slots.clone(), lower, upper })
    };
    let logs = parts.parts.iter().zip(bounds).map(wanted).collect();
    load_with(agent, head, (parts, logs), counters, cancel).await
}

async fn load_with(
    agent: Arc<Agent>,
    head: CommandHead,
    (command, logs): (RestoreParts, HashMap<u32, Wanted>),
    counters: Arc<Counters>,
    cancel: CancellationToken,
) -> Result<RestorePartsDone> {
    let session = session(&agent, &head)?;
    let concurrency =
        if command.concurrency == 0 { agent.config.concurrency() } else { command.concurrency as usize };
    let selection = Selection { keys: KeyFilter::new(&command.keys)?, ..session.selection.clone() };
    let cancel = cancel.child_token();
    let _stop = cancel.clone().drop_guard();
    // Parts of a command that broke may still be on their way out.
    settled(&session).await?;
    let before = loaded_parts(session.loader.as_ref())?;
    let (mut done, mut todo) = (Vec::new(), Vec::new());
    for part in command.parts {
        match before.iter().find(|b| b.number == part.number) {
            Some(loaded) => done.push(loaded.clone()),
            None => todo.push(part),
        }
    }
    let rows = match session.loader.in_rows() {
        true => row::rows(todo, concurrency),
        false => todo.into_iter().map(|part| vec![part]).collect(),
    };
    let ahead = if rows.iter().any(|row| row.len() > 1) { 2 } else { 1 };
    let job = Arc::new(LoadJob {
        agent,
        head,
        session,
        selection,
        logs,
        at_once: concurrency.max(1) * ahead,
        idle: Arc::default(),
        counters,
        cancel,
    });
    let loaded: Vec<Vec<LoadedPart>> =
        futures::stream::iter(rows.into_iter().map(|row| load_with_retries(job.clone(), row)))
            .buffer_unordered(concurrency)
            .try_collect()
            .await?;
    done.extend(loaded.into_iter().flatten());
    Ok(RestorePartsDone { parts: done })
}

async fn load_with_retries(job: Arc<LoadJob>, parts: Vec<RestorePart>) -> Result<Vec<LoadedPart>> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match load_row(&job, &parts, attempt).await {
            Err(e) if e.kind() == ErrorKind::Retry && attempt < PART_ATTEMPTS && !job.cancel.is_cancelled() => {
                tracing::warn!(parts = parts.len(), attempt, error = %e.report(), "parts not loaded: trying again");
            }
            Ok(loaded) => {
                for _ in &loaded {
                    let _ = job.counters.parts.fetch_add(1, Ordering::Relaxed);
                    crash::point("agent.part-loaded");
                }
                return Ok(loaded);
            }
            Err(e) => return Err(e),
        }
    }
}

/// Reads the staged data back and compares. Nothing is switched: every node must come this far before any does.
pub(crate) async fn verify(agent: Arc<Agent>, head: CommandHead, verify: RestoreVerify) -> Result<RestoreVerified> {
    let session = session(&agent, &head)?;
    blocking(move || {
        let digest = session.loader.verify()?;
        if digest != verify.expect {
            return Err(Error::damaged(format!(
                "read back {} records where {} were loaded, or other content: the restore does not stand",
                digest.count, verify.expect.count
            )));
        }
        crash::point("agent.verified");
        // Verified twice is as good: the expectation is the same, or the comparison above had failed.
        let _ = session.verified.set(digest);
        Ok(RestoreVerified { digest })
    })
    .await
}

/// How many records were not loaded because they had expired.
pub(crate) async fn count(agent: Arc<Agent>, head: CommandHead) -> Result<RestoreCounted> {
    let session = session(&agent, &head)?;
    blocking(move || Ok(RestoreCounted { expired: session.loader.expired()? })).await
}

/// Switches to what was read back.
pub(crate) async fn finish(agent: Arc<Agent>, head: CommandHead, finish: RestoreFinish) -> Result<RestoreFinished> {
    let session = session(&agent, &head)?;
    blocking(move || {
        let digest = session.verified.get().copied().filter(|d| *d == finish.expect);
        let digest = digest.ok_or_else(|| Error::conflict("the restored data has not been read back yet"))?;
        crash::point("agent.switching");
        let incarnation = session.loader.commit(session.at)?;
        crash::point("agent.switched");
        agent.set_restore_session(head.job, None);
        tracing::info!(job = %head.job, %incarnation, records = digest.count, "restored: the store is open");
        Ok(RestoreFinished { incarnation, digest })
    })
    .await
}

/// Drops the staging area; one that is not there is no error.
pub(crate) async fn abort(agent: Arc<Agent>, head: CommandHead) -> Result<Done> {
    if let Some(session) = agent.restore_session(&head.job) {
        settled(&session).await?;
    }
    blocking(move || {
        match agent.restore_session(&head.job) {
            Some(session) => session.loader.abort()?,
            None => {
                // After a restart of the agent there is no session, but the staging area may still be there.
                let description = agent.engine.describe()?;
                if description.state != "restoring" {
                    return Ok(Done {});
                }
                agent.engine.abort_restore(head.job, description.ownership.slots)?;
            }
        }
        agent.set_restore_session(head.job, None);
        tracing::info!(job = %head.job, "restore ended: the store is as it was");
        Ok(Done {})
    })
    .await
}
