//! Clients that time their writes, one for each node, so that a hold of any node is seen.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::Timestamp;
use tidemark_proto::wire::kv::Write;
use tokio::task::JoinSet;

use crate::kv::Router;

/// A write counts for a cut when it was under way within this of it.
const AROUND: Duration = Duration::from_millis(250);
/// Wait between two writes of a client: it times, it does not load.
const PAUSE: Duration = Duration::from_millis(1);
/// Most writes that are remembered.
const MAX_SAMPLES: usize = 1 << 20;
/// Salts tried to find a key on a node.
const MAX_SALT: u32 = 10_000;

/// A write: when it was sent (milliseconds since 1970), and how long its ack took (microseconds).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    sent: u64,
    took: u64,
}

/// Running clients; they end when dropped.
#[derive(Debug)]
pub(super) struct Stopwatch {
    samples: Arc<Mutex<Vec<Sample>>>,
    _tasks: JoinSet<()>,
}

impl Stopwatch {
    /// Starts a client for each node.
    pub(super) fn start(router: &Router) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for node in 0..router.len() {
            let candidates = (0..MAX_SALT).map(|salt| format!("stopwatch:{node}:{salt}").into_bytes());
            let Some(key) = candidates.into_iter().find(|key| router.node_of(key) == node) else { continue };
            let _ = tasks.spawn(time_writes(router.another_client(), node, key, samples.clone()));
        }
        Self { samples, _tasks: tasks }
    }

    /// The slowest write around a cut and the median of all writes so far, in microseconds.
    pub(super) fn around(&self, cut: Timestamp) -> (u64, u64) {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        (slowest(&samples, cut.millis()), median(&samples))
    }
}

async fn time_writes(router: Router, node: usize, key: Vec<u8>, samples: Arc<Mutex<Vec<Sample>>>) {
    for n in 0u64.. {
        let (sent, start) = (SystemClock.millis(), Instant::now());
        let write = Write { key: key.clone(), value: Some(n.to_string().into_bytes()) };
        if router.commit(node, vec![write]).await.is_err() {
            // The node is gone.
            return;
        }
        let took = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        if !note(&samples, Sample { sent, took }) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether there is room for more after this one.
fn note(samples: &Mutex<Vec<Sample>>, sample: Sample) -> bool {
    let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
    samples.push(sample);
    samples.len() < MAX_SAMPLES
}

fn slowest(samples: &[Sample], cut: u64) -> u64 {
    let around = AROUND.as_millis() as u64;
    let near = |s: &&Sample| s.sent <= cut + around && s.sent + s.took / 1000 + around >= cut;
    samples.iter().filter(near).map(|s| s.took).max().unwrap_or(0)
}

fn median(samples: &[Sample]) -> u64 {
    let mut all: Vec<_> = samples.iter().map(|s| s.took).collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_that_were_under_way_at_the_cut_count() {
        let sample = |sent, took| Sample { sent, took };
        let samples = [sample(1000, 900_000), sample(5000, 3000), sample(5100, 2000), sample(9000, 800_000)];
        assert_eq!(slowest(&samples, 5050), 3000);
        assert_eq!(slowest(&samples, 1800), 900_000, "sent long before, answered after");
        assert_eq!(slowest(&samples, 20_000), 0);
        assert_eq!((median(&samples), median(&[])), (800_000, 0));
    }
}
