//! Backup and restore of real servers with the built binaries.

use tidemark_coordinator::catalog::BackupDetail;
use tidemark_proto::SlotSet;
use tidemark_tests::bench::peak_rss_mib;
use tidemark_tests::fleet::{AgentSpec, EngineKind, Fleet, restore_of};
use tidemark_tests::redis::{Client, Cluster, Flavor, Reply, Server, eventually};

use super::chains::{Chains, check};
use super::contents::{compare, held_by, held_by_all};
use super::load::{Load, Wildness};

/// Keys that a filled store has.
const KEYS: usize = 30_000;

pub(crate) fn spec(cluster: &str, node: &str, address: String) -> AgentSpec {
    let mut spec = AgentSpec::new(cluster, node, SlotSet::EMPTY);
    spec.engine = EngineKind::Redis(address, String::new());
    spec
}

/// An agent that leaves its server as it is set: one that waits before it forks does.
pub(crate) fn untuned(cluster: &str, node: &str, address: String) -> AgentSpec {
    let mut spec = AgentSpec::new(cluster, node, SlotSet::EMPTY);
    spec.engine = EngineKind::Redis(address, "base_at_once = false\n".to_owned());
    spec
}

/// Starts an agent beside each node of a Cluster.
pub(crate) async fn protect(fleet: &mut Fleet, name: &str, cluster: &Cluster) {
    protect_as(fleet, name, cluster, spec).await;
}

/// The same, with agents as `spec` makes them.
pub(crate) async fn protect_as(
    fleet: &mut Fleet,
    name: &str,
    cluster: &Cluster,
    spec: impl Fn(&str, &str, String) -> AgentSpec,
) {
    for (i, port) in cluster.ports().into_iter().enumerate() {
        fleet.start_agent(spec(name, &format!("n{i}"), format!("127.0.0.1:{port}")));
    }
    let _ = fleet.ready(name, cluster.nodes.len()).await;
}

/// Starts an agent beside a server of its own.
pub(crate) async fn protect_one(fleet: &mut Fleet, name: &str, server: &Server) {
    fleet.start_agent(spec(name, "n0", format!("unix:{}", server.socket().display())));
    let _ = fleet.ready(name, 1).await;
}

/// Sends commands to the nodes that own their keys.
pub(crate) fn spread(cluster: &Cluster, commands: Vec<Vec<String>>) {
    let mut left = commands;
    for mut client in cluster.clients() {
        let replies = client.pipeline(&left);
        let elsewhere = |reply: &Reply| matches!(reply, Reply::Error(e) if e.starts_with("MOVED"));
        left = left.into_iter().zip(replies).filter(|(_, r)| elsewhere(r)).map(|(c, _)| c).collect();
    }
    assert!(left.is_empty(), "no node takes {:?}", left.first());
}

pub(crate) fn words(line: String) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

pub(crate) fn filling() -> Vec<Vec<String>> {
    let one = |i: usize| match i % 6 {
        0 => format!("SET s:{i} {}", "v".repeat(1 + i % 300)),
        1 => format!("HSET h:{i} a {i} b {}", i * 7),
        2 => format!("RPUSH l:{i} a b c {i}"),
        3 => format!("SADD e:{i} 1 2 {i}"),
        4 => format!("ZADD z:{i} 1 a 2.5 b {i} c"),
        _ => format!("SET t:{i} {i} EX {}", 3600 + i),
    };
    (0..KEYS).map(|i| words(one(i))).collect()
}

pub(crate) fn get(clients: &mut [Client], key: &str) -> Option<u64> {
    for client in clients {
        match client.ask(&["GET", key]).expect("reply") {
            Reply::Bulk(value) => return String::from_utf8(value).expect("text").parse().ok(),
            Reply::Nil => return None,
            Reply::Error(e) if e.starts_with("MOVED") => {}
            other => panic!("GET {key}: {other:?}"),
        }
    }
    panic!("no node has {key}");
}

