//! The small objects at the top of a repository: its description, wrapped keys, epochs, job records.

use rkyv::{Archive, Deserialize, Serialize};

use crate::hash::Hash;
use crate::id::{ClusterName, JobId, RepositoryId};
use crate::stored::manifest::PartEntry;
use crate::time::Timestamp;

/// Version of [`Description`], [`WrappedKey`], [`Epoch`] and [`JobRecord`].
pub const VERSION: u8 = 1;

/// `repository`: written once.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Description {
    /// Its id.
    pub id: RepositoryId,
    /// When it was made, milliseconds since 1970.
    pub created_millis: u64,
    /// 1: sealed by encryption; 0: by checksum alone.
    pub encrypted: u8,
}

/// `keys/<n>`: a data key under a key-encryption key. AES-256-GCM; associated data: repository id, `key_id`, method.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct WrappedKey {
    /// The repository.
    pub repository: RepositoryId,
    /// Id of the data key: several wrappings of one key may stand.
    pub key_id: u32,
    /// How it is wrapped: `file` (a 256-bit key-encryption key).
    pub method: String,
    /// First 8 bytes of BLAKE3 of the key-encryption key under a context of its own: tells which key fits.
    pub hint: [u8; 8],
    /// Nonce of the wrapping.
    pub nonce: [u8; 12],
    /// The wrapped data key with its tag.
    pub wrapped: Vec<u8>,
}

/// `epochs/<n>`: who won the number is the coordinator of epoch n.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Epoch {
    /// The coordinator's name.
    pub coordinator: String,
    /// Drawn for this put, so that a put that timed out but won is recognised.
    pub put_id: [u8; 16],
    /// When, milliseconds since 1970.
    pub at_millis: u64,
}

/// `jobs/<id>/<rev>`: what a job stored since the revision before. Hints that may be lost.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct JobRecord {
    /// The job.
    pub job: JobId,
    /// The cluster.
    pub cluster: ClusterName,
    /// Epoch of the coordinator that runs it.
    pub epoch: u64,
    /// When, milliseconds since 1970.
    pub at_millis: u64,
    /// The cut; zero before there is one.
    pub cut: Timestamp,
    /// Root of the parent backup; zero for none.
    pub parent: Hash,
    /// Parts stored since the last revision.
    pub parts: Vec<PartEntry>,
}
