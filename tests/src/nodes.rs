//! Nodes of a cluster `orders` in one process: a store in memory behind a data listener each.

use std::net::SocketAddr;
use std::sync::Arc;

use tidemark_agent::data::{DataListener, Gate};
use tidemark_common::kv_client::KvClient;
use tidemark_common::testing::TestFleet;
use tidemark_common::transport::client_endpoint;
use tidemark_proto::NodeName;
use tidemark_proto::slot::even_share;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::memory_kv::MemoryKv;

/// Name of the cluster.
pub const CLUSTER: &str = "orders";

/// One running node.
pub struct TestNode {
    /// Its name: `n0`, `n1`, ...
    pub name: NodeName,
    /// Its data port.
    pub address: SocketAddr,
    /// Its store.
    pub store: Arc<MemoryKv>,
    /// The gate of its listener.
    pub gate: Gate,
    /// Ends it in order.
    pub cancel: CancellationToken,
    /// Its listener.
    pub running: JoinHandle<()>,
}

impl TestNode {
    /// Starts node `i` of `n`.
    pub fn start(fleet: &TestFleet, i: u16, n: u16) -> Self {
        let store = Arc::new(MemoryKv::new(even_share(i, n)));
        Self::start_on(fleet, i, SocketAddr::from(([127, 0, 0, 1], 0)), store)
    }

    /// Starts node `i` on an address, over a store that may hold something already.
    pub fn start_on(fleet: &TestFleet, i: u16, address: SocketAddr, store: Arc<MemoryKv>) -> Self {
        let name = format!("n{i}");
        let credentials = fleet.credentials(&format!("tidemark://agent/{CLUSTER}/{name}"));
        let listener = DataListener::bind(address, &credentials, store.clone(), "test").expect("data port");
        let (address, gate) = (listener.local_address().expect("address"), listener.gate());
        let cancel = CancellationToken::new();
        let running = tokio::spawn(listener.run(cancel.clone()));
        Self { name: name.parse().expect("name"), address, store, gate, cancel, running }
    }

    /// A client of this node with an operator's certificate.
    pub fn client(&self, fleet: &TestFleet) -> KvClient {
        let credentials = fleet.credentials("tidemark://operator/alice");
        let endpoint = client_endpoint().expect("endpoint");
        let cluster = CLUSTER.parse().expect("name");
        KvClient::new(endpoint, &credentials, "test", cluster, self.name.clone(), self.address.to_string())
            .expect("client")
    }
}
