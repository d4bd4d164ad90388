//! The log's stream: opened to the ingest process when the coordinator commands it, it answers pulls until it ends. What
//! was sent is kept by the store until a later pull says that it is durable, so that a stream that breaks loses nothing.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::seal::Sealer;
use tidemark_common::segment::ChunkWriter;
use tidemark_common::transport::{FrameReader, FrameWriter, open_bi};
use tidemark_proto::frame::{Header, Message};
use tidemark_proto::stored::log::{BEGINS_BRANCH, LogEntry};
use tidemark_proto::wire::bulk::{
    FRAME_CHUNK, FRAME_VERSION, LogBatch, LogChunk, LogFollow, LogOpen, LogPull, MAX_PULL,
};
use tidemark_proto::wire::control::{Done, Failure, LogStart};
use tidemark_proto::{Error, Result, Timestamp};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::agent::Agent;
use crate::engine::{Engine, LogReached, LogSink, LogSource, LogWanted};
use crate::metric_names::stage;
use crate::{blocking, telemetry};

/// The stream that stands, if any: dropping its guard ends it.
#[derive(Debug, Default)]
pub struct LogStream(Mutex<Option<DropGuard>>);

impl LogStream {
    fn replace(&self, with: Option<CancellationToken>) {
        *self.0.lock().expect("no panic while held") = with.map(CancellationToken::drop_guard);
    }
}

/// A batch, read and sealed.
struct Batch {
    reached: LogReached,
    chunks: Vec<(LogChunk, Vec<u8>)>,
}

struct Sink<'w, 's>(&'w mut ChunkWriter<'s>);

impl LogSink for Sink<'_, '_> {
    fn entry(&mut self, entry: LogEntry<'_>) -> Result<()> {
        self.0.push(&entry)
    }

    fn restart(&mut self) {
        self.0.clear();
    }
}

fn unsupported() -> Error {
    Error::unsupported("this kind of store has no log yet: protect it by backups alone, and leave pitr off")
}

/// The log of a store; `Unsupported` where it has none.
pub(crate) fn of(engine: &dyn Engine) -> Result<&dyn LogSource> {
    engine.log().ok_or_else(unsupported)
}

/// Opens the stream and serves it in the background.
pub(crate) async fn start(agent: Arc<Agent>, command: LogStart) -> Result<Done> {
    let _ = agent.engine.log().ok_or_else(unsupported)?;
    let cancel = agent.shutdown.child_token();
    let connection = agent.bulk.connection(&command.ingest, &cancel).await?;
    let (mut writer, reader) = open_bi(&connection).await?;
    writer.write_message(&LogOpen { session: command.session }).await?;
    agent.log_stream.replace(Some(cancel.clone()));
    drop(tokio::spawn(async move {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = serve(agent, writer, reader) => {}
        }
    }));
    Ok(Done {})
}

/// Ends the stream, and lets go of what is kept for it.
pub(crate) async fn stop(agent: Arc<Agent>) -> Result<Done> {
    agent.log_stream.replace(None);
    let engine = agent.engine.clone();
    blocking(move || engine.log().map_or(Ok(()), |log| log.stop_log())).await?;
    Ok(Done {})
}

async fn serve(agent: Arc<Agent>, mut writer: FrameWriter, mut reader: FrameReader) {
    loop {
        let done = match reader.read_header().await {
            Ok(None) => Ok(false),
            Ok(Some(header)) => match question(&mut reader, header).await {
                Ok(follow) => answer(&agent, follow, &mut writer).await.map(|()| true),
                Err(e) => Err(e),
            },
            Err(e) => Err(e),
        };
        match done {
            Ok(true) => {}
            Ok(false) => return drop(writer.finish()),
            Err(e) => {
                tracing::info!(error = %e.report(), "the stream of the log ends");
                let failure = Failure { code: e.kind().code(), message: e.report() };
                let _ = writer.write_message(&failure).await;
                return drop(writer.finish());
            }
        }
    }
}

/// Reads a question, of either kind.
async fn question(reader: &mut FrameReader, header: Header) -> Result<LogFollow> {
    if header.kind == LogFollow::KIND {
        return reader.decode(header).await;
    }
    let pull = reader.decode::<LogPull>(header).await?;
    Ok(LogFollow { pull, closed: Timestamp::ZERO, takes_over: 0 })
}

async fn answer(agent: &Arc<Agent>, follow: LogFollow, writer: &mut FrameWriter) -> Result<()> {
    let engine = agent.engine.clone();
    let Batch { reached, chunks } = blocking(move || read(&*engine, &follow)).await?;
    let begins = match reached.begins {
        true => 1,
        false if reached.branches => BEGINS_BRANCH,
        false => 0,
    };
    let header = LogBatch {
        incarnation: reached.incarnation,
        slots: reached.slots,
        from: reached.from,
        to: reached.to,
        closed: reached.closed,
        begins,
        behind_bytes: reached.behind,
        clock_millis: SystemClock.millis(),
        chunks: chunks.iter().map(|(chunk, _)| chunk.clone()).collect(),
    };
    writer.write_message(&header).await?;
    for (_, sealed) in chunks {
        telemetry::limited(&agent.limiter, &agent.limited, sealed.len() as u64).await;
        telemetry::passed(stage::LOG, sealed.len() as u64);
        writer.write_raw(FRAME_CHUNK, FRAME_VERSION, Bytes::from(sealed)).await?;
    }
    Ok(())
}

fn read(engine: &dyn Engine, LogFollow { pull, closed, takes_over }: &LogFollow) -> Result<Batch> {
    let log = of(engine)?;
    let sealer = Sealer::new(&pull.key, pull.run_tag, pull.encrypt != 0);
    let mut writer = ChunkWriter::new(&sealer, pull.slots_per_region)?;
    let wanted = LogWanted {
        incarnation: pull.incarnation,
        from: pull.from,
        durable: pull.durable,
        now: pull.now,
        most: u64::from(pull.most_bytes.min(MAX_PULL)),
        spool: pull.spool_bytes,
        closed: *closed,
        takes_over: *takes_over != 0,
    };
    let reached = log.read_log(&wanted, &mut Sink(&mut writer))?;
    Ok(Batch { reached, chunks: writer.finish()? })
}
