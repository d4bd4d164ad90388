//! Processes that die at every phase of a backup and of a restore, as `kill -9` would end them.
//!
//! Whatever dies: the job goes on with what is missing or ends as failed with a reason, the next backup starts without help,
//! and nothing stays behind: no pin, no waiting index, no staging area, no unfinished file.

use nix::sys::signal::Signal;
use tidemark_coordinator::api::NodeJobs;
use tidemark_coordinator::catalog::BackupItem;
use tidemark_coordinator::job::collect::{CollectReport, CollectRequest};
use tidemark_coordinator::job::{JobInfo, JobKind, JobState};
use tidemark_coordinator::kv::Router;
use tidemark_proto::{ErrorKind, Timestamp};
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, Records, eventually, records_at, restore_of};

use crate::steps::{assert_holds, assert_takes_writes, at_cut, fill};

const RECORDS: u64 = 2000;

/// Many small parts, one at a time.
fn spec(dies_at: &str) -> CoordinatorSpec {
    let sections = "[backup]\nslots_per_region = 512\nagent_concurrency = 1\nnode_patience_seconds = 20\n\
                    [memory]\ningest_mib = 6\nserve_mib = 6";
    CoordinatorSpec { sections: sections.into(), env: dies(dies_at), ..CoordinatorSpec::default() }
}

fn dies(at: &str) -> Vec<(String, String)> {
    if at.is_empty() { Vec::new() } else { vec![(tidemark_common::crash::VARIABLE.into(), at.into())] }
}

/// A fleet of two nodes with data, whose coordinator and second node die at the given points (empty: live on).
async fn fleet(coordinator: &str, agent: &str) -> Fleet {
    let mut fleet = Fleet::start_with(spec(coordinator)).await;
    fleet
        .add_cluster_with("orders", 2, |a| {
            if a.node == "n1" {
                a.env = dies(agent)
            }
        })
        .await;
    fill(&fleet.router("orders", 2).await, 1, RECORDS).await;
    fleet
}

/// Waits until no job runs, and answers them all, newest first.
async fn all_quiet(fleet: &Fleet) -> Vec<JobInfo> {
    eventually("every job to end", async || {
        let jobs: Vec<JobInfo> = fleet.api().get("jobs").await.ok()?;
        jobs.iter().all(|j| j.state != JobState::Running).then_some(jobs)
    })
    .await
}

/// The newest backup once no job runs.
async fn newest(fleet: &Fleet) -> BackupItem {
    let _ = all_quiet(fleet).await;
    fleet.backups("orders").await.into_iter().next().expect("history tells of the backup")
}

/// No node of the cluster holds anything of a job.
async fn nothing_open(fleet: &Fleet, cluster: &str) {
    eventually(&format!("nothing to be open in {cluster}"), async || {
        let nodes: Vec<NodeJobs> = fleet.api().get(&format!("clusters/{cluster}/open-jobs")).await.ok()?;
        let open = nodes.iter().any(|n| !n.backups.is_empty() || !n.restores.is_empty());
        (nodes.len() == 2 && !open).then_some(())
    })
    .await;
}

async fn collect(fleet: &Fleet) -> CollectReport {
    let request = CollectRequest { cluster: Some("orders".parse().unwrap()), dry_run: false };
    let jobs: Vec<JobInfo> = fleet.api().post("repository/collect", &request).await.unwrap();
    serde_json::from_value(fleet.api().job_end(&jobs[0]).await.unwrap()).unwrap()
}

/// Files that a writer did not finish.
fn unfinished(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(unfinished(&path));
        } else if path.to_string_lossy().contains('#') {
            found.push(path);
        }
    }
    found
}

