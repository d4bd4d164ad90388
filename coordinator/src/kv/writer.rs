//! One client of a load, and what all clients share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_common::kv_client::Seen;
use tidemark_proto::wire::kv::Write;
use tidemark_proto::{Result, Timestamp};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::load::{LoadOptions, LoadReport};
use super::pace::Pace;
use super::route::{Router, retrying};
use super::value;

/// Commits that one client has unanswered at most.
const PIPELINE: usize = 8;
/// When a load ends, commits in flight are waited for this long.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Significant digits of ack times.
const DIGITS: u8 = 3;
/// Longest ack time that is told apart, in microseconds: one hour.
const LONGEST_ACK: u64 = 3_600_000_000;

/// What the clients of a load share.
pub(super) struct Shared {
    pub(super) options: LoadOptions,
    pub(super) ending: CancellationToken,
    /// The caller's: what the clients were acknowledged, though they do not tell each other.
    seen: Seen,
    start: Instant,
    pace: Pace,
    writes: AtomicU64,
    steps: AtomicU64,
    retries: AtomicU64,
    /// Microseconds since the start.
    last_ack: AtomicU64,
    longest_stall: AtomicU64,
    acks: Mutex<Histogram<u64>>,
}

impl Shared {
    pub(super) fn new(options: LoadOptions, ending: CancellationToken, seen: Seen, start: Instant) -> Self {
        let acks = Histogram::new_with_max(LONGEST_ACK, DIGITS).expect("bounds and 3 digits are allowed");
        Self {
            pace: Pace::new(options.rate),
            options,
            ending,
            seen,
            start,
            writes: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            last_ack: AtomicU64::new(0),
            longest_stall: AtomicU64::new(0),
            acks: Mutex::new(acks),
        }
    }

    /// Commits with retries, and takes the time of its ack. `None` when the load ended before the node answered.
    pub(super) async fn commit(
        &self,
        router: &Router,
        node: usize,
        writes: Vec<Write>,
    ) -> Result<Option<Timestamp>> {
        let sent = Instant::now();
        let failed = || {
            let _ = self.retries.fetch_add(1, Ordering::Relaxed);
        };
        let given_up = async {
            self.ending.cancelled().await;
            sleep(STOP_GRACE).await;
        };
        let at = tokio::select! {
            at = retrying(self.options.patience, failed, || router.commit(node, writes.clone())) => at?,
            () = given_up => return Ok(None),
        };
        self.seen.observe(at);
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(micros(sent.elapsed()));
        let now = micros(self.start.elapsed());
        let stall = now.saturating_sub(self.last_ack.fetch_max(now, Ordering::Relaxed));
        let _ = self.longest_stall.fetch_max(stall, Ordering::Relaxed);
        Ok(Some(at))
    }

    pub(super) fn step_done(&self) {
        let _ = self.steps.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn report(&self) -> LoadReport {
        let acks = self.acks.lock().unwrap_or_else(PoisonError::into_inner);
        let (writes, seconds) = (self.writes.load(Ordering::Relaxed), self.start.elapsed().as_secs_f64());
        LoadReport {
            writes,
            chain_steps: self.steps.load(Ordering::Relaxed),
            seconds,
            writes_per_second: writes as f64 / seconds.max(f64::EPSILON),
            ack_p50_micros: acks.value_at_quantile(0.5),
            ack_p99_micros: acks.value_at_quantile(0.99),
            ack_max_micros: acks.max(),
            longest_stall_micros: self.longest_stall.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
        }
    }

    /// The moment that updates end, if there are any.
    fn deadline(&self) -> Option<Instant> {
        self.options.duration.map(|d| self.start + d)
    }
}

/// Batches of one client, by node.
struct Batches {
    by_node: Vec<Vec<Write>>,
    size: usize,
}

impl Batches {
    /// Adds a write; answers the batch that it made full.
    fn add(&mut self, node: usize, write: Write) -> Option<(usize, Vec<Write>)> {
        let batch = &mut self.by_node[node];
        batch.push(write);
        (batch.len() >= self.size).then(|| (node, std::mem::take(batch)))
    }

    fn rest(self) -> impl Iterator<Item = (usize, Vec<Write>)> {
        self.by_node.into_iter().enumerate().filter(|(_, writes)| !writes.is_empty())
    }
}

/// Writes this client's share of the base records, then updates until the deadline.
pub(super) async fn write_records(shared: Arc<Shared>, router: Router, client: u32) -> Result<()> {
    let options = &shared.options;
    if options.records == 0 {
        // Chains alone: the load lasts as long as was asked for.
        return idle(&shared).await;
    }
    let clients = u64::from(options.clients);
    let mut rng = StdRng::seed_from_u64(options.seed ^ u64::from(client).wrapping_add(1) << 32);
    let base = if options.updates_only { 0 } else { options.records };
    let base = (u64::from(client)..base).step_by(clients as usize).map(|n| (n, 0));
    let last = options.records - 1;
    let updates = std::iter::from_fn(|| Some((rng.random_range(0..=last), rng.random_range(1..u64::MAX))));
    let deadline = shared.deadline();
    let work = base.map(|w| (w, false)).chain(updates.map(|w| (w, true)));

    let mut batches = Batches { by_node: vec![Vec::new(); router.len()], size: options.batch };
    let mut flying = FuturesUnordered::new();
    for ((n, version), update) in work {
        let over = update && deadline.is_none_or(|d| Instant::now() >= d);
        if over || shared.ending.is_cancelled() {
            break;
        }
        let key = value::key(options.seed, n).into_bytes();
        let value = value::value(options.seed, &key, version, options.value_size);
        let node = router.node_of(&key);
        let Some((node, writes)) = batches.add(node, Write { key, value: Some(value) }) else { continue };
        if !turn(&shared, &mut flying, writes.len()).await? {
            break;
        }
        flying.push(send(&shared, &router, node, writes));
        while flying.len() >= PIPELINE {
            flying.next().await.unwrap_or(Ok(()))?;
        }
    }
    for (node, writes) in batches.rest() {
        flying.push(send(&shared, &router, node, writes));
    }
    while let Some(sent) = flying.next().await {
        sent?;
    }
    Ok(())
}

/// Waits for the turn of `writes` writes; meanwhile those in flight go on, so that their acks are seen when they come.
/// `false` when the load ends first.
async fn turn<F>(shared: &Shared, flying: &mut FuturesUnordered<F>, writes: usize) -> Result<bool>
where
    F: Future<Output = Result<()>>,
{
    let mut turn = std::pin::pin!(shared.pace.turn(writes));
    loop {
        tokio::select! {
            biased;
            () = shared.ending.cancelled() => return Ok(false),
            Some(sent) = flying.next(), if !flying.is_empty() => sent?,
            () = &mut turn => return Ok(true),
        }
    }
}

async fn idle(shared: &Shared) -> Result<()> {
    let until = shared.deadline().unwrap_or_else(Instant::now);
    tokio::select! {
        () = shared.ending.cancelled() => {}
        () = sleep_until(until) => {}
    }
    Ok(())
}

async fn send(shared: &Shared, router: &Router, node: usize, writes: Vec<Write>) -> Result<()> {
    let n = writes.len() as u64;
    if shared.commit(router, node, writes).await?.is_some() {
        let _ = shared.writes.fetch_add(n, Ordering::Relaxed);
    }
    Ok(())
}
