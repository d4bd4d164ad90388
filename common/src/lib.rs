//! What agent and coordinator share.

pub mod clock;
pub mod identity;

pub mod kv_client;
pub mod metric_names;
pub mod pki;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod transport;

pub use tidemark_proto::{Error, ErrorKind, Result};
