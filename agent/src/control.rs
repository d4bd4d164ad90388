//! The control connection: dial, greet, then answer the commands that the coordinator opens streams for.

mod clones;
mod commands;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quinn::Connection;
use tidemark_common::transport::{Dialer, FrameReader, FrameWriter, accept_bi};
use tidemark_proto::frame::{Header, Message};
use tidemark_proto::wire::control::{CommandHead, Failure, Progress};
use tidemark_proto::{Error, Result};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::agent::Agent;
use crate::snapshot::Counters;
use crate::telemetry;

/// Progress is told this often, when there is any.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Commands that may run at once; a coordinator needs a handful.
const MAX_COMMANDS: usize = 64;

/// Keeps a control connection until the agent shuts down.
pub async fn run(agent: Arc<Agent>, mut dialer: Dialer) -> Result<()> {
    loop {
        let session = match dialer.connect(&agent.shutdown).await {
            Ok(session) => session,
            Err(_) if agent.shutdown.is_cancelled() => return Ok(()),
            Err(e) => return Err(e),
        };
        tracing::info!(coordinator = %session.identity, epoch = session.epoch, "connected");
        // A coordinator of an older epoch is left at once, before it can command anything.
        if let Err(e) = agent.state.see_epoch(session.epoch) {
            tracing::warn!(error = %e.report(), "leaving this coordinator");
            session.connection.close(quinn::VarInt::from_u32(e.kind().code()), e.message().as_bytes());
            continue;
        }
        agent.connected.store(true, Ordering::Relaxed);
        let ended = serve(&agent, &session.connection).await;
        agent.connected.store(false, Ordering::Relaxed);
        if agent.shutdown.is_cancelled() {
            session.connection.close(quinn::VarInt::from_u32(0), b"the agent shuts down");
            return Ok(());
        }
        tracing::warn!(error = %ended.report(), "connection to the coordinator lost");
    }
}

/// Answers commands until the connection ends; says why it did.
async fn serve(agent: &Arc<Agent>, connection: &Connection) -> Error {
    let mut commands = JoinSet::new();
    // A command whose coordinator is gone has nobody to answer: it ends with the connection.
    let cancel = agent.shutdown.child_token();
    let _stop = cancel.clone().drop_guard();
    loop {
        tokio::select! {
            biased;
            () = agent.shutdown.cancelled() => return Error::cancelled("the agent shuts down"),
            Some(_) = commands.join_next(), if !commands.is_empty() => {}
            stream = accept_bi(connection), if commands.len() < MAX_COMMANDS => match stream {
                Ok((writer, reader)) => {
                    let _ = commands.spawn(answer(agent.clone(), writer, reader, cancel.child_token()));
                }
                Err(e) => return e,
            },
        }
    }
}

async fn answer(agent: Arc<Agent>, writer: FrameWriter, mut reader: FrameReader, cancel: CancellationToken) {
    let mut reply = Reply { writer, counts: Counts::default(), cancel: cancel.clone() };
    let gone = reply.writer.stopped();
    let result = async {
        let head: CommandHead = reader.read_message().await?;
        agent.state.see_epoch(head.epoch)?;
        let header = reader.read_header().await?.ok_or_else(|| Error::damaged("a command without a body"))?;
        let span = commands::span(&head, &header);
        commands::dispatch(&agent, head, header, &mut reader, &mut reply).instrument(span).await
    };
    let result = tokio::select! {
        result = result => result,
        why = gone => {
            cancel.cancel();
            tracing::debug!(reason = %why.report(), "the coordinator ended a command");
            return;
        }
    };
    if let Err(e) = result {
        tracing::info!(error = %e.report(), "a command failed");
        let failure = Failure { code: e.kind().code(), message: e.report() };
        let _ = reply.send(&failure).await;
    }
    let _ = reply.writer.drained().await;
}

/// The way back to the coordinator.
pub(crate) struct Reply {
    writer: FrameWriter,
    counts: Counts,
    cancel: CancellationToken,
}

/// What a command has done, for its progress and for the metrics.
#[derive(Default)]
struct Counts {
    counters: Arc<Counters>,
    /// Stage that the bytes pass.
    stage: Option<&'static str>,
    /// Bytes that the metrics know of.
    counted: u64,
}

impl Counts {
    fn count(&mut self) {
        let bytes = self.counters.bytes.load(Ordering::Relaxed);
        if let Some(stage) = self.stage {
            telemetry::passed(stage, bytes - self.counted);
        }
        self.counted = bytes;
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        self.count();
    }
}

impl Reply {
    /// Counters that are told as progress, and whose bytes count for `stage` of the metrics.
    pub(crate) fn counters_of(&mut self, stage: &'static str) -> Arc<Counters> {
        self.counts.stage = Some(stage);
        self.counts.counters.clone()
    }

    /// Cancelled when the coordinator ends the command.
    pub(crate) fn cancel(&self) -> CancellationToken {
        self.cancel.clone()
    }

    async fn send<M: Message>(&mut self, message: &M) -> Result<()> {
        self.writer.write_message(message).await
    }

    /// Waits for `work`, telling progress meanwhile, and sends its result.
    pub(crate) async fn finish<M: Message>(&mut self, work: impl Future<Output = Result<M>>) -> Result<()> {
        let mut work = std::pin::pin!(work);
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        let mut told = Progress::default();
        loop {
            tokio::select! {
                biased;
                result = &mut work => {
                    let result = result?;
                    self.tell(&mut told).await?;
                    return self.send(&result).await;
                }
                _ = ticks.tick() => self.tell(&mut told).await?,
            }
        }
    }

    async fn tell(&mut self, told: &mut Progress) -> Result<()> {
        self.counts.count();
        let now = self.counts.counters.progress();
        if now != *told {
            self.send(&now).await?;
            *told = now;
        }
        Ok(())
    }
}

/// Reads the body that `header` announced.
pub(crate) async fn body<M: Message>(reader: &mut FrameReader, header: Header) -> Result<M> {
    reader.decode(header).await
}
