//! The command line.

mod output;
pub mod pki;

pub use output::{Format, table};
