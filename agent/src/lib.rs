//! The agent of Tidemark.

pub mod engine;
pub mod keyindex;
pub mod kv;
