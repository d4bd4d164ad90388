//! Bases of backups, version 1. Frozen: never edit a struct that a build has sent.

use rkyv::{Archive, Deserialize, Serialize};

/// Take the base of a backup, before its cut, and keep the log from there on. Answered with [`Prepared`]; a base of the same
/// job that stands is enough. Progress tells the bytes of base received.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Prepare {}

/// [`Prepare`] of the same job comes next, when bases that are taken beside the node's have ended: let what
/// waits at the beginning of a base, and costs nothing, pass meanwhile. A hint: whether it is answered, and how, changes nothing.
/// Answered with [`Done`](super::Done) when that command has come, or at once where there is nothing to wait for.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PrepareEarly {}

/// The base stands, and the log goes on from it.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Prepared {
    /// Bytes of base received for this command; 0 when the base stood already.
    pub bytes: u64,
}
