//! Causal chains over the shards of a Cluster: each step is written after the one before it was acknowledged, to another
//! key. A state that holds a step and lacks an earlier one is no state that ever was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tidemark_tests::redis::{Client, Cluster, Reply, eventually};

/// Rest of a writer between two steps: the processor belongs to what is tried.
const PACE: Duration = Duration::from_millis(1);
/// Keys of one chain.
const LINKS: u64 = 64;

/// Writers at work, one for each chain.
pub(crate) struct Chains {
    stop: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

fn key(chain: usize, step: u64) -> String {
    format!("chain:{chain}:{}", step % LINKS)
}

impl Chains {
    /// `count` chains over the Cluster.
    pub(crate) fn start(cluster: &Cluster, count: usize) -> Self {
        let (stop, steps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let run = |chain: usize| {
            let (stop, steps, mut clients) = (stop.clone(), steps.clone(), cluster.clients());
            std::thread::spawn(move || {
                let mut owner = BTreeMap::new();
                for step in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    write(&mut clients, &mut owner, &key(chain, step), step);
                    std::thread::park_timeout(PACE);
                    let _ = steps.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let threads = (0..count).map(run).collect();
        Self { stop, steps, threads }
    }

    /// Steps of all chains so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Ends them.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|t| t.join().expect("chain"));
    }
}

/// Writes to the node that owns the key: the one that took it last, or whichever does not send elsewhere. In a failover
/// there may be none for a moment.
fn write(clients: &mut [Client], owner: &mut BTreeMap<String, usize>, key: &str, step: u64) {
    let (first, count) = (owner.get(key).copied().unwrap_or(0), clients.len());
    let took = eventually("a node that takes the key", || {
        (0..count).map(|i| (first + i) % count).find(|node| {
            match clients[*node].ask(&["SET", key, &step.to_string()]).expect("reply") {
                Reply::Error(e) if ["MOVED", "CLUSTERDOWN", "TRYAGAIN", "ASK"].iter().any(|k| e.starts_with(k)) => {
                    false
                }
                Reply::Error(e) => panic!("SET {key}: {e}"),
                _ => true,
            }
        })
    });
    let _ = owner.insert(key.to_owned(), took);
}

/// Checks chains 0 to `count`, read by `get`; answers the steps that were found.
pub(crate) fn check(count: usize, mut get: impl FnMut(&str) -> Option<u64>) -> u64 {
    let mut total = 0;
    for chain in 0..count {
        let links: Vec<Option<u64>> = (0..LINKS).map(|link| get(&format!("chain:{chain}:{link}"))).collect();
        let last = links.iter().flatten().max().copied().unwrap_or(0);
        for (link, step) in (0..).zip(&links) {
            let newest = (1..=last).rev().take(LINKS as usize).find(|s| s % LINKS == link);
            assert_eq!(*step, newest, "chain {chain} came to step {last}: its key {link} holds another step");
        }
        total += last;
    }
    total
}
