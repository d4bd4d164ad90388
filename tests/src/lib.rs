//! What test tiers share.

pub mod bench;
pub mod memory_kv;
pub mod nodes;
