//! Reading a part whole: its runs, opened and merged, for those who read a backup without a node.
//!
//! The merge is CPU work and runs on a thread that may block; a pump beside it reads the blocks. Of each run at most
//! three spans of blocks are in memory: one at the merge, one before it, one being read.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tidemark_common::record::REDIS_MAX_VALUE;
use tidemark_common::run::{BlockSource, Merge, RunReader, Spool};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::{ClusterName, Error, Result};
use tokio::sync::mpsc;

use crate::blocks::{RunBlocks, sealer};
use crate::repository::Repository;

/// Longest value that is read; no engine writes longer ones. None is held in memory: see [`LongValues`].
pub const MAX_VALUE: u64 = REDIS_MAX_VALUE;
/// Spans of a run between the reads and the thread that opens their blocks.
const SPANS_AHEAD: usize = 1;

/// What becomes of values over 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongValues {
    /// They are only hashed.
    Hashed,
    /// They go through a file without a name in the system's folder for such.
    Spooled,
}

/// Blocks as they are read.
#[derive(Debug)]
pub struct Blocks {
    spans: mpsc::Receiver<Result<Vec<Bytes>>>,
    at: std::vec::IntoIter<Bytes>,
}

impl BlockSource for Blocks {
    fn next_block(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(block) = self.at.next() {
                return Ok(Some(block.into()));
            }
            match self.spans.blocking_recv().transpose()? {
                Some(span) => self.at = span.into_iter(),
                None => return Ok(None),
            }
        }
    }
}

/// An opened part.
pub struct OpenPart {
    /// Its live records, in order. To be walked on a thread that may block.
    pub merge: Merge<Blocks>,
    /// Reads the blocks; to be driven beside the merge. Errors of reading come out of the merge.
    pub pump: BoxFuture<'static, ()>,
}

impl std::fmt::Debug for OpenPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenPart").field("merge", &self.merge).finish_non_exhaustive()
    }
}

/// Opens the runs of a part; reads their indexes. `Damaged` and `NotFound` name the pack.
pub async fn open(
    repository: &Repository,
    cluster: &ClusterName,
    part: &PartEntry,
    long: LongValues,
) -> Result<OpenPart> {
    let (mut readers, mut pumps) = (Vec::new(), Vec::new());
    for run in &part.runs {
        let blocks = RunBlocks::open(repository, cluster, part, run).await?;
        let (send, spans) = mpsc::channel(SPANS_AHEAD);
        let numbers = std::iter::once(0..run.blocks).collect();
        let sealer = sealer(repository, cluster, part, run)?;
        let reader = RunReader::new(sealer, numbers, Blocks { spans, at: Vec::new().into_iter() }, MAX_VALUE)?;
        readers.push(match long {
            LongValues::Hashed => reader.hashing(),
            LongValues::Spooled => reader.spooling(Spool::new(&std::env::temp_dir())),
        });
        pumps.push(pump(blocks, send));
    }
    let pump = futures::future::join_all(pumps).map(drop).boxed();
    Ok(OpenPart { merge: Merge::new(readers), pump })
}

async fn pump(blocks: RunBlocks, send: mpsc::Sender<Result<Vec<Bytes>>>) {
    for span in blocks.spans(0..blocks.index.blocks.len() as u32) {
        let read = blocks.read(span).await;
        let broken = read.is_err();
        // Nobody takes it where the merge has given up.
        if send.send(read).await.is_err() || broken {
            return;
        }
    }
}

/// Compares what was read of a part with the manifest.
pub fn compare(part: &PartEntry, read: SetDigest) -> Result<()> {
    if read == part.digest {
        return Ok(());
    }
    Err(Error::damaged(format!(
        "holds {} records where the manifest has {}, or other content",
        read.count, part.digest.count
    )))
}