/// The next backup needs no help and is good; what the dead left is collected.
async fn goes_on(fleet: &mut Fleet) {
    let _ = fleet.ready("orders", 2).await;
    nothing_open(fleet, "orders").await;
    assert_takes_writes(fleet, "orders", 2).await;
    let next = fleet.backup("orders").await.unwrap();
    assert_eq!(next.item.records, RECORDS);
    let _ = fleet.verify("orders", &next.item.id).await.unwrap();
    nothing_open(fleet, "orders").await;
    let _ = collect(fleet).await;
    let left = collect(fleet).await;
    assert_eq!((left.packs, left.open_jobs), (0, 0), "{left:?}");
    // Events are written in their own time.
    let repository = fleet.repository();
    eventually("no unfinished file to be left", async || unfinished(&repository).is_empty().then_some(())).await;
    let _ = fleet.verify("orders", &next.item.id).await.unwrap();
}

/// A backup during which the coordinator, the second node, or both die.
async fn backup_survives(coordinator: &str, agent: &str, completes: Option<bool>) {
    let mut fleet = fleet(coordinator, agent).await;
    let before = records_at(&fleet.router("orders", 2).await, None).await;
    let _ = fleet.start_backup("orders").await;
    if !coordinator.is_empty() {
        fleet.revive_coordinator().await;
    }
    if !agent.is_empty() {
        fleet.revive_agent("orders", "n1").await;
    }
    let _ = fleet.ready("orders", 2).await;
    let backup = newest(&fleet).await;
    match backup.state.as_str() {
        "complete" => {
            assert_ne!(completes, Some(false), "{backup:?}");
            let router = fleet.router("orders", 2).await;
            holds_the_cut(&router, &backup, &before).await;
            let _ = fleet.verify("orders", &backup.id).await.unwrap();
        }
        "failed" => {
            assert_ne!(completes, Some(true), "{backup:?}");
            let cause = if coordinator.is_empty() { "n1" } else { "coordinator" };
            assert!(backup.reason.contains(cause), "{backup:?}");
        }
        other => panic!("{other}: {backup:?}"),
    }
    goes_on(&mut fleet).await;
}

async fn holds_the_cut(router: &Router, backup: &BackupItem, expected: &Records) {
    assert_eq!(backup.records, expected.len() as u64);
    assert_eq!(records_at(router, Some(Timestamp(backup.cut))).await, *expected);
}

macro_rules! backups {
    ($($name:ident: $coordinator:literal, $agent:literal => $completes:expr;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            backup_survives($coordinator, $agent, $completes).await;
        })*
    };
}

backups! {
    coordinator_dies_before_the_cut: "backup.begun", "" => Some(false);
    coordinator_dies_while_writes_are_held: "backup.held", "" => Some(false);
    coordinator_dies_between_seal_and_release: "backup.sealed", "" => Some(false);
    coordinator_dies_after_the_cut: "backup.cut", "" => Some(true);
    coordinator_dies_in_the_middle_of_a_region: "ingest.block:9", "" => Some(true);
    coordinator_dies_before_a_pack_is_closed: "pack.closing", "" => Some(true);
    coordinator_dies_before_the_manifest: "backup.stored", "" => Some(true);
    coordinator_dies_before_the_ledger_entry: "backup.manifest", "" => Some(true);
    coordinator_dies_after_the_ledger_entry: "backup.committed", "" => Some(true);
    agent_dies_while_it_holds: "", "agent.held" => None;
    agent_dies_after_its_seal: "", "agent.sealed" => None;
    agent_dies_after_its_release: "", "agent.released" => None;
    agent_dies_between_regions: "", "agent.part-sent:3" => Some(true);
    agent_dies_when_it_is_told_the_end: "", "agent.settling" => Some(true);
    both_die_in_the_middle: "ingest.part:9", "agent.part-sent:3" => Some(true);
}

/// What is stored is not sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_backup_sends_only_what_is_missing() {
    let mut fleet = fleet("backup.stored", "").await;
    let _ = fleet.start_backup("orders").await;
    fleet.revive_coordinator().await;
    let backup = newest(&fleet).await;
    assert_eq!(backup.state, "complete", "{backup:?}");
    let job = all_quiet(&fleet).await.into_iter().find(|j| j.id.to_string() == backup.id).expect("the job");
    // Everything was stored when the coordinator died.
    assert_eq!((job.kind, job.progress.parts, job.progress.wire_bytes), (JobKind::Backup, 0, 0), "{job:?}");
    assert!(backup.new_bytes > 0, "{backup:?}");
    goes_on(&mut fleet).await;
}

