//! The agent of Tidemark: one beside each storage node. It takes the local part of a cut, sends what changed, and
//! loads what a restore assigns to it. It holds no credentials of the object store and no data key.

pub mod agent;
pub mod bulk;
pub mod config;
pub mod control;
pub mod daemon;
pub mod data;
pub mod engine;
pub mod fsutil;
pub mod indexes;
pub mod keyindex;
pub mod kv;
pub mod log;
pub mod metric_names;
pub mod restore;
pub mod snapshot;
pub mod state;
mod store;
pub mod telemetry;
pub mod upload;

use tidemark_proto::{Error, Result};

/// This build, as told in a hello.
pub const BUILD: &str = concat!("tidemark-agent ", env!("CARGO_PKG_VERSION"));

/// Runs CPU work or blocking IO off the async threads, in the span of the caller. A panic of the work is a `Bug` error.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result,
        Err(e) => Err(Error::bug("a blocking task ended without a result").with_source(e)),
    }
}
