//! The agent of Tidemark.

pub mod data;
pub mod engine;
pub mod kv;
