//! Sending one part.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tidemark_common::seal::Sealer;
use tidemark_common::transport::{FrameReader, FrameWriter, open_bi};
use tidemark_proto::wire::bulk::{
    EarlyKept, EarlyOffer, FRAME_BLOCK, FRAME_INDEX, FRAME_VERSION, Grant, OverOffer, PartDone, PartOffer, Stored,
};
use tidemark_proto::{Error, Result};
use tokio::sync::{SemaphorePermit, mpsc};

use super::UploadJob;
use super::plan::{PlannedPart, When};
use crate::blocking;
use crate::metric_names::stage;
use crate::snapshot::{self, BuiltPart, Method, PartInput};
use crate::telemetry;

/// Sealed blocks between the thread that builds them and the stream.
const BLOCKS_AHEAD: usize = 4;

/// A part that was sent.
pub(super) struct Sent {
    /// The sort key at which it ended: its upper bound when it is whole.
    pub(super) upper: Vec<u8>,
    /// What names the attempt.
    pub(super) run_tag: [u8; 16],
    /// Bytes of keys, meta and values sent.
    pub(super) bytes: u64,
}

pub(super) struct PartSender {
    job: Arc<UploadJob>,
}

impl PartSender {
    pub(super) fn new(job: Arc<UploadJob>) -> Self {
        Self { job }
    }

    /// Offers, builds and sends the part; the next one may be `building` once all of it is on its way.
    pub(super) async fn send(self, part: &PlannedPart, building: SemaphorePermit<'_>) -> Result<Sent> {
        let job = &self.job;
        let connection = job.agent.bulk.connection(&job.ingest, &job.cancel).await?;
        let (mut writer, mut reader) = open_bi(&connection).await?;
        let offer = PartOffer {
            job: job.head.job,
            attempt: job.head.attempt,
            region: part.region,
            slots: part.range.slots.clone(),
            lower: part.range.lower.clone(),
            delta: u8::from(part.method != Method::Full),
        };
        match part.when {
            When::AtCut => writer.write_message(&offer).await?,
            When::Before => writer.write_message(&EarlyOffer { offer }).await?,
            When::Over(early) => writer.write_message(&OverOffer { offer, early }).await?,
        }
        let grant: Grant = reader.read_reply().await?;
        let built = self.stream(part, &grant, &mut writer).await?;
        if built.run.blocks > 0 {
            writer.write_raw(FRAME_INDEX, FRAME_VERSION, Bytes::from(built.run.index)).await?;
        }
        let done = PartDone {
            upper: built.upper.clone(),
            blocks: built.run.blocks,
            records: built.run.records,
            raw_bytes: built.run.raw_bytes,
            digest: built.digest,
            live_bytes: built.live_bytes,
        };
        writer.write_message(&done).await?;
        drop(building);
        match part.when {
            // The answer says more than an acknowledgement, and comes sooner.
            When::Before => {
                writer.finish()?;
                let _kept: EarlyKept = reader.read_reply().await?;
            }
            When::AtCut | When::Over(_) => {
                writer.drained().await?;
                self.await_stored(part.region, reader);
            }
        }
        tracing::debug!(records = built.run.records, blocks = built.run.blocks, "part sent");
        Ok(Sent { upper: built.upper, run_tag: grant.run_tag, bytes: built.run.raw_bytes })
    }

    /// Builds on a blocking thread and sends what comes out of it.
    async fn stream(&self, part: &PlannedPart, grant: &Grant, writer: &mut FrameWriter) -> Result<BuiltPart> {
        let (send, mut receive) = mpsc::channel::<Vec<u8>>(BLOCKS_AHEAD);
        let (job, part, grant) = (self.job.clone(), part.clone(), grant.clone());
        let build = blocking(move || {
            let sealer = Sealer::new(&grant.key, grant.run_tag, grant.encrypt != 0);
            let input = PartInput {
                snapshot: job.snapshot.as_ref(),
                range: &part.range,
                method: &part.method,
                new_index: part.new_index.as_deref(),
                part_bytes: job.agent.config.part_bytes,
                counters: &job.counters,
                cancel: &job.cancel,
            };
            snapshot::build(&input, &sealer, |block| {
                telemetry::passed(stage::SEALED, block.len() as u64);
                send.blocking_send(block).map_err(|_| Error::retry("the stream of the part broke"))
            })
        });
        let forward = async {
            while let Some(block) = receive.recv().await {
                self.job.while_held().await;
                let (agent, bytes) = (&self.job.agent, block.len() as u64);
                telemetry::limited(&agent.limiter, &agent.limited, bytes).await;
                let _ = self.job.counters.wire_bytes.fetch_add(bytes, Ordering::Relaxed);
                writer.write_raw(FRAME_BLOCK, FRAME_VERSION, Bytes::from(block)).await?;
                telemetry::passed(stage::SENT, bytes);
            }
            // Dropped here on an error too: the builder then ends at its next block.
            drop(receive);
            Ok::<(), Error>(())
        };
        let (built, sent) = tokio::join!(build, forward);
        // The stream's error says more than the builder's, which only saw its channel close.
        sent?;
        built
    }

    fn await_stored(&self, region: u16, mut reader: FrameReader) {
        let cancel = self.job.agent.shutdown.clone();
        drop(tokio::spawn(async move {
            let stored = tokio::select! {
                () = cancel.cancelled() => return,
                stored = reader.read_reply::<Stored>() => stored,
            };
            match stored {
                Ok(Stored {}) => tracing::trace!(region, "part stored"),
                Err(e) => tracing::debug!(region, error = %e.report(), "no word that the part is stored"),
            }
        }));
    }
}
