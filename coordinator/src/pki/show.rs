//! What certificates say.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use serde::Serialize;
use tidemark_common::identity::Identity;
use tidemark_common::pki::load_certificates;
use tidemark_proto::{Error, Result};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::DAY;

/// One certificate of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateInfo {
    /// The file.
    pub file: String,
    /// `authority`, `agent`, `coordinator`, `operator`, or `unknown` for a certificate that is not Tidemark's.
    pub role: String,
    /// The identity URI; the subject where there is none.
    pub identity: String,
    /// Valid from, RFC 3339.
    pub not_before: String,
    /// Valid until, RFC 3339.
    pub not_after: String,
    /// Whole days left; negative when it has ended.
    pub days_left: i64,
    /// SHA-256 of the certificate, hex.
    pub fingerprint: String,
}

/// Reads every certificate of a PEM file.
pub fn inspect(path: &Path, now: SystemTime) -> Result<Vec<CertificateInfo>> {
    load_certificates(path)?.iter().map(|der| inspect_one(path, der, now)).collect()
}

fn inspect_one(path: &Path, der: &[u8], now: SystemTime) -> Result<CertificateInfo> {
    let file = path.display().to_string();
    let (_, cert) = X509Certificate::from_der(der)
        .map_err(|e| Error::config(format!("{file}: cannot be read")).with_source(e.to_string()))?;
    let (role, identity) = match Identity::of_certificate(der) {
        Ok(identity) => (identity.role(), identity.to_string()),
        Err(_) if cert.is_ca() => ("authority", cert.subject().to_string()),
        Err(_) => ("unknown", cert.subject().to_string()),
    };
    let (from, until) = (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
    let time = |s: i64| {
        jiff::Timestamp::from_second(s)
            .map(|t| t.to_string())
            .map_err(|e| Error::config(format!("{file}: bad time")).with_source(e))
    };
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let fingerprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    Ok(CertificateInfo {
        role: role.to_owned(),
        identity,
        not_before: time(from)?,
        not_after: time(until)?,
        days_left: (until - now).div_euclid(DAY as i64),
        fingerprint: HEXLOWER.encode(fingerprint.as_ref()),
        file,
    })
}
