//! The agent of Tidemark.

pub mod engine;
