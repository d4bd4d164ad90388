//! What the daemons tell of themselves: metrics, health, events, spans in logs, the archive for the report of a fault.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use tidemark_common::telemetry::Metric;
use tidemark_coordinator::events::EventItem;
use tidemark_coordinator::repository::{MasterKey, Repository, Store, StoreConfig};
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, Scrape, ask, eventually, restore_of};

use crate::steps::fill;

/// Milliseconds of a time in seconds.
fn millis(seconds: f64) -> u64 {
    (seconds * 1e3).round() as u64
}

/// The value of a series of the coordinator, once it is there.
async fn told(fleet: &Fleet, series: &str) -> f64 {
    eventually(series, async || fleet.scrape().await.get(series)).await
}

async fn events(fleet: &Fleet, args: &[&str]) -> Vec<EventItem> {
    let args: Vec<&str> = ["events", "-o", "json"].iter().chain(args).copied().collect();
    serde_json::from_str(&fleet.tidemark(&args).await).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_of_backup_and_restore_and_history_outlives_a_restart() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    fill(&fleet.router("orders", 2).await, 1, 2000).await;
    let backup = fleet.backup("orders").await.unwrap();
    fleet.add_cluster("copy", 1).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    let _ = fleet.backup("nobody").await.unwrap_err();

    let here = fleet.scrape().await;
    for stage in ["received", "stored", "served"] {
        let bytes = here.value(&format!("tidemark_coordinator_stage_bytes_total{{stage=\"{stage}\"}}"));
        assert!(bytes > 10e3, "{stage}: {bytes}");
    }
    assert!(here.value("tidemark_coordinator_stage_bytes_total{stage=\"stored\"}") >= backup.item.new_bytes as f64);
    for (series, value) in [
        ("tidemark_coordinator_jobs_ended_total{kind=\"backup\",state=\"succeeded\"}", 1.0),
        ("tidemark_coordinator_jobs_ended_total{kind=\"backup\",state=\"failed\"}", 1.0),
        ("tidemark_coordinator_jobs_ended_total{kind=\"restore\",state=\"succeeded\"}", 1.0),
        ("tidemark_coordinator_jobs_running{kind=\"backup\"}", 0.0),
        ("tidemark_coordinator_connected_agents{cluster=\"orders\"}", 2.0),
        ("tidemark_coordinator_connected_agents{cluster=\"copy\"}", 1.0),
        ("tidemark_coordinator_hold_seconds_count{cluster=\"orders\"}", 2.0),
        ("tidemark_coordinator_cut_attempts_total{cluster=\"orders\",outcome=\"held\"}", 1.0),
        ("tidemark_coordinator_part_seconds_count{kind=\"receive\"}", backup.parts as f64),
        ("tidemark_coordinator_parts{state=\"granted\"}", 0.0),
        ("tidemark_coordinator_parts{state=\"waiting\"}", 0.0),
        ("tidemark_coordinator_memory_used_bytes{budget=\"ingest\"}", 0.0),
        ("tidemark_coordinator_limit_bytes_per_second{scope=\"fleet\"}", 0.0),
        ("tidemark_coordinator_events_lost_total", 0.0),
        ("tidemark_coordinator_backups{cluster=\"orders\"}", 1.0),
        ("tidemark_coordinator_epoch", 1.0),
        ("tidemark_build_info{program=\"tidemark\",version=\"0.1.0\"}", 1.0),
    ] {
        assert_eq!(here.value(series), value, "{series}");
    }
    assert!(here.value("tidemark_coordinator_store_attempts_total{outcome=\"ok\"}") > 5.0);
    assert!(here.value("tidemark_coordinator_store_attempts_total{outcome=\"not_found\"}") < 100.0);
    assert!(here.value("tidemark_coordinator_memory_budget_bytes{budget=\"serve\"}") > 1e6);
    assert!(here.value("tidemark_process_resident_memory_bytes") > 1e6);
    let days = (here.value("tidemark_certificate_not_after_seconds")
        - here.value("tidemark_process_start_time_seconds"))
        / 86_400.0;
    assert!((29.0..31.0).contains(&days), "a certificate of 30 days, told as {days}");
    assert!(here.value("tidemark_coordinator_clock_offset_seconds{cluster=\"orders\"}") < 5.0);
    assert_known(&here, tidemark_coordinator::metric_names::ALL);
    agents_tell(&mut fleet, &backup).await;

    // History: by the ledger, so that another process knows it.
    let (success, cut) = (
        "tidemark_coordinator_last_success_timestamp_seconds{cluster=\"orders\"}",
        "tidemark_coordinator_last_cut_timestamp_seconds{cluster=\"orders\"}",
    );
    let finished = backup.item.started_millis + backup.item.duration_millis;
    let before = here.value(success);
    assert!(millis(before).abs_diff(finished) < 2000, "{before} and {finished}");
    assert_eq!(millis(here.value(cut)), tidemark_proto::Timestamp(backup.item.cut).millis());
    fleet.restart_coordinator().await;
    assert_eq!((told(&fleet, success).await, told(&fleet, cut).await), (before, here.value(cut)));
    let after = fleet.scrape().await;
    assert_eq!(after.value("tidemark_coordinator_epoch"), 2.0);
    assert_eq!(after.value("tidemark_coordinator_jobs_ended_total{kind=\"backup\",state=\"succeeded\"}"), 0.0);
}

