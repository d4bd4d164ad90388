//! Replicas: bases come from them, and backups go on over failovers.

use std::time::{Duration, Instant};

use tidemark_coordinator::catalog::BackupDetail;
use tidemark_coordinator::job::JobInfo;
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, binary, eventually as later, restore_of};
use tidemark_tests::redis::{Cluster, Flavor, Reply, Server, eventually, listening};

use super::chains::{Chains, check};
use super::contents::{compare, held_by};
use super::flow::{backup, filling, get, protect, protect_one, spec, spread, untuned};

/// Makes a primary wait for so many seconds before it sends its base, unless its agent tunes that.
pub(crate) const SLOW: &str = "CONFIG SET repl-diskless-sync-delay 8";

fn nodes(backup: &BackupDetail) -> Vec<String> {
    backup.node_evidence.iter().map(|n| n.node.clone()).collect()
}

pub(crate) fn forks(server: &Server) -> u64 {
    let info = server.client().run("INFO stats").text();
    let value = info.lines().find_map(|l| l.strip_prefix("total_forks:")).expect("total_forks");
    value.trim().parse().expect("number")
}

fn role(server: &Server) -> String {
    let info = server.client().run("INFO replication").text();
    info.lines().find_map(|l| l.strip_prefix("role:")).expect("role").trim().to_owned()
}

fn offset(server: &Server) -> String {
    let info = server.client().run("INFO replication").text();
    info.lines().find_map(|l| l.strip_prefix("master_repl_offset:")).expect("offset").trim().to_owned()
}

/// How often nodes took their base in a job, by the events.
pub(crate) async fn bases(fleet: &Fleet, job: &JobInfo, node: &str) -> usize {
    // None are kept yet when a job has just begun.
    let events: serde_json::Value = fleet.api().get(&format!("events?job={}", job.id)).await.unwrap_or_default();
    let of = |e: &&serde_json::Value| e["what"] == "base" && e["node"] == node;
    events.as_array().into_iter().flatten().filter(of).count()
}

/// Waits until the base of `node` stands in a running job.
pub(crate) async fn base_of(fleet: &Fleet, job: &JobInfo, node: &str) {
    later("the base of the shard", async || (bases(fleet, job, node).await == 1).then_some(())).await;
    let info: JobInfo = fleet.api().get(&format!("jobs/{}", job.id)).await.expect("job");
    assert_eq!(info.phase, "taking bases", "the other base must still be awaited");
}

/// Makes a replica the primary. A server gives such a request up after 5 s.
fn fail_over(replica: &Server) {
    const ASK_AGAIN: Duration = Duration::from_secs(7);
    let mut asked: Option<Instant> = None;
    eventually("the failover", || {
        if asked.is_none_or(|at| at.elapsed() > ASK_AGAIN) {
            asked = Some(Instant::now());
            let _ = replica.client().ask(&["CLUSTER", "FAILOVER"]);
        }
        (role(replica) == "master").then_some(())
    });
}

pub(crate) fn promote(cluster: &mut Cluster) {
    fail_over(&cluster.nodes[3].1);
}

/// Three primaries and a replica of the first, `n3`.
pub(crate) fn with_replica() -> Cluster {
    let mut cluster = Cluster::start(Flavor::Redis, 3, &[]);
    spread(&cluster, filling());
    cluster.add_replica(0, &[]);
    cluster
}

