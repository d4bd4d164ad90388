//! What agent and coordinator share.

pub mod clock;

pub use tidemark_proto::{Error, ErrorKind, Result};
