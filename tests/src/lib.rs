//! What test tiers share.

pub mod memory_kv;
pub mod nodes;
