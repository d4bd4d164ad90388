//! Agents and coordinators that die at every phase of a backup of a Cluster while writes go on: the job goes on or fails by
//! name, writes never stop for longer than a hold, no link and no base stays, and what stands is whole.

use std::path::Path;

use tidemark_coordinator::job::{JobInfo, JobState};
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, eventually as later, restore_of};
use tidemark_tests::redis::{Cluster, Flavor, Server, eventually};

use super::chains::{Chains, check};
use super::contents::{compare, held_by, held_by_all};
use super::flow::{backup, filling, get, protect, protect_as, protect_one, spec, spread, untuned};
use super::replicas::{SLOW, base_of, bases};

const CHAINS: usize = 2;

fn dies(at: &str) -> Vec<(String, String)> {
    vec![(tidemark_common::crash::VARIABLE.into(), at.into())]
}

/// Writes go on; there is nothing of a job on any node.
async fn all_is_well(fleet: &Fleet, cluster: &Cluster, chains: &Chains, when: &str) {
    let begun = chains.steps();
    eventually("writes", || (chains.steps() > begun + 50).then_some(()));
    for (n, (_, server)) in cluster.nodes.iter().enumerate() {
        let jobs = fleet.dir().join(format!("orders-n{n}.state/redis/jobs"));
        later(&format!("nothing to stay on n{n} ({when})"), async || {
            let links = server.client().run("INFO replication").text().matches("slave0:").count();
            (links == 0 && is_empty(&jobs)).then_some(())
        })
        .await;
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut d| d.next().is_none())
}

/// Restores the newest backup and checks the chains in it.
async fn newest_is_whole(fleet: &mut Fleet, name: &str) {
    let target = Server::start(Flavor::Redis, &[]);
    protect_one(fleet, name, &target).await;
    let _ = fleet.restore(&restore_of("orders", name)).await.unwrap_or_else(|e| panic!("{}", e.report()));
    let mut clients = [target.client()];
    let _ = check(CHAINS, |key| get(&mut clients, key));
    fleet.agent(name, "n0").process.stop().await;
}

/// Waits until no job runs; whether history tells of a backup that stands.
pub(crate) async fn stands(fleet: &Fleet) -> bool {
    later("the jobs to end", async || {
        let jobs: Vec<JobInfo> = fleet.api().get("jobs").await.ok()?;
        jobs.iter().all(|j| j.state != JobState::Running).then_some(())
    })
    .await;
    let backups = fleet.backups("orders").await;
    assert_eq!(backups.len(), 1, "history tells how it ended: {backups:?}");
    backups[0].state == "complete"
}

fn filled() -> Cluster {
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    spread(&cluster, filling().into_iter().take(6000).collect());
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_dies_at_each_phase_while_writes_go_on() {
    let cluster = filled();
    let mut fleet = Fleet::start().await;
    protect(&mut fleet, "orders", &cluster).await;
    let chains = Chains::start(&cluster, CHAINS);
    let points =
        ["agent.prepared", "agent.held", "agent.sealed", "agent.released", "agent.part-sent", "agent.settling"];
    for (i, point) in points.into_iter().enumerate() {
        fleet.stop_agent("orders", "n1").await;
        let mut spec = spec("orders", "n1", format!("127.0.0.1:{}", cluster.ports()[1]));
        spec.env = dies(point);
        fleet.start_agent(spec);
        let _ = fleet.ready("orders", 3).await;
        let job = fleet.start_backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
        fleet.revive_agent("orders", "n1").await;
        if let Err(e) = fleet.api().job_end(&job).await {
            assert!(e.report().contains("n1"), "{point}: {}", e.report());
            println!("{point}: {}", e.report());
        }
        all_is_well(&fleet, &cluster, &chains, point).await;
        let _ = backup(&fleet, "orders").await;
        newest_is_whole(&mut fleet, &format!("copy-{i}")).await;
    }
    chains.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_dies_at_each_phase_while_writes_go_on() {
    let cluster = filled();
    let chains = Chains::start(&cluster, CHAINS);
    let before = ["backup.begun", "backup.held", "backup.sealed"];
    let behind = ["backup.cut", "ingest.part", "backup.stored", "backup.manifest", "backup.committed"];
    for point in before.into_iter().chain(behind) {
        let spec = CoordinatorSpec { env: dies(point), ..CoordinatorSpec::default() };
        let mut fleet = Fleet::start_with(spec).await;
        protect(&mut fleet, "orders", &cluster).await;
        // The answer may be lost with the coordinator.
        let _ = fleet.start_backup("orders").await;
        fleet.revive_coordinator().await;
        let _ = fleet.ready("orders", 3).await;
        // Before the cut holds there is nothing to go on with.
        let goes_on = behind.contains(&point);
        assert_eq!(stands(&fleet).await, goes_on, "{point}");
        if goes_on {
            newest_is_whole(&mut fleet, "copy").await;
        }
        all_is_well(&fleet, &cluster, &chains, point).await;
        let _ = backup(&fleet, "orders").await;
        newest_is_whole(&mut fleet, "later").await;
    }
    chains.stop();
}

/// Servers that keep their data over a restart, and a backup under way with `more` settings: the base of `n0` stands, the
/// others are awaited.
async fn base_of_the_first(more: &str) -> (Cluster, Fleet, JobInfo) {
    let cluster = Cluster::start(Flavor::Redis, 3, &["--appendonly", "yes", "--appendfsync", "always"]);
    spread(&cluster, filling().into_iter().take(3000).collect());
    let sections = format!("[backup]\nmax_parallel_bases = 3\n{more}");
    let mut fleet = Fleet::start_with(CoordinatorSpec { sections, ..Default::default() }).await;
    protect_as(&mut fleet, "orders", &cluster, untuned).await;
    for n in [1, 2] {
        let _ = cluster.nodes[n].1.client().run(SLOW);
    }
    let job = fleet.start_backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
    base_of(&fleet, &job, "n0").await;
    (cluster, fleet, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_started_anew_while_bases_are_taken_costs_its_base_alone() {
    let (mut cluster, mut fleet, job) = base_of_the_first("").await;
    // It comes back with its data, and has forgotten who followed it.
    cluster.nodes[0].1.restart();
    let done = fleet.api().job_end(&job).await;
    let _ = done.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!((bases(&fleet, &job, "n0").await, bases(&fleet, &job, "n1").await), (2, 1));
    let target = Server::start(Flavor::Redis, &[]);
    protect_one(&mut fleet, "copy", &target).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap_or_else(|e| panic!("{}", e.report()));
    compare("restored", &held_by(&target), &held_by_all(&cluster));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stays_away_is_named_and_nothing_stays_behind() {
    let (mut cluster, fleet, job) = base_of_the_first("node_patience_seconds = 3\n").await;
    cluster.nodes[0].1.kill();
    let told = fleet.api().job_end(&job).await.unwrap_err().report();
    assert!(told.contains("n0"), "{told}");
    for n in 0..3 {
        let jobs = fleet.dir().join(format!("orders-n{n}.state/redis/jobs"));
        later(&format!("nothing to stay on n{n}"), async || is_empty(&jobs).then_some(())).await;
    }
    cluster.nodes[0].1.restart();
    eventually("the Cluster to be whole", || {
        let mut clients = cluster.clients();
        clients.iter_mut().all(|c| c.run("CLUSTER INFO").text().contains("cluster_state:ok")).then_some(())
    });
    let _ = backup(&fleet, "orders").await;
}