pub(crate) async fn backup(fleet: &Fleet, cluster: &str) -> BackupDetail {
    fleet.backup(cluster).await.unwrap_or_else(|e| panic!("{}", e.report()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_backed_up_and_restored_into_other_shapes() {
    let (source, larger) = (Cluster::start(Flavor::Redis, 3, &[]), Cluster::start(Flavor::Redis, 5, &[]));
    let alone = Server::start(Flavor::Redis, &[]);
    spread(&source, filling());
    let mut fleet = Fleet::start().await;
    protect(&mut fleet, "orders", &source).await;
    let first = backup(&fleet, "orders").await;
    assert_eq!((first.engine.as_str(), first.item.records), ("redis", KEYS as u64));
    // The second one stores what changed, also where only a time to live did.
    let changed = (0..KEYS / 100).map(|i| words(format!("EXPIRE s:{} 5000", i * 600))).collect();
    spread(&source, changed);
    let second = backup(&fleet, "orders").await;
    assert_eq!(second.full_parts, 0, "{second:?}");
    assert!(
        second.item.new_bytes * 20 < first.item.new_bytes,
        "{} {}",
        second.item.new_bytes,
        first.item.new_bytes
    );
    let wanted = held_by_all(&source);

    protect(&mut fleet, "larger", &larger).await;
    let _ = fleet.restore(&restore_of("orders", "larger")).await.unwrap_or_else(|e| panic!("{}", e.report()));
    compare("five primaries", &held_by_all(&larger), &wanted);

    protect_one(&mut fleet, "alone", &alone).await;
    let _ = fleet.restore(&restore_of("orders", "alone")).await.unwrap_or_else(|e| panic!("{}", e.report()));
    compare("a server of its own", &held_by(&alone), &wanted);

    let again = fleet.restore(&restore_of("orders", "alone")).await.unwrap_err();
    assert!(again.report().contains("hold data"), "{}", again.report());
    let _ = fleet.verify("orders", "latest").await.unwrap_or_else(|e| panic!("{}", e.report()));
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_over_a_cluster_under_load_are_whole_in_every_backup() {
    const CHAINS: usize = 3;
    const BACKUPS: usize = 20;
    /// The other load makes the data grow: it ends after so many backups.
    const LOADED: usize = 3;
    let source = Cluster::start(Flavor::Redis, 3, &[]);
    spread(&source, filling().into_iter().take(6000).collect());
    let mut fleet = Fleet::start().await;
    protect(&mut fleet, "orders", &source).await;
    let chains = Chains::start(&source, CHAINS);
    let mut load = Some(Load::start(source.clients(), Wildness::Cluster));
    let mut before = 0;
    for i in 0..BACKUPS {
        if i == LOADED
            && let Some(load) = load.take()
        {
            load.stop();
        }
        let begun = chains.steps();
        eventually("steps of chains", || (chains.steps() > begun + 200).then_some(()));
        let taken = backup(&fleet, "orders").await;
        let target = Server::start(Flavor::Redis, &[]);
        let name = format!("copy-{i}");
        protect_one(&mut fleet, &name, &target).await;
        let restored = fleet.restore(&restore_of("orders", &name)).await;
        let _ = restored.unwrap_or_else(|e| panic!("{}", e.report()));
        let mut clients = [target.client()];
        let steps = check(CHAINS, |key| get(&mut clients, key));
        assert!(steps > before, "the cut of {:?} holds no newer steps", taken.item.id);
        before = steps;
        fleet.agent(&name, "n0").process.stop().await;
    }
    chains.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn long_values_pass_without_being_held_twice() {
    const LONG: usize = 100 << 20;
    let (source, target) = (Server::start(Flavor::Redis, &[]), Server::start(Flavor::Redis, &[]));
    let mut client = source.client();
    let mut noise = vec![0; LONG];
    rand::fill(&mut noise[..]);
    let _ = client.call(&[&b"SET"[..], b"long", &noise]);
    for piece in noise.chunks(1 << 20).take(40) {
        let _ = client.call(&[&b"RPUSH"[..], b"list", piece]);
    }
    drop(noise);
    for i in 0..2000 {
        let _ = client.run(&format!("SET short:{i} {i}"));
    }
    let mut fleet = Fleet::start().await;
    protect_one(&mut fleet, "orders", &source).await;
    protect_one(&mut fleet, "copy", &target).await;
    let taken = backup(&fleet, "orders").await;
    assert_eq!(taken.item.records, 2002);
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap_or_else(|e| panic!("{}", e.report()));
    compare("long values", &held_by(&target), &held_by(&source));
    let daemons = [
        fleet.coordinator().process.id(),
        fleet.agent("orders", "n0").process.id(),
        fleet.agent("copy", "n0").process.id(),
    ];
    for (name, pid) in ["coordinator", "source", "target"].into_iter().zip(daemons) {
        let peak = peak_rss_mib(pid);
        assert!(peak < 256, "{name} took {peak} MiB");
        println!("{name}: {peak} MiB");
    }
}
