//! What the repository holds already: the parts of the parent backup, and which of them are due to be written anew.

use std::collections::BTreeMap;

use tidemark_proto::hash::Hash;
use tidemark_proto::stored::manifest::{PartEntry, Root};
use tidemark_proto::wire::control::PartParent;
use tidemark_proto::{ClusterName, NodeName, Result};

use crate::repository::{Ledger, Repository, read_page, read_root};

/// A part is written anew at 5 to 11 runs, spread by its place, so that not every part is due on the same day.
const RUNS_LEAST: u64 = 5;
const RUNS_SPREAD: u64 = 7;

/// Key of a part within a node: region and first sort key.
pub type PartKey = (u16, Vec<u8>);

/// The parent backup.
#[derive(Debug)]
pub(super) struct Parent {
    /// Hash of its root.
    pub hash: Hash,
    /// Its root.
    pub root: Root,
    /// Its parts by node number there, region and first sort key, with their hashes.
    pub parts: BTreeMap<(u16, PartKey), (PartEntry, Hash)>,
}

impl Parent {
    /// The newest backup of the ledger, if there is one.
    pub(super) async fn newest(
        repository: &Repository,
        cluster: &ClusterName,
        ledger: &Ledger,
    ) -> Result<Option<Self>> {
        let Some(newest) = ledger.backups().pop() else { return Ok(None) };
        Self::read(repository, cluster, newest.backup.root).await.map(Some)
    }

    /// The backup with this root.
    pub(super) async fn read(repository: &Repository, cluster: &ClusterName, hash: Hash) -> Result<Self> {
        let root = read_root(repository, cluster, &hash).await?;
        let mut parts = BTreeMap::new();
        for page in &root.pages {
            for part in read_page(repository, cluster, page).await?.parts {
                let part_hash = part.hash();
                let _ = parts.insert((part.node, (part.region, part.lower.clone())), (part, part_hash));
            }
        }
        Ok(Self { hash, root, parts })
    }

    /// The nodes that it is of.
    pub(super) fn nodes(&self) -> Vec<NodeName> {
        self.root.nodes.iter().map(|n| n.node.clone()).collect()
    }

    /// The number of `node` in the parent's root.
    pub(super) fn node(&self, node: &str) -> Option<u16> {
        self.root.nodes.iter().position(|n| n.node.as_str() == node).map(|i| i as u16)
    }

    /// The parts of `node` that may be sent as deltas.
    pub(super) fn offers(&self, node: &str) -> Vec<PartParent> {
        let Some(number) = self.node(node) else { return Vec::new() };
        let own = self.parts.range((number, (0, Vec::new()))..).take_while(|((n, _), _)| *n == number);
        own.filter(|(_, (part, _))| !due(part))
            .map(|(_, (part, hash))| PartParent {
                region: part.region,
                slots: part.slots.clone(),
                lower: part.lower.clone(),
                upper: part.upper.clone(),
                hash: *hash,
            })
            .collect()
    }
}

/// Number of runs at which a part is written anew; from its place alone, so that the parts of a cluster spread over days
/// and a part's packs can be chosen by how long its runs will be needed.
pub fn most_runs(region: u16, lower: &[u8]) -> u64 {
    let place = Hash::of(&[&region.to_le_bytes()[..], lower].concat());
    RUNS_LEAST + u64::from(place.0[0]) % RUNS_SPREAD
}

/// Whether a part should be written anew: its deltas exceed half its base, or its runs are many.
fn due(part: &PartEntry) -> bool {
    // An empty part has no run; what comes into it is a delta on nothing.
    let Some((base, deltas)) = part.runs.split_first() else { return false };
    let delta_bytes: u64 = deltas.iter().map(|r| r.stored_bytes()).sum();
    delta_bytes * 2 > base.stored_bytes() || part.runs.len() as u64 >= most_runs(part.region, &part.lower)
}
