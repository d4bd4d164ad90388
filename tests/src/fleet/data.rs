//! The data of a fleet's clusters, through the data protocol.

use std::collections::BTreeMap;

use tidemark_common::transport::client_endpoint;
use tidemark_coordinator::kv::{LoadOptions, NodeRoute, Router};
use tidemark_proto::Timestamp;
use tidemark_proto::wire::kv::Write;

use super::Fleet;

/// Keys and values.
pub type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Records of a page of a scan.
const PAGE: u32 = 1000;

/// A load of `records` base records, without an end of its own where it has chains.
pub fn load_options(seed: u64, records: u64) -> LoadOptions {
    LoadOptions { records, seed, ..LoadOptions::default() }
}

/// Every record as of `at`, or as of now.
pub async fn records_at(router: &Router, at: Option<Timestamp>) -> Records {
    let mut found = Records::new();
    let _ = router
        .scan(b"", at, PAGE, |record| {
            assert!(found.insert(record.key, record.value).is_none(), "a key on two nodes");
            Ok(true)
        })
        .await
        .expect("scan");
    found
}

impl Fleet {
    /// Clients of all nodes of a cluster, once they are available.
    pub async fn router(&self, cluster: &str, nodes: usize) -> Router {
        let detail = self.ready(cluster, nodes).await;
        let route = |node: &tidemark_coordinator::api::NodeItem| NodeRoute {
            node: node.node.parse().expect("name"),
            cluster: cluster.parse().expect("name"),
            address: node.data_address.clone(),
            slots: node.slots.parse().expect("slots"),
        };
        let routes = detail.nodes.iter().map(route).collect();
        let endpoint = client_endpoint().expect("endpoint");
        Router::new(&endpoint, self.operator(), "test", routes).expect("routes")
    }
}

/// Writes one key, or deletes it.
pub async fn write(router: &Router, key: &[u8], value: Option<&[u8]>) -> tidemark_proto::Result<Timestamp> {
    let write = Write { key: key.to_vec(), value: value.map(<[u8]>::to_vec) };
    router.commit(router.node_of(key), vec![write]).await
}
