//! Creating the authority and issuing with it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tidemark_common::identity::Identity;
use tidemark_common::pki::{load_certificates, load_private_key};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{AUTHORITY_DIR, BACKDATE_SECONDS, CA_CERT, CA_KEY, DAY, files};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Issued {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority to trust.
    pub ca: PathBuf,
}

/// A certificate to issue.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Whom it names.
    pub identity: Identity,
    /// Host names and addresses of its HTTPS port; coordinators alone have them.
    pub hosts: Vec<String>,
    /// Days that it is good for.
    pub days: u32,
}

impl Leaf {
    fn file_name(&self) -> String {
        match &self.identity {
            Identity::Agent { cluster, node } => format!("agent-{cluster}-{node}"),
            Identity::Coordinator { name } => format!("coordinator-{name}"),
            Identity::Operator { name } => format!("operator-{name}"),
        }
    }
}

/// The authority of a fleet, opened with its key.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// Seconds since 1970.
    validity: (u64, u64),
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).or_kind(ErrorKind::Bug, "key cannot be generated")
}

fn valid(params: &mut CertificateParams, from: u64, until: u64) {
    let at = |s: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(s);
    (params.not_before, params.not_after) = (at(from), at(until));
}

impl Authority {
    /// Makes the authority of fleet `fleet` in `dir`, good for `days` from `now`. One that is there is replaced with
    /// `force` alone: then everything that it issued is void.
    pub fn create(dir: &Path, fleet: &str, days: u32, force: bool, now: SystemTime) -> Result<Issued> {
        if days == 0 {
            return Err(Error::request("an authority must be good for a day at least"));
        }
        let key_dir = dir.join(AUTHORITY_DIR);
        let issued = Issued { cert: dir.join(CA_CERT), key: key_dir.join(CA_KEY), ca: dir.join(CA_CERT) };
        if !force {
            files::must_not_exist(&issued.cert)?;
            files::must_not_exist(&issued.key)?;
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, fleet);
        params.distinguished_name.push(DnType::CommonName, format!("{fleet} Tidemark authority"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = seconds(now);
        valid(&mut params, now.saturating_sub(BACKDATE_SECONDS), now + u64::from(days) * DAY);
        let made = CertifiedIssuer::self_signed(params, new_key()?)
            .or_kind(ErrorKind::Request, format!("no authority can be made for fleet `{fleet}`"))?;
        files::make_dir(&key_dir)?;
        files::write(&issued.key, made.key().serialize_pem().as_bytes(), force)?;
        files::write(&issued.cert, made.pem().as_bytes(), force)?;
        Ok(issued)
    }

    /// Opens the authority in `dir`. With several certificates in `ca.crt` (a rotation) the one of the key issues.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(CA_CERT);
        if !path.exists() {
            return Err(Error::not_found(format!(
                "{}: no authority here: `tidemark pki init` makes one",
                dir.display()
            )));
        }
        let key_path = dir.join(AUTHORITY_DIR).join(CA_KEY);
        let der = load_private_key(&key_path)?;
        let wrong = || format!("{}: is no key of an authority", key_path.display());
        let key = KeyPair::try_from(der.secret_der()).or_kind(ErrorKind::Config, wrong())?;
        let public = rcgen::PublicKeyData::subject_public_key_info(&key);
        for ca in load_certificates(&path)? {
            let (_, cert) = X509Certificate::from_der(&ca).map_err(|e| {
                Error::config(format!("{}: cannot be read", path.display())).with_source(e.to_string())
            })?;
            if cert.public_key().raw != public {
                continue;
            }
            let at = |t: i64| u64::try_from(t).unwrap_or(0);
            let validity = (at(cert.validity().not_before.timestamp()), at(cert.validity().not_after.timestamp()));
            let issuer = Issuer::from_ca_cert_der(&ca, key)
                .or_kind(ErrorKind::Config, format!("{}: is no authority", path.display()))?;
            return Ok(Self { dir: dir.to_owned(), issuer, validity });
        }
        Err(Error::config(format!("{}: no certificate of the key {}", path.display(), key_path.display())))
    }

    /// Issues a certificate into `out`, with a copy of `ca.crt` where `out` is another folder.
    pub fn issue(&self, leaf: &Leaf, out: &Path, force: bool, now: SystemTime) -> Result<Issued> {
        let name = leaf.file_name();
        let issued = Issued {
            cert: out.join(format!("{name}.crt")),
            key: out.join(format!("{name}.key")),
            ca: out.join(CA_CERT),
        };
        if !force {
            files::must_not_exist(&issued.cert)?;
            files::must_not_exist(&issued.key)?;
        }
        let key = new_key()?;
        let cert = self.sign(leaf, &key, now)?;
        files::make_dir(out)?;
        self.copy_ca(&issued.ca, force)?;
        files::write(&issued.key, key.serialize_pem().as_bytes(), force)?;
        files::write(&issued.cert, cert.pem().as_bytes(), force)?;
        Ok(issued)
    }

    fn sign(&self, leaf: &Leaf, key: &KeyPair, now: SystemTime) -> Result<Certificate> {
        let now = seconds(now);
        let until = now + u64::from(leaf.days) * DAY;
        if leaf.days == 0 || until > self.validity.1 {
            return Err(Error::request(format!(
                "{} days cannot be given: the authority itself ends in {} days; use fewer --days or renew it",
                leaf.days,
                self.validity.1.saturating_sub(now) / DAY
            )));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, leaf.file_name());
        params.subject_alt_names = alternative_names(leaf)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !matches!(leaf.identity, Identity::Operator { .. }) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, now.saturating_sub(BACKDATE_SECONDS).max(self.validity.0), until);
        params.signed_by(key, &self.issuer).or_kind(ErrorKind::Request, "the certificate cannot be made")
    }

    fn copy_ca(&self, to: &Path, force: bool) -> Result<()> {
        let from = self.dir.join(CA_CERT);
        let ours = fs::read(&from).or_kind(ErrorKind::Config, format!("{}: cannot be read", from.display()))?;
        match fs::read(to) {
            Err(_) => files::write(to, &ours, force),
            Ok(theirs) if holds_all(&theirs, &ours) => Ok(()),
            Ok(_) if force => files::write(to, &ours, true),
            Ok(_) => Err(Error::conflict(format!(
                "{}: is of another authority; --force replaces it, or choose another --out",
                to.display()
            ))),
        }
    }
}

/// Whether every certificate of `wanted` is in `bundle`.
fn holds_all(bundle: &[u8], wanted: &[u8]) -> bool {
    let certs = |pem| CertificateDer::pem_slice_iter(pem).filter_map(|c| c.ok()).collect::<Vec<_>>();
    let have = certs(bundle);
    certs(wanted).iter().all(|c| have.contains(c))
}

fn alternative_names(leaf: &Leaf) -> Result<Vec<SanType>> {
    let uri = leaf.identity.to_string();
    let mut names = vec![SanType::URI(uri.as_str().try_into().or_kind(ErrorKind::Bug, "identity URI")?)];
    for host in &leaf.hosts {
        names.push(match host.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(
                host.as_str()
                    .try_into()
                    .or_kind(ErrorKind::Request, format!("`{host}` is no host name or address"))?,
            ),
        });
    }
    Ok(names)
}
