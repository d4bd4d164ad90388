//! What messages hold and nobody is shown, version 1. Frozen: never edit a struct that a build has sent.

use rkyv::{Archive, Deserialize, Serialize};

/// 256 secret bits: shown by nothing, wiped by nobody's log.
#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SecretKey(pub [u8; 32]);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// Bytes that nobody is shown: they hold hashes of passwords.
#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SecretBytes(pub Vec<u8>);

impl std::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}