/// Everything told is in the tables, as what it is there, and has a line of help.
fn assert_known(scrape: &Scrape, own: &[Metric]) {
    let known = || tidemark_common::metric_names::ALL.iter().chain(own);
    assert!(scrape.kinds().len() > 10, "{}", scrape.text);
    for (name, kind) in scrape.kinds() {
        assert!(known().any(|m| m.name == name && m.kind.name() == kind), "{name} ({kind}) is in no table");
        assert!(scrape.text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
}

/// Bytes by stage of both nodes of `orders`, and of the one of `copy`.
async fn agents_tell(fleet: &mut Fleet, backup: &tidemark_coordinator::catalog::BackupDetail) {
    let stage = |name: &str| format!("tidemark_agent_stage_bytes_total{{stage=\"{name}\"}}");
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for node in ["n0", "n1"] {
        let agent = fleet.scrape_agent("orders", node).await;
        for name in ["read", "sealed", "sent"] {
            *sums.entry(name).or_default() += agent.value(&stage(name));
        }
        assert_eq!(agent.value("tidemark_agent_connected"), 1.0);
        assert_eq!(agent.value("tidemark_agent_parts_running{kind=\"upload\"}"), 0.0);
        assert_eq!(agent.value("tidemark_agent_hold_seconds_count"), 1.0);
        assert!(agent.value("tidemark_agent_part_attempts_total{kind=\"upload\",outcome=\"ok\"}") > 10.0);
        assert!(agent.value("tidemark_agent_part_seconds_count{kind=\"upload\"}") > 10.0);
    }
    assert_eq!(sums["read"], backup.read_bytes as f64);
    assert_eq!(sums["sealed"], sums["sent"]);
    assert!(sums["sent"] > 10e3 && sums["sent"] <= backup.item.new_bytes as f64, "{sums:?}");
    let copy = fleet.scrape_agent("copy", "n0").await;
    assert_known(&copy, tidemark_agent::metric_names::ALL);
    assert_eq!(copy.value(&stage("loaded")), backup.item.data_bytes as f64);
    assert_eq!(copy.value(&stage("fetched")), sums["sent"], "sealed blocks come back as they were sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_readiness_are_told_with_a_reason() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 1).await;
    let coordinator = fleet.coordinator().telemetry;
    let agent = fleet.agent("orders", "n0").telemetry().await;
    for address in [coordinator, agent] {
        assert_eq!(ask(address, "/healthz").await.0, 200);
        assert_eq!(ask(address, "/readyz").await, (200, "ready\n".into()));
        assert_eq!(ask(address, "/elsewhere").await.0, 404);
    }
    let unready = async |address, why: &str| {
        eventually(why, async || {
            let (status, text) = ask(address, "/readyz").await;
            (status == 503 && text.contains(why)).then_some(())
        })
        .await;
        assert_eq!(ask(address, "/healthz").await.0, 200, "alive all the same");
    };
    let ready = async |address| {
        eventually("readiness", async || (ask(address, "/readyz").await.0 == 200).then_some(())).await;
    };
    // The store goes away and comes back.
    let (here, away) = (fleet.repository(), fleet.dir().join("away"));
    std::fs::rename(&here, &away).unwrap();
    unready(coordinator, "gone from the object store").await;
    std::fs::rename(&away, &here).unwrap();
    ready(coordinator).await;
    // Another coordinator takes the next epoch.
    let url = format!("file://{}", fleet.repository().display());
    let store = Store::open(&StoreConfig { url, ..StoreConfig::default() }).unwrap();
    let key = MasterKey::load(Some(&fleet.dir().join("master.key"))).unwrap();
    let repository = Repository::open(store, key.as_ref()).await.unwrap();
    let _ = repository.take_epoch("another", 1).await.unwrap();
    unready(coordinator, "another coordinator has taken over").await;
    // No coordinator.
    fleet.stop_coordinator().await;
    unready(agent, "no coordinator is connected").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_what_happened_also_after_a_restart() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    fill(&fleet.router("orders", 2).await, 1, 500).await;
    let backup = fleet.backup("orders").await.unwrap();
    fleet.stop_agent("orders", "n1").await;
    let failed = fleet.backup("orders").await.unwrap_err();
    fleet.restart_coordinator().await;
    let all = events(&fleet, &["--cluster", "orders"]).await;
    let of = |job: &str| -> Vec<(&str, &str)> {
        all.iter().filter(|e| e.job == job).map(|e| (e.kind.as_str(), e.what.as_str())).collect()
    };
    let good = of(&backup.item.id);
    assert_eq!(good[0], ("backup", "began"), "{all:#?}");
    for seen in [("backup", "phase"), ("backup", "cut"), ("ledger", "backup"), ("backup", "succeeded")] {
        assert!(good.contains(&seen), "{seen:?} in {good:?}");
    }
    let phases: Vec<_> = all.iter().filter(|e| e.job == backup.item.id && e.what == "phase").collect();
    assert!(phases.iter().any(|e| e.message == "sending parts"), "{phases:?}");
    assert!(all.windows(2).all(|w| w[0].at_millis <= w[1].at_millis), "in the order of time");
    let end = all.iter().find(|e| e.kind == "backup" && e.what == "failed").expect("the failed job");
    assert!(end.message.contains("n1") && failed.report().contains("n1"), "{end:?}");
    assert!(of(&end.job).contains(&("ledger", "failed")));
    assert!(all.iter().any(|e| (e.kind.as_str(), e.what.as_str()) == ("ledger", "fence")));
    // One job, by the beginning of its id.
    let one = events(&fleet, &["--job", &end.job[..8]]).await;
    assert!(!one.is_empty() && one.iter().all(|e| e.job == end.job), "{one:?}");
    let text = fleet.tidemark(&["events", "-n", "3"]).await;
    assert_eq!(text.lines().count(), 4, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_lines_carry_the_spans_of_job_and_part() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 1).await;
    fill(&fleet.router("orders", 1).await, 1, 300).await;
    let id = fleet.backup("orders").await.unwrap().item.id;
    let spans_of = |log: &str, message: &str| -> Vec<serde_json::Value> {
        let lines = log.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
        let line = lines.rev().find(|l| l["fields"]["message"] == message);
        let line = line.unwrap_or_else(|| panic!("no line `{message}` in\n{log}"));
        line["spans"].as_array().cloned().unwrap_or_default()
    };
    let job = |spans: &[serde_json::Value]| spans.iter().any(|s| s["name"] == "job" && s["job"] == id.as_str());
    let agent = spans_of(&fleet.agent("orders", "n0").process.log(), "part sent");
    assert!(job(&agent), "{agent:?}");
    assert!(agent.iter().any(|s| s["name"] == "part" && s["region"].is_u64()), "{agent:?}");
    let coordinator = fleet.coordinator().process.log();
    let received = spans_of(&coordinator, "part received");
    assert!(received.iter().any(|s| s["name"] == "part" && s["job"] == id.as_str()), "{received:?}");
    let ended = spans_of(&coordinator, "job succeeded");
    assert!(job(&ended) && ended.iter().any(|s| s["cluster"] == "orders"), "{ended:?}");
}

/// Values that must be nowhere. Each could also be the name of a cluster.
const SECRETS: [&str; 4] =
    ["oqx7-option-secret", "oqx7-environment-secret", "oqx7-password", "oqx7-token-of-agent"];

#[tokio::test(flavor = "multi_thread")]
async fn a_diagnosis_holds_what_is_needed_and_no_secret() {
    let spec = CoordinatorSpec {
        repository: format!("[repository.options]\naws_secret_access_key = \"{}\"\n", SECRETS[0]),
        env: vec![
            ("AWS_SESSION_TOKEN".into(), SECRETS[1].into()),
            ("AWS_PROXY_PASSWORD".into(), SECRETS[2].into()),
        ],
        ..CoordinatorSpec::default()
    };
    let mut fleet = Fleet::start_with(spec).await;
    let env = vec![("NODE_TOKEN".to_owned(), SECRETS[3].to_owned())];
    fleet.add_cluster_with("orders", 2, |spec| spec.env.clone_from(&env)).await;
    fill(&fleet.router("orders", 2).await, 1, 200).await;
    let backup = fleet.backup("orders").await.unwrap();
    // The worst that can happen: something has told a secret of the coordinator, to the log, to a job, to its events.
    for secret in &SECRETS[..3] {
        let _ = fleet.backup(secret).await.unwrap_err();
    }
    assert!(fleet.coordinator().process.log().contains(SECRETS[0]), "or the test finds nothing to hide");
    let out = fleet.dir().join("diagnosis.tar.gz");
    let words = fleet.tidemark(&["diagnose", "--out", out.to_str().unwrap()]).await;
    assert!(words.contains("files"), "{words}");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(&out).unwrap()));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let (mut entry, mut text) = (entry.unwrap(), String::new());
        let _ = entry.read_to_string(&mut text).unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let _ = files.insert(name.strip_prefix("tidemark-diagnosis/").unwrap().to_owned(), text);
    }
    let file = |name: &str| files.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", files.keys()));
    let id = backup.item.id.as_str();
    for (name, held) in [
        ("about.json", "\"encrypted\": true"),
        ("clusters.json", "orders"),
        ("jobs.json", id),
        ("events.json", "sending parts"),
        ("ledgers.json", "\"backups\": 1"),
        ("coordinator/config.toml", "aws_secret_access_key = \"(not shown)\""),
        ("coordinator/limits.json", "none"),
        ("coordinator/metrics.txt", "tidemark_coordinator_jobs_ended_total"),
        ("coordinator/log.txt", id),
        ("agents/orders/n0/config.toml", "cluster = \"orders\""),
        ("agents/orders/n1/metrics.txt", "tidemark_agent_stage_bytes_total"),
        ("agents/orders/n1/log.txt", id),
        ("client.txt", "tidemark"),
    ] {
        assert!(file(name).contains(held), "{name} without {held}:\n{}", file(name));
    }
    let master = std::fs::read_to_string(fleet.dir().join("master.key")).unwrap();
    let mut secrets: Vec<String> = SECRETS.iter().map(|s| (*s).to_owned()).collect();
    secrets.push(master.trim().to_owned());
    for key in std::fs::read_dir(fleet.dir().join("pki")).unwrap().map(|f| f.unwrap().path()) {
        if key.extension().is_some_and(|e| e == "key") {
            let pem = std::fs::read_to_string(&key).unwrap();
            secrets.extend(pem.lines().filter(|l| !l.starts_with("-----") && l.len() > 20).map(str::to_owned));
        }
    }
    assert!(secrets.len() >= 9, "{} secrets", secrets.len());
    for (name, text) in &files {
        for secret in &secrets {
            // Not shown: the words of a failed test are read by others as well.
            assert!(!text.contains(secret.as_str()), "{name} holds a secret");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_when_its_events_cannot_be_kept() {
    use std::os::unix::fs::PermissionsExt;
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 1).await;
    fill(&fleet.router("orders", 1).await, 1, 300).await;
    // A file where the folder of events would be: writing there fails, whoever one is.
    let cluster = fleet.repository().join("clusters/orders");
    std::fs::create_dir_all(&cluster).unwrap();
    std::fs::set_permissions(&cluster, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(cluster.join("events"), b"in the way").unwrap();
    let _ = fleet.backup("orders").await.unwrap();
    let lost = async || {
        let lost = fleet.scrape().await.value("tidemark_coordinator_events_lost_total");
        (lost > 0.0).then_some(())
    };
    eventually("lost events", lost).await;
    let end = tokio::time::timeout(Duration::from_secs(60), fleet.backup("orders")).await;
    let _ = end.expect("in time").expect("a backup");
}