/// Restores the newest backup of `orders` and compares it with what its servers hold, but for the nodes that are left out.
async fn restored_is_what_they_hold(fleet: &mut Fleet, cluster: &Cluster, holders: &[usize]) {
    let target = Server::start(Flavor::Redis, &[]);
    protect_one(fleet, "copy", &target).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap_or_else(|e| panic!("{}", e.report()));
    let wanted = holders.iter().flat_map(|n| held_by(&cluster.nodes[*n].1)).collect();
    compare("restored", &held_by(&target), &wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_of_a_shard_comes_from_its_replica_and_the_primary_does_not_fork() {
    let cluster = with_replica();
    let mut fleet = Fleet::start().await;
    protect(&mut fleet, "orders", &cluster).await;
    let before = [0, 3].map(|n| forks(&cluster.nodes[n].1));
    let chains = Chains::start(&cluster, 2);
    eventually("some load", || (chains.steps() > 300).then_some(()));
    let first = backup(&fleet, "orders").await;
    assert_eq!(nodes(&first), ["n1", "n2", "n3"]);
    chains.stop();
    let after = [0, 3].map(|n| forks(&cluster.nodes[n].1));
    assert!(after[0] == before[0] && after[1] > before[1], "{before:?} {after:?}");
    // Its index makes a delta of the next one; a replica that is out of step is no source.
    let second = backup(&fleet, "orders").await;
    assert_eq!((nodes(&second), second.full_parts), (nodes(&first), 0));
    restored_is_what_they_hold(&mut fleet, &cluster, &[0, 1, 2]).await;
    let _ = cluster.nodes[3].1.client().run("CONFIG SET masterauth wrong");
    let _ = cluster.nodes[0].1.client().run("CONFIG SET requirepass right");
    let mut primary = cluster.nodes[0].1.client();
    let _ = primary.run("AUTH right");
    let _ = primary.run("CLIENT KILL TYPE replica");
    let mut replica = cluster.nodes[3].1.client();
    eventually("the replica to be cut off", || {
        replica.run("INFO replication").text().contains("master_link_status:down").then_some(())
    });
    let _ = primary.call(&["CONFIG", "SET", "requirepass", ""]);
    let third = backup(&fleet, "orders").await;
    assert_eq!(nodes(&third), ["n0", "n1", "n2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_its_own_is_backed_up_by_its_replica() {
    let (port, source) = listening(Flavor::Redis, &["--min-replicas-to-write", "1"]);
    let replica = Server::start(Flavor::Redis, &["--replicaof", &format!("127.0.0.1 {port}")]);
    eventually("a write that the replica lets pass", || {
        matches!(source.client().ask(&["SET", "a", "1"]).ok()?, Reply::Status(_)).then_some(())
    });
    let mut fleet = Fleet::start().await;
    for (node, server) in [("n0", &source), ("n1", &replica)] {
        fleet.start_agent(spec("orders", node, format!("unix:{}", server.socket().display())));
    }
    let _ = fleet.ready("orders", 2).await;
    let config = fleet.dir().join("orders-n1.toml");
    let mut check = std::process::Command::new(binary("tidemark-agent"));
    let told = check.arg("--config").arg(config).arg("check").output().expect("agent");
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        told.status.success() && text.contains(&format!("stands in for its primary 127.0.0.1:{port}")),
        "{told:?}"
    );
    let taken = backup(&fleet, "orders").await;
    assert_eq!((nodes(&taken), taken.item.records), (vec!["n1".to_owned()], 1));
    // A primary that gives the agents' user no more than the right to look is being restored: nobody stands in for it then.
    let _ = source.client().run("ACL SETUSER default -client|setname");
    let refused = fleet.backup("orders").await.unwrap_err().report();
    assert!(refused.contains("n0") && refused.contains("min-replicas-to-write"), "{refused}");
    let _ = source.client().run("ACL SETUSER default +client|setname");
    // Without it the primary would count the agent as one of its replicas: that is not done unasked.
    fleet.stop_agent("orders", "n1").await;
    let refused = fleet.backup("orders").await.unwrap_err().report();
    assert!(refused.contains("min-replicas-to-write") && refused.contains("n0"), "{refused}");
}

/// A failover by `how` while the base of the first shard stands and others are awaited. `agents` have an agent.
async fn goes_on(agents: &[usize], source: &str, how: impl FnOnce(&mut Cluster)) {
    const HOLDERS: [usize; 3] = [1, 2, 3];
    let mut cluster = with_replica();
    let sections = "[backup]\nmax_parallel_bases = 4\n".to_owned();
    let mut fleet = Fleet::start_with(CoordinatorSpec { sections, ..Default::default() }).await;
    let ports = cluster.ports();
    for n in agents {
        fleet.start_agent(untuned("orders", &format!("n{n}"), format!("127.0.0.1:{}", ports[*n])));
    }
    let _ = fleet.ready("orders", agents.len()).await;
    for n in [1, 2] {
        let _ = cluster.nodes[n].1.client().run(SLOW);
    }
    let job = fleet.start_backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
    base_of(&fleet, &job, source).await;
    for i in 0..200 {
        let key = format!("between:{i}");
        let _ = cluster.owner(key.as_bytes()).client().call(&["SET", &key, "1"]);
    }
    // What the agent read the replica has as well: a promotion loses nothing.
    eventually("the replica to have it all", || {
        let [one, other] = [0, 3].map(|n| offset(&cluster.nodes[n].1));
        (one == other).then_some(())
    });
    how(&mut cluster);
    eventually("the replica to be promoted", || (role(&cluster.nodes[3].1) == "master").then_some(()));
    for i in 0..200 {
        let key = format!("after:{i}");
        eventually("the Cluster to take writes", || {
            let mut clients: Vec<_> = HOLDERS.iter().map(|n| cluster.nodes[*n].1.client()).collect();
            let took = clients.iter_mut().any(|c| matches!(c.ask(&["SET", &key, "2"]), Ok(Reply::Status(_))));
            took.then_some(())
        });
    }
    let done = fleet.api().job_end(&job).await;
    let _ = done.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(bases(&fleet, &job, source).await, 1, "the base was taken once");
    restored_is_what_they_hold(&mut fleet, &cluster, &HOLDERS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_on_when_its_primary_is_demoted_on_the_way() {
    goes_on(&[0, 1, 2], "n0", promote).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_on_when_the_replica_that_gave_the_base_is_promoted() {
    goes_on(&[0, 1, 2, 3], "n3", promote).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_on_at_the_promoted_replica_when_the_primary_dies() {
    goes_on(&[0, 1, 2], "n0", |cluster| cluster.nodes[0].1.kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_are_whole_in_backups_that_meet_failovers() {
    const CHAINS: usize = 2;
    let cluster = with_replica();
    let mut fleet = Fleet::start().await;
    protect(&mut fleet, "orders", &cluster).await;
    let chains = Chains::start(&cluster, CHAINS);
    let (stop, mut taken) = (std::sync::atomic::AtomicBool::new(false), 0);
    std::thread::scope(|scope| {
        // To and fro, for as long as backups are taken.
        let _ = scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let follower = if role(&cluster.nodes[0].1) == "slave" { 0 } else { 3 };
                let server = &cluster.nodes[follower].1;
                fail_over(server);
                eventually("the other to follow", || {
                    let other = &cluster.nodes[3 - follower].1;
                    let info = other.client().run("INFO replication").text();
                    info.contains("master_link_status:up").then_some(())
                });
            }
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                for i in 0..4 {
                    let begun = chains.steps();
                    eventually("steps of chains", || (chains.steps() > begun + 100).then_some(()));
                    // One that finds no quiet moment fails and says so; what stands is whole.
                    match fleet.backup("orders").await {
                        Ok(_) => taken += 1,
                        Err(e) => {
                            println!("not taken: {}", e.report());
                            continue;
                        }
                    }
                    let (target, name) = (Server::start(Flavor::Redis, &[]), format!("copy-{i}"));
                    protect_one(&mut fleet, &name, &target).await;
                    let restored = fleet.restore(&restore_of("orders", &name)).await;
                    let _ = restored.unwrap_or_else(|e| panic!("{}", e.report()));
                    let mut clients = [target.client()];
                    let _ = check(CHAINS, |key| get(&mut clients, key));
                    fleet.agent(&name, "n0").process.stop().await;
                }
            });
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    chains.stop();
    assert!(taken > 0, "no backup was taken");
}
