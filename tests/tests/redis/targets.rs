//! Servers that cannot take a restore, or cannot take it any more: refused before anything is touched, or with nothing
//! lost and nothing left behind, and with words that say what to do.

use tidemark_agent::engine::{Engine, RecordRef, record_hash};
use tidemark_common::rdb::{Family, meaning_of};
use tidemark_common::record::{RedisMeta, redis_key};
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::id::JobId;
use tidemark_proto::{SlotSet, slot_of};
use tidemark_tests::fleet::{AgentSpec, EngineKind, Fleet, eventually as later, restore_of};
use tidemark_tests::redis::{Cluster, Flavor, Server, eventually};

use super::contents::{compare, held_by, held_by_all};
use super::cut::engine;
use super::fenced::{KEYS, fill, fleet, good, in_place, spec, start};
use super::pretend::pretender;

async fn protect(fleet: &mut Fleet, name: &str, server: &Server, dies_at: &str) {
    fleet.start_agent(spec(name, "n0", server, dies_at));
    let _ = fleet.ready(name, 1).await;
}

/// A fleet with a backup of `orders`, of a server with some keys.
async fn backed_up() -> (Fleet, Server) {
    let source = Server::start(Flavor::Redis, &[]);
    fill(&mut source.client(), "key", KEYS);
    let mut fleet = fleet().await;
    protect(&mut fleet, "orders", &source, "").await;
    let _ = good(fleet.backup("orders").await);
    (fleet, source)
}

async fn refused(fleet: &Fleet, target: &str, words: &[&str]) {
    let told = fleet.restore(&restore_of("orders", target)).await.expect_err("refused").report();
    words.iter().for_each(|word| assert!(told.contains(word), "{word}: {told}"));
}

