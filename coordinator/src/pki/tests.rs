use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tidemark_common::clock::SystemClock;
use tidemark_common::pki::{Credentials, PkiPaths};
use tidemark_proto::ErrorKind;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

fn authority() -> (TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let _ = Authority::create(dir.path(), "test", CA_DAYS, false, SystemClock.time()).unwrap();
    let authority = Authority::open(dir.path()).unwrap();
    (dir, authority)
}

fn leaf(uri: &str, days: u32) -> Leaf {
    Leaf { identity: uri.parse().unwrap(), hosts: Vec::new(), days }
}

fn issue(authority: &Authority, uri: &str, out: &Path) -> Issued {
    authority.issue(&leaf(uri, LEAF_DAYS), out, false, SystemClock.time()).unwrap()
}

#[test]
fn issued_files_load_as_credentials() {
    let (dir, authority) = authority();
    let out = dir.path().join("handed/out");
    for uri in ["tidemark://agent/orders.eu/n_1", "tidemark://coordinator/c", "tidemark://operator/alice"] {
        let issued = issue(&authority, uri, &out);
        for path in [&issued.cert, &issued.key, &issued.ca] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
        }
        let paths = PkiPaths { ca: issued.ca, cert: issued.cert, key: issued.key };
        assert_eq!(Credentials::load(paths).unwrap().identity().to_string(), uri);
    }
    let names: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 7, "three pairs, one authority, nothing temporary: {names:?}");
    assert!(!names.iter().any(|n| n == CA_KEY));
}

#[test]
fn nothing_is_replaced_without_force() {
    let (dir, authority) = authority();
    let again = Authority::create(dir.path(), "test", CA_DAYS, false, SystemClock.time());
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Conflict);
    let uri = "tidemark://agent/a/b";
    let issued = issue(&authority, uri, dir.path());
    let before = fs::read(&issued.key).unwrap();
    let refused = authority.issue(&leaf(uri, 1), dir.path(), false, SystemClock.time()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert_eq!(fs::read(&issued.key).unwrap(), before);
    let _ = authority.issue(&leaf(uri, 1), dir.path(), true, SystemClock.time()).unwrap();
    assert_ne!(fs::read(&issued.key).unwrap(), before);
}

#[test]
fn a_foreign_authority_in_the_way_is_a_conflict() {
    let ((_one, first), (two, _second)) = (authority(), authority());
    let refused = first.issue(&leaf("tidemark://agent/a/b", 1), two.path(), false, SystemClock.time()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(!two.path().join("agent-a-b.key").exists());
}

#[test]
fn no_certificate_outlives_its_authority() {
    let (dir, authority) = authority();
    let refused =
        authority.issue(&leaf("tidemark://agent/a/b", CA_DAYS + 1), dir.path(), false, SystemClock.time());
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Request);
    let late = SystemClock.time() + Duration::from_secs(u64::from(CA_DAYS) * DAY);
    assert!(authority.issue(&leaf("tidemark://agent/a/b", 1), dir.path(), false, late).is_err());
    assert!(!dir.path().join("agent-a-b.key").exists());
}

#[test]
fn extensions_say_what_a_certificate_is_for() {
    let (dir, authority) = authority();
    let usage = |path: &Path| {
        let der = tidemark_common::pki::load_certificates(path).unwrap().remove(0);
        let (_, cert) = X509Certificate::from_der(&der).unwrap();
        let extended = cert.extended_key_usage().unwrap().map(|u| (u.value.client_auth, u.value.server_auth));
        let constraints = cert.basic_constraints().unwrap().map(|c| (c.value.ca, c.value.path_len_constraint));
        (constraints, extended)
    };
    assert_eq!(usage(&dir.path().join(CA_CERT)), (Some((true, Some(0))), None));
    let agent = issue(&authority, "tidemark://agent/a/b", dir.path());
    assert_eq!(usage(&agent.cert), (Some((false, None)), Some((true, true))));
    let operator = issue(&authority, "tidemark://operator/o", dir.path());
    assert_eq!(usage(&operator.cert), (Some((false, None)), Some((true, false))));
}

#[test]
fn hosts_become_names_and_addresses() {
    let (dir, authority) = authority();
    let mut wanted = leaf("tidemark://coordinator/c", 10);
    wanted.hosts = vec!["backup.example".into(), "::1".into(), "10.0.0.1".into()];
    let issued = authority.issue(&wanted, dir.path(), false, SystemClock.time()).unwrap();
    let der = tidemark_common::pki::load_certificates(&issued.cert).unwrap().remove(0);
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    let names = cert.subject_alternative_name().unwrap().unwrap().value.general_names.len();
    assert_eq!(names, 4);
    wanted.hosts = vec!["not a host ü".into()];
    let refused = authority.issue(&wanted, dir.path(), true, SystemClock.time()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Request);
}

#[test]
fn show_tells_role_and_days() {
    let (dir, authority) = authority();
    let issued = authority.issue(&leaf("tidemark://agent/a/b", 10), dir.path(), false, SystemClock.time()).unwrap();
    let info = inspect(&issued.cert, SystemClock.time()).unwrap().remove(0);
    assert_eq!((info.role.as_str(), info.identity.as_str()), ("agent", "tidemark://agent/a/b"));
    assert!((9..=10).contains(&info.days_left), "{}", info.days_left);
    assert_eq!(info.fingerprint.len(), 64);
    let late = SystemClock.time() + Duration::from_secs(11 * DAY);
    assert!(inspect(&issued.cert, late).unwrap()[0].days_left < 0);
    assert_eq!(inspect(&issued.ca, SystemClock.time()).unwrap()[0].role, "authority");
}
