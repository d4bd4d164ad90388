//! Sealing: AES-256-GCM under keys that seal nothing else.
//!
//! A data key belongs to the repository. Each attempt at a part, and each small object, gets a subkey derived from the
//! data key and a fresh salt. The nonce is the first 96 bits of a keyed BLAKE3 over (kind, number, the exact bytes to be
//! encrypted), so that a nonce repeats under a key only for equal bytes; the associated data are the run's tag (which
//! binds repository, cluster, part and salt), kind and number.
//!
//! A repository without encryption is sealed by a keyed checksum of the same length in the place of the tag.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use tidemark_proto::id::RepositoryId;
use tidemark_proto::wire::control::SecretKey;
use tidemark_proto::{ClusterName, Error, Result};

/// Bytes of a nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of a tag.
pub const TAG_LEN: usize = 16;

const CONTEXT_SUBKEY: &str = "tidemark 2026-11 subkey of a part attempt or object v1";
const CONTEXT_CIPHER: &str = "tidemark 2026-11 cipher key v1";
const CONTEXT_NONCE: &str = "tidemark 2026-11 nonce key v1";
const CONTEXT_RUN_TAG: &str = "tidemark 2026-11 run tag v1";

/// The subkey of one attempt or object.
pub fn subkey(data_key: &SecretKey, salt: &[u8; 16]) -> SecretKey {
    let mut h = blake3::Hasher::new_derive_key(CONTEXT_SUBKEY);
    let _ = h.update(&data_key.0).update(salt);
    SecretKey(*h.finalize().as_bytes())
}

/// What identifies a run: binds repository, cluster, region, first sort key and salt.
pub fn run_tag(
    repository: RepositoryId,
    cluster: &ClusterName,
    region: u16,
    lower: &[u8],
    salt: &[u8; 16],
) -> [u8; 16] {
    let mut h = blake3::Hasher::new_derive_key(CONTEXT_RUN_TAG);
    let name = cluster.as_str().as_bytes();
    let _ = h.update(&repository.0).update(&[name.len() as u8]).update(name);
    let _ = h.update(&region.to_le_bytes()).update(salt).update(lower);
    first16(&h.finalize())
}

fn first16(hash: &blake3::Hash) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&hash.as_bytes()[..16]);
    out
}

/// Seals and opens under one subkey.
pub struct Sealer {
    cipher: Option<LessSafeKey>,
    nonce_key: [u8; 32],
    tag: [u8; 16],
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("encrypt", &self.cipher.is_some()).finish_non_exhaustive()
    }
}

impl Sealer {
    /// A sealer for the run or object that `tag` names.
    pub fn new(key: &SecretKey, tag: [u8; 16], encrypt: bool) -> Self {
        let cipher = encrypt.then(|| {
            let key = blake3::derive_key(CONTEXT_CIPHER, &key.0);
            // 32 bytes are always a key of AES-256.
            LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).expect("key length"))
        });
        Self { cipher, nonce_key: blake3::derive_key(CONTEXT_NONCE, &key.0), tag }
    }

    fn aad(&self, kind: u8, number: u32) -> [u8; 21] {
        let mut out = [0; 21];
        out[..16].copy_from_slice(&self.tag);
        out[16] = kind;
        out[17..].copy_from_slice(&number.to_le_bytes());
        out
    }

    fn keyed(&self, aad: &[u8; 21], bytes: &[u8]) -> blake3::Hash {
        let mut h = blake3::Hasher::new_keyed(&self.nonce_key);
        let _ = h.update(aad).update(bytes);
        h.finalize()
    }

    /// Seals `buf[NONCE_LEN..]` in place: writes the nonce into the first [`NONCE_LEN`] bytes and appends the tag.
    pub fn seal(&self, kind: u8, number: u32, buf: &mut Vec<u8>) {
        let aad = self.aad(kind, number);
        let hash = self.keyed(&aad, &buf[NONCE_LEN..]);
        let Some(cipher) = &self.cipher else {
            buf[..NONCE_LEN].fill(0);
            buf.extend_from_slice(&first16(&hash));
            return;
        };
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&hash.as_bytes()[..NONCE_LEN]);
        buf[..NONCE_LEN].copy_from_slice(&nonce);
        let tag = cipher
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut buf[NONCE_LEN..])
            // Fails only for more than 64 GiB in one message.
            .expect("message length");
        buf.extend_from_slice(tag.as_ref());
    }

    /// Opens `nonce | ciphertext | tag` in place and answers the plaintext. `Damaged` when the seal does not hold.
    pub fn open<'b>(&self, kind: u8, number: u32, buf: &'b mut [u8]) -> Result<&'b [u8]> {
        let broken = || Error::damaged(format!("block {number}: the seal does not hold"));
        if buf.len() < NONCE_LEN + TAG_LEN {
            return Err(broken());
        }
        let aad = self.aad(kind, number);
        let (nonce, rest) = buf.split_at_mut(NONCE_LEN);
        let Some(cipher) = &self.cipher else {
            let (plain, tag) = rest.split_at(rest.len() - TAG_LEN);
            return if first16(&self.keyed(&aad, plain)) == tag { Ok(plain) } else { Err(broken()) };
        };
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| broken())?;
        cipher.open_in_place(nonce, Aad::from(aad), rest).map(|p| &*p).map_err(|_| broken())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(encrypt: bool, tag: u8) -> Sealer {
        Sealer::new(&subkey(&SecretKey([7; 32]), &[1; 16]), [tag; 16], encrypt)
    }

    #[test]
    fn opens_only_what_was_sealed_there() {
        for encrypt in [true, false] {
            let mut buf = vec![0; NONCE_LEN];
            buf.extend_from_slice(b"some plain text");
            sealer(encrypt, 1).seal(1, 5, &mut buf);
            assert_eq!(sealer(encrypt, 1).open(1, 5, &mut buf.clone()).unwrap(), b"some plain text");
            assert!(sealer(encrypt, 1).open(1, 6, &mut buf.clone()).is_err(), "another number");
            assert!(sealer(encrypt, 1).open(2, 5, &mut buf.clone()).is_err(), "another kind");
            assert!(sealer(encrypt, 2).open(1, 5, &mut buf.clone()).is_err(), "another part");
            assert!(sealer(!encrypt, 1).open(1, 5, &mut buf.clone()).is_err(), "another mode");
            // The zero nonce of the plain mode is not covered by its checksum: it carries nothing.
            for bit in (if encrypt { 0 } else { NONCE_LEN * 8 })..buf.len() * 8 {
                let mut bad = buf.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(sealer(encrypt, 1).open(1, 5, &mut bad).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn golden() {
        let mut buf = vec![0; NONCE_LEN];
        buf.extend_from_slice(b"abc");
        sealer(true, 1).seal(1, 5, &mut buf);
        assert_eq!(
            data_encoding::HEXLOWER.encode(&buf),
            "0bab888d4dba129260daea87cde9dcbedcf8dcf7de2b2628758715d7b87f5b"
        );
    }
}
