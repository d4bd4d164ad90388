//! Data keys, wrapped under a master key that never lies in the repository.

use std::collections::BTreeMap;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use data_encoding::HEXLOWER_PERMISSIVE;
use tidemark_common::seal::{Sealer, run_tag, subkey};
use tidemark_proto::id::RepositoryId;
use tidemark_proto::stored::repository::WrappedKey;
use tidemark_proto::wire::control::SecretKey;
use tidemark_proto::{ClusterName, Error, Result};

/// Environment variable that may hold the master key as 64 hex digits.
pub(super) const MASTER_KEY_ENV: &str = "TIDEMARK_MASTER_KEY";
const METHOD_FILE: &str = "file";
const CONTEXT_HINT: &str = "tidemark 2026-11 hint of a master key v1";
const CONTEXT_WRAP: &str = "tidemark 2026-11 wrapping key v1";
/// Key id of a repository without encryption.
const PLAIN: u32 = 0;

/// The key-encryption key: 256 bits that the operator keeps.
#[derive(Clone)]
pub struct MasterKey(SecretKey);

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

impl MasterKey {
    /// A new random key.
    pub fn generate() -> Self {
        Self(SecretKey(random32()))
    }

    /// From a file that holds 64 hex digits, or from the environment when no file is named. `None` when neither is.
    pub fn load(file: Option<&Path>) -> Result<Option<Self>> {
        match file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|e| Error::config(format!("master key file {}", path.display())).with_source(e))?;
                Self::parse(text.trim()).map(Some).map_err(|e| e.context(path.display()))
            }
            None => match std::env::var(MASTER_KEY_ENV) {
                Ok(text) => Self::parse(text.trim()).map(Some).map_err(|e| e.context(MASTER_KEY_ENV)),
                Err(_) => Ok(None),
            },
        }
    }

    /// From 64 hex digits.
    pub fn parse(text: &str) -> Result<Self> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().and_then(|b| <[u8; 32]>::try_from(b).ok());
        bytes.map(|b| Self(SecretKey(b))).ok_or_else(|| {
            Error::config("a master key is 64 hex digits (make one with `tidemark repo keygen --out FILE`)")
        })
    }

    /// The text of the key file.
    pub fn to_text(&self) -> String {
        format!("{}\n", HEXLOWER_PERMISSIVE.encode(&self.0.0))
    }

    fn hint(&self) -> [u8; 8] {
        let mut out = [0; 8];
        out.copy_from_slice(&blake3::derive_key(CONTEXT_HINT, &self.0.0)[..8]);
        out
    }

    fn cipher(&self) -> LessSafeKey {
        let key = blake3::derive_key(CONTEXT_WRAP, &self.0.0);
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).expect("key length"))
    }
}

fn random32() -> [u8; 32] {
    let mut out = [0; 32];
    // Fails only where the machine has no source of randomness at all.
    aws_lc_rs::rand::fill(&mut out).expect("randomness");
    out
}

/// The data keys of a repository.
pub struct Keyring {
    repository: RepositoryId,
    keys: BTreeMap<u32, SecretKey>,
    current: u32,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("ids", &self.keys.keys().collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

fn wrap_aad(repository: RepositoryId, key_id: u32) -> Vec<u8> {
    [&repository.0[..], &key_id.to_le_bytes(), METHOD_FILE.as_bytes()].concat()
}

impl Keyring {
    /// The ring of a repository without encryption: its one key is made of the public id, so seals are checksums.
    pub fn plain(repository: RepositoryId) -> Self {
        let key = SecretKey(*blake3::hash(&repository.0).as_bytes());
        Self { repository, keys: BTreeMap::from([(PLAIN, key)]), current: PLAIN }
    }

    /// A new data key, and its wrapping under `master`.
    pub fn create(repository: RepositoryId, master: &MasterKey) -> Result<(Self, WrappedKey)> {
        let (key_id, key) = (1, SecretKey(random32()));
        let nonce: [u8; 12] = rand::random();
        let mut wrapped = key.0.to_vec();
        let aad = Aad::from(wrap_aad(repository, key_id));
        let tag = master
            .cipher()
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut wrapped)
            .map_err(|_| Error::bug("wrapping a key"))?;
        wrapped.extend_from_slice(tag.as_ref());
        let record =
            WrappedKey { repository, key_id, method: METHOD_FILE.into(), hint: master.hint(), nonce, wrapped };
        Ok((Self { repository, keys: BTreeMap::from([(key_id, key)]), current: key_id }, record))
    }

    /// Opens every wrapping that `master` fits. `Config` when it fits none, `Damaged` when one that fits is broken.
    pub fn open(repository: RepositoryId, master: &MasterKey, wrapped: &[WrappedKey]) -> Result<Self> {
        let mut keys = BTreeMap::new();
        for record in wrapped.iter().filter(|w| w.repository == repository && w.hint == master.hint()) {
            let mut buf = record.wrapped.clone();
            let aad = Aad::from(wrap_aad(repository, record.key_id));
            let opened = master.cipher().open_in_place(Nonce::assume_unique_for_key(record.nonce), aad, &mut buf);
            let key = opened.ok().and_then(|k| <[u8; 32]>::try_from(&*k).ok());
            let key = key.ok_or_else(|| Error::damaged(format!("data key {} does not unwrap", record.key_id)))?;
            let _ = keys.insert(record.key_id, SecretKey(key));
        }
        let current = *keys.keys().next_back().ok_or_else(|| {
            Error::config("the master key does not fit this repository: none of its data keys is wrapped under it")
        })?;
        Ok(Self { repository, keys, current })
    }

    /// Whether seals encrypt.
    pub fn encrypts(&self) -> bool {
        self.current != PLAIN
    }

    /// Id of the key for new data.
    pub fn current(&self) -> u32 {
        self.current
    }

    /// The subkey for a salt under a data key.
    pub fn subkey(&self, key_id: u32, salt: &[u8; 16]) -> Result<SecretKey> {
        let key = self.keys.get(&key_id).ok_or_else(|| {
            Error::config(format!("data key {key_id} is not wrapped under this master key: give the newer one"))
        })?;
        Ok(subkey(key, salt))
    }

    /// The tag of a run; see [`run_tag`].
    pub fn run_tag(&self, cluster: &ClusterName, region: u16, lower: &[u8], salt: &[u8; 16]) -> [u8; 16] {
        run_tag(self.repository, cluster, region, lower, salt)
    }

    /// The sealer of a small object: bound to repository, cluster, the object's name and salt.
    pub fn object_sealer(&self, cluster: &ClusterName, name: &str, key_id: u32, salt: &[u8; 16]) -> Result<Sealer> {
        let key = self.subkey(key_id, salt)?;
        let tag = run_tag(self.repository, cluster, u16::MAX, name.as_bytes(), salt);
        Ok(Sealer::new(&key, tag, key_id != PLAIN))
    }
}
