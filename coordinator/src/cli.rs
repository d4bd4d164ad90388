//! The command line.

pub mod kv;
mod output;
pub mod pki;

pub use output::{Format, table};
