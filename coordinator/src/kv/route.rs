//! Which node serves a key.

use std::sync::Arc;
use std::time::Duration;

use quinn::Endpoint;
use serde::{Deserialize, Serialize};
use tidemark_common::kv_client::{KvClient, Seen};
use tidemark_common::pki::Credentials;
use tidemark_common::transport::Backoff;
use tidemark_proto::wire::kv::{Record, Write};
use tidemark_proto::{CloneName, ClusterName, Error, ErrorKind, NodeName, Result, SlotSet, Timestamp, slot_of};
use tokio::time::{Instant, sleep};

use crate::api::{ClusterDetail, NodeItem};

/// First wait before a request is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(20);
/// Longest wait before a request is tried again.
const RETRY_LONGEST: Duration = Duration::from_secs(1);

/// Where a node serves its slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRoute {
    /// The node.
    pub node: NodeName,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its data port, `host:port`.
    pub address: String,
    /// Slots that it serves.
    pub slots: SlotSet,
}

/// The connected nodes of a cluster as routes. Where they do not serve all slots, those that are away are named.
pub fn routes(cluster: &ClusterDetail) -> Result<Vec<NodeRoute>> {
    let name: ClusterName = cluster.item.cluster.parse()?;
    let (here, away): (Vec<_>, Vec<_>) = cluster.nodes.iter().partition(|n| n.connected && !n.slots.is_empty());
    let route = |n: &NodeItem| {
        let (node, address, slots) = (n.node.parse()?, n.data_address.clone(), n.slots.parse()?);
        Ok(NodeRoute { node, cluster: name.clone(), address, slots })
    };
    let routes = here.into_iter().map(route).collect::<Result<Vec<_>>>()?;
    let served = routes.iter().fold(SlotSet::EMPTY, |all, r| all.union(&r.slots));
    let missing = SlotSet::all().minus(&served);
    if missing.is_empty() || away.is_empty() {
        return Ok(routes);
    }
    let away: Vec<_> = away.iter().map(|n| n.node.as_str()).collect();
    Err(Error::retry(format!(
        "cluster {name}: slots {missing} are served by no node, and {} are away: start their agents",
        away.join(", ")
    )))
}

/// Clients of all nodes of a cluster, with the highest timestamp seen. Clones share both.
#[derive(Debug, Clone)]
pub struct Router {
    nodes: Arc<[(NodeRoute, KvClient)]>,
    seen: Seen,
}

impl Router {
    /// Clients of `routes`, which must serve every slot once. They dial at their first request.
    pub fn new(
        endpoint: &Endpoint,
        credentials: &Credentials,
        build: &str,
        routes: Vec<NodeRoute>,
    ) -> Result<Self> {
        let mut served = SlotSet::EMPTY;
        for route in &routes {
            let twice = served.intersect(&route.slots);
            if !twice.is_empty() {
                return Err(Error::conflict(format!(
                    "slots {twice} are served by {} and another node",
                    route.node
                )));
            }
            served = served.union(&route.slots);
        }
        let missing = SlotSet::all().minus(&served);
        if !missing.is_empty() {
            return Err(Error::conflict(format!("slots {missing} are served by no node")));
        }
        let nodes = routes.into_iter().map(|r| {
            let (cluster, node) = (r.cluster.clone(), r.node.clone());
            let client = KvClient::new(endpoint.clone(), credentials, build, cluster, node, r.address.clone())?;
            Ok((r, client))
        });
        Ok(Self { nodes: nodes.collect::<Result<_>>()?, seen: Seen::default() })
    }

    /// The same connections for another client, which has seen nothing yet.
    pub fn another_client(&self) -> Self {
        Self { nodes: self.nodes.clone(), seen: Seen::default() }
    }

    /// Clients of a clone on the same nodes, which have seen what this one has.
    #[must_use]
    pub fn of_clone(&self, clone: &CloneName) -> Self {
        let nodes = self.nodes.iter().map(|(route, client)| (route.clone(), client.of_clone(clone.clone())));
        Self { nodes: nodes.collect(), seen: self.seen.clone() }
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node; a router always has one.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The number of the node that serves `key`.
    pub fn node_of(&self, key: &[u8]) -> usize {
        let slot = slot_of(key);
        // `new` has seen to it that one serves it.
        self.nodes.iter().position(|(r, _)| r.slots.contains(slot)).unwrap_or(0)
    }

    /// Commits writes that all belong to node `node`.
    pub async fn commit(&self, node: usize, writes: Vec<Write>) -> Result<Timestamp> {
        let (route, client) = self.node(node)?;
        let at = client.commit(writes, self.seen.get()).await.map_err(|e| e.context(&route.node))?;
        self.seen.observe(at);
        Ok(at)
    }

    /// The version of a key.
    pub async fn get(&self, key: Vec<u8>, at: Option<Timestamp>) -> Result<Option<Record>> {
        let (route, client) = self.node(self.node_of(&key))?;
        let record = client.get(key, at).await.map_err(|e| e.context(&route.node))?;
        if let Some(record) = &record {
            self.seen.observe(record.timestamp);
        }
        Ok(record)
    }

    /// Visits all records of all nodes whose keys begin with `prefix`, node after node, as of one timestamp: `at`, or
    /// one that is not before anything acknowledged or seen. The visitor answers whether to go on; the answer
    /// is the timestamp.
    pub async fn scan(
        &self,
        prefix: &[u8],
        at: Option<Timestamp>,
        page: u32,
        mut visit: impl FnMut(Record) -> Result<bool>,
    ) -> Result<Timestamp> {
        let at = match at {
            Some(at) => at,
            None => self.now().await?,
        };
        for (route, client) in self.nodes.iter() {
            let mut from = Vec::new();
            loop {
                let found =
                    client.scan(prefix.to_vec(), from, Some(at), page).await.map_err(|e| e.context(&route.node))?;
                for record in found.records {
                    // A node also serves what it should not have; the router's view decides.
                    if route.slots.contains(slot_of(&record.key)) && !visit(record)? {
                        return Ok(at);
                    }
                }
                match found.next {
                    Some(next) => from = next,
                    None => break,
                }
            }
        }
        Ok(at)
    }

    /// A timestamp that is not before anything that was acknowledged on any node, nor before anything seen. A node's own
    /// present is that of its last commit, so all are asked: the first may have rested while another took writes.
    async fn now(&self) -> Result<Timestamp> {
        let mut now = self.seen.get();
        for (route, client) in self.nodes.iter() {
            let page = client.scan(Vec::new(), Vec::new(), None, 1).await.map_err(|e| e.context(&route.node))?;
            now = now.max(page.at);
        }
        Ok(now)
    }

    /// The highest timestamp seen.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    fn node(&self, node: usize) -> Result<&(NodeRoute, KvClient)> {
        self.nodes.get(node).ok_or_else(|| Error::bug(format!("no node number {node}")))
    }
}

/// Runs `call` until it answers something else than `Retry`, or until `patience` is over. `failed` counts the tries
/// that failed.
pub(super) async fn retrying<T, F>(
    patience: Duration,
    mut failed: impl FnMut(),
    mut call: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + patience;
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
    loop {
        match call().await {
            Err(e) if e.kind() == ErrorKind::Retry => {
                failed();
                let wait = backoff.next_wait();
                if Instant::now() + wait >= deadline {
                    return Err(e.context(format!("gave up after {} s", patience.as_secs())));
                }
                sleep(wait).await;
            }
            other => return other,
        }
    }
}
