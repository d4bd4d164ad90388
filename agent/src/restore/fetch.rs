//! Fetching the blocks of a run that hold the slots of this node.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::BoxFuture;
use quinn::Connection;
use tidemark_common::rate::{BURST, Rate};
use tidemark_common::run::{BlockSource, RunReader, Spool, blocks_for, open_index};
use tidemark_common::seal::Sealer;
use tidemark_common::transport::{FrameWriter, limits, open_bi};
use tidemark_proto::stored::run::Index;
use tidemark_proto::wire::bulk::{FRAME_BLOCK, FRAME_INDEX, Fetch, FetchBlocks, MAX_BLOCK_FRAME, MAX_INDEX_FRAME};
use tidemark_proto::wire::control::{RestorePart, RunSource};
use tidemark_proto::{Error, Result};
use tokio::sync::mpsc;

use super::LoadJob;
use crate::metric_names::stage;
use crate::telemetry;

/// Sealed blocks between the stream and the thread that opens them.
const BLOCKS_AHEAD: usize = 4;

/// Requests of one run that are on their way at once.
const REQUESTS_AHEAD: usize = 2;

/// Bytes that one of `runs` runs of one of `parts` parts may have on its way: all of them fill half the window, and what
/// a node's own limit lets pass in a moment.
pub(super) fn quota(parts: usize, runs: usize, limit: Rate) -> u64 {
    let room = u64::from(limits::CONNECTION_WINDOW) / 2 / (parts.max(1) * runs.max(1)) as u64;
    let moment = limit.bytes().map(|rate| (rate as f64 * BURST.as_secs_f64()) as u64);
    room.min(moment.unwrap_or(u64::MAX)).max(1)
}

/// Blocks as they arrive.
pub(super) struct Blocks(mpsc::Receiver<Vec<u8>>);

impl BlockSource for Blocks {
    fn next_block(&mut self) -> Result<Option<Vec<u8>>> {
        // A stream that broke shows as an end before the last block; its pump holds the cause.
        Ok(self.0.blocking_recv())
    }
}

/// Splits ranges of blocks into requests of at most `quota` bytes (one block may pass it).
fn requests(index: &Index, ranges: Vec<Range<u32>>, quota: u64) -> Vec<FetchBlocks> {
    let mut out: Vec<FetchBlocks> = Vec::new();
    for range in ranges {
        let mut bytes = u64::MAX;
        for number in range {
            let len = u64::from(index.blocks[number as usize].sealed_len);
            match out.last_mut() {
                Some(last) if bytes.saturating_add(len) <= quota => {
                    last.count += 1;
                    bytes += len;
                }
                _ => {
                    out.push(FetchBlocks { first: number, count: 1 });
                    bytes = len;
                }
            }
        }
    }
    out
}

/// Asks for blocks once the node's own limit lets them come.
async fn ask(job: &LoadJob, writer: &mut FrameWriter, request: &FetchBlocks, index: &Index) -> Result<()> {
    let blocks = &index.blocks[request.first as usize..][..request.count as usize];
    let bytes = blocks.iter().map(|b| u64::from(b.sealed_len)).sum();
    telemetry::limited(&job.agent.limiter, &job.agent.limited, bytes).await;
    writer.write_message(request).await
}

/// A run being fetched.
pub(super) struct Fetched {
    /// Reads what arrives.
    pub(super) reader: RunReader<Blocks>,
    /// Moves blocks from the stream to the reader; to be driven beside it.
    pub(super) pump: BoxFuture<'static, Result<()>>,
}

/// Asks for a run and reads its index. At most about `quota` bytes of its blocks are asked for and not yet taken.
///
/// A merge needs a block of every run at once, while all streams share the connection's window: were a stream to fill it
/// with blocks that nobody takes yet, the block that the merge waits for could not come. So runs are asked for by
/// quotas which together stay below that window.
pub(super) async fn open(
    job: &Arc<LoadJob>,
    connection: &Connection,
    part: &RestorePart,
    run: &RunSource,
    quota: u64,
) -> Result<Fetched> {
    let (mut writer, mut reader) = open_bi(connection).await?;
    writer.write_message(&Fetch { job: job.head.job, part: part.number, run: run.number }).await?;
    let sealed = reader.read_raw_reply(FRAME_INDEX, MAX_INDEX_FRAME).await?;
    let sealer = || Sealer::new(&run.key, run.run_tag, run.encrypt != 0);
    let index = open_index(&sealer(), &mut sealed.to_vec())?;
    if index.blocks.len() != run.blocks as usize {
        return Err(Error::damaged("a run's index lists another number of blocks than the manifest"));
    }
    let ranges = blocks_for(&index, &part.slots);
    let (send, receive) = mpsc::channel(BLOCKS_AHEAD);
    let engine = &job.agent.engine;
    let mut reader_of_run = RunReader::new(sealer(), ranges.clone(), Blocks(receive), engine.max_value())?;
    if let Some(folder) = engine.spool() {
        reader_of_run = reader_of_run.spooling(Spool::new(&folder));
    }
    let requests = requests(&index, ranges, quota / REQUESTS_AHEAD as u64);
    let job = job.clone();
    let pump = async move {
        let mut asked = requests.iter();
        for request in asked.by_ref().take(REQUESTS_AHEAD) {
            ask(&job, &mut writer, request, &index).await?;
        }
        for request in &requests {
            for _ in 0..request.count {
                let block = reader.read_raw_reply(FRAME_BLOCK, MAX_BLOCK_FRAME).await?;
                let _ = job.counters.wire_bytes.fetch_add(block.len() as u64, Ordering::Relaxed);
                telemetry::passed(stage::FETCHED, block.len() as u64);
                if send.send(Vec::from(block)).await.is_err() {
                    // The merge gave up; its error is the one to report.
                    return Ok(());
                }
            }
            if let Some(next) = asked.next() {
                ask(&job, &mut writer, next, &index).await?;
            }
        }
        writer.finish()
    };
    Ok(Fetched { reader: reader_of_run, pump: Box::pin(pump) })
}
