//! Bases of backups, version 1. Frozen: never edit a struct that a build has sent.

use rkyv::{Archive, Deserialize, Serialize};

use crate::slot::SlotSet;

/// Take the base of a backup, before its cut, and keep the log from there on. Answered with [`Prepared`]; a base of the same
/// job that stands is enough. Progress tells the bytes of base received.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Prepare {}

/// [`Prepare`] of the same job comes next, when bases that are taken beside the node's have ended: let what
/// waits at the beginning of a base, and costs nothing, pass meanwhile. A hint: whether it is answered, and how, changes nothing.
/// Answered with [`Done`](super::Done) when that command has come, or at once where there is nothing to wait for.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PrepareEarly {}

/// Send parts of the base of this job already, before its cut, as whole regions of it become ready: full runs, each by a bulk
/// [`EarlyOffer`](crate::wire::bulk::EarlyOffer). The upload that follows sends what differs at the cut. A hint: how it is answered
/// changes nothing. Answered with [`Done`](super::Done) when no more will be sent before the cut.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct UploadEarly {
    /// Slots to send: those that the node, or the primary it stands in for, has at present.
    pub slots: SlotSet,
    /// Slots of one region.
    pub slots_per_region: u16,
    /// Address of the ingest process (`host:port`).
    pub ingest: String,
    /// Parts sent at once; 0 lets the agent choose by its cores.
    pub concurrency: u32,
}

/// The base stands, and the log goes on from it.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Prepared {
    /// Bytes of base received for this command; 0 when the base stood already.
    pub bytes: u64,
}
