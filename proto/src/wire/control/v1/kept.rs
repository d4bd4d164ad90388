//! What a node keeps beside its records, version 1. Frozen: never edit a struct that a build has sent or stored.

use rkyv::{Archive, Deserialize, Serialize};

use super::SecretBytes;
use crate::slot::SlotSet;
use crate::time::Timestamp;

/// What does the node keep beside its records? Sent once it has uploaded them, answered with [`Kept`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Keep {
    /// The cut.
    pub at: Timestamp,
    /// Most bytes of the answer; what does not fit is left out, and that is said.
    pub most_bytes: u32,
}

/// What a node keeps beside its records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Kept {
    /// When users and settings were read (after the cut), milliseconds since 1970; 0 where there is nothing of the kind.
    pub read_millis: u64,
    /// Users with their rights, each as the store writes and takes it (Redis: the lines of `ACL LIST`, in order).
    pub users: Vec<SecretBytes>,
    /// Libraries of functions as they were at the cut: their code.
    pub libraries: Vec<Vec<u8>>,
    /// Settings, without secrets.
    pub settings: Vec<Setting>,
    /// The nodes of the store's own cluster, as the node knew them in the hold.
    pub topology: Vec<TopologyNode>,
    /// What could not be kept.
    pub missing: Vec<NotKept>,
}

impl Kept {
    /// Whether there is nothing to tell: a store that keeps nothing beside its records.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One setting of a store.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A node of a store's own cluster.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct TopologyNode {
    /// Its id in that cluster; empty where there are none.
    pub id: String,
    /// Where it is reached (`host:port`); empty where that is not told.
    pub address: String,
    /// `primary` or `replica`.
    pub role: String,
    /// Id (in a cluster) or address of the primary that it follows; empty for none.
    pub follows: String,
    /// Its slots.
    pub slots: SlotSet,
    /// Version of its slots.
    pub config_epoch: u64,
    /// 1: the node that was asked.
    pub myself: u8,
}

/// Something that could not be kept.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct NotKept {
    /// What: `users`, `functions`, `settings`, `everything`.
    pub what: String,
    /// Why, and what to do.
    pub why: String,
}

/// Step of [`RestoreKept`]: find out whether users could be set; nothing changes.
pub const KEPT_PROBE: u8 = 0;
/// Step of [`RestoreKept`]: load the libraries, before the switch.
pub const KEPT_LIBRARIES: u8 = 1;
/// Step of [`RestoreKept`]: set the users, after the switch.
pub const KEPT_USERS: u8 = 2;

/// Take what a backup keeps beside its records. Answered with [`RestoredKept`]; may be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreKept {
    /// [`KEPT_PROBE`], [`KEPT_LIBRARIES`] or [`KEPT_USERS`].
    pub step: u8,
    /// 1: libraries that are there and are not among these go.
    pub replace: u8,
    /// Libraries of functions: their code.
    pub libraries: Vec<Vec<u8>>,
    /// Users, as in [`Kept`].
    pub users: Vec<SecretBytes>,
}

/// What was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoredKept {
    /// Libraries that were loaded.
    pub libraries: u32,
    /// Users that were set, on this node.
    pub users: u32,
    /// What was not taken, and why; whole sentences.
    pub warnings: Vec<String>,
}
