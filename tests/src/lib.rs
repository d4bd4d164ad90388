//! What test tiers share.

pub mod archive;
pub mod bench;
pub mod fleet;
pub mod fuzz;
pub mod memory_kv;
pub mod nodes;
pub mod redis;
pub mod s3;
pub mod sim;
