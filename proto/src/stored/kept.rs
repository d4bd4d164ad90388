//! What the nodes of a backup keep beside their records: one object for each backup, `clusters/<cluster>/roots/<hash>`,
//! which the manifest's root names.

use rkyv::{Archive, Deserialize, Serialize};

use crate::id::{JobId, NodeName};
use crate::wire::control::Kept;

/// Version of every struct here.
pub const VERSION: u8 = 1;

/// The kept things of one backup.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct KeptThings {
    /// The backup.
    pub job: JobId,
    /// Its nodes, in the order of the root.
    pub nodes: Vec<KeptOf>,
}

/// The kept things of one node.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct KeptOf {
    /// The node.
    pub node: NodeName,
    /// What it keeps.
    pub kept: Kept,
}
