//! The log of real servers: every command reaches the repository once and in order, light cuts are restore points, and what
//! dies or moves meanwhile makes no gap.

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::segment::each_entry;
use tidemark_coordinator::log::{Found, PitrStatus, Walk};
use tidemark_coordinator::repository::{Ledger, MasterKey, Repository, Store, StoreConfig};
use tidemark_proto::stored::log::{EntryKind, database};
use tidemark_proto::{ClusterName, Timestamp};
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, eventually as later};
use tidemark_tests::redis::{Cluster, Flavor, Server, eventually};

use super::chains::Chains;
use super::flow::{protect, protect_one, spec};
use super::moving::reshard;
use super::replicas::{promote, with_replica};

/// Light cuts come often, and on every server.
pub(crate) const POINTS: &str = "[pitr]\npoint_interval_ms = 200\npoints = \"always\"\n";

pub(crate) async fn fleet() -> Fleet {
    Fleet::start_with(CoordinatorSpec { sections: POINTS.into(), ..CoordinatorSpec::default() }).await
}

pub(crate) async fn enable(fleet: &Fleet) {
    let out = fleet
        .tidemark(&["pitr", "enable", "--cluster", "orders", "--interval-ms", "200", "--idle-ms", "1000"])
        .await;
    assert!(out.contains("on"), "{out}");
}

pub(crate) async fn status(fleet: &Fleet) -> PitrStatus {
    fleet.api().get("clusters/orders/pitr").await.expect("status")
}

/// Waits for a restore point at or behind `at` in a window that goes on.
pub(crate) async fn point_after(fleet: &Fleet, at: Timestamp) -> PitrStatus {
    later("a restore point", async || {
        let status = status(fleet).await;
        status.windows.last().is_some_and(|w| w.latest >= at.0 && w.ended.is_empty()).then_some(status)
    })
    .await
}

/// The present, by this machine's clock.
pub(crate) fn now() -> Timestamp {
    Timestamp::new(SystemClock.millis(), 0)
}

async fn repository(fleet: &Fleet) -> Repository {
    let url = format!("file://{}", fleet.repository().display());
    let store = Store::open(&StoreConfig { url, ..StoreConfig::default() }).expect("store");
    let key = MasterKey::load(Some(&fleet.dir().join("master.key"))).expect("key");
    Repository::open(store, key.as_ref()).await.expect("repository")
}

/// A command of the log: when, on which node, in which database, its words.
pub(crate) type Logged = (Timestamp, String, u64, String);

