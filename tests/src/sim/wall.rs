//! Wall clocks of virtual time, each wrong in its own way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_common::clock::WallClock;

use super::plan::MS;

/// True time at the start of a run, milliseconds since 1970.
const BEGINNING: u64 = 1_800_000_000_000;

/// A clock that is off.
#[derive(Debug)]
pub(super) struct Wall {
    millis: AtomicU64,
    offset: i64,
    drift: i64,
}

impl Wall {
    pub(super) fn new(offset: i64, drift: i64) -> Arc<Self> {
        let wall = Self { millis: AtomicU64::new(0), offset, drift };
        wall.turn(0);
        Arc::new(wall)
    }

    /// Sets it to true time `now`, in microseconds.
    pub(super) fn turn(&self, now: u64) {
        let drifted = now as i64 + now as i64 / 1_000_000 * self.drift;
        let millis = (BEGINNING as i64 + self.offset + drifted / MS as i64) as u64;
        self.millis.store(millis, Ordering::Relaxed);
    }
}

impl WallClock for Wall {
    fn millis(&self) -> u64 {
        self.millis.load(Ordering::Relaxed)
    }
}
