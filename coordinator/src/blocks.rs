//! Reading the sealed blocks of a run back from packs: index first, then ranges of blocks by few ranged reads.

use std::ops::Range;

use bytes::Bytes;
use tidemark_common::run::open_index;
use tidemark_common::seal::Sealer;
use tidemark_proto::stored::manifest::{Extent, PartEntry, RunEntry};
use tidemark_proto::stored::paths;
use tidemark_proto::stored::run::Index;
use tidemark_proto::{ClusterName, Error, Result};

use crate::repository::Repository;

/// Bytes asked of the store by one ranged read, at most (one block may pass it).
pub const READ_SPAN: u64 = 2 << 20;
/// Bytes in front of a block in a pack: its length.
const LENGTH: u64 = 4;

/// An opened run: where each of its blocks lies.
#[derive(Debug)]
pub struct RunBlocks {
    repository: Repository,
    cluster: ClusterName,
    extents: Vec<Extent>,
    /// Offset of each block within the run's extents laid end to end; one more for the end.
    offsets: Vec<u64>,
    /// The index as it is stored.
    pub sealed_index: Bytes,
    /// The index.
    pub index: Index,
}

/// The sealer of a run.
pub fn sealer(repository: &Repository, cluster: &ClusterName, part: &PartEntry, run: &RunEntry) -> Result<Sealer> {
    let keys = repository.keys();
    let tag = keys.run_tag(cluster, part.region, &part.lower, &run.salt);
    Ok(Sealer::new(&keys.subkey(run.key_id, &run.salt)?, tag, run.key_id != 0))
}

impl RunBlocks {
    /// Reads and checks the index of a run.
    pub async fn open(
        repository: &Repository,
        cluster: &ClusterName,
        part: &PartEntry,
        run: &RunEntry,
    ) -> Result<Self> {
        let at = &run.index;
        let path = paths::pack(cluster, &at.pack);
        let sealed_index = repository.store().get_range(&path, at.offset, at.len).await?;
        let sealer = sealer(repository, cluster, part, run)?;
        let index = open_index(&sealer, &mut sealed_index.to_vec()).map_err(|e| e.context(&path))?;
        let mut offsets = vec![0];
        for block in &index.blocks {
            offsets.push(offsets[offsets.len() - 1] + LENGTH + u64::from(block.sealed_len));
        }
        let stored: u64 = run.extents.iter().map(|e| e.len).sum();
        if index.blocks.len() != run.blocks as usize || offsets[index.blocks.len()] != stored {
            return Err(Error::damaged(format!("{path}: the index of a run does not fit its blocks")));
        }
        let (repository, cluster, extents) = (repository.clone(), cluster.clone(), run.extents.clone());
        Ok(Self { repository, cluster, extents, offsets, sealed_index, index })
    }

    /// Splits a range of blocks into spans that one read fetches.
    pub fn spans(&self, blocks: Range<u32>) -> Vec<Range<u32>> {
        self.spans_within(blocks, READ_SPAN)
    }

    /// The same with spans of at most `bytes` (one block may pass it).
    pub fn spans_within(&self, blocks: Range<u32>, bytes: u64) -> Vec<Range<u32>> {
        let mut spans: Vec<Range<u32>> = Vec::new();
        for i in blocks {
            let end = self.offsets[i as usize + 1];
            match spans.last_mut() {
                Some(span) if end - self.offsets[span.start as usize] <= bytes => span.end = i + 1,
                _ => spans.push(i..i + 1),
            }
        }
        spans
    }

    /// Bytes of the sealed blocks of a span.
    pub fn bytes(&self, span: Range<u32>) -> u64 {
        span.map(|i| u64::from(self.index.blocks[i as usize].sealed_len)).sum()
    }

    /// Reads the sealed blocks of a span (nonce, ciphertext, tag each). `Damaged` names the pack.
    pub async fn read(&self, span: Range<u32>) -> Result<Vec<Bytes>> {
        let (from, to) = (self.offsets[span.start as usize], self.offsets[span.end as usize]);
        let bytes = self.read_bytes(from, to).await?;
        let mut blocks = Vec::with_capacity(span.len());
        for i in span {
            let at = (self.offsets[i as usize] - from) as usize;
            let len = self.index.blocks[i as usize].sealed_len;
            if bytes[at..at + 4] != len.to_le_bytes() {
                return Err(Error::damaged(format!(
                    "{}: block {i} has another length than its index says",
                    self.place(i)
                )));
            }
            blocks.push(bytes.slice(at + 4..at + 4 + len as usize));
        }
        Ok(blocks)
    }

    /// The pack that a block lies in (begins in), for messages.
    pub fn place(&self, block: u32) -> String {
        let mut at = self.offsets[block as usize];
        for extent in &self.extents {
            if at < extent.len {
                return paths::pack(&self.cluster, &extent.pack);
            }
            at -= extent.len;
        }
        "a run without extents".into()
    }

    /// Bytes `from..to` of the extents laid end to end.
    async fn read_bytes(&self, from: u64, to: u64) -> Result<Bytes> {
        let (mut base, mut pieces) = (0, Vec::new());
        for extent in &self.extents {
            let (start, end) = (from.max(base), to.min(base + extent.len));
            if start < end {
                let path = paths::pack(&self.cluster, &extent.pack);
                pieces.push(
                    self.repository.store().get_range(&path, extent.offset + (start - base), end - start).await?,
                );
            }
            base += extent.len;
        }
        if pieces.len() == 1 { Ok(pieces.remove(0)) } else { Ok(pieces.concat().into()) }
    }
}
