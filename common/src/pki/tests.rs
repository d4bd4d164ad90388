use std::fs;
use std::os::unix::fs::PermissionsExt;

use tidemark_proto::ErrorKind;

use super::*;
use crate::testing::{TestFleet, write_private};

fn agent() -> Identity {
    "tidemark://agent/orders/n1".parse().unwrap()
}

#[test]
fn faults_name_their_file() {
    let fleet = TestFleet::new();
    let good = fleet.issue("a", &agent(), (-1, 30));
    let load = |paths: &PkiPaths| Credentials::load(paths.clone()).unwrap_err();
    for damage in ["ca", "cert", "key"] {
        let mut paths = good.clone();
        let victim = match damage {
            "ca" => &mut paths.ca,
            "cert" => &mut paths.cert,
            _ => &mut paths.key,
        };
        *victim = fleet.dir().join(format!("missing-{damage}"));
        let e = load(&paths);
        assert!(e.kind() == ErrorKind::Config && e.message().contains(&format!("missing-{damage}")), "{e}");
        write_private(&fleet.dir().join(format!("missing-{damage}")), "not PEM");
        let e = load(&paths);
        assert!(e.kind() == ErrorKind::Config && e.message().contains(&format!("missing-{damage}")), "{e}");
    }
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let fleet = TestFleet::new();
    let paths = fleet.issue("a", &agent(), (-1, 30));
    for mode in [0o640, 0o604, 0o620] {
        fs::set_permissions(&paths.key, fs::Permissions::from_mode(mode)).unwrap();
        let e = Credentials::load(paths.clone()).unwrap_err();
        assert!(e.message().contains("a.key") && e.message().contains("chmod 600"), "{e}");
    }
}

#[test]
fn a_bad_renewal_keeps_the_old_set_until_a_good_one_comes() {
    let fleet = TestFleet::new();
    let paths = fleet.issue("a", &agent(), (-1, 30));
    let credentials = TestFleet::open(paths.clone());
    let old = credentials.current().not_after;

    // The new certificate is there, its key is not yet.
    let next = fleet.issue("b", &agent(), (-1, 60));
    let _ = fs::copy(&next.cert, &paths.cert).unwrap();
    assert_eq!(credentials.current().not_after, old);
    let _ = fs::copy(&next.key, &paths.key).unwrap();
    assert!(credentials.current().not_after > old);

    let other = fleet.issue("c", &"tidemark://agent/orders/n2".parse().unwrap(), (-1, 90));
    let _ = fs::copy(&other.cert, &paths.cert).unwrap();
    let _ = fs::copy(&other.key, &paths.key).unwrap();
    assert_eq!(credentials.current().identity, agent());
}

#[test]
fn a_bundle_may_hold_several_authorities() {
    let (old, new) = (TestFleet::new(), TestFleet::new());
    let paths = old.issue("a", &agent(), (-1, 30));
    let credentials = TestFleet::open(paths.clone());
    assert_eq!(credentials.current().roots.len(), 1);
    let both = fs::read_to_string(&paths.ca).unwrap() + &fs::read_to_string(new.dir().join("ca.crt")).unwrap();
    fs::write(&paths.ca, both).unwrap();
    assert_eq!(credentials.current().roots.len(), 2);
}
