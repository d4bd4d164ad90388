//! The agent of Tidemark.

pub mod engine;
pub mod kv;
