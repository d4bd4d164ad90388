//! Clones: writable branches of a node's data.

use rkyv::{Archive, Deserialize, Serialize};

use crate::time::Timestamp;

/// A clone on a node.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct CloneInfo {
    /// Its name.
    pub name: String,
    /// The state of the parent that it began with.
    pub at: Timestamp,
    /// When it was made, the node's wall clock, milliseconds since 1970.
    pub created_millis: u64,
    /// Bytes of its own writes on disk, without those that are still in memory and journal.
    pub bytes: u64,
}

/// Make a clone of the data as of `at`, and let no write at or below `at` come any more. A clone of this name and time that
/// stands is enough; one of another time is `Conflict`. Answered with [`CloneCreated`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct CreateClone {
    /// Its name.
    pub name: String,
    /// The state that it begins with.
    pub at: Timestamp,
}

/// The clone stands.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct CloneCreated {
    /// The clone.
    pub clone: CloneInfo,
    /// 1: this command made it; 0: it stood before.
    pub fresh: u8,
}

/// Which clones stand on the node? Answered with [`Clones`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ListClones {}

/// The clones of a node.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Clones {
    /// The clones, by name.
    pub clones: Vec<CloneInfo>,
    /// Highest timestamp that the node has issued or seen.
    pub highest: Timestamp,
}

/// Drop a clone with all that was written in it. One that is not there is no error. Answered with [`CloneDropped`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct DropClone {
    /// Its name.
    pub name: String,
    /// Only a clone of this time; zero for any.
    pub at: Timestamp,
}

/// No such clone stands.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct CloneDropped {
    /// 1: this command dropped it; 0: there was none.
    pub dropped: u8,
}
