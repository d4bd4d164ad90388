//! Repositories: encrypted and plain, and what outlives a coordinator.

use std::process::Command;

use tidemark_tests::fleet::{CoordinatorSpec, Fleet, binary, restore_of};

use crate::steps::{assert_holds, at_cut, fill};

/// Whether any object of the repository holds `needle` as it is.
fn repository_holds(fleet: &Fleet, needle: &[u8]) -> bool {
    let (mut folders, mut seen) = (vec![fleet.repository()], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            seen += 1;
            if std::fs::read(&path).unwrap().windows(needle.len()).any(|w| w == needle) {
                return true;
            }
        }
    }
    assert!(seen > 5, "a repository of {seen} objects");
    false
}

/// A value that compression leaves readable.
const SECRET: &[u8] = b"the launch code is 8371-4fb1";

async fn round_trip(spec: CoordinatorSpec) -> Fleet {
    let mut fleet = Fleet::start_with(spec).await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 300).await;
    let _ = tidemark_tests::fleet::write(&router, b"secret", Some(SECRET)).await.unwrap();
    let backup = fleet.backup("orders").await.unwrap();
    let expected = at_cut(&router, &backup).await;
    fleet.add_cluster("copy", 3).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    assert_holds(&fleet, "copy", 3, &expected).await;
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_repository_shows_nothing() {
    let fleet = round_trip(CoordinatorSpec::default()).await;
    for needle in [SECRET, b"launch code", b"load:1:", b"node", b"embedded"] {
        assert!(!repository_holds(&fleet, needle), "{}", String::from_utf8_lossy(needle));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_without_encryption_works() {
    let fleet = round_trip(CoordinatorSpec { plain: true, ..CoordinatorSpec::default() }).await;
    assert!(repository_holds(&fleet, b"launch code"), "the other test would find nothing either");
    let info: serde_json::Value = fleet.api().get("repository").await.unwrap();
    assert_eq!(info["encrypted"], false);
}

#[test]
fn a_repository_is_not_made_plain_by_accident() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().display());
    let init = |args: &[&str]| {
        let mut command = Command::new(binary("tidemark"));
        let _ = command.args(["repo", "init", "--repository", &url]).args(args).env_remove("TIDEMARK_MASTER_KEY");
        command.output().unwrap()
    };
    let refused = init(&[]);
    assert_eq!(refused.status.code(), Some(64), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--insecure-no-encryption"), "{refused:?}");
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "a refusal writes nothing");
    assert!(init(&["--insecure-no-encryption"]).status.success());
    let again = init(&["--insecure-no-encryption"]);
    assert_eq!(again.status.code(), Some(4), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_coordinator_on_the_repository_goes_on() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 1000).await;
    let first = fleet.backup("orders").await.unwrap();
    let expected = at_cut(&router, &first).await;
    let status: serde_json::Value = fleet.api().get("status").await.unwrap();
    fleet.restart_coordinator().await;
    let after: serde_json::Value = fleet.api().get("status").await.unwrap();
    assert!(after["epoch"].as_u64() > status["epoch"].as_u64(), "{after}");
    let listed = fleet.backups("orders").await;
    assert_eq!((listed.len(), &listed[0].id), (1, &first.item.id));
    // The agents found their way back, and the history goes on.
    let _ = fleet.ready("orders", 2).await;
    let second = fleet.backup("orders").await.unwrap();
    assert!(second.parent == first.root && second.full_parts == 0, "{second:?}");
    fleet.add_cluster("copy", 3).await;
    let mut request = restore_of("orders", "copy");
    request.backup = first.item.id.clone();
    let _ = fleet.restore(&request).await.unwrap();
    assert_holds(&fleet, "copy", 3, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_backup_is_no_restore_point() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 1).await;
    let router = fleet.router("orders", 1).await;
    fill(&router, 1, 100).await;
    let first = fleet.backup("orders").await.unwrap();
    fill(&router, 2, 10).await;
    let second = fleet.backup("orders").await.unwrap();
    let path = format!("clusters/orders/backups/{}", second.item.id);
    let _: serde_json::Value = fleet.api().delete(&path).await.unwrap();
    assert!(fleet.api().get::<serde_json::Value>(&path).await.is_err());
    let plan = fleet.plan(&restore_of("orders", "orders")).await.unwrap();
    assert_eq!(plan.backup.to_string(), first.item.id);
    // What comes after builds on what still stands.
    let third = fleet.backup("orders").await.unwrap();
    assert!(third.item.cut > second.item.cut && third.item.records == 110, "{third:?}");
    let expected = at_cut(&router, &third).await;
    fleet.add_cluster("copy", 1).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    assert_holds(&fleet, "copy", 1, &expected).await;
}
