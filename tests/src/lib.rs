//! What test tiers share.

pub mod bench;
pub mod fleet;
pub mod memory_kv;
pub mod nodes;
