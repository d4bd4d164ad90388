//! A writer of load: records and causal chains, at a rate, from many clients, until it is done or told to stop.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tidemark_proto::wire::kv::{MAX_VALUE, MAX_WRITES};
use tidemark_proto::{Error, Result};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::chain;
use super::route::Router;
use super::writer::{Shared, write_records};

/// What to write. `Default` is what the command line's defaults are.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Number of base records.
    pub records: u64,
    /// Bytes of a value.
    pub value_size: usize,
    /// Makes keys and values: the same seed writes the same.
    pub seed: u64,
    /// Writes in a second over all clients, chains not counted; 0 is without a bound.
    pub rate: u64,
    /// Clients at once.
    pub clients: u32,
    /// Writes of one commit.
    pub batch: usize,
    /// How long to go on with updates after the base records; `None` ends with them.
    pub duration: Option<Duration>,
    /// The base records are there already: only update them.
    pub updates_only: bool,
    /// Causal chains at once.
    pub chains: u32,
    /// A request that a node does not answer is tried again for this long; then the load fails.
    pub patience: Duration,
}

/// Default of [`LoadOptions::patience`].
const PATIENCE: Duration = Duration::from_secs(60);
/// Most clients and most chains of a load.
const MAX_TASKS: u32 = 1024;

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            records: 10_000,
            value_size: 128,
            seed: 1,
            rate: 0,
            clients: 4,
            batch: 16,
            duration: None,
            updates_only: false,
            chains: 0,
            patience: PATIENCE,
        }
    }
}

impl LoadOptions {
    fn check(&self) -> Result<()> {
        let wrong = if self.value_size > MAX_VALUE {
            format!("--value-size is over {MAX_VALUE}")
        } else if self.batch == 0 || self.batch > MAX_WRITES {
            format!("--batch must be 1 to {MAX_WRITES}")
        } else if self.batch.saturating_mul(self.value_size) > MAX_VALUE {
            format!("--batch times --value-size is over {MAX_VALUE} bytes")
        } else if self.clients == 0 || self.clients > MAX_TASKS || self.chains > MAX_TASKS {
            format!("--clients must be 1 to {MAX_TASKS}, --chains at most {MAX_TASKS}")
        } else if self.updates_only && self.duration.is_none() {
            "--updates-only needs a --duration".to_owned()
        } else if self.records == 0 && self.duration.is_none() {
            "without --records a --duration is needed".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::request(wrong))
    }
}

/// What came of a load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadReport {
    /// Writes of records acknowledged.
    pub writes: u64,
    /// Steps of chains acknowledged.
    pub chain_steps: u64,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Writes of records in a second.
    pub writes_per_second: f64,
    /// Median time to an ack, in microseconds.
    pub ack_p50_micros: u64,
    /// 99th percentile of the time to an ack, in microseconds.
    pub ack_p99_micros: u64,
    /// Longest time to an ack, in microseconds.
    pub ack_max_micros: u64,
    /// Longest time between two acks, whatever the client, in microseconds; at a low rate also the time between turns.
    pub longest_stall_micros: u64,
    /// Tries that failed and were made again.
    pub retries: u64,
}

/// Writes until it is done or `stop` is cancelled; both end in a report. A node that is away for longer than the
/// patience, or a refusal, is an error.
pub async fn load(router: &Router, options: &LoadOptions, stop: CancellationToken) -> Result<LoadReport> {
    options.check()?;
    let start = Instant::now();
    // Ends all tasks when the records are done, one has failed, or the caller says so.
    let ending = stop.child_token();
    let shared = Arc::new(Shared::new(options.clone(), ending.clone(), router.seen().clone(), start));
    let mut writers = JoinSet::new();
    for client in 0..options.clients {
        let _ = writers.spawn(write_records(shared.clone(), router.another_client(), client));
    }
    let mut chains = JoinSet::new();
    for number in 0..options.chains {
        let _ = chains.spawn(chain::write(shared.clone(), router.another_client(), number));
    }
    let mut result = Ok(());
    while !writers.is_empty() {
        // A chain ends before the writers only when it fails.
        let ended = tokio::select! {
            Some(ended) = writers.join_next() => ended,
            Some(ended) = chains.join_next() => ended,
        };
        if let Err(e) = flat(ended) {
            ending.cancel();
            result = result.and(Err(e));
        }
    }
    ending.cancel();
    while let Some(ended) = chains.join_next().await {
        result = result.and(flat(ended));
    }
    result.map(|()| shared.report())
}

fn flat(ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    ended.unwrap_or_else(|e| Err(Error::bug("a load client broke off").with_source(e)))
}
