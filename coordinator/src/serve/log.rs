//! The log of a part as it is given out.

use std::sync::Arc;

use tidemark_common::redis::fold::{Scope, Sorted};
use tidemark_common::seal::Sealer;
use tidemark_common::segment::ChunkWriter;
use tidemark_proto::stored::log::{CHUNK_TARGET, LogEntry, MAX_PIECE};
use tidemark_proto::stored::manifest::{NodeEntry, PartEntry};
use tidemark_proto::wire::bulk::LogPiece;
use tidemark_proto::wire::control::SecretKey;
use tidemark_proto::{Error, Result, SlotSet, Timestamp};
use tokio::sync::mpsc;

use crate::fold::scope_of;
use crate::log::LogParts;

/// Chunks between the thread that makes them and the stream.
const CHUNKS_AHEAD: usize = 4;

/// What lies over the parts of a restore.
#[derive(Debug, Clone)]
pub enum ServedLog {
    /// The newest record of each key counts.
    Records(Arc<LogParts>),
    /// Commands, which the agent works off.
    Commands {
        /// The log.
        log: Arc<LogParts>,
        /// The nodes of the backup.
        nodes: Arc<Vec<NodeEntry>>,
    },
    /// Records that came of commands, worked off here.
    WorkedOff(Arc<WorkedOff>),
}

/// Records that came of a log of commands, and deletes.
#[derive(Debug)]
pub struct WorkedOff {
    records: Arc<Sorted>,
    at: Timestamp,
}

impl WorkedOff {
    /// The state at `at`.
    pub fn new(records: Sorted, at: Timestamp) -> Self {
        Self { records: Arc::new(records), at }
    }

    /// `Unsupported` names a key whose value is too long to be given out.
    pub fn check(&self) -> Result<()> {
        let mut overlay = self.records.overlay(&Scope::slots(SlotSet::all()))?;
        while overlay.advance()? {
            if overlay.long()?.is_some_and(|long| long.len() > MAX_PIECE as u64) {
                return Err(too_long(overlay.current()?.key));
            }
        }
        Ok(())
    }

    /// The chunks of a part, sealed, each with what opens it.
    pub(super) fn chunks(&self, part: &PartEntry) -> mpsc::Receiver<Result<(LogPiece, Vec<u8>)>> {
        let (send, receive) = mpsc::channel(CHUNKS_AHEAD);
        let (records, at, scope) = (self.records.clone(), self.at, scope_of(part));
        drop(tokio::task::spawn_blocking(move || {
            let made = make(&records, at, &scope, |chunk| send.blocking_send(Ok(chunk)).is_ok());
            if let Err(e) = made {
                // Nobody takes it where the stream has ended.
                let _ = send.blocking_send(Err(e));
            }
        }));
        receive
    }
}

fn make(
    records: &Sorted,
    at: Timestamp,
    scope: &Scope,
    mut give: impl FnMut((LogPiece, Vec<u8>)) -> bool,
) -> Result<()> {
    let mut overlay = records.overlay(scope)?;
    let mut more = overlay.advance()?;
    while more {
        let (key, run_tag) = (SecretKey(rand::random()), rand::random());
        let sealer = Sealer::new(&key, run_tag, true);
        // Regions do not matter here: chunks go to the part that asked.
        let mut writer = ChunkWriter::new(&sealer, u16::MAX)?;
        let mut bytes = 0;
        while more && bytes < CHUNK_TARGET {
            let entry = overlay.current()?;
            let long = overlay.long()?;
            if long.as_ref().is_some_and(|long| long.len() > MAX_PIECE as u64) {
                return Err(too_long(entry.key));
            }
            let value = long.map(|long| long.whole(MAX_PIECE)).transpose()?;
            let put = entry.put.map(|(meta, short)| (meta, value.as_deref().unwrap_or(short)));
            bytes += entry.key.len() + put.map_or(0, |(meta, value)| meta.len() + value.len());
            writer.push(&LogEntry { at, put, kind: Default::default(), ..entry })?;
            more = overlay.advance()?;
        }
        for (number, (_, sealed)) in writer.finish()?.into_iter().enumerate() {
            let piece = LogPiece { run_tag, key: key.clone(), encrypt: 1, number: number as u32 };
            if !give((piece, sealed)) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn too_long(key: &[u8]) -> Error {
    const MOST: usize = 128;
    let key = String::from_utf8_lossy(key.get(1..).unwrap_or_default()).chars().take(MOST).collect::<String>();
    Error::unsupported(format!(
        "commands of the log tie keys of several parts together, and key `{key}` among them has a value of over {MAX_PIECE} bytes: \
         restore by `tidemark export --at … --format rdb`"
    ))
}
