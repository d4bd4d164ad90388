//! The log of commands of Redis and Valkey, worked off on this machine by a throw-away server: what extractions, queries, clones
//! and restores get instead of the records that it touches.
//!
//! As a rule this is done part by part. A log is worked off whole, once for all parts, where it is small, and where commands tie
//! keys of several parts together (`RENAME` over slots on a server without Cluster): then it must be.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{FutureExt, StreamExt, TryStreamExt};
use tidemark_common::record::REDIS as REDIS_RECORD;
use tidemark_common::redis::fold::{
    CommandLog, Fate, Fold, Folded, Gone, Idle, Naming, Scope, ScratchServer, Sorted, Span,
};
use tidemark_common::redis::log::Ordered;
use tidemark_common::run::Merge;
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::{Error, ErrorKind, Result, SlotSet, Timestamp};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::log::{Group, LogParts, Piece};
use crate::part::{self, Blocks, LongValues};
use crate::repository::Manifest;

mod reading;
mod shares;
mod ties;

use reading::Reading;
pub use ties::{Tie, ties};

/// Engine of Redis and Valkey, as manifests name it.
pub const REDIS_ENGINE: &str = "redis";
/// Environment variable that names the program of the throw-away server.
pub const PROGRAM_VARIABLE: &str = "TIDEMARK_SCRATCH_SERVER";
/// Memory for sorting, in bytes.
const SORT_MEMORY: usize = 64 << 20;
/// Logs up to this many raw bytes are worked off whole.
const SMALL_LOG: u64 = 16 << 20;
/// Bytes of words that are looked at for the name of a command.
const MOST_OF_NAME: u64 = 64;
/// Parts whose indexes are read at a time.
const PARTS_AHEAD: usize = 4;
/// Records between two looks at the cancellation token.
const CANCEL_EVERY: u64 = 1024;

/// A log of commands, and the backup that it goes on from.
#[derive(Debug)]
pub struct CommandFold {
    manifest: Manifest,
    log: Arc<LogParts>,
    at: Timestamp,
    server: ScratchServer,
    dir: PathBuf,
    /// Whether it is worked off whole.
    whole: bool,
    /// Shares of the slots at most, and the raw bytes for which one is worth it.
    most_shares: (usize, u64),
    /// Servers that work parts off.
    idle: Arc<Idle>,
    folded: OnceCell<Arc<Folded>>,
}

/// Whether there is a program for a throw-away server on this machine.
pub fn has_server() -> bool {
    tidemark_common::redis::scratch::find(&std::env::var(PROGRAM_VARIABLE).unwrap_or_default()).is_some()
}

/// The server for what was backed up: its program by [`PROGRAM_VARIABLE`], or the one of the source's kind that is installed.
fn server(manifest: &Manifest, program: Option<String>) -> ScratchServer {
    let program = program.or_else(|| std::env::var(PROGRAM_VARIABLE).ok()).unwrap_or_default();
    let valkey = manifest.root().nodes.iter().any(|n| n.engine_version.starts_with("valkey"));
    ScratchServer { program, valkey }
}

impl CommandFold {
    /// The log that leads from the backup to `at`. What is temporary lies in `dir`; `program` is that of the server, where it is
    /// not to be looked for.
    pub async fn new(
        manifest: &Manifest,
        log: Arc<LogParts>,
        at: Timestamp,
        dir: &Path,
        program: Option<String>,
    ) -> Result<Self> {
        let whole = log.raw_bytes() <= SMALL_LOG || ties(manifest, &log, at).boxed().await?.is_some();
        Ok(Self { whole, ..Self::whole_log(manifest, log, at, dir, program) })
    }

    /// The same, to be worked off whole in any case.
    pub fn whole_log(
        manifest: &Manifest,
        log: Arc<LogParts>,
        at: Timestamp,
        dir: &Path,
        program: Option<String>,
    ) -> Self {
        let (server, dir) = (server(manifest, program), dir.to_owned());
        let (manifest, most_shares) = (manifest.clone(), shares::usual());
        Self {
            manifest,
            log,
            at,
            server,
            dir,
            whole: true,
            most_shares,
            idle: Arc::default(),
            folded: OnceCell::new(),
        }
    }

