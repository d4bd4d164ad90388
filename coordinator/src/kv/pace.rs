//! The rate of writes, shared by all clients of a load.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A load that fell behind its rate makes up for at most this much.
const CATCH_UP: Duration = Duration::from_millis(100);

/// Gives out turns at a rate.
#[derive(Debug)]
pub(super) struct Pace {
    /// Writes in a second; 0 is without a bound.
    rate: u64,
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(rate: u64) -> Self {
        Self { rate, next: Mutex::new(Instant::now()) }
    }

    /// Waits for the turn of `writes` writes.
    pub(super) async fn turn(&self, writes: usize) {
        if let Some(at) = self.reserve(Instant::now(), writes) {
            sleep_until(at).await;
        }
    }

    /// When the turn of `writes` writes comes; `None` without a bound.
    fn reserve(&self, now: Instant, writes: usize) -> Option<Instant> {
        if self.rate == 0 {
            return None;
        }
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (*next).max(now.checked_sub(CATCH_UP).unwrap_or(now));
        *next = at + Duration::from_secs_f64(writes as f64 / self.rate as f64);
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_at_the_rate() {
        let pace = Pace::new(1000);
        let start = Instant::now();
        let first = pace.reserve(start, 100).unwrap();
        let last = (0..10).filter_map(|_| pace.reserve(start, 100)).last().unwrap();
        assert_eq!((last - first).as_millis(), 1000);
    }

    #[test]
    fn a_late_load_makes_up_for_little() {
        let pace = Pace::new(1000);
        let late = Instant::now() + Duration::from_secs(60);
        assert_eq!(pace.reserve(late, 1).unwrap(), late - CATCH_UP);
        assert!(Pace::new(0).reserve(late, 1).is_none());
    }
}
