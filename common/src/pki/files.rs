//! Reading PEM files. Every fault is `Config` and names the file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tidemark_proto::hash::Hash;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CertificateSet, PkiPaths};
use crate::identity::Identity;
use crate::tls;

/// Largest PEM file read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Permission bits of group and others.
const NOT_OWNER: u32 = 0o077;

fn read(path: &Path) -> Result<Vec<u8>> {
    let at = path.display();
    let len = fs::metadata(path).or_kind(ErrorKind::Config, format!("{at}: cannot be read"))?.len();
    if len > MAX_FILE {
        return Err(Error::config(format!("{at}: {len} bytes are too many for a PEM file")));
    }
    fs::read(path).or_kind(ErrorKind::Config, format!("{at}: cannot be read"))
}

/// The content of all three files as one hash.
pub(super) fn digest(paths: &PkiPaths) -> Result<Hash> {
    let mut all = Vec::new();
    for path in [&paths.ca, &paths.cert, &paths.key] {
        all.extend_from_slice(&Hash::of(&read(path)?).0);
    }
    Ok(Hash::of(&all))
}

/// All certificates of a PEM file; none is an error.
pub fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certs = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<std::result::Result<Vec<_>, _>>()
        .or_kind(ErrorKind::Config, format!("{}: is not a PEM file of certificates", path.display()))?;
    if certs.is_empty() {
        return Err(Error::config(format!("{}: holds no certificate", path.display())));
    }
    Ok(certs)
}

/// The private key of a PEM file that only its owner can read.
pub fn load_private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let at = path.display();
    let mode = fs::metadata(path).or_kind(ErrorKind::Config, format!("{at}: cannot be read"))?.permissions().mode();
    if mode & NOT_OWNER != 0 {
        return Err(Error::config(format!(
            "{at}: others than its owner can read this private key (mode {:o}): chmod 600 it",
            mode & 0o777
        )));
    }
    // The parser's own text is left out: nothing of a key file belongs into a message.
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|_| Error::config(format!("{at}: holds no PEM private key (PKCS #8)")))
}

pub(super) fn load_set(paths: &PkiPaths, digest: Hash) -> Result<CertificateSet> {
    let mut roots = RootCertStore::empty();
    for ca in load_certificates(&paths.ca)? {
        roots.add(ca).or_kind(ErrorKind::Config, format!("{}: holds a bad authority", paths.ca.display()))?;
    }
    let chain = load_certificates(&paths.cert)?;
    let at = paths.cert.display();
    let identity =
        Identity::of_certificate(&chain[0]).map_err(|e| Error::config(format!("{at}: {}", e.report())))?;
    let not_after = X509Certificate::from_der(&chain[0])
        .map(|(_, cert)| cert.validity().not_after.timestamp())
        .map_err(|e| Error::config(format!("{at}: cannot be read")).with_source(e.to_string()))?;
    let key = load_private_key(&paths.key)?;
    let endpoint_secret = blake3::derive_key("tidemark 2026-11-21 endpoints", key.secret_der());
    let certified = CertifiedKey::from_der(chain, key, &tls::provider())
        .or_kind(ErrorKind::Config, format!("{at} and {} do not belong together", paths.key.display()))?;
    let (roots, certified) = (Arc::new(roots), Arc::new(certified));
    Ok(CertificateSet { roots, certified, endpoint_secret, identity, not_after, digest })
}