    /// Works each part off by itself, however small the log is.
    pub fn part_by_part(self) -> Self {
        Self { whole: false, ..self }
    }

    /// What the log makes of a part.
    pub async fn part(&self, part: &PartEntry, cancel: &CancellationToken) -> Result<Arc<Folded>> {
        if self.whole {
            return self.whole(cancel).await;
        }
        let scope = scope_of(part);
        let fold = self.begin(scope, SORT_MEMORY, (false, &self.idle), cancel).await?;
        self.finish(fold, vec![part.clone()], None, cancel).await.map(|(folded, _)| Arc::new(folded))
    }

    /// What the log makes of all parts: worked off when it is asked for first.
    pub async fn whole(&self, cancel: &CancellationToken) -> Result<Arc<Folded>> {
        let work = async {
            let shares = self.all(false, cancel).boxed().await?;
            Ok(Arc::new(Folded::join(shares.into_iter().map(|(folded, _)| folded))))
        };
        self.folded.get_or_try_init(|| work).await.cloned()
    }

    /// All records that come of the log, with deletes for those of the backup that are gone: what a restore lays over its parts
    /// where they cannot be followed one by one.
    pub async fn records(&self, cancel: &CancellationToken) -> Result<Sorted> {
        let (shares, dir) = (self.all(true, cancel).boxed().await?, self.dir.clone());
        let forgot = || Error::bug("a fold that forgot what is gone");
        in_thread(move || {
            let with_gone =
                |(folded, gone): (Folded, Option<Gone>)| folded.with_gone(gone.ok_or_else(forgot)?, &dir);
            Ok(Sorted::join(shares.into_iter().map(with_gone).collect::<Result<Vec<_>>>()?))
        })
        .await
    }

