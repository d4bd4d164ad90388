//! The coordinator of Tidemark and its command line.

pub mod repository;
