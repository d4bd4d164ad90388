//! Damaged backups: refused before any node is touched, or restored as far as they are healthy.

use std::path::{Path, PathBuf};
use std::process::Command;

use tidemark_coordinator::job::damage::Damage;
use tidemark_proto::{ErrorKind, slot_of};
use tidemark_tests::fleet::{CoordinatorSpec, EngineKind, Fleet, Records, binary, records_at, restore_of};

use crate::steps::{assert_holds, assert_same, assert_takes_writes, at_cut, fill};

/// What an agent says when its store is about to be replaced.
const BEGUN: &str = "restore begun";

/// Two nodes, backed up, and an empty cluster `copy` of three; what the backup holds.
async fn backed_up(sections: &str) -> (Fleet, Records) {
    let spec = CoordinatorSpec { sections: sections.into(), ..CoordinatorSpec::default() };
    let mut fleet = Fleet::start_with(spec).await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 3000).await;
    let backup = fleet.backup("orders").await.unwrap();
    let expected = at_cut(&router, &backup).await;
    // In memory: what is tried here are the coordinator and its commands.
    fleet.add_cluster_with("copy", 3, |agent| agent.engine = EngineKind::Memory).await;
    (fleet, expected)
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Roots and pages, largest first.
fn roots(fleet: &Fleet) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(fleet.repository().join("clusters/orders/roots")).unwrap();
    let mut found: Vec<_> = folder.map(|f| f.unwrap()).map(|f| (f.metadata().unwrap().len(), f.path())).collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

