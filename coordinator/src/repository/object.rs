//! Small sealed objects: ledger entries, manifest roots and pages, job records.

use tidemark_common::run::{open_bytes, seal_bytes};
use tidemark_common::seal::NONCE_LEN;
use tidemark_proto::stored::envelope::{self, FLAG_SEALED, ObjectKind};
use tidemark_proto::stored::run::SEAL_OBJECT;
use tidemark_proto::{ClusterName, Error, Result};

use super::Repository;

/// Largest small object when opened, in bytes.
pub(super) const MAX_OPENED: usize = 256 << 20;

impl Repository {
    /// Seals `body` as an object of `kind`. `name` binds it to its place: opening needs the same.
    pub(super) fn seal_object(
        &self,
        cluster: &ClusterName,
        kind: ObjectKind,
        version: u8,
        name: &str,
        body: &[u8],
    ) -> Result<Vec<u8>> {
        let (key_id, salt) = (self.keys().current(), rand::random::<[u8; 16]>());
        let sealer = self.keys().object_sealer(cluster, name, key_id, &salt)?;
        let sealed = seal_bytes(&sealer, SEAL_OBJECT, kind as u32, body)?;
        let mut out = Vec::with_capacity(20 + sealed.len());
        out.extend_from_slice(&key_id.to_le_bytes());
        out.extend_from_slice(&salt);
        out.extend_from_slice(&sealed);
        Ok(envelope::wrap(kind, version, FLAG_SEALED, &out))
    }

    /// Opens what [`Repository::seal_object`] made.
    pub(super) fn open_object(
        &self,
        cluster: &ClusterName,
        kind: ObjectKind,
        max_version: u8,
        name: &str,
        bytes: &[u8],
    ) -> Result<Vec<u8>> {
        let body = envelope::unwrap(kind, max_version, bytes)?.body;
        if body.len() < 20 + NONCE_LEN {
            return Err(Error::damaged(format!("{}: too short for its seal", kind.name())));
        }
        let key_id = u32::from_le_bytes([body[0], body[1], body[2], body[3]]);
        let mut salt = [0; 16];
        salt.copy_from_slice(&body[4..20]);
        let sealer = self.keys().object_sealer(cluster, name, key_id, &salt)?;
        let mut sealed = body[20..].to_vec();
        open_bytes(&sealer, SEAL_OBJECT, kind as u32, &mut sealed, MAX_OPENED).map_err(|e| e.context(kind.name()))
    }
}
