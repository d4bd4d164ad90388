//! Client of the data protocol ([`tidemark_proto::wire::kv`]) for one node.
//!
//! Calls may run at the same time: they travel on one stream without waiting for each other and are answered in
//! order. A call that is dropped still runs at the node. A lost connection fails the calls in flight with `Retry`, and
//! the next call dials anew; whether a failed commit happened is not known, so only writes that may happen twice are
//! to be tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quinn::Endpoint;
use tidemark_proto::frame::{self, Message};
use tidemark_proto::wire::hello::Purpose;
use tidemark_proto::wire::kv::{CloneOpened, Commit, Committed, Get, OpenClone, Page, Record, Scan, Value, Write};
use tidemark_proto::{CloneName, ClusterName, NodeName, Result, Timestamp};
use tokio::sync::Mutex;

use crate::identity::Expected;
use crate::pki::Credentials;
use crate::tls;
use crate::transport::{Dialer, Greeting};

mod pipe;

use pipe::Pipe;

/// Requests that a client has unanswered at most; further ones wait.
pub const MAX_PIPELINED: usize = 256;

/// The highest timestamp that a client has seen; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<AtomicU64>);

impl Seen {
    /// The highest so far.
    pub fn get(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Acquire))
    }

    /// Takes note of a timestamp.
    pub fn observe(&self, at: Timestamp) {
        let _ = self.0.fetch_max(at.0, Ordering::AcqRel);
    }
}

struct Inner {
    dialer: Arc<Dialer>,
    /// The clone that it is a client of; `None` for the node's own data.
    clone: Option<CloneName>,
    pipe: Mutex<Option<Pipe>>,
}

/// A client of one node. Clones share the connection.
#[derive(Clone)]
pub struct KvClient(Arc<Inner>);

impl std::fmt::Debug for KvClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KvClient").field(&self.0.dialer).finish()
    }
}

impl KvClient {
    /// A client of `node` at `address` (`host:port`); it dials at the first call.
    pub fn new(
        endpoint: Endpoint,
        credentials: &Credentials,
        build: &str,
        cluster: ClusterName,
        node: NodeName,
        address: String,
    ) -> Result<Self> {
        let greeting = Greeting::of(credentials.identity(), Purpose::Kv, build);
        let expected = Expected::Agent { cluster, node };
        let dialer = Dialer::new(endpoint, credentials, tls::ALPN_KV, expected, vec![address], greeting)?;
        Ok(Self(Arc::new(Inner { dialer: Arc::new(dialer), clone: None, pipe: Mutex::new(None) })))
    }

    /// A client of a clone on the same node, with a connection of its own. Its calls fail with `NotFound` where no such clone
    /// stands; one that was opened and is dropped then stays dropped for it, also when another of the name is made.
    #[must_use]
    pub fn of_clone(&self, clone: CloneName) -> Self {
        Self(Arc::new(Inner { dialer: self.0.dialer.clone(), clone: Some(clone), pipe: Mutex::new(None) }))
    }

    async fn pipe(&self) -> Result<Pipe> {
        let mut pipe = self.0.pipe.lock().await;
        if let Some(open) = pipe.as_ref().filter(|p| p.is_open()) {
            return Ok(open.clone());
        }
        let session = self.0.dialer.connect_once().await?;
        let open = Pipe::open(session.connection).await?;
        if let Some(clone) = &self.0.clone {
            let request = OpenClone { name: clone.to_string() };
            let CloneOpened { .. } = open.call(frame::encode(&request)?.into()).await?;
        }
        *pipe = Some(open.clone());
        Ok(open)
    }

    async fn call<Q: Message, A: Message>(&self, request: &Q) -> Result<A> {
        let frame = frame::encode(request)?;
        self.pipe().await?.call(frame.into()).await
    }

    /// Commits all writes atomically above `after`; answers their timestamp once they are durable.
    pub async fn commit(&self, writes: Vec<Write>, after: Timestamp) -> Result<Timestamp> {
        let committed: Committed = self.call(&Commit { writes, after }).await?;
        Ok(committed.at)
    }

    /// The version of a key at `at`, the newest for `None`.
    pub async fn get(&self, key: Vec<u8>, at: Option<Timestamp>) -> Result<Option<Record>> {
        let value: Value = self.call(&Get { key, at }).await?;
        Ok(value.record)
    }

    /// A page of at most `limit` records whose keys begin with `prefix`, after the sort key `from`.
    pub async fn scan(&self, prefix: Vec<u8>, from: Vec<u8>, at: Option<Timestamp>, limit: u32) -> Result<Page> {
        self.call(&Scan { prefix, from, at, limit }).await
    }
}