fn without(expected: &Records, damage: &Damage) -> Records {
    let healthy = expected.iter().filter(|(key, _)| !damage.slots.contains(slot_of(key)));
    healthy.map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn nobody_was_touched(fleet: &mut Fleet) {
    for node in ["n0", "n1", "n2"] {
        assert!(!fleet.agent("copy", node).process.log().contains(BEGUN), "{node}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salvage_restores_the_rest_and_lists_what_is_missing() {
    let (fleet, expected) = backed_up("").await;
    let packs = fleet.packs("orders");
    flip(&packs[0], 60);
    let mut request = restore_of("orders", "copy");
    request.salvage = true;
    let result = fleet.restore(&request).await.unwrap();
    assert_eq!(result["complete"], false, "{result}");
    let missing: Damage = serde_json::from_value(result["missing"].clone()).unwrap();
    assert_eq!((missing.parts, missing.faults.len()), (1, 1), "{missing:?}");
    assert!(missing.faults[0].object.ends_with(&name(&packs[0])), "{missing:?}");
    let healthy = without(&expected, &missing);
    assert!(healthy.len() < expected.len(), "the damaged part held nothing");
    assert_holds(&fleet, "copy", 3, &healthy).await;
    // In place, by the command line, over what is there: what is damaged is gone, and the exit code says so.
    let pki = |file: &str| fleet.dir().join("pki").join(file);
    let done = Command::new(binary("tidemark"))
        .args(["--coordinator", &format!("https://{}", fleet.coordinator().api_address)])
        .args([
            "restore",
            "run",
            "latest",
            "--cluster",
            "orders",
            "--target",
            "copy",
            "--in-place",
            "--salvage",
            "-y",
        ])
        .env("TIDEMARK_CA", pki("ca.crt"))
        .env("TIDEMARK_CERT", pki("operator-alice.crt"))
        .env("TIDEMARK_KEY", pki("operator-alice.key"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.code(), Some(6), "{done:?}");
    assert!(text.contains("MISSING: 1 parts of regions") && text.contains(&name(&packs[0])), "{text}");
    assert_holds(&fleet, "copy", 3, &healthy).await;
    assert_takes_writes(&fleet, "copy", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_page_costs_its_parts_alone() {
    // 2048 regions: two nodes make pages of 1024 and less.
    let (mut fleet, expected) = backed_up("[backup]\nslots_per_region = 8").await;
    let page = roots(&fleet).remove(1);
    std::fs::remove_file(&page).unwrap();
    let refused = fleet.restore(&restore_of("orders", "copy")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Damaged);
    assert!(refused.message().contains(&name(&page)) && refused.message().contains("salvage"), "{refused}");
    nobody_was_touched(&mut fleet);
    let mut request = restore_of("orders", "copy");
    request.salvage = true;
    let plan = fleet.plan(&request).await.unwrap();
    assert!(plan.problems.is_empty() && plan.missing.parts > 0, "{:?}", plan.missing.parts);
    let result = fleet.restore(&request).await.unwrap();
    let missing: Damage = serde_json::from_value(result["missing"].clone()).unwrap();
    assert_eq!(missing, plan.missing);
    let healthy = without(&expected, &missing);
    assert!(!healthy.is_empty() && healthy.len() < expected.len());
    assert_holds(&fleet, "copy", 3, &healthy).await;
    // The root is another matter.
    for root in roots(&fleet) {
        std::fs::remove_file(root).unwrap();
    }
    assert_eq!(fleet.plan(&request).await.unwrap_err().kind(), ErrorKind::Damaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_short_packs_are_found_before_any_node_begins() {
    let (mut fleet, expected) = backed_up("").await;
    let pack = fleet.packs("orders").remove(0);
    let bytes = std::fs::read(&pack).unwrap();
    for damaged in [Some(&bytes[..bytes.len() / 2]), None] {
        match damaged {
            Some(half) => std::fs::write(&pack, half).unwrap(),
            None => std::fs::remove_file(&pack).unwrap(),
        }
        let refused = fleet.restore(&restore_of("orders", "copy")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Damaged);
        assert!(refused.message().contains(&name(&pack)) && refused.message().contains("region"), "{refused}");
    }
    // An index that does not open is found before the first node as well: it lies at the end of its pack.
    std::fs::write(&pack, &bytes).unwrap();
    flip(&pack, bytes.len() - 40);
    let refused = fleet.restore(&restore_of("orders", "copy")).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Damaged && refused.message().contains(&name(&pack)), "{refused}");
    nobody_was_touched(&mut fleet);
    // With everything gone there is nothing to salvage.
    for pack in fleet.packs("orders") {
        std::fs::remove_file(pack).unwrap();
    }
    let mut request = restore_of("orders", "copy");
    request.salvage = true;
    assert_eq!(fleet.restore(&request).await.unwrap_err().kind(), ErrorKind::Damaged);
    nobody_was_touched(&mut fleet);
    assert_same(&records_at(&fleet.router("orders", 2).await, None).await, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shorter_history_is_noticed_by_coordinator_and_nodes() {
    let (mut fleet, expected) = backed_up("").await;
    let first = fleet.backups("orders").await.remove(0);
    let second = fleet.backup("orders").await.unwrap();
    let folder = fleet.repository().join("clusters/orders/ledger");
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    entries.sort();
    // The second backup's entry is the last one.
    let removed = entries.pop().unwrap();
    std::fs::remove_file(&removed).unwrap();
    for restarted in [false, true] {
        if restarted {
            // What the coordinator forgot the nodes still know.
            fleet.restart_coordinator().await;
            let _ = fleet.ready("orders", 2).await;
            let _ = fleet.ready("copy", 3).await;
        }
        let checked = fleet.check_repository().await.remove(0);
        let Err(checked) = checked else {
            panic!("restarted: {restarted}, removed {removed:?}, left {entries:?}: {checked:?}")
        };
        assert_eq!(checked.kind(), ErrorKind::Damaged);
        // A coordinator that came later has written its fence under the lost number.
        let told = if restarted { "was told of" } else { "history is missing" };
        assert!(checked.message().contains(told), "{checked}");
        let refused = fleet.plan(&restore_of("orders", "copy")).await.unwrap_err();
        assert!(refused.kind() == ErrorKind::Damaged && refused.message().contains("by its id"), "{refused}");
    }
    assert!(second.item.id != first.id);
    let mut request = restore_of("orders", "copy");
    request.backup = first.id;
    let _ = fleet.restore(&request).await.unwrap();
    assert_holds(&fleet, "copy", 3, &expected).await;
}
