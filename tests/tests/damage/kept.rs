//! What nodes keep beside their records: damage to it is named, hits no record, and stops only who asks for users.

use tidemark_coordinator::job::restore::RestorePlan;

use super::*;

async fn plan_with_users(repository: &Repository, backup: &Backup, with_users: bool) -> RestorePlan {
    let manifest = open_manifest(repository, &cluster(), backup).await.expect("manifest");
    let node = Candidate {
        node: "t0".parse().expect("name"),
        engine: "memory".into(),
        engine_version: String::new(),
        replica: false,
        slots: SlotSet::all(),
        moving: SlotSet::EMPTY,
        records: 0,
    };
    let request = RestoreRequest { with_users, ..request(false) };
    plan_onto(manifest, vec![node], request).await.expect("plan")
}

#[tokio::test]
async fn kept_things() {
    for bench in benches().await {
        let key = kept_of(&bench.archive).await;
        let twin = bench.other.objects[&kept_of(&bench.other).await].clone();
        let backup = &bench.archive.backups[1].0;
        for blow in BLOWS {
            let outcome = bench.strike_with(&key, &twin, blow).await;
            let checked = outcome.check.as_ref().expect_err("check");
            let verified = outcome.verified[1].0.as_ref().expect_err("verify");
            for error in [checked, verified] {
                assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
                assert!(error.message().contains(&key), "{blow:?}: {error}");
            }
            assert!(checked.message().contains(&backup.job.to_string()), "{checked}");
            let damage = outcome.verified[1].1.as_ref().expect("damage for programs");
            assert_eq!((damage.parts, &damage.faults[0].object), (0, &key));
            assert!(outcome.verified[0].0.is_ok() && outcome.extracted[1].is_ok() && outcome.planned[1].is_ok());

            let store = store_of(&strike(&bench.archive, &key, &twin, blow)).await;
            let repository = Repository::open(store, bench.archive.master.as_ref()).await.expect("open");
            let plain = plan_with_users(&repository, backup, false).await;
            assert!(plain.problems.is_empty() && plain.missing.faults[0].object == key, "{plain:?}");
            let refused = plan_with_users(&repository, backup, true).await;
            assert!(refused.problems.len() == 1 && refused.problems[0].contains(&key), "{:?}", refused.problems);
        }
        let store = store_of(&bench.archive.objects).await;
        let repository = Repository::open(store, bench.archive.master.as_ref()).await.expect("open");
        let whole = plan_with_users(&repository, backup, true).await;
        assert!(whole.problems.is_empty() && whole.missing.is_none() && whole.warnings.is_empty(), "{whole:?}");
        let none = plan_with_users(&repository, &bench.archive.backups[0].0, true).await;
        assert!(none.problems[0].contains("holds no users"), "{:?}", none.problems);
    }
}

/// The kept things of the second backup; the first has none, and a root of the first version.
async fn kept_of(archive: &Archive) -> String {
    let store = store_of(&archive.objects).await;
    let repository = Repository::open(store, archive.master.as_ref()).await.expect("whole");
    let open = async |at: usize| {
        let manifest = open_manifest(&repository, &cluster(), &archive.backups[at].0).await.expect("whole");
        manifest.kept_ref().map(|kept| paths::root(&cluster(), &kept.hash))
    };
    assert!(open(0).await.is_none());
    open(1).await.expect("kept things")
}
