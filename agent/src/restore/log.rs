//! Fetching the log of a part, sorted to the newest version of each key.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use quinn::Connection;
use tidemark_common::overlay::{LogSorter, Overlay, Wanted};
use tidemark_common::seal::Sealer;
use tidemark_common::segment::open_chunk;
use tidemark_common::transport::open_bi;
use tidemark_proto::wire::bulk::{FRAME_CHUNK, FetchLog, LogPiece, MAX_CHUNK_FRAME};
use tidemark_proto::{Error, Result};
use tokio::sync::mpsc;

use super::LoadJob;
use crate::blocking;
use crate::metric_names::stage;
use crate::telemetry;

/// Memory for sorting of all parts of a node together, in bytes.
const SORT_MEMORY: usize = 96 << 20;
/// Chunks between the stream and the thread that opens them.
const CHUNKS_AHEAD: usize = 4;

/// Reads the whole log of part `number` before any of its runs is asked for: nothing of it waits in the connection's window.
pub(super) async fn fetch(
    job: &Arc<LoadJob>,
    connection: &Connection,
    number: u32,
    wanted: Wanted,
) -> Result<Overlay> {
    let (mut writer, mut reader) = open_bi(connection).await?;
    writer.write_message(&FetchLog { job: job.head.job, part: number }).await?;
    writer.finish()?;
    let (send, mut receive) = mpsc::channel::<(LogPiece, Bytes)>(CHUNKS_AHEAD);
    let (budget, dir) = (SORT_MEMORY / job.concurrency.max(1), job.agent.config.state_dir.clone());
    let counters = job.counters.clone();
    let sort = blocking(move || {
        let mut sorter = LogSorter::new(wanted, budget, &dir);
        while let Some((piece, sealed)) = receive.blocking_recv() {
            let sealer = Sealer::new(&piece.key, piece.run_tag, piece.encrypt != 0);
            let raw = open_chunk(&sealer, piece.number, &mut Vec::from(sealed))?;
            sorter.push_chunk(&raw)?;
            let _ = counters.bytes.fetch_add(raw.len() as u64, Ordering::Relaxed);
        }
        sorter.finish()
    });
    let pump = async move {
        while let Some(header) = reader.read_header().await? {
            let piece: LogPiece = reader.decode_reply(header).await?;
            let sealed = reader.read_raw_reply(FRAME_CHUNK, MAX_CHUNK_FRAME).await?;
            telemetry::limited(&job.agent.limiter, &job.agent.limited, sealed.len() as u64).await;
            let _ = job.counters.wire_bytes.fetch_add(sealed.len() as u64, Ordering::Relaxed);
            telemetry::passed(stage::FETCHED, sealed.len() as u64);
            if send.send((piece, sealed)).await.is_err() {
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
