//! One key at one time.

use tidemark_common::run::{Entry, RunReader};
use tidemark_common::segment::each_entry;
use tidemark_proto::stored::manifest::{PartEntry, RunEntry};
use tidemark_proto::stored::run::{Index, sort_key};
use tidemark_proto::{Error, Result, Timestamp};
use tokio::runtime::Handle;

use super::{MAX_SHOWN, Past, Where, bytes_of, shown, wanted};
use crate::blocks::{RunBlocks, sealer};
use crate::log::Piece;
use crate::repository::{Ledger, Repository};

/// A key as it is asked for.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct GetQuery {
    /// Where.
    #[serde(flatten)]
    pub place: Where,
    /// The key.
    pub key: String,
    /// The key is given as base64.
    #[serde(default)]
    pub base64: bool,
    /// When, a raw timestamp; the newest restore point where absent.
    #[serde(default)]
    pub at: Option<u64>,
}

/// What a key held.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Found {
    /// The restore point that was read, a raw timestamp.
    pub at: u64,
    /// The backup under it.
    pub backup: String,
    /// When it was written, a raw timestamp, where the log tells; else 0: before the cut of the backup.
    pub written_at: u64,
    /// The record, as `repo extract` writes it; nothing where the key did not exist.
    #[schema(value_type = Option<Object>)]
    pub record: Option<serde_json::Value>,
}

/// One version of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    /// When it was written; `None` where only the backup knows it.
    pub(super) at: Option<Timestamp>,
    /// Meta and value; `None` for a delete.
    pub(super) put: Option<(Vec<u8>, Vec<u8>)>,
}

impl Version {
    /// As answers show it.
    pub(super) fn shown(&self, slot: u16, key: &[u8]) -> Result<Option<serde_json::Value>> {
        let Some((meta, value)) = &self.put else { return Ok(None) };
        shown(&Entry { slot, key, put: Some((meta, value)) }, None).map(Some)
    }
}

/// What a key held at a time.
pub async fn get(repository: &Repository, ledger: &Ledger, query: &GetQuery) -> Result<Found> {
    let past = Past::open(repository, ledger, wanted(query.at)).await?;
    let (slot, key) = past.key(query.place.db, &bytes_of(&query.key, query.base64)?)?;
    let version = past.lookup(slot, key.clone()).await?;
    Ok(Found {
        at: past.at.0,
        backup: past.backup(),
        written_at: version.as_ref().and_then(|v| v.at).map_or(0, |at| at.0),
        record: version.map(|v| v.shown(slot, &key)).transpose()?.flatten(),
    })
}

impl Past {
    /// The newest version of a key; `None` where nothing is known of it.
    pub(super) async fn lookup(&self, slot: u16, key: Vec<u8>) -> Result<Option<Version>> {
        if self.laid.is_some() {
            return self.worked_off(slot, key).await;
        }
        let sort = sort_key(slot, &key);
        let holds = |part: &PartEntry| {
            part.slots.contains(slot) && part.lower <= sort && (part.upper.is_empty() || sort < part.upper)
        };
        let part = self.parts(holds).await?.into_iter().next();
        let part = part.ok_or_else(|| Error::damaged(format!("no part of the backup holds slot {slot}")))?;
        let past = self.clone();
        let look = move || match past.in_log(&part, slot, &key)? {
            Some(version) => Ok(Some(version)),
            None => past.in_backup(&part, slot, &key),
        };
        tokio::task::spawn_blocking(look).await.map_err(|e| Error::bug("looking a key up").with_source(e))?
    }

    /// The newest entry of the key in the log, segment by segment from the newest on.
    fn in_log(&self, part: &PartEntry, slot: u16, key: &[u8]) -> Result<Option<Version>> {
        let pieces = self.log.pieces(part.region);
        let segments: Vec<&[Piece]> = pieces.chunk_by(|a, b| a.segment == b.segment).collect();
        for segment in segments.into_iter().rev() {
            let mut found: Option<Version> = None;
            self.each_chunk(segment, |raw| {
                each_entry(raw, |e| {
                    let counts = e.slot == slot && e.key == key && e.at > self.base() && e.at <= self.at;
                    if counts && found.as_ref().is_none_or(|f| f.at < Some(e.at)) {
                        let put = e.put.map(|(meta, value)| (meta.to_vec(), value.to_vec()));
                        found = Some(Version { at: Some(e.at), put });
                    }
                    Ok(())
                })
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The record in the newest run that knows the key.
    pub(super) fn in_backup(&self, part: &PartEntry, slot: u16, key: &[u8]) -> Result<Option<Version>> {
        for run in part.runs.iter().rev() {
            if let Some(version) = self.in_run(part, run, slot, key)? {
                return Ok(Some(version));
            }
        }
        Ok(None)
    }

    fn in_run(&self, part: &PartEntry, run: &RunEntry, slot: u16, key: &[u8]) -> Result<Option<Version>> {
        let io = Handle::current();
        let blocks = io.block_on(RunBlocks::open(&self.repository, self.cluster(), part, run))?;
        let Some(block) = block_of(&blocks.index, &sort_key(slot, key)) else { return Ok(None) };
        let count = blocks.index.blocks.len() as u32;
        let mut next = block;
        // One block, and those behind it only where a long value goes on there.
        let source = || {
            let read = (next < count).then(|| io.block_on(blocks.read(next..next + 1))).transpose()?;
            next += 1;
            Ok(read.and_then(|mut read| read.pop()).map(Vec::from))
        };
        let numbers = std::iter::once(block..count).collect();
        let sealer = sealer(&self.repository, self.cluster(), part, run)?;
        let mut reader = RunReader::new(sealer, numbers, source, MAX_SHOWN)?;
        let named = |e: Error| e.context(blocks.place(block));
        while reader.advance().map_err(named)? {
            let entry = reader.current();
            match (entry.slot, entry.key).cmp(&(slot, key)) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => {
                    let put = entry.put.map(|(meta, value)| (meta.to_vec(), value.to_vec()));
                    return Ok(Some(Version { at: None, put }));
                }
                std::cmp::Ordering::Greater => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// The block that a key lies in, if the run has it.
fn block_of(index: &Index, sort: &[u8]) -> Option<u32> {
    let mut found = None;
    // Continuation blocks have no first key: they belong to the block before.
    for (number, block) in index.blocks.iter().enumerate().filter(|(_, b)| !b.first.is_empty()) {
        if block.first.as_slice() > sort {
            break;
        }
        found = Some(number as u32);
    }
    found
}
