//! What agent and coordinator share: transport and identity, clocks, sealing, runs, configuration.

pub mod announce;
pub mod clock;
pub mod config;
pub mod crash;
pub mod expiry;
pub mod glob;
pub mod identity;
pub mod kept;
pub mod kv_client;
pub mod log;
pub mod metric_names;
pub mod overlay;
pub mod pki;
pub mod rate;
pub mod rdb;
pub mod record;
pub mod redis;
pub mod run;
pub mod scrub;
pub mod seal;
pub mod segment;
pub mod select;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod transport;

pub use tidemark_proto::{Error, ErrorKind, Result};
