//! The log of a part as it is given out.

use std::io::Read;
use std::sync::Arc;

use tidemark_common::redis::fold::{Scope, Sorted};
use tidemark_common::run::{LONG_PIECE, LongValue};
use tidemark_common::seal::Sealer;
use tidemark_common::segment::ChunkWriter;
use tidemark_proto::stored::log::{CHUNK_TARGET, EntryKind, LogEntry};
use tidemark_proto::stored::manifest::{NodeEntry, PartEntry};
use tidemark_proto::wire::bulk::LogPiece;
use tidemark_proto::wire::control::SecretKey;
use tidemark_proto::{ErrorKind, Result, Timestamp, error::ResultExt};
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
    let (mut more, mut rest, mut piece) = (overlay.advance()?, None, Vec::new());
    while more {
        let (key, run_tag) = (SecretKey(rand::random()), rand::random());
        let sealer = Sealer::new(&key, run_tag, true);
        // Regions do not matter here: chunks go to the part that asked.
        let mut writer = ChunkWriter::new(&sealer, u16::MAX)?;
        let mut bytes = 0;
        while more && bytes < CHUNK_TARGET {
            let entry = overlay.current()?;
            if rest.is_none() {
                rest = overlay.long()?.map(|long| Rest { long, given: 0 });
            }
            let (value, kind) = match &mut rest {
                Some(rest) => {
                    rest.next(&mut piece)?;
                    (Some(&piece[..]), rest.kind())
                }
                None => (None, EntryKind::Record),
            };
            let put = entry.put.map(|(meta, short)| (meta, value.unwrap_or(short)));
            bytes += entry.key.len() + put.map_or(0, |(meta, value)| meta.len() + value.len());
            writer.push(&LogEntry { at, put, kind, ..entry })?;
            if kind == EntryKind::Record {
                (more, rest) = (overlay.advance()?, None);
            }
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

/// A long value, and how much of it was given out.
struct Rest {
    long: LongValue,
    given: u64,
}

impl Rest {
    /// Reads the next piece.
    fn next(&mut self, piece: &mut Vec<u8>) -> Result<()> {
        let len = (self.long.len() - self.given).min(LONG_PIECE as u64);
        piece.resize(len as usize, 0);
        let read = self.long.reader_at(self.given).read_exact(piece);
        read.or_kind(ErrorKind::Retry, "reading back a long value")?;
        self.given += len;
        Ok(())
    }

    /// What the last piece is.
    fn kind(&self) -> EntryKind {
        if self.given == self.long.len() { EntryKind::Record } else { EntryKind::RecordPart }
    }
}
