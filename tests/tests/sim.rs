//! Seeded simulation of whole fleets; see [`tidemark_tests::sim`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tidemark_tests::sim::{Stats, run};

/// Seeds of one pass.
const SEEDS: u64 = 10_000;
/// Threads that share them, each with runs of its own.
const THREADS: u64 = 2;

fn one(seed: u64, runtime: &tokio::runtime::Runtime, trace: bool) -> Result<Stats, String> {
    let run = std::panic::AssertUnwindSafe(|| run(seed, runtime, trace));
    std::panic::catch_unwind(run).unwrap_or_else(|_| Err("it panicked, see above".into()))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime")
}

fn replay(seed: u64) -> String {
    format!("replay with TIDEMARK_SIM_SEED={seed} cargo nextest run -p tidemark-tests --no-capture sim")
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().unwrap_or_else(|_| panic!("{name}={n} is not a number")))
}

#[test]
fn ten_thousand_fleets_keep_the_promises() {
    if let Some(seed) = number("TIDEMARK_SIM_SEED") {
        let stats = one(seed, &runtime(), true).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        return println!("seed {seed} keeps the promises:\n{stats}");
    }
    let seeds = number("TIDEMARK_SIM_SEEDS").unwrap_or(SEEDS);
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        let (runtime, mut stats) = (runtime(), Stats::default());
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                break;
            }
            match one(seed, &runtime, false) {
                Ok(counted) => stats.merge(&counted),
                Err(what) => {
                    stop.store(true, Ordering::Relaxed);
                    panic!("seed {seed}: {what}\n{}", replay(seed));
                }
            }
        }
        stats
    };
    let mut stats = Stats::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            stats.merge(&thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    println!("{stats}");
}
