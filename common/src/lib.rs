//! What agent and coordinator share.

pub mod clock;
pub mod glob;
pub mod run;
pub mod seal;

pub use tidemark_proto::{Error, ErrorKind, Result};