/// A region of many parts of which some are stored goes on behind them.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_cut_into_parts_goes_on_behind_the_last() {
    let mut spec = spec("pack.closing");
    spec.sections = spec.sections.replace("= 512", "= 16384");
    spec.env = dies("ingest.part:25");
    let mut fleet = Fleet::start_with(spec).await;
    fleet.add_cluster_with("orders", 1, |a| a.part_bytes = 64 << 10).await;
    let router = fleet.router("orders", 1).await;
    for n in 0..3000u32 {
        let value = tidemark_proto::hash::Hash::of(&n.to_le_bytes()).to_string().repeat(16);
        let _ = tidemark_tests::fleet::write(&router, format!("k{n}").as_bytes(), Some(value.as_bytes())).await;
    }
    let _ = fleet.start_backup("orders").await;
    fleet.revive_coordinator().await;
    let _ = fleet.ready("orders", 1).await;
    let backup = newest(&fleet).await;
    assert_eq!((backup.state.as_str(), backup.records), ("complete", 3000), "{backup:?}");
    let _ = fleet.verify("orders", &backup.id).await.unwrap();
}

/// A restore during which the coordinator, a node, or both die: it always arrives.
async fn restore_survives(coordinator: &str, agent: &str) {
    let mut fleet = fleet(coordinator, "").await;
    let router = fleet.router("orders", 2).await;
    let backup = fleet.backup("orders").await.unwrap();
    let expected = at_cut(&router, &backup).await;
    fleet
        .add_cluster_with("copy", 2, |a| {
            if a.node == "n1" {
                a.env = dies(agent)
            }
        })
        .await;
    let job: JobInfo = fleet.api().post("restores", &restore_of("orders", "copy")).await.unwrap();
    if !coordinator.is_empty() {
        fleet.revive_coordinator().await;
    }
    if !agent.is_empty() {
        fleet.revive_agent("copy", "n1").await;
    }
    let _ = fleet.ready("orders", 2).await;
    let jobs = all_quiet(&fleet).await;
    let ended = jobs.iter().find(|j| j.id == job.id);
    if let Some(failed) = ended.filter(|j| j.state != JobState::Succeeded) {
        let error = failed.error.as_ref().expect("a reason");
        assert!(error.message.contains("n1"), "{failed:?}");
        let _ = fleet.ready("copy", 2).await;
        nothing_open(&fleet, "copy").await;
        let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    }
    assert_holds(&fleet, "copy", 2, &expected).await;
    nothing_open(&fleet, "copy").await;
    assert_takes_writes(&fleet, "copy", 2).await;
    goes_on(&mut fleet).await;
}

macro_rules! restores {
    ($($name:ident: $coordinator:literal, $agent:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            restore_survives($coordinator, $agent).await;
        })*
    };
}

restores! {
    coordinator_dies_before_the_first_part: "restore.begun", "";
    coordinator_dies_while_parts_are_loaded: "serve.part:7", "";
    coordinator_dies_after_the_last_part: "restore.loaded", "";
    coordinator_dies_before_the_switch: "restore.verified", "";
    coordinator_dies_in_the_switch: "restore.switching", "";
    coordinator_dies_after_the_switch: "restore.switched", "";
    agent_dies_before_its_first_part: "", "agent.restore-begun";
    agent_dies_between_parts: "", "agent.part-loaded:3";
    agent_dies_when_it_has_read_back: "", "agent.verified";
    agent_dies_before_its_switch: "", "agent.switching";
    agent_dies_after_its_switch: "", "agent.switched";
    both_die_in_a_restore: "serve.part:7", "agent.part-loaded:3";
    both_die_in_the_switch: "restore.switching", "agent.switched";
}

