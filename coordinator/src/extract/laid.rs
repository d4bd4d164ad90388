//! The log between a backup and a time, laid over each part while it is extracted.
//!
//! The log of a part is read whole and sorted before the part's runs are opened; what does not fit into the memory for
//! it goes to files without a name. A log of commands is worked off by a throw-away server instead ([`crate::fold`]). The part without the log is what is compared with the manifest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tidemark_common::overlay::{LogSorter, Overlay, Wanted};
use tidemark_common::redis::fold::Folded;
use tidemark_common::run::Entry;
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::{Error, Result, Timestamp};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::in_thread;
use crate::blocks::READ_SPAN;
use crate::fold::{CommandFold, REDIS_ENGINE, scope_of};
use crate::log::{LogParts, Piece, Point};
use crate::repository::{Manifest, Repository};

/// Memory for sorting of all parts that are open together, in bytes.
const SORT_MEMORY: usize = 96 << 20;
/// Spans of the log between the reads and the thread that opens their chunks.
const SPANS_AHEAD: usize = 1;

/// What is laid over a backup.
#[derive(Debug)]
pub struct Laid {
    log: Arc<LogParts>,
    after: Timestamp,
    at: Timestamp,
    dir: PathBuf,
    /// Of a log of commands.
    commands: Option<CommandFold>,
}

/// What is laid over one part.
#[derive(Debug)]
pub(crate) struct PartOver {
    /// The records of the log, by slot and key.
    pub(crate) overlay: Overlay,
    /// Says which records below do not count, of a log of commands.
    pub(crate) folded: Option<Arc<Folded>>,
}

impl PartOver {
    /// Nothing.
    pub(crate) fn empty() -> Self {
        Self { overlay: Overlay::empty(), folded: None }
    }

    /// Whether a record below is one that the log has nothing to say of, or may say so by its own record of the same key.
    pub(crate) fn keeps(folded: Option<&Folded>, entry: &Entry<'_>) -> Result<bool> {
        folded.map_or(Ok(true), |folded| folded.keeps(entry.slot, entry.key))
    }
}

impl Laid {
    /// The log that leads from the manifest of a restore point's backup to its time: reads the footers of its segments.
    /// What does not fit into memory goes to files without a name in `dir`.
    /// A log of commands is worked off by `program` where that is given ([`crate::fold`]).
    pub async fn new(manifest: &Manifest, point: &Point, dir: &Path, program: Option<String>) -> Result<Self> {
        let slots_per_region = manifest.root().slots_per_region;
        let log = point.log(manifest.repository(), manifest.cluster(), slots_per_region).await?;
        Self::of(manifest, log, point.at, dir, program).await
    }

    /// The same, of a log whose footers were read.
    pub(crate) async fn of(
        manifest: &Manifest,
        log: Arc<LogParts>,
        at: Timestamp,
        dir: &Path,
        program: Option<String>,
    ) -> Result<Self> {
        let commands = match manifest.root().engine == REDIS_ENGINE {
            true => Some(CommandFold::new(manifest, log.clone(), at, dir, program).await?),
            false => None,
        };
        Ok(Self { log, after: manifest.root().cut, at, dir: dir.to_owned(), commands })
    }

    /// The libraries of functions at the time, where the log changed them.
    pub async fn functions(&self, cancel: &CancellationToken) -> Result<Option<Vec<Vec<u8>>>> {
        match &self.commands {
            Some(commands) => commands.functions(cancel).await,
            None => Ok(None),
        }
    }

    /// The log of commands, if it is one.
    pub(crate) fn commands(&self) -> Option<&CommandFold> {
        self.commands.as_ref()
    }

    /// Stored bytes of the log's chunks, those of slots that nobody wants included.
    pub fn bytes(&self) -> u64 {
        self.log.bytes
    }

    /// What the log makes of a part; `open` parts are held at once. `Damaged` names segment and region.
    pub(crate) async fn over(
        &self,
        repository: &Repository,
        part: &PartEntry,
        open: usize,
        cancel: &CancellationToken,
    ) -> Result<PartOver> {
        let Some(commands) = &self.commands else {
            let overlay = self.records(repository, part, open, cancel).await?;
            return Ok(PartOver { overlay, folded: None });
        };
        let folded = commands.part(part, cancel).await?;
        let (scope, from) = (scope_of(part), folded.clone());
        let overlay = in_thread(move || from.overlay(&scope)).await?;
        Ok(PartOver { overlay, folded: Some(folded) })
    }

    /// The newest entry of each key, of a log of records.
    async fn records(
        &self,
        repository: &Repository,
        part: &PartEntry,
        open: usize,
        cancel: &CancellationToken,
    ) -> Result<Overlay> {
        if self.log.pieces(part.region).is_empty() {
            return Ok(Overlay::empty());
        }
        let wanted = Wanted {
            after: self.after,
            at: self.at,
            slots: part.slots.clone(),
            lower: part.lower.clone(),
            upper: part.upper.clone(),
        };
        let mut sorter = LogSorter::new(wanted, SORT_MEMORY / open.max(1), &self.dir);
        let (send, mut spans) = mpsc::channel::<Vec<(Piece, Bytes)>>(SPANS_AHEAD);
        let (log, opener) = (self.log.clone(), repository.clone());
        let sort = in_thread(move || {
            while let Some(span) = spans.blocking_recv() {
                for (piece, sealed) in span {
                    sorter.push_chunk(&log.open(&opener, piece, &sealed)?)?;
                }
            }
            sorter.finish()
        });
        let read = async move {
            for pieces in self.log.spans(part.region, READ_SPAN) {
                if cancel.is_cancelled() {
                    return Err(Error::cancelled("the extraction was ended"));
                }
                let sealed = self.log.read(repository, pieces).await?;
                // Nobody takes it where a chunk did not open: that error is the one to tell.
                if send.send(pieces.iter().copied().zip(sealed).collect()).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let (sorted, read) = tokio::join!(sort, read);
        read?;
        sorted
    }
}
