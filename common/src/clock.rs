//! The hybrid logical clock. Logic never reads the wall clock itself: it is handed in, so that tests and simulations
//! can turn it. Source: Kulkarni et al., "Logical Physical Clocks" (2014), with TiDB's timestamp layout.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidemark_proto::{Error, Result, Timestamp};

/// Timestamps further ahead of the wall clock than this are refused: one wrong clock must not drag all others along.
pub const MAX_CLOCK_OFFSET: Duration = Duration::from_secs(60);

/// A source of wall-clock milliseconds since 1970 UTC.
pub trait WallClock: Send + Sync + 'static {
    /// Now, in milliseconds.
    fn millis(&self) -> u64;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl SystemClock {
    /// Now, for those who need it as the standard library has it: the edges of the program alone.
    #[expect(clippy::disallowed_methods, reason = "this is the clock that is handed in")]
    pub fn time(self) -> SystemTime {
        SystemTime::now()
    }
}

impl WallClock for SystemClock {
    fn millis(&self) -> u64 {
        let millis = self.time().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        millis.saturating_add_signed(wrong_by())
    }
}

/// Environment variable of debug builds: the clock is this many milliseconds ahead (or, negative, behind). For tests of fleets
/// whose clocks do not agree.
#[cfg(debug_assertions)]
const WRONG_BY: &str = "TIDEMARK_CLOCK_WRONG_BY_MS";

#[cfg(debug_assertions)]
fn wrong_by() -> i64 {
    static WRONG: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    *WRONG.get_or_init(|| std::env::var(WRONG_BY).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
}

#[cfg(not(debug_assertions))]
fn wrong_by() -> i64 {
    0
}

/// Issues timestamps that only grow, and never fall behind one it has observed.
#[derive(Clone)]
pub struct Hlc {
    wall: Arc<dyn WallClock>,
    last: Arc<AtomicU64>,
}

impl std::fmt::Debug for Hlc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hlc").field(&self.last()).finish()
    }
}

impl Hlc {
    /// A clock over `wall`.
    pub fn new(wall: Arc<dyn WallClock>) -> Self {
        Self { wall, last: Arc::new(AtomicU64::new(0)) }
    }

    /// A clock over the machine's clock.
    pub fn system() -> Self {
        Self::new(Arc::new(SystemClock))
    }

    /// A new timestamp, higher than every one issued or observed before.
    pub fn now(&self) -> Timestamp {
        let wall = Timestamp::new(self.wall.millis(), 0).0;
        let step = |last: u64| (last + 1).max(wall);
        let before =
            self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, |l| Some(step(l))).unwrap_or_default();
        Timestamp(step(before))
    }

    /// The highest timestamp issued or observed.
    pub fn last(&self) -> Timestamp {
        Timestamp(self.last.load(Ordering::Acquire))
    }

    /// The wall clock, milliseconds since 1970.
    pub fn wall_millis(&self) -> u64 {
        self.wall.millis()
    }

    /// Moves the clock to at least `seen`. Refuses what lies more than [`MAX_CLOCK_OFFSET`] ahead of the wall clock.
    pub fn observe(&self, seen: Timestamp) -> Result<()> {
        let ahead = seen.millis().saturating_sub(self.wall.millis());
        if ahead > MAX_CLOCK_OFFSET.as_millis() as u64 {
            return Err(Error::request(format!(
                "timestamp {seen} is {ahead} ms ahead of this clock (at most {} ms): check the clocks",
                MAX_CLOCK_OFFSET.as_millis()
            )));
        }
        self.advance(seen);
        Ok(())
    }

    /// Moves the clock to at least `seen` without the check: for what this node's own durable state says.
    pub fn advance(&self, seen: Timestamp) {
        let _ = self.last.fetch_max(seen.0, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Fixed(AtomicU64);
    impl WallClock for Fixed {
        fn millis(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn far_ahead_is_refused() {
        let hlc = Hlc::new(Arc::new(Fixed(AtomicU64::new(1_000))));
        assert!(hlc.observe(Timestamp::new(61_001, 0)).is_err());
        hlc.observe(Timestamp::new(61_000, 9)).unwrap();
        assert_eq!(hlc.now(), Timestamp::new(61_000, 10));
    }

    proptest! {
        #[test]
        fn only_grows_under_any_wall_clock(steps in proptest::collection::vec((0u64..100_000, proptest::option::of(0u64..100_000)), 1..100)) {
            let wall = Arc::new(Fixed(AtomicU64::new(0)));
            let hlc = Hlc::new(wall.clone());
            let mut last = Timestamp::ZERO;
            for (millis, seen) in steps {
                wall.0.store(millis, Ordering::Relaxed);
                let observed = seen.map(|s| Timestamp::new(s, 3)).filter(|s| hlc.observe(*s).is_ok());
                let now = hlc.now();
                prop_assert!(now > last && observed.is_none_or(|o| now > o));
                prop_assert!(now.millis() >= millis);
                last = now;
            }
        }
    }
}
