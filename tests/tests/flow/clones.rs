//! Clones on real processes: made under load on all nodes or on none, read, written, dropped; nodes that die.

use tidemark_coordinator::clones::{CloneItem, DroppedClone};
use tidemark_coordinator::kv::{Router, check};
use tidemark_proto::{ErrorKind, Result, Timestamp};
use tidemark_tests::fleet::{EngineKind, Fleet, Records, eventually, records_at, restore_of, write};

use crate::steps::{Running, assert_same, chains_have, fill};

const NODES: u16 = 3;

async fn create(fleet: &Fleet, name: &str, at: Option<u64>) -> Result<CloneItem> {
    fleet.api().post("clusters/orders/clones", &serde_json::json!({ "name": name, "at": at })).await
}

async fn list(fleet: &Fleet) -> Vec<CloneItem> {
    fleet.api().get("clusters/orders/clones").await.expect("list of clones")
}

async fn drop_clone(fleet: &Fleet, name: &str) -> Result<DroppedClone> {
    fleet.api().delete(&format!("clusters/orders/clones/{name}")).await
}

async fn value(router: &Router, key: &str) -> Result<Option<Vec<u8>>> {
    Ok(router.get(key.as_bytes().to_vec(), None).await?.map(|r| r.value))
}

fn keys_on(router: &Router, prefix: &str, node: usize) -> String {
    (0..).map(|n| format!("{prefix}:{n}")).find(|k| router.node_of(k.as_bytes()) == node).expect("a key")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_made_under_load_is_the_parent_at_its_time_and_lives_on_its_own() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", NODES).await;
    let router = fleet.router("orders", usize::from(NODES)).await;
    fill(&router, 1, 3000).await;
    let load = Running::start(&router, 2, 3000);
    chains_have(&router, 20).await;
    let shown = fleet.tidemark(&["clone", "create", "trial", "--cluster", "orders", "-o", "json"]).await;
    let clone: CloneItem = serde_json::from_str(&shown).expect("JSON");
    assert_eq!((clone.state.as_str(), clone.nodes.len(), clone.missing.len()), ("complete", 3, 0));
    // The load goes on: what it writes now must not show.
    let steps = check(&router, None).await.expect("check").chain_steps;
    chains_have(&router, steps + 20).await;
    let _ = load.stop().await;
    let trial = router.of_clone(&"trial".parse().expect("name"));
    let at = Timestamp(clone.at);
    let expected = records_at(&router, Some(at)).await;
    assert!(expected.len() > 3000, "{}", expected.len());
    assert_same(&records_at(&trial, None).await, &expected);
    let checked = check(&trial, None).await.expect("check");
    assert!(checked.is_clean() && checked.chain_steps >= 20, "{checked:?}");
    let parent = records_at(&router, None).await;
    assert_ne!(parent, expected, "the parent has gone on");

    // Each writes what the other does not see.
    let mut mine = expected.clone();
    for n in 0..30 {
        let key = format!("mine:{n}");
        let _ = write(&trial, key.as_bytes(), Some(b"in the clone")).await.expect("a write");
        let _ = mine.insert(key.into_bytes(), b"in the clone".to_vec());
        let gone = format!("load:1:{n}");
        let _ = write(&trial, gone.as_bytes(), None).await.expect("a delete");
        assert!(mine.remove(gone.as_bytes()).is_some());
    }
    let _ = fleet.tidemark(&["kv", "put", "load:1:99", "changed", "--clone", "trial", "-C", "orders"]).await;
    let _ = mine.insert(b"load:1:99".to_vec(), b"changed".to_vec());
    let _ = write(&router, b"theirs", Some(b"in the parent")).await.expect("a write");
    let mut parent = parent;
    let _ = parent.insert(b"theirs".to_vec(), b"in the parent".to_vec());
    assert_same(&records_at(&trial, None).await, &mine);
    assert_same(&records_at(&router, None).await, &parent);
    // And by the command line.
    let shown = fleet.tidemark(&["kv", "--clone", "trial", "get", "load:1:99", "-C", "orders"]).await;
    assert_eq!(shown, "changed\n");
    let at = clone.at.to_string();
    let scan = ["kv", "scan", "mine:", "--clone", "trial", "-C", "orders", "--at", &at, "-o", "json"];
    let shown: serde_json::Value = serde_json::from_str(&fleet.tidemark(&scan).await).expect("JSON");
    assert_eq!(shown["records"].as_array().map(Vec::len), Some(0), "not there yet at its time");
    let early = (clone.at - 1).to_string();
    let told =
        fleet.try_tidemark(&["kv", "get", "theirs", "--clone", "trial", "-C", "orders", "--at", &early]).await;
    assert!(told.unwrap_err().contains("begins at"));

    // A backup knows nothing of it.
    let backup = fleet.backup("orders").await.expect("a backup");
    assert_eq!(backup.item.records, parent.len() as u64);

    // Killed as by kill -9, the node comes back with its clone.
    fleet.agent("orders", "n1").process.kill().await;
    fleet.restart_agent("orders", "n1");
    let router = fleet.router("orders", usize::from(NODES)).await;
    let trial = router.of_clone(&"trial".parse().expect("name"));
    assert_same(&records_at(&trial, None).await, &mine);
    assert_same(&records_at(&router, None).await, &parent);
    let _ =
        write(&trial, keys_on(&trial, "after", 1).as_bytes(), Some(b"1")).await.expect("a write after the death");
}

