//! Real Redis and Valkey servers for tests, a small blocking client, and Clusters of them.
//!
//! What holds: servers lie in a temporary folder, listen on a unix socket in it (nodes of a Cluster on loopback ports that
//! were free as well), and end with the value that started them. A wait is for a condition, with a deadline. When a test
//! fails, the folder with log and configuration stays and is named.

mod client;
mod cluster;
mod server;

use std::time::{Duration, Instant};

pub use client::{Client, Reply};
pub use cluster::{Cluster, listening, listening_by};
pub use server::{Flavor, Server};

/// A condition that does not come true for this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Asks `look` until it answers something; fails after [`PATIENCE`] with what was waited for.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {} s for {what}", PATIENCE.as_secs());
        #[expect(
            clippy::disallowed_methods,
            reason = "a look at a condition, with a deadline, in a blocking test"
        )]
        std::thread::sleep(LOOK_EVERY);
    }
}
