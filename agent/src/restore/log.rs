//! The log of a part: fetched and sorted to the newest version of each key, then laid over the part's records. A log of commands
//! is worked off by a scratch server instead, which gets those of the records that it names.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use quinn::Connection;
use tidemark_common::overlay::{LogSorter, Overlaid, Overlay, Wanted};
use tidemark_common::redis::fold::{CommandLog, Fate, Fold, Idle, Naming, Scope, ScratchServer, Span};
use tidemark_common::redis::log::Joined;
use tidemark_common::run::{Entry, LongValue};
use tidemark_common::seal::Sealer;
use tidemark_common::segment::ChunkOpener;
use tidemark_common::transport::open_bi;
use tidemark_proto::frame::Message;
use tidemark_proto::wire::bulk::{FRAME_CHUNK, FetchLog, LogGroup, LogPiece, MAX_CHUNK_FRAME};
use tidemark_proto::{Error, Result, SlotSet};
use tokio::sync::mpsc;

use super::LoadJob;
use super::feed::Feed;
use crate::blocking;
use crate::metric_names::stage;
use crate::telemetry;

/// Memory for sorting of all parts of a node together, in bytes.
const SORT_MEMORY: usize = 96 << 20;
/// Chunks between the stream and the thread that opens them.
const CHUNKS_AHEAD: usize = 4;

/// The log of a part: records, or commands.
pub(super) enum PartLog {
    /// The newest record of each key.
    Records(Overlay),
    /// Commands that go on from the records below.
    Commands(Box<Fold>),
}

/// What comes on the stream.
enum Part {
    Group,
    Chunk(LogPiece, Bytes),
}

/// Sorts what comes: commands, if it comes in groups.
enum Sorter {
    Records(Box<LogSorter>),
    Commands(Box<CommandLog<Joined<Naming>>>),
}

/// Where and how a log is sorted.
struct Place {
    wanted: Wanted,
    budget: usize,
    dir: PathBuf,
    scratch: Option<ScratchServer>,
    idle: Arc<Idle>,
}

impl Place {
    fn sorter(&self) -> Sorter {
        Sorter::Records(Box::new(LogSorter::new(self.wanted.clone(), self.budget, &self.dir)))
    }

    fn group(&self, sorter: &mut Sorter) -> Result<()> {
        if let Sorter::Records(_) = sorter {
            if self.scratch.is_none() {
                return Err(Error::unsupported("a log of commands does not lead to a state of this kind of store"));
            }
            let Wanted { after, at, slots, lower, upper } = self.wanted.clone();
            let scope = Scope { lower, upper, ..Scope::slots(slots.clone()) };
            let naming = Naming::new(scope, &self.scratch.clone().unwrap_or_default(), self.budget, &self.dir);
            let naming = naming.with_idle(&self.idle);
            let log = CommandLog::handing_on(Span { after, at, slots }, self.budget, &self.dir, naming);
            *sorter = Sorter::Commands(Box::new(log));
        }
        match sorter {
            // Commands of nodes that own only some of the part's slots, and empty their databases, do not come here.
            Sorter::Commands(log) => log.group(SlotSet::all()),
            Sorter::Records(_) => Ok(()),
        }
    }

    fn finish(sorter: Sorter) -> Result<PartLog> {
        Ok(match sorter {
            Sorter::Records(sorter) => PartLog::Records(sorter.finish()?),
            Sorter::Commands(log) => PartLog::Commands(Box::new(log.finish()?.finish()?)),
        })
    }
}

/// Reads the whole log of part `number` before any of its runs is asked for: nothing of it waits in the connection's window.
pub(super) async fn fetch(
    job: &Arc<LoadJob>,
    connection: &Connection,
    number: u32,
    wanted: Wanted,
) -> Result<PartLog> {
    let (mut writer, mut reader) = open_bi(connection).await?;
    writer.write_message(&FetchLog { job: job.head.job, part: number }).await?;
    writer.finish()?;
    let (send, mut receive) = mpsc::channel::<Part>(CHUNKS_AHEAD);
    let (budget, dir) = (SORT_MEMORY / job.at_once, job.agent.config.state_dir.clone());
    let place = Place { wanted, budget, dir, scratch: job.agent.engine.scratch_server(), idle: job.idle.clone() };
    let counters = job.counters.clone();
    let sort = blocking(move || {
        let (mut sorter, mut opener) = (place.sorter(), ChunkOpener::new()?);
        while let Some(part) = receive.blocking_recv() {
            let (piece, sealed) = match part {
                Part::Chunk(piece, sealed) => (piece, sealed),
                Part::Group => {
                    place.group(&mut sorter)?;
                    continue;
                }
            };
            let sealer = Sealer::new(&piece.key, piece.run_tag, piece.encrypt != 0);
            let raw = opener.open(&sealer, piece.number, &mut Vec::from(sealed))?;
            match &mut sorter {
                Sorter::Records(sorter) => sorter.push_chunk(raw)?,
                Sorter::Commands(log) => log.push_chunk(raw)?,
            }
            let _ = counters.bytes.fetch_add(raw.len() as u64, Ordering::Relaxed);
        }
        Place::finish(sorter)
    });
    let pump = async move {
        while let Some(header) = reader.read_header().await? {
            if header.kind == LogGroup::KIND {
                let _: LogGroup = reader.decode_reply(header).await?;
                if send.send(Part::Group).await.is_err() {
                    break;
                }
                continue;
            }
            let piece: LogPiece = reader.decode_reply(header).await?;
            let sealed = reader.read_raw_reply(FRAME_CHUNK, MAX_CHUNK_FRAME).await?;
            telemetry::limited(&job.agent.limiter, &job.agent.limited, sealed.len() as u64).await;
            let _ = job.counters.wire_bytes.fetch_add(sealed.len() as u64, Ordering::Relaxed);
            telemetry::passed(stage::FETCHED, sealed.len() as u64);
            if send.send(Part::Chunk(piece, sealed)).await.is_err() {
                break;
            }
        }
        drop(send);
        Ok::<(), Error>(())
    };
    let (sorted, pumped) = tokio::join!(sort, pump);
    pumped?;
    sorted
}

/// A log that is laid over the records of a part.
pub(super) enum Over {
    Records(Overlaid),
    Commands(Box<Fold>),
}

impl Over {
    /// Over nothing yet.
    pub(super) fn new(log: PartLog) -> Result<Self> {
        match log {
            PartLog::Records(overlay) => Ok(Self::Records(Overlaid::new(overlay)?)),
            PartLog::Commands(fold) => Ok(Self::Commands(fold)),
        }
    }

    /// Whether the log has something else in the place of a record; what comes before it may be given out meanwhile.
    pub(super) fn takes(&mut self, feed: &mut Feed, entry: Entry<'_>, long: Option<&LongValue>) -> Result<bool> {
        match self {
            Self::Records(over) => over.before(entry, |newer, long| feed.give_any(&newer, long)),
            Self::Commands(fold) => match fold.fate(entry.slot, entry.key)? {
                Fate::Stays => Ok(false),
                Fate::Void => Ok(true),
                Fate::Needed => fold.base(&entry, long).map(|()| true),
            },
        }
    }

    /// Gives out what is left.
    pub(super) fn rest(self, feed: &mut Feed, slots: &SlotSet) -> Result<()> {
        match self {
            Self::Records(mut over) => over.rest(|newer, long| feed.give_any(&newer, long)),
            Self::Commands(fold) => {
                let overlay = fold.run()?.overlay(&Scope::slots(slots.clone()))?;
                Overlaid::new(overlay)?.rest(|newer, long| feed.give_any(&newer, long))
            }
        }
    }
}