async fn is_empty_and_open(fleet: &Fleet, name: &str, server: &Server) {
    later("the target to be empty and open", async || {
        let empty = server.client().run("DBSIZE").integer() == 0;
        let open = fleet.ready(name, 1).await.nodes[0].state == "available";
        (empty && open).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_named_in_the_plan_and_servers_that_drop_keys_before_they_are_touched() {
    let (mut fleet, source) = backed_up().await;
    let replica = Server::start(Flavor::Redis, &["--replicaof", "127.0.0.1 1"]);
    let cache = Server::start(Flavor::Redis, &["--maxmemory", "50mb", "--maxmemory-policy", "volatile-ttl"]);
    protect(&mut fleet, "replica", &replica, "").await;
    protect(&mut fleet, "cache", &cache, "").await;
    let plan = good(fleet.plan(&restore_of("orders", "replica")).await);
    let told = plan.problems.join("; ");
    assert!(told.contains("n0 is a read-only replica") && told.contains("primary"), "{told}");

    refused(&fleet, "cache", &["n0", "volatile-ttl", "52428800", "maxmemory-policy noeviction"]).await;
    is_empty_and_open(&fleet, "cache", &cache).await;
    // In place it keeps what it has.
    fill(&mut cache.client(), "present", 50);
    let present = held_by(&cache);
    let request = RestoreRequest { in_place: true, ..restore_of("orders", "cache") };
    let told = fleet.restore(&request).await.unwrap_err().report();
    assert!(told.contains("volatile-ttl"), "{told}");
    compare("refused", &held_by(&cache), &present);
    let _ = cache.client().run("CONFIG SET maxmemory-policy noeviction");
    let _ = later("the restore", async || fleet.restore(&request).await.ok()).await;
    compare("without eviction", &held_by(&cache), &held_by(&source));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_is_named_with_its_limit_and_left_empty() {
    let (mut fleet, source) = backed_up().await;
    let small = Server::start(Flavor::Redis, &["--maxmemory", "1500kb", "--maxmemory-policy", "noeviction"]);
    protect(&mut fleet, "small", &small, "").await;
    refused(&fleet, "small", &["n0", "OOM", "maxmemory is 1536000", "bytes are used", "raise maxmemory"]).await;
    is_empty_and_open(&fleet, "small", &small).await;
    let _ = small.client().run("CONFIG SET maxmemory 0");
    let _ = good(fleet.restore(&restore_of("orders", "small")).await);
    compare("with more room", &held_by(&small), &held_by(&source));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_and_missing_rights_are_told_before_anything_is_loaded() {
    let (mut fleet, source) = backed_up().await;
    let server = Server::start(Flavor::Redis, &[]);
    let backup = "+ping +psync +replconf +info +time +client|setname +client|pause +client|unpause +cluster|nodes +acl|dryrun";
    let _ = server.client().run(&format!("ACL SETUSER agent on >secret-word resetchannels -@all {backup}"));
    for (name, word) in [("locked", "wrong-word"), ("copy", "secret-word")] {
        let mut spec = spec(name, "n0", &server, "");
        let more = "user = \"agent\"\npassword_env = \"STORE_PASSWORD\"".to_owned();
        spec.engine = EngineKind::Redis(format!("unix:{}", server.socket().display()), more);
        spec.env.push(("STORE_PASSWORD".into(), word.into()));
        fleet.start_agent(spec);
    }
    let told = later("a refusal that says why", async || {
        let told = fleet.plan(&restore_of("orders", "locked")).await.err()?.report();
        told.contains("WRONGPASS").then_some(told)
    })
    .await;
    assert!(told.contains("n0") && !told.contains("wrong-word"), "{told}");
    let _ = fleet.ready("copy", 1).await;
    refused(&fleet, "copy", &["n0", "ACL SETUSER agent ~* +restore +select +flushall"]).await;
    let _ = server.client().run("ACL SETUSER agent ~* +restore +select");
    refused(&fleet, "copy", &["n0", "ACL SETUSER agent ~* +flushall"]).await;
    // Where it cannot be asked it shows in the first command.
    let _ = server.client().run("ACL SETUSER agent -acl|dryrun -restore +flushall");
    refused(&fleet, "copy", &["n0", "NOPERM", "+restore"]).await;
    is_empty_and_open(&fleet, "copy", &server).await;
    let _ = server.client().run("ACL SETUSER agent +restore");
    let _ = good(fleet.restore(&restore_of("orders", "copy")).await);
    compare("with the rights", &held_by(&server), &held_by(&source));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_started_anew_in_the_middle_is_loaded_anew() {
    let (mut fleet, source) = backed_up().await;
    for saves in [false, true] {
        let mut target = Server::start(Flavor::Redis, &[]);
        let name = format!("copy-{saves}");
        protect(&mut fleet, &name, &target, "agent.part-loaded:9").await;
        let job = start(&fleet, &restore_of("orders", &name)).await;
        let _ = fleet.agent(&name, "n0").process.ended().await;
        let half = target.client().run("DBSIZE").integer();
        assert!(half > 0 && half < KEYS as i64, "{half} keys are loaded");
        if saves {
            // It comes back with some of it, and something that nobody backed up.
            let _ = target.client().run("SET foreign 1");
            let _ = target.save();
        }
        target.restart();
        fleet.revive_agent(&name, "n0").await;
        let _ = good(fleet.api().job_end(&job).await);
        assert!(fleet.agent(&name, "n0").process.log().contains("started anew in the middle"), "it was seen");
        compare("after a restart", &held_by(&target), &held_by(&source));
        fleet.agent(&name, "n0").process.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_nobody_takes_from_their_node_are_named_and_nothing_stays_behind() {
    let (mut fleet, source) = backed_up().await;
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    let ids: Vec<String> = cluster.clients().iter_mut().map(|c| c.run("CLUSTER MYID").text()).collect();
    let moving = |state: &str| cluster.nodes[0].1.client().run(&format!("CLUSTER SETSLOT 5000 {state}"));
    for (i, (_, server)) in cluster.nodes.iter().enumerate() {
        let dies_at = if i == 0 { "agent.part-loaded:2" } else { "" };
        fleet.start_agent(spec("copy", &format!("n{i}"), server, dies_at));
    }
    let _ = fleet.ready("copy", 3).await;
    let job = start(&fleet, &restore_of("orders", "copy")).await;
    let _ = fleet.agent("copy", "n0").process.ended().await;
    let _ = moving(&format!("MIGRATING {}", ids[1]));
    fleet.revive_agent("copy", "n0").await;
    let told = fleet.api().job_end(&job).await.unwrap_err().report();
    for word in ["slots 5000", "n0", "moving", "must stay", "restore again"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    later("all to be empty and open", async || {
        let open = fleet.ready("copy", 3).await.nodes.iter().all(|n| n.state == "available");
        let keys: i64 = cluster.clients().iter_mut().map(|c| c.run("DBSIZE").integer()).sum();
        (open && keys == 0).then_some(())
    })
    .await;
    let told = good(fleet.plan(&restore_of("orders", "copy")).await).problems.join("; ");
    assert!(told.contains("5000") && told.contains("n0") && told.contains("none that takes them"), "{told}");
    let _ = moving("STABLE");
    let _ = later("the restore", async || fleet.restore(&restore_of("orders", "copy")).await.ok()).await;
    compare("when they stay", &held_by_all(&cluster), &held_by(&source));
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_beside_replicas_take_no_part_of_a_restore() {
    let (mut fleet, source) = backed_up().await;
    let mut cluster = Cluster::start(Flavor::Redis, 3, &[]);
    cluster.add_replica(1, &[]);
    for (i, (_, server)) in cluster.nodes.iter().enumerate() {
        fleet.start_agent(spec("copy", &format!("n{i}"), server, ""));
    }
    let _ = fleet.ready("copy", 4).await;
    let plan = good(fleet.plan(&restore_of("orders", "copy")).await);
    assert_eq!((plan.targets.len(), plan.problems), (3, Vec::<String>::new()));
    let _ = good(fleet.restore(&restore_of("orders", "copy")).await);
    let replica = cluster.nodes.pop().expect("the replica").1;
    compare("the primaries", &held_by_all(&cluster), &held_by(&source));
    let owned = held_by(&cluster.nodes[1].1);
    eventually("the replica to have it all", || (held_by(&replica) == owned).then_some(()));
}

#[test]
fn a_slot_that_begins_to_move_while_a_part_is_loaded_is_named_with_its_new_node() {
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    let ids: Vec<String> = cluster.clients().iter_mut().map(|c| c.run("CLUSTER MYID").text()).collect();
    let dir = tempfile::tempdir().expect("folder");
    let engine = engine(&cluster.nodes[0].1, dir.path());
    let value = b"\x01v";
    let (mut meta, mut key) = (Vec::new(), Vec::new());
    let meaning = meaning_of(0, Family::Redis, value).expect("meaning").meaning;
    let (expire_at_millis, idle_seconds, frequency) = (None, None, None);
    RedisMeta { type_byte: 0, family: Family::Redis, meaning, expire_at_millis, idle_seconds, frequency }
        .encode(&mut meta);
    let name = (0..).map(|i| format!("key:{i}")).find(|name| slot_of(name.as_bytes()) < 5000).expect("a key");
    redis_key(0, name.as_bytes(), &mut key);
    let slot = slot_of(name.as_bytes());
    let record = RecordRef { slot, key: &key, meta: &meta, value };
    for (number, state) in ["MIGRATING", "NODE"].into_iter().enumerate() {
        let loader = engine.restore(JobId::from_u128(7), SlotSet::range(0, 5000), false).expect("begun");
        let mut part = loader.part(number as u32).expect("a part");
        for i in [1, 0] {
            let _ = cluster.nodes[i].1.client().run(&match (state, i) {
                ("NODE", _) => format!("CLUSTER SETSLOT {slot} NODE {}", ids[1]),
                (_, 1) => format!("CLUSTER SETSLOT {slot} IMPORTING {}", ids[0]),
                _ => format!("CLUSTER SETSLOT {slot} MIGRATING {}", ids[1]),
            });
        }
        part.put(record, record_hash(record)).expect("queued");
        let told = part.finish(SetDigest::default()).unwrap_err().report();
        let to = format!("127.0.0.1:{}", cluster.nodes[1].0);
        assert!(
            told.contains(&format!("slot {slot}")) && told.contains(&to) && told.contains("must stay"),
            "{told}"
        );
        let told = loader.verify().unwrap_err().report();
        assert!(told.contains(&format!("slots {slot}")) && told.contains("must stay"), "{told}");
        if state == "MIGRATING" {
            for (_, server) in &cluster.nodes[..2] {
                let _ = server.client().run(&format!("CLUSTER SETSLOT {slot} STABLE"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_an_older_server_does_not_load_are_refused_with_both_versions_before_it_is_touched() {
    let (source, target) = (Server::start(Flavor::Redis, &[]), Server::start(Flavor::Redis, &[]));
    let version = source.client().run("INFO server").text();
    assert!(version.contains("redis_version:7.0.15"), "the pretender knows another one: {version}");
    fill(&mut source.client(), "key", 500);
    for i in 0..3 {
        let _ = source.client().run(&format!("HSET hash:{i} a 1"));
    }
    let mut fleet = fleet().await;
    protect(&mut fleet, "orders", &source, "").await;
    let _ = good(fleet.backup("orders").await);
    let mut old = AgentSpec::new("old", "n0", SlotSet::EMPTY);
    let port = pretender(target.socket(), b"redis_version:7.0.15", b"redis_version:6.2.16");
    old.engine = EngineKind::Redis(format!("127.0.0.1:{port}"), String::new());
    fleet.start_agent(old);
    let _ = fleet.ready("old", 1).await;
    let _ = target.client().run("SET present 1");
    let present = held_by(&target);
    let request = RestoreRequest { target: Some("old".parse().expect("name")), ..in_place("orders", "latest") };
    let told = fleet.restore(&request).await.unwrap_err().report();
    let words = [
        "`hash:",
        "hash of RDB type 16",
        "redis 7.0.15",
        "redis 6.2.16 of node n0",
        "2 keys more",
        "nothing was touched",
    ];
    words.iter().for_each(|word| assert!(told.contains(word), "{word}: {told}"));
    compare("refused", &held_by(&target), &present);
    assert!(fleet.api().get::<Vec<serde_json::Value>>("clusters/old/backups").await.is_err(), "not even backed up");
    // Without them it goes well: strings are as they were.
    let _ = target.client().run("DEL present");
    let request = RestoreRequest { keys: vec!["!hash:*".into()], in_place: false, ..request };
    let _ = good(fleet.restore(&request).await);
    let mut wanted = held_by(&source);
    wanted.retain(|key, _| !key.windows(5).any(|w| w == b"hash:"));
    compare("without hashes", &held_by(&target), &wanted);
}
