//! One node's stream of the log: asks for batches and receives them.

use bytes::Bytes;
use tidemark_common::transport::{FrameReader, FrameWriter};
use tidemark_proto::stored::log::BEGINS_BRANCH;
use tidemark_proto::wire::bulk::{FRAME_CHUNK, LogBatch, LogFollow, LogPull, MAX_CHUNK_FRAME, MAX_PULL};
use tidemark_proto::{Error, Result};
use tokio::sync::{mpsc, oneshot};

use super::session::SLACK;
use crate::ingest::Pace;
use crate::repository::BatchKey;

/// A batch as it was received: nothing of it is durable yet.
#[derive(Debug)]
pub(super) struct Batch {
    /// What the node says of it.
    pub(super) header: LogBatch,
    /// What its chunks are sealed with.
    pub(super) key: BatchKey,
    /// The sealed chunks, in the order of the header.
    pub(super) chunks: Vec<Bytes>,
}

/// A question for a node, and where its answer goes.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) pull: LogPull,
    /// The same, as a log of commands is asked.
    pub(super) follow: Option<LogFollow>,
    pub(super) key: BatchKey,
    pub(super) answer: oneshot::Sender<Result<Batch>>,
}

/// Asks what comes from `asks` until that ends, or the stream breaks.
pub(super) async fn serve(
    asks: &mut mpsc::Receiver<Ask>,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    pace: &Pace<'_>,
) -> Result<()> {
    while let Some(Ask { pull, follow, key, answer }) = asks.recv().await {
        match ask((pull, follow), key, reader, writer, pace).await {
            // Nobody waits for it any more: the session is over.
            Ok(batch) => drop(answer.send(Ok(batch))),
            Err(e) => {
                let told = Error::new(e.kind(), e.report());
                let _ = answer.send(Err(e));
                return Err(told);
            }
        }
    }
    writer.finish()
}

async fn ask(
    (pull, follow): (LogPull, Option<LogFollow>),
    key: BatchKey,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    pace: &Pace<'_>,
) -> Result<Batch> {
    match &follow {
        Some(follow) => writer.write_message(follow).await?,
        None => writer.write_message(&pull).await?,
    }
    let header: LogBatch = reader.read_reply().await?;
    check(&header, &pull, follow.is_some())?;
    let mut chunks = Vec::with_capacity(header.chunks.len());
    let mut bytes = 0;
    for _ in &header.chunks {
        let chunk = reader.read_raw_reply(FRAME_CHUNK, MAX_CHUNK_FRAME).await?;
        pace.passed(chunk.len()).await;
        bytes += chunk.len() as u64;
        if bytes > u64::from(MAX_PULL) + SLACK {
            return Err(Error::damaged(format!("a batch of the log of over {bytes} bytes")));
        }
        chunks.push(chunk);
    }
    Ok(Batch { header, key, chunks })
}

/// Refuses what no node may say: a peer may send anything.
fn check(header: &LogBatch, pull: &LogPull, commands: bool) -> Result<()> {
    let from = header.from == pull.from && pull.from != 0;
    let goes_on = match header.begins {
        0 => from && header.incarnation == pull.incarnation,
        BEGINS_BRANCH => from && commands,
        _ => true,
    };
    if !goes_on || header.to < header.from {
        return Err(Error::damaged("a batch of the log does not go on where it was asked to"));
    }
    if header.begins == 1 && !header.chunks.is_empty() {
        return Err(Error::damaged("a log that begins has changes already"));
    }
    if !header.slots.is_canonical() || header.chunks.windows(2).any(|w| w[0].region > w[1].region) {
        return Err(Error::damaged("a batch of the log is not in order"));
    }
    Ok(())
}
