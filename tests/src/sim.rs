//! Whole fleets in one thread and in virtual time: nodes, clients, a network that loses and delays, and coordinators that
//! crash, sleep and are taken over, all from one seed. A seed is a run; the same seed is the same run.
//!
//! What is real: the core of a backup job, its tiling check, ledger, epochs, job records and the rules of what is
//! appended (`coordinator::job::backup::{core, entry, tiling}`, `coordinator::repository` on a store in memory), the
//! hybrid logical clock, timestamps and slots. What is modelled: the store of a node ([`node`], after the embedded
//! engine), the driver of a job ([`driver`], after `coordinator/src/job/backup/driver.rs`), packs and the network.
//!
//! The judge ([`judge`]) knows everything that happened in true time, and says what may never be.

mod base;
mod client;
mod driver;
mod durable;
mod judge;
mod net;
mod node;
mod plan;
mod process;
mod stats;
mod wall;
mod world;

pub use stats::Stats;

/// Runs a seed on `runtime`, which must be of this thread alone. With `trace` every event is told on stderr.
/// The error says which promise was broken, and how.
pub fn run(seed: u64, runtime: &tokio::runtime::Runtime, trace: bool) -> Result<Stats, String> {
    world::World::new(seed, runtime, trace).run()
}
