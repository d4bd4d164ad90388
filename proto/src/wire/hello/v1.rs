//! Hello messages, version 1. Frozen: never edit a struct that a build has sent.

use rkyv::{Archive, Deserialize, Serialize};

/// Opens a connection.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol version that the sender speaks.
    pub min_version: u16,
    /// Newest protocol version that the sender speaks.
    pub max_version: u16,
    /// The sender's build, for people.
    pub build: String,
    /// What the connection is for: 1 control, 2 bulk, 3 kv.
    pub purpose: u8,
    /// Cluster that the sender's configuration names; empty for coordinators and operators.
    pub cluster: String,
    /// Node that the sender's configuration names; empty for coordinators and operators.
    pub node: String,
}

/// The connection stands.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Welcome {
    /// Protocol version that both sides speak from here on.
    pub version: u16,
    /// The answering side's build, for people.
    pub build: String,
    /// Epoch of the coordinator; 0 from an agent.
    pub epoch: u64,
}

/// The connection is refused and will be closed.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Refused {
    /// Code of the error kind.
    pub code: u32,
    /// Why, and what to do.
    pub message: String,
}