/// Names that stand, names that do not, restores meanwhile, and what is told of it.
#[tokio::test(flavor = "multi_thread")]
async fn names_restores_and_the_end_of_a_clone() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 200).await;
    let expected: Records = records_at(&router, None).await;
    let _ = fleet.backup("orders").await.expect("a backup");
    let first = create(&fleet, "trial", None).await.expect("a clone");
    assert_eq!(create(&fleet, "trial", Some(first.at)).await.expect("the same"), first);
    let refused = create(&fleet, "trial", None).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.message().contains(&first.at.to_string()), "{refused}");
    let future = create(&fleet, "soon", Some(first.at + (3_600_000 << 18))).await.unwrap_err();
    assert!(future.kind() == ErrorKind::Request && future.message().contains("future"), "{future}");
    let old = create(&fleet, "old", Some(Timestamp::new(1_000_000_000_000, 0).0)).await;
    // Nothing was collected yet, so the emptiness of that time is still known.
    assert_eq!(old.expect("a clone of long ago").state, "complete");
    let long_ago = router.of_clone(&"old".parse().expect("name"));
    assert!(records_at(&long_ago, None).await.is_empty());
    assert!(
        fleet
            .api()
            .post::<CloneItem>("clusters/orders/clones", &serde_json::json!({"name": "Bad name"}))
            .await
            .is_err()
    );
    assert_eq!(
        fleet.api().get::<Vec<CloneItem>>("clusters/nowhere/clones").await.unwrap_err().kind(),
        ErrorKind::NotFound
    );

    let names: Vec<_> = list(&fleet).await.into_iter().map(|c| (c.name, c.state)).collect();
    assert_eq!(names, [("old".to_owned(), "complete".to_owned()), ("trial".to_owned(), "complete".to_owned())]);
    let shown = fleet.tidemark(&["clone", "list", "-C", "orders"]).await;
    assert!(
        shown.contains("trial") && shown.contains("complete") && shown.contains(&first.at.to_string()),
        "{shown}"
    );
    assert_eq!(fleet.scrape_agent("orders", "n0").await.value("tidemark_agent_clones"), 2.0);

    // A restore would take away what lies under them: the plan says so, and nothing is changed.
    let mut request = restore_of("orders", "orders");
    request.in_place = true;
    let plan = fleet.plan(&request).await.expect("a plan");
    assert!(
        plan.problems.iter().any(|p| p.contains("old, trial") && p.contains("clone drop")),
        "{:?}",
        plan.problems
    );
    let refused = fleet.restore(&request).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Conflict && refused.message().contains("old, trial"), "{refused}");
    assert_eq!(fleet.backups("orders").await.len(), 1, "no safety backup was taken either");
    let trial = router.of_clone(&"trial".parse().expect("name"));
    assert_same(&records_at(&trial, None).await, &expected);

    let nobody = router.of_clone(&"nobody".parse().expect("name"));
    for refused in [value(&nobody, "k").await.unwrap_err(), write(&nobody, b"k", Some(b"v")).await.unwrap_err()] {
        assert!(refused.kind() == ErrorKind::NotFound && refused.report().contains("nobody"), "{refused}");
    }
    assert_eq!(drop_clone(&fleet, "nobody").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(fleet.try_tidemark(&["clone", "drop", "trial", "-C", "orders"]).await.is_err(), "nobody said yes");
    let shown = fleet.tidemark(&["clone", "drop", "trial", "-C", "orders", "-y"]).await;
    assert!(shown.contains("dropped"), "{shown}");
    assert_eq!(drop_clone(&fleet, "trial").await.unwrap_err().kind(), ErrorKind::NotFound);
    for refused in [value(&trial, "k").await.unwrap_err(), write(&trial, b"k", Some(b"v")).await.unwrap_err()] {
        assert!(refused.kind() == ErrorKind::NotFound && refused.report().contains("dropped"), "{refused}");
    }
    assert_eq!(drop_clone(&fleet, "old").await.expect("a drop").nodes, ["n0", "n1"]);
    assert!(list(&fleet).await.is_empty());
    assert_eq!(fleet.scrape_agent("orders", "n0").await.value("tidemark_agent_clones"), 0.0);
    let _ = fleet.restore(&request).await.expect("nothing stands against it any more");
    assert_same(&records_at(&fleet.router("orders", 2).await, None).await, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_away_is_named_and_nothing_stays() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    fill(&fleet.router("orders", 2).await, 1, 100).await;
    // The policy knows its nodes from now on.
    let _ = fleet.backup("orders").await.expect("a backup");
    let stands = create(&fleet, "before", None).await.expect("a clone");
    fleet.stop_agent("orders", "n1").await;
    let refused = create(&fleet, "trial", None).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Retry && refused.message().contains("n1"), "{refused}");
    let found = list(&fleet).await;
    assert_eq!((found.len(), found[0].name.as_str(), found[0].state.as_str()), (1, "before", "unknown"));
    assert_eq!((&found[0].away, &found[0].missing), (&vec!["n1".to_owned()], &Vec::new()));
    // Dropped where it can be; the rest when the node is back.
    let half = drop_clone(&fleet, "before").await.unwrap_err();
    assert!(
        half.kind() == ErrorKind::Retry && half.message().contains("n0") && half.message().contains("n1"),
        "{half}"
    );
    fleet.restart_agent("orders", "n1");
    let _ = fleet.ready("orders", 2).await;
    let found = list(&fleet).await;
    assert_eq!(
        (found.len(), found[0].state.as_str(), &found[0].missing),
        (1, "incomplete", &vec!["n0".to_owned()])
    );
    let shown = fleet.tidemark(&["clone", "list", "-C", "orders"]).await;
    assert!(shown.contains("incomplete: not on n0"), "{shown}");
    // Made again as of its time it is whole.
    assert_eq!(create(&fleet, "before", Some(stands.at)).await.expect("whole again").state, "complete");
    assert_eq!(list(&fleet).await[0].state, "complete");
    assert_eq!(drop_clone(&fleet, "before").await.expect("a drop").nodes.len(), 2);
}

