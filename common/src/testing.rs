//! A made-up fleet for tests: an authority in a temporary folder that issues certificates of any identity and age.
//! It panics where a test cannot go on.

mod golden;

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use tempfile::TempDir;

use crate::clock::SystemClock;
use crate::identity::Identity;
use crate::pki::{Credentials, PkiPaths};

pub use golden::golden;

/// Seconds of a day.
const DAY: i64 = 86_400;

/// The authority.
#[derive(Debug)]
pub struct TestFleet {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Default for TestFleet {
    fn default() -> Self {
        Self::new()
    }
}

impl TestFleet {
    /// A new fleet.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test fleet");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("authority");
        write_private(&dir.path().join("ca.crt"), &issuer.pem());
        Self { dir, issuer }
    }

    /// The folder of its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Issues `<file>.crt` and `<file>.key`, valid from and until so many days from now. Written anew, they are renewed.
    pub fn issue(&self, file: &str, identity: &Identity, days: (i64, i64)) -> PkiPaths {
        let now = SystemClock.time().duration_since(UNIX_EPOCH).expect("clock").as_secs() as i64;
        let at = |days: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs((now + days * DAY) as u64);
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
        params.subject_alt_names.push(SanType::URI(identity.to_string().try_into().expect("URI")));
        (params.not_before, params.not_after) = (at(days.0), at(days.1));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().expect("key");
        let cert = params.signed_by(&key, &self.issuer).expect("certificate");
        let path = |end: &str| self.dir.path().join(format!("{file}.{end}"));
        write_private(&path("crt"), &cert.pem());
        write_private(&path("key"), &key.serialize_pem());
        PkiPaths { ca: self.dir.path().join("ca.crt"), cert: path("crt"), key: path("key") }
    }

    /// Good credentials of an identity; changed files are seen at once.
    pub fn credentials(&self, uri: &str) -> Credentials {
        let identity: Identity = uri.parse().expect("identity");
        let file = uri.trim_start_matches(crate::identity::SCHEME).replace('/', "-");
        Self::open(self.issue(&file, &identity, (-1, 30)))
    }

    /// Opens issued files; changed files are seen at once.
    pub fn open(paths: PkiPaths) -> Credentials {
        Credentials::load_with(paths, Duration::ZERO).expect("credentials")
    }
}

/// Writes a file that only its owner can read.
pub fn write_private(path: &PathBuf, text: &str) {
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).expect("file");
    file.write_all(text.as_bytes()).expect("write");
}
