//! Certificates of the fleet: reading them from files, and serving them to TLS so that renewals are picked up.
//!
//! What holds: a [`Credentials`] always carries one whole, matching set (authorities, chain, key) of one identity.
//! The files are read again at a handshake, at most every [`CHECK_INTERVAL`]; a set that is half written, does not
//! match or carries another identity leaves the old one in use and is warned of once.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};
use tidemark_proto::hash::Hash;
use tidemark_proto::{Error, Result};

use crate::identity::Identity;
use crate::metric_names;

mod files;

pub use files::{load_certificates, load_private_key};

/// The files are compared at a handshake when they were last compared this long ago.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Where the three PEM files of a party lie.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PkiPaths {
    /// The fleet's authorities; several during a rotation.
    pub ca: PathBuf,
    /// The party's certificate, followed by intermediates if there are any.
    pub cert: PathBuf,
    /// The private key of the certificate; readable by its owner alone.
    pub key: PathBuf,
}

/// One whole set of certificates.
pub struct CertificateSet {
    /// The fleet's authorities.
    pub roots: Arc<RootCertStore>,
    /// Chain and key.
    pub certified: Arc<CertifiedKey>,
    /// Derived from the private key: the secret of endpoints, the same after a restart.
    pub(crate) endpoint_secret: [u8; 32],
    /// Who the certificate says we are.
    pub identity: Identity,
    /// The certificate ends then, seconds since 1970.
    pub not_after: i64,
    digest: Hash,
}

impl fmt::Debug for CertificateSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateSet")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    current: Arc<CertificateSet>,
    checked: Instant,
    /// Digest of the files that were last refused, so that each is warned of once.
    refused: Option<Hash>,
}

#[derive(Debug)]
struct Inner {
    paths: PkiPaths,
    interval: Duration,
    identity: Identity,
    state: Mutex<State>,
}

/// The certificates of this process. Clones share one set.
#[derive(Debug, Clone)]
pub struct Credentials(Arc<Inner>);

impl Credentials {
    /// Reads the files; a fault in any of them is `Config` and names the file.
    pub fn load(paths: PkiPaths) -> Result<Self> {
        Self::load_with(paths, CHECK_INTERVAL)
    }

    /// As [`Self::load`], comparing the files when they were last compared `interval` ago.
    pub fn load_with(paths: PkiPaths, interval: Duration) -> Result<Self> {
        let digest = files::digest(&paths)?;
        let current = Arc::new(files::load_set(&paths, digest)?);
        gauge!(metric_names::CERTIFICATE_NOT_AFTER).set(current.not_after as f64);
        let identity = current.identity.clone();
        let state = Mutex::new(State { current, checked: Instant::now(), refused: None });
        Ok(Self(Arc::new(Inner { paths, interval, identity, state })))
    }

    /// Who we are. Never changes while the process runs.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The set to use now; reads the files again when it is time to.
    pub fn current(&self) -> Arc<CertificateSet> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.checked.elapsed() >= self.0.interval {
            self.refresh(&mut state);
            state.checked = Instant::now();
        }
        state.current.clone()
    }

    fn refresh(&self, state: &mut State) {
        // Files that cannot be read have no digest of their own; zero stands for them.
        let digest = files::digest(&self.0.paths);
        let seen = digest.as_ref().copied().unwrap_or(Hash::ZERO);
        if seen == state.current.digest || state.refused == Some(seen) {
            return;
        }
        match digest.and_then(|d| self.load_same_identity(d)) {
            Ok(set) => {
                tracing::info!(identity = %set.identity, not_after = set.not_after, "took renewed certificates into use");
                counter!(metric_names::CERTIFICATE_RELOADS).increment(1);
                gauge!(metric_names::CERTIFICATE_NOT_AFTER).set(set.not_after as f64);
                state.current = Arc::new(set);
                state.refused = None;
            }
            Err(e) => {
                tracing::warn!(error = %e.report(), "certificate files changed but cannot be used; the old ones stay");
                counter!(metric_names::CERTIFICATE_RELOAD_FAILURES).increment(1);
                state.refused = Some(seen);
            }
        }
    }

    fn load_same_identity(&self, digest: Hash) -> Result<CertificateSet> {
        let set = files::load_set(&self.0.paths, digest)?;
        if set.identity != self.0.identity {
            return Err(Error::config(format!(
                "{}: is of {} but this process runs as {}: restart it to change its identity",
                self.0.paths.cert.display(),
                set.identity,
                self.0.identity
            )));
        }
        Ok(set)
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().certified.clone())
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
