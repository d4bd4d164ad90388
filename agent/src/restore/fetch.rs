//! Fetching the blocks of a run that hold the slots of this node.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::BoxFuture;
use quinn::Connection;
use tidemark_common::run::{BlockSource, RunReader, blocks_for, open_index};
use tidemark_common::seal::Sealer;
use tidemark_common::transport::open_bi;
use tidemark_proto::wire::bulk::{FRAME_BLOCK, FRAME_INDEX, Fetch, FetchBlocks, MAX_BLOCK_FRAME, MAX_INDEX_FRAME};
use tidemark_proto::wire::control::{CommandHead, RestorePart, RunSource};
use tidemark_proto::{Error, Result};
use tokio::sync::mpsc;

use crate::kv::MAX_VALUE;
use crate::snapshot::Counters;

/// Sealed blocks between the stream and the thread that opens them.
const BLOCKS_AHEAD: usize = 4;

/// Blocks as they arrive.
pub(super) struct Blocks(mpsc::Receiver<Vec<u8>>);

impl BlockSource for Blocks {
    fn next_block(&mut self) -> Result<Option<Vec<u8>>> {
        // A stream that broke shows as an end before the last block; its pump holds the cause.
        Ok(self.0.blocking_recv())
    }
}

/// A run being fetched.
pub(super) struct Fetched {
    /// Reads what arrives.
    pub(super) reader: RunReader<Blocks>,
    /// Moves blocks from the stream to the reader; to be driven beside it.
    pub(super) pump: BoxFuture<'static, Result<()>>,
}

/// Asks for a run and reads its index.
pub(super) async fn open(
    head: &CommandHead,
    connection: &Connection,
    part: &RestorePart,
    run: &RunSource,
    counters: Arc<Counters>,
) -> Result<Fetched> {
    let (mut writer, mut reader) = open_bi(connection).await?;
    writer.write_message(&Fetch { job: head.job, part: part.number, run: run.number }).await?;
    let sealed = reader.read_raw_reply(FRAME_INDEX, MAX_INDEX_FRAME).await?;
    let sealer = || Sealer::new(&run.key, run.run_tag, run.encrypt != 0);
    let index = open_index(&sealer(), &mut sealed.to_vec())?;
    if index.blocks.len() != run.blocks as usize {
        return Err(Error::damaged("a run's index lists another number of blocks than the manifest"));
    }
    let ranges = blocks_for(&index, &part.slots);
    let (send, receive) = mpsc::channel(BLOCKS_AHEAD);
    let reader_of_run = RunReader::new(sealer(), ranges.clone(), Blocks(receive), MAX_VALUE)?;
    let pump = async move {
        for range in ranges {
            let count = range.end - range.start;
            writer.write_message(&FetchBlocks { first: range.start, count }).await?;
            for _ in 0..count {
                let block = reader.read_raw_reply(FRAME_BLOCK, MAX_BLOCK_FRAME).await?;
                let _ = counters.wire_bytes.fetch_add(block.len() as u64, Ordering::Relaxed);
                if send.send(Vec::from(block)).await.is_err() {
                    // The merge gave up; its error is the one to report.
                    return Ok(());
                }
            }
        }
        writer.finish()
    };
    Ok(Fetched { reader: reader_of_run, pump: Box::pin(pump) })
}
