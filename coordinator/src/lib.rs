//! The coordinator of Tidemark and its command line.
//!
//! It issues the timestamps of cuts, receives what agents send, keeps the history in the repository, and drives
//! restores. Everything an operator does goes through its HTTP API; the command line is a client of it.

pub mod api;
pub mod blocks;
pub mod catalog;
pub mod cli;
pub mod client;
pub mod clones;
pub mod config;
pub mod context;
pub mod daemon;
pub mod demo;
pub mod diagnose;
pub mod events;
pub mod extract;
pub mod fleet;
pub mod fold;
pub mod history;
pub mod ingest;
pub mod job;
pub mod kept;
pub mod kv;
pub mod limits;
pub mod listener;
pub mod log;
pub mod metric_names;
pub mod part;
pub mod pki;
mod process;
pub mod query;
pub mod recover;
pub mod repository;
pub mod serve;
pub mod settle;
pub mod telemetry;

/// This build, as told in a hello.
pub const BUILD: &str = concat!("tidemark ", env!("CARGO_PKG_VERSION"));