/// A node that dies when it has made the clone and not answered yet, and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_in_the_making_leaves_no_clone_on_the_others() {
    let mut fleet = Fleet::start().await;
    fleet
        .add_cluster_with("orders", 2, |spec| {
            if spec.node == "n1" {
                spec.env.push((tidemark_common::crash::VARIABLE.into(), "agent.clone-created".into()));
            }
        })
        .await;
    fill(&fleet.router("orders", 2).await, 1, 100).await;
    let api = fleet.api().clone();
    let making = tokio::spawn(async move {
        let wanted = serde_json::json!({ "name": "trial" });
        api.post::<CloneItem>("clusters/orders/clones", &wanted).await
    });
    fleet.revive_agent("orders", "n1").await;
    let refused = making.await.expect("no panic").unwrap_err();
    assert!(refused.kind() == ErrorKind::Retry && refused.message().contains("n1"), "{refused}");
    let _ = fleet.ready("orders", 2).await;
    let left = eventually("an answer of both nodes", async || {
        let found = list(&fleet).await;
        found.iter().all(|c| c.away.is_empty()).then_some(found)
    })
    .await;
    // It is back when it is told to drop what it made, as a rule; else what it has is told of, and on the other is nothing.
    if refused.message().contains("left on n1") {
        assert_eq!((left.len(), &left[0].nodes), (1, &vec!["n1".to_owned()]));
        assert_eq!(drop_clone(&fleet, "trial").await.expect("a drop").nodes, ["n1"]);
    } else {
        assert!(refused.message().contains("no node keeps anything") && left.is_empty(), "{refused}: {left:?}");
    }
    assert_eq!(create(&fleet, "trial", None).await.expect("a clone").state, "complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_clones_says_what_to_do_instead() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster_with("orders", 1, |spec| spec.engine = EngineKind::Memory).await;
    for refused in
        [create(&fleet, "trial", None).await.unwrap_err(), drop_clone(&fleet, "trial").await.unwrap_err()]
    {
        assert!(refused.kind() == ErrorKind::Unsupported && refused.message().contains("restore"), "{refused}");
    }
    let router = fleet.router("orders", 1).await;
    let refused = value(&router.of_clone(&"trial".parse().expect("name")), "k").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}