/// A restore in place that is called off by a crash of the coordinator and of a node that stays away leaves the data as
/// it was, on that node too once it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_cannot_be_taken_up_again_changes_nothing() {
    let mut spec = spec("restore.loaded");
    spec.sections = spec.sections.replace("node_patience_seconds = 20", "node_patience_seconds = 2");
    let mut fleet = Fleet::start_with(spec).await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, RECORDS).await;
    let _ = fleet.backup("orders").await.unwrap();
    fill(&router, 2, 100).await;
    let before = records_at(&router, None).await;
    let mut request = restore_of("orders", "orders");
    (request.in_place, request.no_safety_backup) = (true, true);
    let job: JobInfo = fleet.api().post("restores", &request).await.unwrap();
    let died = async || fleet.api().get::<serde_json::Value>("status").await.err();
    let _ = eventually("the coordinator to have died", died).await;
    fleet.agent("orders", "n1").process.kill().await;
    fleet.revive_coordinator().await;
    let jobs = all_quiet(&fleet).await;
    let failed = jobs.iter().find(|j| j.id == job.id).expect("the job was taken up");
    let error = failed.error.as_ref().expect("an error");
    assert!(failed.state == JobState::Failed && error.message.contains("n1"), "{failed:?}");
    fleet.restart_agent("orders", "n1");
    assert_holds(&fleet, "orders", 2, &before).await;
    nothing_open(&fleet, "orders").await;
    assert_takes_writes(&fleet, "orders", 2).await;
}

/// A process that stands still for longer than the idle time-out is what a network cut looks like from outside.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_cut_off_for_longer_than_the_idle_time_out() {
    let mut fleet = fleet("", "").await;
    let before = records_at(&fleet.router("orders", 2).await, None).await;
    let job = fleet.start_backup("orders").await.unwrap();
    eventually("parts on their way", async || {
        let job = fleet.api().job(&job).await;
        (job.progress.parts >= 2 || job.state != JobState::Running).then_some(())
    })
    .await;
    fleet.agent("orders", "n1").process.signal(Signal::SIGSTOP);
    eventually("the coordinator to miss the node", async || {
        let detail: tidemark_coordinator::api::ClusterDetail = fleet.api().get("clusters/orders").await.ok()?;
        detail.nodes.iter().all(|n| n.node != "n1" || !n.connected).then_some(())
    })
    .await;
    fleet.agent("orders", "n1").process.signal(Signal::SIGCONT);
    let _ = fleet.ready("orders", 2).await;
    let backup = newest(&fleet).await;
    assert_eq!(backup.state, "complete", "{backup:?}");
    holds_the_cut(&fleet.router("orders", 2).await, &backup, &before).await;
    goes_on(&mut fleet).await;
}

/// The older of two coordinators is fenced at its next write and says so.
#[tokio::test(flavor = "multi_thread")]
async fn the_older_of_two_coordinators_writes_no_more() {
    let fleet = fleet("", "").await;
    let first = fleet.backup("orders").await.unwrap();
    let second = fleet.second_coordinator().await;
    let entries = || std::fs::read_dir(fleet.repository().join("clusters/orders/ledger")).unwrap().count();
    let before = entries();
    let refused = fleet.backup("orders").await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Fenced && refused.message().contains("epoch"), "{refused}");
    let path = format!("clusters/orders/backups/{}", first.item.id);
    let refused = fleet.api().delete::<serde_json::Value>(&path).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
    let request = CollectRequest::default();
    assert!(fleet.api().post::<Vec<JobInfo>>("repository/collect", &request).await.is_err());
    assert_eq!(entries(), before, "nothing of the fenced one is in the history");
    let status: serde_json::Value = fleet.api().get("status").await.unwrap();
    assert!(status["fenced"].as_str().unwrap().contains("epoch"), "{status}");
    let listed: Vec<BackupItem> = second.api(&fleet).get("clusters/orders/backups").await.unwrap();
    assert_eq!((listed.len(), listed[0].state.as_str()), (1, "complete"));
}