/// All commands of the log, by node and time.
pub(crate) async fn logged(fleet: &Fleet) -> Vec<Logged> {
    let (repository, cluster) = (repository(fleet).await, ClusterName::new("orders").expect("name"));
    let ledger = Ledger::load(&repository, &cluster).await.expect("ledger");
    let mut walk = Walk::over(&repository, &ledger).await.expect("segments");
    let mut commands = Vec::new();
    while let Some(found) = walk.next().await.expect("a footer") {
        let Found::Segment(info) = found else { panic!("{found:?}") };
        let bytes = repository.store().get(&info.range.path(&cluster)).await.expect("segment");
        let read = repository.check_segment(&cluster, info.range, &bytes).expect("a whole segment");
        assert!(read.points.is_some(), "a log of commands has points");
        for chunk in &read.segment.chunks {
            let node = &read.segment.nodes[usize::from(chunk.node)];
            let sealed = bytes[chunk.offset as usize..chunk.offset as usize + chunk.len as usize].to_vec();
            let raw = repository.open_segment_chunk(&cluster, &read.segment, chunk, sealed).expect("a chunk");
            each_entry(&raw, |e| {
                let (meta, bytes) = e.put.expect("a command");
                assert_eq!(e.kind, EntryKind::Command);
                assert!(e.at <= node.closed, "closed before its last command");
                let words: Vec<_> = bytes.split(|b| *b == b'\n').skip(2).step_by(2).collect();
                let line = String::from_utf8_lossy(&words.join(&b' ')).replace('\r', "");
                commands.push((e.at, node.node.to_string(), database(meta)?, line));
                Ok(())
            })
            .expect("entries");
        }
    }
    commands.sort_by(|a, b| (&a.1, a.0).cmp(&(&b.1, b.0)));
    commands
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_is_logged_once_and_in_order_and_light_cuts_are_points() {
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    let mut fleet = fleet().await;
    protect(&mut fleet, "orders", &cluster).await;
    enable(&fleet).await;
    let chains = Chains::start(&cluster, 2);
    let first = point_after(&fleet, Timestamp(1)).await;
    assert_eq!(fleet.backups("orders").await.len(), 1, "the base was taken by itself");
    let steps = chains.steps();
    eventually("more load", || (chains.steps() > steps + 500).then_some(()));
    chains.stop();
    let status = point_after(&fleet, now()).await;
    let window = status.windows.last().expect("a window");
    assert!(window.points > 3 && window.earliest == first.windows[0].earliest, "{status:?}");
    assert!(status.healthy && status.nodes.iter().all(|n| n.streaming), "{status:?}");

    whole(&fleet, 2).await;
    let found = logged(&fleet).await;
    let times: Vec<_> = found.windows(2).filter(|w| w[0].1 == w[1].1).map(|w| (w[0].0, w[1].0)).collect();
    assert!(times.iter().all(|(a, b)| a < b), "each command of a node has a time of its own");
}

/// Light cuts of a quiet server leave marks with nothing between them; the first write behind them is logged at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_after_a_quiet_time_is_logged_before_the_log_would_rest() {
    let server = Server::start(Flavor::Redis, &[]);
    let mut fleet = fleet().await;
    protect_one(&mut fleet, "orders", &server).await;
    // Longer than the test waits for anything: no segment comes about by itself.
    let rests = ["pitr", "enable", "--cluster", "orders", "--interval-ms", "200", "--idle-ms", "600000"];
    let _ = fleet.tidemark(&rests).await;
    let _ = server.client().run("SET first 1");
    let _ = point_after(&fleet, Timestamp(1)).await;
    for round in 0..3 {
        let quiet = now();
        later("light cuts of a quiet server", async || {
            let nodes = status(&fleet).await.nodes;
            nodes.iter().all(|n| n.safe >= Timestamp::new(quiet.millis() + 1000, 0).0).then_some(())
        })
        .await;
        let _ = server.client().run(&format!("SET round {round}"));
        let (line, written) = (format!("SET round {round}"), now());
        later("the write to be logged", async || {
            logged(&fleet).await.iter().any(|(.., l)| *l == line).then_some(())
        })
        .await;
        // And a restore point covers it, though nothing more is written.
        let _ = point_after(&fleet, written).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_scripts_and_transactions_of_a_server_of_its_own() {
    let server = Server::start(Flavor::Redis, &[]);
    let mut fleet = fleet().await;
    protect_one(&mut fleet, "orders", &server).await;
    enable(&fleet).await;
    let _ = point_after(&fleet, Timestamp(1)).await;
    let mut client = server.client();
    for line in ["SET a 1", "SELECT 3", "MULTI", "SET a 2", "INCR n", "EXEC", "SELECT 0", "RENAME a b", "FLUSHALL"]
    {
        let _ = client.run(line);
    }
    let _ = client.call(&["EVAL", "redis.call('SET', KEYS[1], 'x') redis.call('DEL', KEYS[1])", "1", "k"]);
    let _ = client.run("SET end 1");
    let _ = point_after(&fleet, now()).await;
    let found = logged(&fleet).await;
    let told: Vec<String> = found.iter().map(|(_, _, db, line)| format!("{db}: {line}")).collect();
    let wanted =
        ["0: SET a 1", "3: SET a 2", "3: INCR n", "0: RENAME a b", "0: FLUSHALL", "0: SET k x", "0: DEL k"];
    assert_eq!(told, [&wanted[..], &["0: SET end 1"]].concat());
}

/// Each step of each chain behind the first is in the log, once, from the begin of the first window on.
async fn whole(fleet: &Fleet, chains: usize) {
    let earliest = status(fleet).await.windows[0].earliest;
    let found = logged(fleet).await;
    for chain in 0..chains {
        let of = |line: &str| {
            let rest = line.strip_prefix(&format!("SET chain:{chain}:"))?;
            rest.split(' ').nth(1)?.parse::<u64>().ok()
        };
        let inside = found.iter().filter(|(at, ..)| at.0 > earliest);
        let mut steps: Vec<u64> = inside.filter_map(|(.., line)| of(line)).collect();
        steps.sort_unstable();
        assert!(steps.len() > 100, "chain {chain}: {} steps", steps.len());
        let gap = steps.windows(2).find(|w| w[1] != w[0] + 1);
        assert_eq!(gap, None, "chain {chain}");
    }
}

/// Runs `what` in the middle of a log over which chains are written; no window ends by it, and nothing is missing.
async fn no_gap(fleet: &mut Fleet, cluster: &mut Cluster, what: impl AsyncFnOnce(&mut Fleet, &mut Cluster)) {
    enable(fleet).await;
    let chains = Chains::start(cluster, 2);
    let first = point_after(fleet, Timestamp(1)).await;
    let go_on = |chains: &Chains| {
        let steps = chains.steps();
        eventually("more load", || (chains.steps() > steps + 300).then_some(()));
    };
    go_on(&chains);
    what(fleet, cluster).await;
    go_on(&chains);
    chains.stop();
    let status = point_after(fleet, now()).await;
    assert_eq!(status.windows.len(), 1, "no window has ended: {status:?}");
    assert_eq!(status.windows[0].earliest, first.windows[0].earliest);
    whole(fleet, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_killed_makes_no_gap() {
    let mut cluster = Cluster::start(Flavor::Redis, 3, &["--repl-backlog-size", "64mb"]);
    let mut fleet = fleet().await;
    protect(&mut fleet, "orders", &cluster).await;
    let kills = async |fleet: &mut Fleet, cluster: &mut Cluster| {
        fleet.agent("orders", "n1").process.kill().await;
        fleet.revive_agent("orders", "n1").await;
        let _ = point_after(fleet, now()).await;
        fleet.coordinator().process.signal(nix::sys::signal::Signal::SIGKILL);
        fleet.revive_coordinator().await;
        let _ = point_after(fleet, now()).await;
        let killed = cluster.nodes[2].1.client().run("CLIENT KILL TYPE replica").integer();
        assert_eq!(killed, 1, "the log's link");
    };
    no_gap(&mut fleet, &mut cluster, kills).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_makes_no_gap() {
    let mut cluster = with_replica();
    let mut fleet = fleet().await;
    for n in [0, 1, 2] {
        fleet.start_agent(spec("orders", &format!("n{n}"), format!("127.0.0.1:{}", cluster.ports()[n])));
    }
    let _ = fleet.ready("orders", 3).await;
    no_gap(&mut fleet, &mut cluster, async |_: &mut Fleet, cluster: &mut Cluster| promote(cluster)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_agent_of_the_shard_goes_on_with_the_log_of_one_that_died_with_its_server() {
    let mut cluster = with_replica();
    let mut fleet = fleet().await;
    for n in [0, 1, 2, 3] {
        fleet.start_agent(spec("orders", &format!("n{n}"), format!("127.0.0.1:{}", cluster.ports()[n])));
    }
    let _ = fleet.ready("orders", 4).await;
    let dies = async |fleet: &mut Fleet, cluster: &mut Cluster| {
        let lanes: Vec<String> = status(fleet).await.nodes.into_iter().map(|n| n.node).collect();
        assert_eq!(lanes, ["n1", "n2", "n3"], "a replica streams");
        // The replica's machine first, then the log is the primary's: no failover, the same stream.
        fleet.agent("orders", "n3").process.kill().await;
        later("the primary's log", async || {
            status(fleet).await.nodes.iter().any(|n| n.node == "n0" && n.streaming).then_some(())
        })
        .await;
        fleet.revive_agent("orders", "n3").await;
        let _ = fleet.ready("orders", 4).await;
        // What the log has read the replica has as well, or the promotion would lose it.
        promote(cluster);
        fleet.agent("orders", "n0").process.kill().await;
        later("the log of the promoted one", async || {
            status(fleet).await.nodes.iter().any(|n| n.node == "n3" && n.streaming).then_some(())
        })
        .await;
    };
    no_gap(&mut fleet, &mut cluster, dies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_make_no_gap() {
    let mut cluster = Cluster::start(Flavor::Redis, 3, &[]);
    let mut fleet = fleet().await;
    protect(&mut fleet, "orders", &cluster).await;
    let moves = async |_: &mut Fleet, cluster: &mut Cluster| {
        for (from, to) in [(0, 1), (1, 2)] {
            let mut moving = reshard(cluster, from, to, 400).spawn().expect("redis-cli");
            assert!(moving.wait().expect("redis-cli").success());
        }
    };
    no_gap(&mut fleet, &mut cluster, moves).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_has_forgotten_ends_the_window_and_a_new_one_begins() {
    let cluster = Cluster::start(Flavor::Redis, 3, &["--repl-backlog-size", "16kb"]);
    let mut fleet = fleet().await;
    protect(&mut fleet, "orders", &cluster).await;
    enable(&fleet).await;
    let first = point_after(&fleet, Timestamp(1)).await;
    fleet.agent("orders", "n1").process.kill().await;
    let mut client = cluster.nodes[1].1.client();
    for i in 0..2000 {
        // Those of other nodes are sent elsewhere.
        let _ = client.ask(&["SET", &format!("lost:{i}"), &"x".repeat(100)]);
    }
    fleet.revive_agent("orders", "n1").await;
    let status = later("another window", async || {
        let status = status(&fleet).await;
        (status.windows.len() == 2 && status.healthy).then_some(status)
    })
    .await;
    assert!(
        !status.windows[0].ended.is_empty() && status.windows[1].earliest > first.windows[0].latest,
        "{status:?}"
    );
    assert_eq!(fleet.backups("orders").await.len(), 2, "a base was taken by itself");
}
