//! Crash points: places at which a test lets a process die, as `kill -9` would, to see what the others make of it.
//!
//! Only builds with debug assertions have them; in a release build [`point`] is nothing. `TIDEMARK_CRASH_AT=name` dies at the
//! first passage, `name:3` at the third.

/// Environment variable that names the point.
pub const VARIABLE: &str = "TIDEMARK_CRASH_AT";

/// Dies here when the environment asks for it.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    let (at, passage) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if at == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == passage.parse().unwrap_or(1) {
        // No unwinding, no destructors, nothing flushed.
        std::process::abort();
    }
}

/// Nothing, in this build.
#[cfg(not(debug_assertions))]
pub fn point(_name: &str) {}
