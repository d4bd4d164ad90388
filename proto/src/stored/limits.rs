//! Limits of rates as an operator has set them: `limits/<n>`, the highest number counts.

use rkyv::{Archive, Deserialize, Serialize};

/// Version of [`Limits`].
pub const VERSION: u8 = 1;

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Limit {
    /// 1: set here; 0: the coordinator's configuration says.
    pub set: u8,
    /// Bytes a second; 0: no limit.
    pub bytes_per_second: u64,
}

/// All limits.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Limits {
    /// Of all agents together.
    pub fleet: Limit,
    /// Of each agent.
    pub per_agent: Limit,
    /// When it was set, milliseconds since 1970.
    pub at_millis: u64,
    /// Drawn for this put, so that a put that timed out but won is recognised.
    pub put_id: [u8; 16],
}
