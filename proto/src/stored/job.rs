//! Records of jobs, beside [`crate::stored::repository::JobRecord`]: `clusters/<cluster>/jobs/<id>/<rev>`, each a kind of
//! its own. By them a coordinator that was started anew goes on with what another one left.

use rkyv::{Archive, Deserialize, Serialize};

use crate::hash::{Hash, SetDigest};
use crate::id::{ClusterName, JobId, NodeName};
use crate::slot::SlotSet;
use crate::stored::manifest::NodeEntry;
use crate::time::Timestamp;

/// Version of every struct here.
pub const VERSION: u8 = 1;

/// A backup job has begun: until its cut nothing of it can be resumed.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct BackupBegun {
    /// The job.
    pub job: JobId,
    /// Epoch of the coordinator that began it.
    pub epoch: u64,
    /// When, milliseconds since 1970.
    pub started_millis: u64,
    /// 1: made by hand; 0: by a schedule.
    pub manual: u8,
}

/// The cut of a backup holds: from here on it can be resumed.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct BackupCut {
    /// The job.
    pub job: JobId,
    /// Engine of the cluster.
    pub engine: String,
    /// Slots of one region.
    pub slots_per_region: u16,
    /// The cut.
    pub cut: Timestamp,
    /// Attempt that held.
    pub attempt: u32,
    /// Root of the parent backup; zero for none.
    pub parent: Hash,
    /// The nodes with their evidence.
    pub nodes: Vec<NodeEntry>,
}

/// A restore is about to touch its targets.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreBegun {
    /// The job.
    pub job: JobId,
    /// Epoch of the coordinator that began it.
    pub epoch: u64,
    /// When, milliseconds since 1970.
    pub started_millis: u64,
    /// Cluster whose backup is restored.
    pub source: ClusterName,
    /// The backup.
    pub backup: JobId,
    /// 1: present data may be replaced.
    pub in_place: u8,
    /// 1: what is damaged is left out.
    pub salvage: u8,
    /// Key globs; empty takes all.
    pub keys: Vec<String>,
    /// Nodes that take it.
    pub targets: Vec<NodeName>,
}

/// How a restore loads records, where that is not the usual way. Written before [`RestoreBegun`], and again before
/// [`RestoreSwitching`] with what was counted; the last one counts.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreOptions {
    /// The job.
    pub job: JobId,
    /// The time that counts as the moment of the restore, milliseconds since 1970.
    pub now_millis: u64,
    /// 0: keys expire when they did; 1: as long after this moment as they would have after the cut; 2: never.
    pub expiry: u8,
    /// Slots whose records are loaded.
    pub slots: SlotSet,
    /// Databases whose records are loaded; empty takes all.
    pub dbs: Vec<u64>,
    /// Records that had expired: `None` until all is loaded.
    pub expired: Option<u64>,
}

/// The restore is of a later time than its backup: the log is laid over it. Stands before [`RestoreBegun`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreAt {
    /// The job.
    pub job: JobId,
    /// The restore point.
    pub at: Timestamp,
}

/// The restore sets the users of its backup as well, after the switch. Stands before [`RestoreBegun`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreWithUsers {
    /// The job.
    pub job: JobId,
}

/// Every node has read back what it loaded: from here on the restore only goes forward.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreSwitching {
    /// The job.
    pub job: JobId,
    /// Timestamp of the restored state.
    pub at: Timestamp,
    /// The nodes with what each will hold.
    pub targets: Vec<SwitchTarget>,
}

/// A node that switches.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SwitchTarget {
    /// The node.
    pub node: NodeName,
    /// Its slots.
    pub slots: SlotSet,
    /// What it has read back.
    pub expect: SetDigest,
}

/// A restore is over: every node has switched, or none.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RestoreEnded {
    /// The job.
    pub job: JobId,
    /// When, milliseconds since 1970.
    pub at_millis: u64,
    /// Why it failed; empty when every node has switched.
    pub reason: String,
}
