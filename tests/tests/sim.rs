//! Seeded simulation of whole fleets; see [`tidemark_tests::sim`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tidemark_tests::sim::{Stats, run};

/// Seeds of one pass.
const SEEDS: u64 = 10_000;
/// Threads that share them, each with runs of its own.
const THREADS: u64 = 2;
/// Seeds that are run twice: a seed that does not replay is of no use.
const TWICE: u64 = 100;
/// What must happen in the seeds of one pass, each at least [`LEAST`] times: promises that were never tried were not kept.
const MUST_HAPPEN: &[&str] = &[
    "answers that came twice",
    "backups",
    "backups of a hundred nodes",
    "bases",
    "bases that were lost",
    "backups of nodes with bases",
    "cancels",
    "commands of a fenced coordinator refused",
    "commits refused to a fenced coordinator",
    "coordinators that slept",
    "crashes of coordinators",
    "crashes of nodes",
    "cuts that hold although a hold ran out",
    "failed: a clock is off",
    "fleets of a hundred nodes",
    "holds that ran out",
    "messages lost",
    "moves of slots",
    "partitions",
    "resumed jobs that made a backup",
    "rounds that began again",
    "backups after another round",
    "uploads that broke",
    "void: a node restarted",
    "void: an owner changed",
    "void: moved before the seal",
    "void: moved between the readings",
    "void: the data was replaced",
    "void: two clocks are too far apart",
];
const LEAST: u64 = 50;

fn one(seed: u64, runtime: &tokio::runtime::Runtime, trace: bool) -> Result<Stats, String> {
    let run = std::panic::AssertUnwindSafe(|| run(seed, runtime, trace));
    std::panic::catch_unwind(run).unwrap_or_else(|_| Err("it panicked, see above".into()))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime")
}

fn replay(seed: u64) -> String {
    format!(
        "replay with TIDEMARK_SIM_SEED={seed} cargo nextest run -p tidemark-tests --test sim --no-capture ten_thousand"
    )
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
    if seeds >= SEEDS {
        let rare: Vec<_> = MUST_HAPPEN.iter().filter(|what| stats.of(what) < LEAST).collect();
        assert!(rare.is_empty(), "hardly ever happened: {rare:?}");
    }
}

#[test]
fn a_seed_is_one_run() {
    for seed in 0..TWICE {
        assert_eq!(one(seed, &runtime(), false), one(seed, &runtime(), false), "seed {seed}");
    }
}
