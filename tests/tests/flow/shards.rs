//! Backups of a Redis Cluster: who takes part, slots that move, an agent that is missing.

use std::time::{Duration, Instant};

use tidemark_coordinator::job::JobInfo;
use tidemark_proto::{ErrorKind, SlotSet};
use tidemark_tests::fleet::{AgentSpec, EngineKind, Fleet, eventually};
use tidemark_tests::redis::{Cluster, Flavor};

const KEYS: usize = 900;

/// Three primaries with keys, each with its agent `n0` to `n2`.
async fn three() -> (Fleet, Cluster) {
    let cluster = tokio::task::spawn_blocking(|| {
        let cluster = Cluster::start(Flavor::Redis, 3, &[]);
        for i in 0..KEYS {
            let key = format!("key:{i}");
            let _ = cluster.owner(key.as_bytes()).client().call(&["SET", &key, "value"]);
        }
        cluster
    });
    let cluster = cluster.await.expect("a Cluster");
    let mut fleet = Fleet::start().await;
    for (n, port) in cluster.ports().into_iter().enumerate() {
        let mut spec = AgentSpec::new("cache", &format!("n{n}"), SlotSet::EMPTY);
        spec.engine = EngineKind::Redis(format!("127.0.0.1:{port}"), String::new());
        fleet.start_agent(spec);
    }
    let detail = fleet.ready("cache", 3).await;
    assert!(detail.nodes.iter().all(|n| n.role == "primary"), "{detail:?}");
    (fleet, cluster)
}

#[tokio::test]
async fn a_cluster_is_backed_up_and_a_missing_agent_is_told_of_by_its_slots() {
    let (mut fleet, _cluster) = three().await;
    let backup = fleet.backup("cache").await.unwrap();
    assert_eq!((backup.item.nodes, backup.item.records), (3, KEYS as u64));
    let open: serde_json::Value = fleet.api().get("clusters/cache/open-jobs").await.unwrap();
    for node in open.as_array().unwrap() {
        assert_eq!(node["backups"], serde_json::json!([]), "a base stayed after its backup: {open}");
    }
    fleet.stop_agent("cache", "n1").await;
    let _ = eventually("n1 to be away", async || {
        let open: serde_json::Value = fleet.api().get("clusters/cache/open-jobs").await.ok()?;
        (open.as_array()?.len() == 2).then_some(())
    })
    .await;
    let error = fleet.backup("cache").await.unwrap_err();
    assert!(
        error.report().contains("no node owns slots")
            && error.report().contains("an agent beside a primary is missing"),
        "{}",
        error.report()
    );
}

#[tokio::test]
async fn a_replica_stands_in_for_its_primary_and_the_primary_for_it() {
    let (mut fleet, mut cluster) = three().await;
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.add_replica(1, &[]);
        cluster
    });
    let cluster = cluster.await.expect("a replica");
    let mut spec = AgentSpec::new("cache", "n3", SlotSet::EMPTY);
    spec.engine = EngineKind::Redis(format!("127.0.0.1:{}", cluster.ports()[3]), String::new());
    fleet.start_agent(spec);
    let detail = fleet.ready("cache", 4).await;
    let replica = detail.nodes.iter().find(|n| n.node == "n3").unwrap();
    assert_eq!((&replica.role[..], &replica.follows[..]), ("replica", "n1"));
    let nodes = |b: &tidemark_coordinator::catalog::BackupDetail| {
        b.node_evidence.iter().map(|n| n.node.clone()).collect::<Vec<_>>()
    };
    assert_eq!(nodes(&fleet.backup("cache").await.unwrap()), ["n0", "n2", "n3"]);
    // A server gives such a request up after 5 s: a primary that has not heard of its new replica yet does not answer it.
    const ASK_AGAIN: Duration = Duration::from_secs(7);
    let mut asked: Option<Instant> = None;
    eventually("n3 to own the slots", async || {
        if asked.is_none_or(|at| at.elapsed() > ASK_AGAIN) {
            asked = Some(Instant::now());
            let _ = cluster.nodes[3].1.client().ask(&["CLUSTER", "FAILOVER"]);
        }
        let detail = fleet.ready("cache", 4).await;
        let role = |name: &str| detail.nodes.iter().find(|n| n.node == name).map(|n| n.role.clone());
        (role("n3")? == "primary" && role("n1")? == "replica").then_some(())
    })
    .await;
    let second = fleet.backup("cache").await.unwrap();
    assert_eq!((nodes(&second), second.item.records), (vec!["n0".into(), "n2".into(), "n3".into()], KEYS as u64));
}

#[tokio::test]
async fn a_backup_waits_while_slots_move() {
    let (fleet, cluster) = three().await;
    let mut source = cluster.nodes[0].1.client();
    let slot = source.run("CLUSTER SLOTS").array();
    let own = cluster.ports()[0];
    let range = slot.into_iter().map(|r| r.array()).find(|r| r[2].clone().array()[1].integer() == i64::from(own));
    let slot = range.expect("slots of the first node")[0].integer();
    let target = cluster.nodes[1].1.client().run("CLUSTER MYID").text();
    assert_eq!(source.run(&format!("CLUSTER SETSLOT {slot} MIGRATING {target}")).text(), "OK");
    let job = fleet.start_backup("cache").await.unwrap();
    eventually("the job to wait for the slots", async || {
        let job: JobInfo = fleet.api().get(&format!("jobs/{}", job.id)).await.ok()?;
        assert!(!tidemark_tests::fleet::ended(&job), "{job:?}");
        (job.phase == "waiting for slots that move").then_some(())
    })
    .await;
    assert_eq!(source.run(&format!("CLUSTER SETSLOT {slot} STABLE")).text(), "OK");
    let result = fleet.api().job_end(&job).await;
    assert!(result.is_ok(), "{:?}", result.map_err(|e| (e.kind() == ErrorKind::Conflict, e.report())));
}
