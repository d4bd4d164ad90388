//! Damaged repositories are found, named, and never restored from.

use std::path::{Path, PathBuf};

use tidemark_proto::ErrorKind;
use tidemark_tests::fleet::{Fleet, records_at, restore_of};

use crate::steps::{assert_holds, assert_takes_writes, fill};

async fn backed_up() -> Fleet {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    fill(&fleet.router("orders", 2).await, 1, 2000).await;
    let _ = fleet.backup("orders").await.unwrap();
    fleet
}

fn name(pack: &Path) -> String {
    pack.file_name().unwrap().to_string_lossy().into_owned()
}

/// A place in the first block of a pack.
const IN_A_BLOCK: usize = 60;

/// Flips a bit of the largest pack.
fn flip(fleet: &Fleet, at: impl Fn(usize) -> usize) -> PathBuf {
    let pack = fleet.packs("orders").remove(0);
    let mut bytes = std::fs::read(&pack).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 0x10;
    std::fs::write(&pack, bytes).unwrap();
    pack
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_names_the_pack_and_no_restore_uses_it() {
    let mut fleet = backed_up().await;
    let verified = fleet.verify("orders", "latest").await;
    assert!(verified.is_ok(), "{verified:?}");
    // Anywhere in the middle, be it a block or an index; that undone, in a block.
    for place in [|len| len / 2, |len| len - 40, |_| IN_A_BLOCK] as [fn(usize) -> usize; 3] {
        let pack = flip(&fleet, place);
        let error = fleet.verify("orders", "latest").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.message().contains(&name(&pack)), "{} does not name {}", error.message(), name(&pack));
        let _ = flip(&fleet, place);
        let verified = fleet.verify("orders", "latest").await;
        assert!(verified.is_ok(), "{verified:?}");
    }
    let _ = flip(&fleet, |_| IN_A_BLOCK);
    // Neither onto empty nodes nor over the data that is there.
    let router = fleet.router("orders", 2).await;
    fill(&router, 2, 100).await;
    let before = records_at(&router, None).await;
    let mut request = restore_of("orders", "orders");
    request.in_place = true;
    let error = fleet.restore(&request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert_holds(&fleet, "orders", 2, &before).await;
    assert_takes_writes(&fleet, "orders", 2).await;
    fleet.add_cluster("copy", 3).await;
    let error = fleet.restore(&restore_of("orders", "copy")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    let copy = fleet.router("copy", 3).await;
    assert!(records_at(&copy, None).await.is_empty());
    assert_takes_writes(&fleet, "copy", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_finds_missing_and_short_packs() {
    let fleet = backed_up().await;
    assert!(fleet.check_repository().await.iter().all(Result::is_ok));
    let pack = fleet.packs("orders").remove(0);
    let bytes = std::fs::read(&pack).unwrap();
    std::fs::write(&pack, &bytes[..bytes.len() / 2]).unwrap();
    let error = fleet.check_repository().await.remove(0).unwrap_err();
    assert!(error.message().contains(&name(&pack)) && error.kind() == ErrorKind::Damaged, "{error}");
    std::fs::remove_file(&pack).unwrap();
    let error = fleet.check_repository().await.remove(0).unwrap_err();
    assert!(error.message().contains(&name(&pack)) && error.message().contains("missing"), "{error}");
    let error = fleet.verify("orders", "latest").await.unwrap_err();
    assert!(error.message().contains(&name(&pack)), "{error}");
    std::fs::write(&pack, &bytes).unwrap();
    assert!(fleet.check_repository().await.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_is_named_and_not_restored() {
    let fleet = backed_up().await;
    let roots = fleet.repository().join("clusters/orders/roots");
    for file in std::fs::read_dir(roots).unwrap() {
        let path = file.unwrap().path();
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 3] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let error = fleet.check_repository().await.remove(0).unwrap_err();
        assert!(error.message().contains(&name(&path)) && error.kind() == ErrorKind::Damaged, "{error}");
        assert_eq!(fleet.plan(&restore_of("orders", "orders")).await.unwrap_err().kind(), ErrorKind::Damaged);
        std::fs::write(&path, good).unwrap();
    }
    assert!(fleet.check_repository().await.iter().all(Result::is_ok));
}
