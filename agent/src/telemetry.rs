//! What the agent tells of itself, beside what is counted where it happens.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use tidemark_common::rate::Limiter;
use tidemark_common::scrub::Scrubber;
use tidemark_common::telemetry::{Observed, Pending};
use tidemark_proto::Result;
use tidemark_proto::wire::control::Diagnosed;

use crate::agent::Agent;
use crate::blocking;
use crate::metric_names::{
    CLONES, CONNECTED, HOLD_SECONDS, LIMIT, LIMITED_SECONDS, PART_ATTEMPTS, PART_SECONDS, PARTS_RUNNING,
    STAGE_BYTES,
};

/// What is done with a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartKind {
    /// Sent for a backup.
    Upload,
    /// Loaded for a restore.
    Load,
}

impl PartKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Load => "load",
        }
    }
}

/// Follows one attempt at a part.
pub(crate) async fn part<T>(kind: PartKind, work: impl Future<Output = Result<T>>) -> Result<T> {
    struct Running(PartKind);
    impl Drop for Running {
        fn drop(&mut self) {
            gauge!(PARTS_RUNNING, "kind" => self.0.name()).decrement(1.0);
        }
    }
    gauge!(PARTS_RUNNING, "kind" => kind.name()).increment(1.0);
    let _running = Running(kind);
    let began = Instant::now();
    let done = work.await;
    let outcome = if done.is_ok() { "ok" } else { "failed" };
    counter!(PART_ATTEMPTS, "kind" => kind.name(), "outcome" => outcome).increment(1);
    if done.is_ok() {
        histogram!(PART_SECONDS, "kind" => kind.name()).record(began.elapsed());
    }
    done
}

/// Counts bytes that passed a stage (see [`crate::metric_names::stage`]).
pub(crate) fn passed(stage: &'static str, bytes: u64) {
    counter!(STAGE_BYTES, "stage" => stage).increment(bytes);
}

/// Notes how long writes were held.
pub(crate) fn held(time: Duration) {
    histogram!(HOLD_SECONDS).record(time);
}

/// Waits until the node's own limit lets `bytes` pass.
pub(crate) async fn limited(limiter: &Limiter, waited: &Waited, bytes: u64) {
    let time = limiter.pass(bytes).await;
    if !time.is_zero() {
        waited.add(time);
    }
}

/// Time that was waited. The metric counts whole seconds; what is left over is kept here.
#[derive(Debug, Default)]
pub struct Waited(std::sync::atomic::AtomicU64);

impl Waited {
    fn add(&self, time: Duration) {
        let micros = time.as_micros() as u64;
        let before = self.0.fetch_add(micros, Ordering::Relaxed);
        counter!(LIMITED_SECONDS).increment((before + micros) / 1_000_000 - before / 1_000_000);
    }
}

/// What a report of a fault needs to know of this agent.
pub(crate) fn diagnosed(agent: &Agent) -> Diagnosed {
    let scrubber = Scrubber::of_environment();
    let config = toml::to_string(&agent.config).unwrap_or_else(|e| format!("cannot be written: {e}"));
    Diagnosed {
        build: crate::BUILD.into(),
        config: scrubber.scrub(&config),
        metrics: agent.metrics.render(agent),
        log: scrubber.scrub(&agent.log.text()),
    }
}

impl Observed for Agent {
    fn observe(&self) {
        gauge!(CONNECTED).set(f64::from(u8::from(self.connected.load(Ordering::Relaxed))));
        // None where the store has none; the last number while it is restoring.
        match self.engine.clones() {
            Ok((clones, _)) => gauge!(CLONES).set(clones.len() as f64),
            Err(_) => gauge!(CLONES).increment(0.0),
        }
        gauge!(LIMIT).set(self.limiter.rate().bytes().unwrap_or(0) as f64);
        // There from the start, so that a rate over them is one.
        for kind in [PartKind::Upload, PartKind::Load] {
            gauge!(PARTS_RUNNING, "kind" => kind.name()).increment(0.0);
        }
        counter!(LIMITED_SECONDS).increment(0);
    }

    fn ready(&self) -> Pending<'_, std::result::Result<(), String>> {
        let engine = Arc::clone(&self.engine);
        let connected = self.connected.load(Ordering::Relaxed);
        Box::pin(async move {
            if !connected {
                return Err("no coordinator is connected".into());
            }
            match blocking(move || engine.describe()).await {
                Ok(_) => Ok(()),
                Err(e) => Err(format!("the store does not answer: {}", e.report())),
            }
        })
    }
}
