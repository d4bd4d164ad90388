//! The coordinator of Tidemark and its command line.

pub mod cli;
pub mod kv;
pub mod pki;
