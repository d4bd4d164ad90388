//! Reading the chunks of a log of commands.

use std::sync::Arc;

use tidemark_common::redis::log::{CommandLog, Entries};
use tidemark_proto::stored::log::ALL_REGIONS;
use tidemark_proto::{Error, Result};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::stop;
use crate::blocks::READ_SPAN;
use crate::log::{Group, LogParts, Piece};
use crate::repository::Repository;

/// Groups of chunks, and where they lie.
pub(super) struct Reading {
    pub(super) repository: Repository,
    pub(super) log: Arc<LogParts>,
    pub(super) groups: Vec<Group>,
    /// Groups without commands of several slots are taken for sorted.
    pub(super) in_order: bool,
    pub(super) cancel: CancellationToken,
}

impl Reading {
    /// Gives all chunks to `sorter`; the next stretch of them is read while one is opened. On a thread that may block.
    pub(super) fn into<O: Entries>(self, mut sorter: CommandLog<O>) -> Result<CommandLog<O>> {
        let mut spans: Vec<(usize, bool, Vec<Piece>)> = Vec::new();
        for (number, group) in self.groups.iter().enumerate() {
            let region = |piece: &Piece| self.log.chunk(*piece).1.region;
            let mut pieces = group.pieces.clone();
            let in_order = self.in_order && pieces.iter().all(|piece| region(piece) != ALL_REGIONS);
            if in_order {
                pieces.sort_by_key(|piece| (piece.segment, region(piece), piece.chunk));
            }
            let of_group = self.log.spans_of(&pieces, READ_SPAN);
            spans.extend(of_group.into_iter().map(|span| (number, in_order, span.to_vec())));
        }
        let read = |span: Option<&(usize, bool, Vec<Piece>)>| {
            let (pieces, log, repository) = (span?.2.clone(), self.log.clone(), self.repository.clone());
            Some(Handle::current().spawn(async move { log.read(&repository, &pieces).await }))
        };
        let (mut next, mut present) = (read(spans.first()), None);
        for (i, (number, in_order, pieces)) in spans.iter().enumerate() {
            stop(&self.cancel)?;
            let sealed = next.take().ok_or_else(|| Error::bug("a stretch of the log that is not read"))?;
            let sealed =
                Handle::current().block_on(sealed).map_err(|e| Error::bug("reading the log").with_source(e))??;
            next = read(spans.get(i + 1));
            if present.replace(*number) != Some(*number) {
                let slots = self.groups[*number].slots.clone();
                if *in_order { sorter.group_in_order(slots)? } else { sorter.group(slots)? }
            }
            for (piece, sealed) in pieces.iter().zip(&sealed) {
                sorter.push_chunk(&self.log.open(&self.repository, *piece, sealed)?)?;
            }
        }
        Ok(sorter)
    }
}