    /// Works all of the log off, in several shares of the slots at once where that can be done. Says for each what is `gone`, where
    /// that is asked for.
    async fn all(&self, gone: bool, cancel: &CancellationToken) -> Result<Vec<(Folded, Option<Gone>)>> {
        let (parts, shares) = (self.parts().await?, self.shares().await?);
        match self.at_once((shares, true), &parts, gone, cancel).await {
            // E.g. a command of many keys that is too long to be taken apart.
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                tracing::info!(error = %e.report(), "the log cannot be worked off in shares, or as it stands");
            }
            done => return done,
        }
        self.at_once((vec![SlotSet::all()], false), &parts, gone, cancel).await
    }

    async fn at_once(
        &self,
        (shares, in_order): (Vec<SlotSet>, bool),
        parts: &[PartEntry],
        gone: bool,
        cancel: &CancellationToken,
    ) -> Result<Vec<(Folded, Option<Gone>)>> {
        tracing::debug!(shares = shares.len(), "working the log off");
        let (budget, cancel) = (SORT_MEMORY / shares.len().max(1), cancel.child_token());
        // With the first that fails the others end.
        let _stop = cancel.clone().drop_guard();
        let work =
            shares.into_iter().map(|slots| self.share((slots, in_order), parts, gone, budget, &cancel).boxed());
        futures::future::try_join_all(work).await
    }

    /// Works the log of some slots off.
    async fn share(
        &self,
        (slots, in_order): (SlotSet, bool),
        parts: &[PartEntry],
        gone: bool,
        budget: usize,
        cancel: &CancellationToken,
    ) -> Result<(Folded, Option<Gone>)> {
        let parts = parts.iter().filter(|part| !part.slots.intersect(&slots).is_empty()).cloned().collect();
        let fold = self.begin(Scope::slots(slots), budget, (in_order, &Arc::default()), cancel).await?;
        let gone = gone.then(|| Gone::new(budget, &self.dir));
        self.finish(fold, parts, gone, cancel).await
    }

    async fn parts(&self) -> Result<Vec<PartEntry>> {
        let (mut pages, mut parts) = (self.manifest.pages(), Vec::new());
        while let Some(page) = pages.next().await {
            parts.extend(page.page?.parts);
        }
        Ok(parts)
    }

    /// The libraries of functions at the time, where the log changed them.
    pub async fn functions(&self, cancel: &CancellationToken) -> Result<Option<Vec<Vec<u8>>>> {
        let pieces = self.log.everywhere().to_vec();
        let groups = pieces.chunk_by(|a, b| {
            let node = |piece: &Piece| self.log.chunk(*piece).1.node;
            a.segment == b.segment && node(a) == node(b)
        });
        let groups = groups.map(|pieces| Group { pieces: pieces.to_vec(), slots: SlotSet::all().into() }).collect();
        let log = self.sorted(groups, SlotSet::EMPTY, cancel).await?;
        let (read, dir) = (log.clone(), self.dir.clone());
        let changed = in_thread(move || {
            let mut commands = read.commands(&dir);
            while let Some(command) = commands.next()? {
                let words = command.request.words(MOST_OF_NAME)?;
                if words.first().is_some_and(|name| name.eq_ignore_ascii_case(b"FUNCTION")) {
                    return Ok(true);
                }
            }
            Ok(false)
        });
        if !changed.await? {
            return Ok(None);
        }
        let (server, dir) = (self.server.clone(), self.dir.clone());
        let begun = in_thread(move || {
            Fold::begin(&log, Scope::functions(), &server, SORT_MEMORY, &dir).map_err(|e| explain(e, &server))
        });
        let mut fold = begun.await?;
        let (libraries, _) = crate::job::restore::libraries(&self.manifest).await?;
        fold.base_functions(libraries);
        in_thread(move || Ok(fold.run()?.functions)).await
    }

    /// The commands for `slots`, in order.
    async fn ordered(&self, slots: &SlotSet, cancel: &CancellationToken) -> Result<Ordered> {
        let groups = self.log.groups(slots, &self.manifest.root().nodes)?;
        self.sorted(groups, slots.clone(), cancel).await
    }

    async fn sorted(&self, groups: Vec<Group>, slots: SlotSet, cancel: &CancellationToken) -> Result<Ordered> {
        let (reading, span, dir) = (self.reading(groups, cancel), self.span(slots), self.dir.clone());
        in_thread(move || reading.into(CommandLog::new(span, SORT_MEMORY, &dir))?.finish()).await
    }

    fn span(&self, slots: SlotSet) -> Span {
        Span { after: self.manifest.root().cut, at: self.at, slots }
    }

    fn reading(&self, groups: Vec<Group>, cancel: &CancellationToken) -> Reading {
        let (repository, log) = (self.manifest.repository().clone(), self.log.clone());
        Reading { repository, log, groups, in_order: false, cancel: cancel.clone() }
    }

    /// Reads what the log names; `in_order` takes chunks for sorted where they may be.
    async fn begin(
        &self,
        scope: Scope,
        budget: usize,
        (in_order, idle): (bool, &Arc<Idle>),
        cancel: &CancellationToken,
    ) -> Result<Fold> {
        let groups = self.log.groups(&scope.slots, &self.manifest.root().nodes)?;
        let reading = Reading { in_order, ..self.reading(groups, cancel) };
        let (server, dir, span) = (self.server.clone(), self.dir.clone(), self.span(scope.slots.clone()));
        let idle = idle.clone();
        in_thread(move || {
            let naming = Naming::new(scope, &server, budget, &dir).with_idle(&idle);
            let naming = if in_order { naming.starting_ahead() } else { naming };
            let read = reading.into(CommandLog::handing_on(span, budget, &dir, naming));
            read.and_then(|log| log.finish()?.finish()).map_err(|e| explain(e, &server))
        })
        .await
    }

    /// Gives a log those records of the base that it needs, of these parts, and works it off; notes those that are `gone`.
    async fn finish(
        &self,
        mut fold: Fold,
        parts: Vec<PartEntry>,
        mut gone: Option<Gone>,
        cancel: &CancellationToken,
    ) -> Result<(Folded, Option<Gone>)> {
        if fold.is_empty() {
            return in_thread(move || Ok((fold.run()?, gone))).await;
        }
        let (repository, cluster) = (self.manifest.repository(), self.manifest.cluster());
        let touched = parts.into_iter().filter(|part| fold.touches(&part.slots)).collect::<Vec<_>>();
        let open = |part: PartEntry| async move {
            let opened = part::open(repository, cluster, &part, LongValues::Spooled).await;
            opened.map(|opened| (part, opened))
        };
        let mut opened = futures::stream::iter(touched.into_iter().map(open)).buffered(PARTS_AHEAD);
        while let Some((part, opened)) = opened.try_next().await? {
            let pump = tokio::spawn(opened.pump);
            let (merge, cancel) = (opened.merge, cancel.clone());
            let walked = in_thread(move || walk(merge, &mut fold, &mut gone, &cancel).map(|()| (fold, gone))).await;
            pump.abort();
            (fold, gone) = walked.map_err(|e| e.context(format_args!("region {}", part.region)))?;
        }
        stop(cancel)?;
        in_thread(move || Ok((fold.run()?, gone))).await
    }

    /// What the log makes of a few keys of records, and of those that it ties to them. `lookup` reads a record of the backup.
    pub async fn keys<F>(&self, keys: HashSet<Vec<u8>>, slots: SlotSet, lookup: F) -> Result<Option<Folded>>
    where
        F: Fn(&[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>> + Send + 'static,
    {
        let log = self.ordered(&slots, &CancellationToken::new()).await?;
        let (server, dir) = (self.server.clone(), self.dir.clone());
        let whole = slots == SlotSet::all();
        in_thread(move || {
            ties::fold_keys(&log, keys, whole, (&server, SORT_MEMORY, &dir), lookup)
                .map_err(|e| explain(e, &server))
        })
        .await
    }

    /// Where temporary files lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Shows a fold the records of a part.
fn walk(
    mut merge: Merge<Blocks>,
    fold: &mut Fold,
    gone: &mut Option<Gone>,
    cancel: &CancellationToken,
) -> Result<()> {
    let mut seen = 0u64;
    while merge.advance()? {
        seen += 1;
        if seen.is_multiple_of(CANCEL_EVERY) {
            stop(cancel)?;
        }
        let entry = merge.current();
        if !fold.scope().slots.contains(entry.slot) {
            continue;
        }
        if entry.put.is_none_or(|(meta, _)| meta.first() != Some(&REDIS_RECORD)) {
            return Err(Error::damaged("a backup of Redis holds a record of another store"));
        }
        let fate = fold.fate(entry.slot, entry.key)?;
        if fate == Fate::Needed {
            fold.base(&entry, merge.long())?;
        }
        if let Some(gone) = gone.as_mut().filter(|_| fate != Fate::Stays) {
            gone.add(entry.slot, entry.key)?;
        }
    }
    Ok(())
}

/// The keys of a part.
pub fn scope_of(part: &PartEntry) -> Scope {
    let (lower, upper) = (part.lower.clone(), part.upper.clone());
    Scope { lower, upper, ..Scope::slots(part.slots.clone()) }
}

fn explain(e: Error, server: &ScratchServer) -> Error {
    match e.kind() {
        ErrorKind::Config if server.program.is_empty() => e.context(format_args!(
            "the log cannot be worked off on this machine ({PROGRAM_VARIABLE} names a program)"
        )),
        _ => e,
    }
}

fn stop(cancel: &CancellationToken) -> Result<()> {
    if cancel.is_cancelled() { Err(Error::cancelled("working the log off was ended")) } else { Ok(()) }
}

async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::bug("working a log off").with_source(e))?
}
