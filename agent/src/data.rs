//! The data listener: serves a [`KvStore`] to clients of the fleet over the data protocol.
//!
//! What holds: requests of a stream are answered in their order; the bytes of requests and answers in flight, over all
//! connections, stay within a budget ([`BUDGET`]); reads run on threads that may block, commits are handed to the store as they
//! arrive and pipeline there. While the [`Gate`] is shut no connection stands and new ones are refused with its
//! reason. Which clone a stream is for, if any, is a matter of that stream alone. On shutdown no new request is read, those already read are answered, then connections end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, Incoming};
use tidemark_common::pki::Credentials;
use tidemark_common::tls;
use tidemark_common::transport::{Accepted, Door, accept_bi, close, server_endpoint};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::kv::KvStore;

mod serve;

/// Bytes of requests and answers in flight, over all connections, unless another budget is given.
pub const BUDGET: usize = 64 << 20;
/// Smallest budget, in bytes: the largest answer and the largest request at once.
pub const LEAST_BUDGET: usize = 32 << 20;
/// Unit of the budget, in bytes.
const UNIT: usize = 1 << 10;
/// Connections at once; further ones are refused.
pub const MAX_CONNECTIONS: usize = 256;
/// Streams of one connection at once; QUIC holds back further ones.
pub const MAX_STREAMS: u32 = 16;
/// Requests of one stream that are read and not yet answered.
pub const MAX_IN_FLIGHT: usize = 1024;
/// A client that does not take an answer for this long loses its stream.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// On shutdown, requests that were read are answered within this.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Shuts and opens the listener while it runs. Clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate(Arc<watch::Sender<Option<String>>>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Gate {
    /// Ends all connections and refuses new ones, `why` being what clients are told (as `Retry`).
    pub fn shut(&self, why: &str) {
        let _ = self.0.send_replace(Some(why.to_owned()));
    }

    /// Why it is shut, if it is.
    fn reason(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Whether clients are refused.
    pub fn is_shut(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Lets clients in.
    pub fn open(&self) {
        let _ = self.0.send_replace(None);
    }
}

struct Shared {
    store: Arc<dyn KvStore>,
    budget: Arc<Semaphore>,
    places: Arc<Semaphore>,
    gate: Gate,
    build: String,
    ending: CancellationToken,
}

/// A data port.
pub struct DataListener {
    endpoint: Endpoint,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for DataListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataListener").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl DataListener {
    /// Opens the port; the gate is open. Clients are answered once [`Self::run`] runs.
    pub fn bind(
        address: SocketAddr,
        credentials: &Credentials,
        store: Arc<dyn KvStore>,
        build: &str,
    ) -> Result<Self> {
        Self::bind_within(address, credentials, store, build, BUDGET)
    }

    /// As [`Self::bind`], with a budget in bytes for requests and answers in flight, of at least [`LEAST_BUDGET`].
    pub fn bind_within(
        address: SocketAddr,
        credentials: &Credentials,
        store: Arc<dyn KvStore>,
        build: &str,
        budget: usize,
    ) -> Result<Self> {
        let endpoint = server_endpoint(address, credentials, tls::ALPN_KV)?;
        let shared = Arc::new(Shared {
            store,
            budget: Arc::new(Semaphore::new(budget.max(LEAST_BUDGET) / UNIT)),
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            gate: Gate(Arc::new(watch::Sender::new(None))),
            build: build.to_owned(),
            ending: CancellationToken::new(),
        });
        Ok(Self { endpoint, shared })
    }

    /// The address of the port.
    pub fn local_address(&self) -> Result<SocketAddr> {
        self.endpoint.local_addr().or_kind(ErrorKind::Config, "the data port has no address")
    }

    /// The gate of this listener.
    pub fn gate(&self) -> Gate {
        self.shared.gate.clone()
    }

    /// Serves until `cancel`, then drains within [`DRAIN_TIMEOUT`] and closes the port.
    pub async fn run(self, cancel: CancellationToken) {
        let connections = TaskTracker::new();
        loop {
            let incoming = tokio::select! {
                () = cancel.cancelled() => break,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            let shared = self.shared.clone();
            drop(connections.spawn(async move { shared.connection(incoming).await }));
        }
        self.shared.ending.cancel();
        let _ = connections.close();
        if timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
            tracing::warn!("clients did not take their answers in time; their connections are cut");
        }
        let code = quinn::VarInt::from_u32(ErrorKind::Retry.code());
        self.endpoint.close(code, b"the node is shutting down");
        let _ = timeout(DRAIN_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

impl Shared {
    async fn connection(self: Arc<Self>, incoming: Incoming) {
        // Watched from before the hello: a gate that shuts meanwhile is seen below.
        let mut gate = self.gate.0.subscribe();
        let Ok(_place) = self.places.clone().try_acquire_owned() else {
            tracing::warn!(limit = MAX_CONNECTIONS, "too many data connections; one was refused");
            incoming.refuse();
            return;
        };
        let door = Door { closed: gate.borrow_and_update().clone(), ..Door::data(&self.build) };
        let accepted = tokio::select! {
            () = self.ending.cancelled() => return,
            accepted = door.accept(incoming) => accepted,
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(e) => return tracing::debug!(error = %e.report(), "data connection refused"),
        };
        accepted.connection.set_max_concurrent_bi_streams(quinn::VarInt::from_u32(MAX_STREAMS));
        let streams = TaskTracker::new();
        let end = tokio::select! {
            why = shut(&mut gate) => Error::retry(why),
            () = self.ending.cancelled() => {
                let _ = streams.close();
                // Also a gate that shuts now ends the connection at once.
                tokio::select! {
                    () = streams.wait() => Error::retry("the node is shutting down"),
                    why = shut(&mut gate) => Error::retry(why),
                }
            }
            // The connection has ended by itself: closing it again does no harm.
            e = self.streams(&accepted, &streams) => e,
        };
        close(&accepted.connection, &end);
        let _ = streams.close();
        streams.wait().await;
    }

    async fn streams(self: &Arc<Self>, accepted: &Accepted, streams: &TaskTracker) -> Error {
        loop {
            match accept_bi(&accepted.connection).await {
                Ok((writer, reader)) => {
                    drop(streams.spawn(serve::stream(self.clone(), writer, reader)));
                }
                Err(e) => return e,
            }
        }
    }
}

/// Waits until the gate is shut; says why.
async fn shut(gate: &mut watch::Receiver<Option<String>>) -> String {
    let why = gate.wait_for(Option::is_some).await.map(|why| why.clone().unwrap_or_default());
    match why {
        Ok(why) => why,
        // The gate lives as long as the listener's shared part, which the caller holds.
        Err(_) => std::future::pending().await,
    }
}
