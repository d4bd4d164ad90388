//! A log of commands behind a backup: exports, queries and restores get the state at any time of it. The log is made by hand here, of
//! commands that a real server runs at the same time: what that one holds is what must come out.

use std::process::Stdio;

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::redis::fold::Scope;
use tidemark_coordinator::fold::{CommandFold, scope_of, ties};
use tidemark_coordinator::job::restore::{RestoreRequest, open_manifest};
use tidemark_coordinator::log::point;
use tidemark_coordinator::repository::Ledger;
use tidemark_proto::{ClusterName, Timestamp, slot_of};
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, binary, restore_of};
use tidemark_tests::redis::{Client, Cluster, Flavor, Reply, Server, eventually};
use tokio_util::sync::CancellationToken;

use super::chains::{Chains, check};
use super::contents::{Contents, compare, held_by, held_by_all};
use super::flow::{backup, get, protect, protect_one, spec};
use super::handmade::{Both, CLUSTER, Writer, repository};
use super::load::{Load, Wildness};

fn far(seconds: u64) -> u64 {
    SystemClock.millis() + (100_000 + seconds) * 1000
}

/// Fills a server with what is there before the backup.
fn fill(server: &Server) {
    let mut client = server.client();
    for i in 0..400 {
        let _ = client.run(&format!("SET s:{i} value-{i}"));
        let _ = client.run(&format!("RPUSH l:{i} a b"));
        let _ = client.run(&format!("HSET h:{i} f {i}"));
        let text: String = (0..60).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
        let _ = client.run(&format!("SET {{tag}}:{i} {text}"));
    }
    let long = "0123456789abcdef".repeat(200_000);
    let _ = client.call(&["RPUSH", "long", &long, "x"]);
    let _ = client.run("SELECT 3");
    let _ = client.run("SET three x");
}

/// Commands that each part can follow alone.
fn apart(both: &mut Both<'_>) {
    for i in 0..60 {
        both.run(&format!("0 APPEND s:{i} more"));
        both.run(&format!("0 RPUSH l:{} c", i * 2));
        both.run(&format!("0 PEXPIREAT h:{i} {}", far(i)));
        both.run(&format!("0 SET new:{i} n"));
        both.run(&format!("0 DEL s:{} l:{}", 100 + i, 101 + i));
    }
    both.run("0 PERSIST h:5");
    both.run("0 MSET s:200 a s:201 b new:9 c");
    both.run("0 RPUSH long y");
    both.run("3 APPEND three y");
    both.run("0 MOVE s:202 5");
    both.run("3 FLUSHDB");
    both.run("3 SET after z");
    let library = "#!lua name=later\nredis.register_function('f', function() return 7 end)";
    if both.server.flavor.is_from_7_0() {
        let loaded = both.server.client().call(&["FUNCTION", "LOAD", library]);
        assert!(!matches!(loaded, Reply::Error(_)), "{loaded:?}");
        both.log.note(0, &["FUNCTION", "LOAD", library]);
    }
}

/// The function that the log loads is there, where servers have any.
fn has_function(server: &Server) {
    let reply = server.client().ask(&["FCALL", "f", "0"]).expect("reply");
    let known = !matches!(&reply, Reply::Error(e) if e.contains("unknown command"));
    assert_eq!((known, !known || reply == Reply::Integer(7)), (server.flavor.is_from_7_0(), true), "{reply:?}");
}

async fn export(fleet: &Fleet, at: u64, env: &[(&str, &str)], args: &[&str]) -> std::process::Output {
    let url = format!("file://{}", fleet.repository().display());
    let key = fleet.dir().join("master.key");
    let mut command = std::process::Command::new(binary("tidemark"));
    let at = at.to_string();
    let _ =
        command.args(["export", "--repository", &url, "--key-file", key.to_str().unwrap(), "--cluster", CLUSTER]);
    let _ = command.args(["--at", &at]).args(args).envs(env.iter().copied()).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// What an export at a time gives to a server that loads it.
async fn exported(fleet: &Fleet, at: u64) -> Contents {
    let server = exported_server(fleet, at).await;
    has_function(&server);
    held_by(&server)
}

async fn exported_server(fleet: &Fleet, at: u64) -> Server {
    let out = export(fleet, at, &[], &["--format", "rdb"]).await;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Server::load(Flavor::Redis, &[], Some(&out.stdout))
}

async fn restored(fleet: &mut Fleet, name: &str, at: u64) -> (Contents, Vec<String>) {
    let target = Server::start(Flavor::Redis, &[]);
    protect_one(fleet, name, &target).await;
    let request = RestoreRequest { at: Some(at), ..restore_of(CLUSTER, name) };
    let done = fleet.restore(&request).await.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(done["at"].as_u64(), Some(at), "{done}");
    let phases = fleet.tidemark(&["events", "--cluster", name]).await;
    has_function(&target);
    (held_by(&target), phases.lines().map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_point_of_a_log_of_commands_is_exported_queried_and_restored() {
    let source = Server::start(Flavor::Redis, &[]);
    fill(&source);
    let sections = "[pitr]\nwork_off_mib = 0\n".to_owned();
    let mut fleet = Fleet::start_with(CoordinatorSpec { sections, ..CoordinatorSpec::default() }).await;
    let mut agent = spec(CLUSTER, "n0", format!("unix:{}", source.socket().display()));
    // Regions are divided into several parts.
    agent.part_bytes = 64 << 10;
    fleet.start_agent(agent);
    let _ = fleet.ready(CLUSTER, 1).await;
    let first = backup(&fleet, CLUSTER).await;
    let log = Writer::begin(&fleet, first.item.cut).await;
    let mut both = Both { server: &source, log };

    apart(&mut both);
    let (early, then) = both.point().await;
    compare("exported", &exported(&fleet, early).await, &then);
    let (given, told) = restored(&mut fleet, "early", early).await;
    compare("restored", &given, &then);
    assert!(!told.iter().any(|line| line.contains("worked off")), "by the agent: {told:?}");
    parts_alone_are_the_whole(&fleet, early).await;

    // A value of more than one entry of a log has room for.
    for _ in 0..5 {
        let text: String = (0..200_000).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
        both.run(&format!("0 RPUSH long {text}"));
    }
    // Commands that tie keys of several slots, and of several parts of one slot.
    for line in [
        "0 RENAME s:0 renamed",
        "0 COPY l:1 copied",
        "0 COPY {tag}:0 {tag}:399 REPLACE",
        "0 LMOVE l:3 l:4 LEFT LEFT",
    ] {
        both.run(line);
    }
    both.run("0 SWAPDB 0 5");
    both.run("5 APPEND renamed !");
    both.run("0 FLUSHDB");
    both.run("0 SET last 1");
    let (late, now) = both.point().await;
    compare("exported early", &exported(&fleet, early).await, &then);
    compare("exported late", &exported(&fleet, late).await, &now);
    let (given, told) = restored(&mut fleet, "late", late).await;
    compare("restored", &given, &now);
    assert!(told.iter().any(|line| line.contains("worked off by the coordinator")), "{told:?}");

    queries(&fleet, (early, late)).await;
    clone_runs(&fleet, late, &now).await;
    let out = export(&fleet, late, &[("TIDEMARK_SCRATCH_SERVER", "/nowhere/server")], &["--format", "jsonl"]).await;
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && told.contains("install") && told.contains("/nowhere/server"), "{told}");
}

/// What the log makes of each part by itself is what it makes of all of them.
async fn parts_alone_are_the_whole(fleet: &Fleet, at: u64) {
    use futures::StreamExt;
    let (repository, cluster) = (repository(fleet).await, ClusterName::new(CLUSTER).unwrap());
    let ledger = Ledger::load(&repository, &cluster).await.unwrap();
    let point = point(&repository, &ledger, Timestamp(at), None).await.unwrap();
    let manifest = open_manifest(&repository, &cluster, &point.base.backup).await.unwrap();
    let log = point.log(&repository, &cluster, manifest.root().slots_per_region).await.unwrap();
    assert_eq!(ties(&manifest, &log, point.at).await.unwrap(), None);
    let dir = tempfile::tempdir().unwrap();
    let fold = || CommandFold::new(&manifest, log.clone(), point.at, dir.path(), None);
    let (whole, alone) = (fold().await.unwrap(), fold().await.unwrap().part_by_part());
    let cancel = CancellationToken::new();
    let (whole, mut pages, mut records, mut divided) =
        (whole.whole(&cancel).await.unwrap(), manifest.pages(), 0, 0);
    let mut some = 0;
    while let Some(page) = pages.next().await {
        for part in page.page.unwrap().parts {
            divided += usize::from(!part.lower.is_empty());
            some += 1;
            // A few dozen servers are enough.
            if some % 8 != 0 && !part.slots.contains(slot_of(b"{tag}")) && !part.slots.contains(slot_of(b"three")) {
                continue;
            }
            let scope: Scope = scope_of(&part);
            let own = alone.part(&part, &cancel).await.unwrap();
            let (mut a, mut b) = (own.overlay(&scope).unwrap(), whole.overlay(&scope).unwrap());
            loop {
                let (more, as_well) = (a.advance().unwrap(), b.advance().unwrap());
                assert_eq!(more, as_well);
                if !more {
                    break;
                }
                let (a, b) = (a.current().unwrap(), b.current().unwrap());
                assert_eq!((a.slot, a.key, a.put), (b.slot, b.key, b.put));
                records += 1;
            }
        }
    }
    assert!(records > 10 && divided > 1, "{records} {divided}");
}

/// A process that ends with the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(self.0.id() as i32),
                nix::sys::signal::Signal::SIGTERM,
            );
            let _ = self.0.wait();
        }
    }
}

/// A throw-away server holds the state, takes the password, and is gone with its command.
async fn clone_runs(fleet: &Fleet, at: u64, wanted: &Contents) {
    let dir = tempfile::tempdir().unwrap();
    let (url, key) = (format!("file://{}", fleet.repository().display()), fleet.dir().join("master.key"));
    let mut command = std::process::Command::new(binary("tidemark"));
    let _ = command.args([
        "clone",
        "run",
        "--repository",
        &url,
        "--key-file",
        key.to_str().unwrap(),
        "--cluster",
        CLUSTER,
    ]);
    let _ = command
        .args(["--at", &at.to_string(), "--password-env", "CLONE_PASSWORD", "-o", "json", "--dir"])
        .arg(dir.path());
    let _ = command.env("CLONE_PASSWORD", "not for args").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let mut out = running.0.stdout.take().unwrap();
    let (standing, wanted, pid) = tokio::task::spawn_blocking(move || {
        serde_json::Deserializer::from_reader(&mut out).into_iter::<serde_json::Value>().next().unwrap().unwrap()
    })
    .await
    .map(|standing| (standing, wanted.clone(), running.0.id()))
    .unwrap();
    let port: u16 = standing["address"].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
    assert_eq!((standing["at"].as_u64(), standing["records"].as_u64()), (Some(at), Some(wanted.len() as u64)));
    let mut client = Client::tcp(port).unwrap();
    assert!(matches!(client.ask(&["GET", "renamed"]).unwrap(), Reply::Error(e) if e.starts_with("NOAUTH")));
    let _ = client.call(&["AUTH", "not for args"]);
    let _ = client.run("SELECT 5");
    assert_eq!(client.run("GET renamed").text(), "value-0more!");
    assert_eq!(client.run("SET written x"), Reply::Status("OK".into()));
    let sizes = client.run("INFO keyspace").text();
    let keys: usize =
        sizes.split("keys=").skip(1).map(|s| s.split(',').next().unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(keys, wanted.len() + 1);
    let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!arguments.contains("not for args"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || running.0.wait().unwrap()).await.unwrap();
    assert!(ended.success(), "{ended}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "its folder is gone");
    assert!(Client::tcp(port).is_err(), "so is the server");
}

async fn queries(fleet: &Fleet, (early, late): (u64, u64)) {
    let (early, late) = (early.to_string(), late.to_string());
    let get = async |key: &str, at: &str, db: &str| {
        let args = ["query", "get", key, "--cluster", CLUSTER, "--at", at, "--db", db, "-o", "json"];
        fleet.try_tidemark(&args).await.map(|text| serde_json::from_str::<serde_json::Value>(&text).unwrap())
    };
    let value = |found: serde_json::Value| found["record"]["value"].clone();
    assert_eq!(value(get("s:1", &early, "0").await.unwrap()), "value-1more");
    assert_eq!(value(get("s:300", &early, "0").await.unwrap()), "value-300", "untouched");
    assert_eq!(value(get("s:202", &early, "5").await.unwrap()), "value-202", "moved");
    assert_eq!(value(get("after", &early, "3").await.unwrap()), "z");
    assert!(get("three", &early, "3").await.is_err() && get("s:202", &early, "0").await.is_err());
    // Behind a swap of databases.
    assert_eq!(value(get("renamed", &late, "5").await.unwrap()), "value-0more!");
    assert!(get("renamed", &late, "0").await.is_err());
    let shown = fleet.tidemark(&["query", "history", "s:0", "--cluster", CLUSTER]).await;
    for word in ["db 0: APPEND s:0 more", "db 0: RENAME s:0 renamed", "db 0: SWAPDB 0 5", "db 0: FLUSHDB"] {
        assert!(shown.contains(word), "{shown}");
    }
    assert!(!shown.contains("s:1 ") && !shown.contains("db 3"), "{shown}");
    let scan = ["query", "scan", "new:", "--cluster", CLUSTER, "--at", &early, "--limit", "1000", "-o", "json"];
    let page: serde_json::Value = serde_json::from_str(&fleet.tidemark(&scan).await).unwrap();
    assert_eq!(page["records"].as_array().unwrap().len(), 60);
    let diff = [
        "query",
        "diff",
        "--cluster",
        CLUSTER,
        "--from",
        &early,
        "--to",
        &late,
        "--db",
        "0",
        "--limit",
        "9999",
        "-o",
        "json",
    ];
    let diff: serde_json::Value = serde_json::from_str(&fleet.tidemark(&diff).await).unwrap();
    let changes = diff["changes"].as_array().unwrap();
    assert!(changes.iter().any(|c| c["change"] == "added" && c["after"]["key"] == "last"), "{diff}");
    assert!(changes.len() > 1000 && changes.iter().filter(|c| c["change"] == "added").count() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn points_of_a_log_that_was_taken_under_load_are_whole() {
    const CHAINS: usize = 2;
    let source = Cluster::start(Flavor::Redis, 3, &[]);
    let mut fleet = super::log::fleet().await;
    protect(&mut fleet, CLUSTER, &source).await;
    super::log::enable(&fleet).await;
    let (chains, load) = (Chains::start(&source, CHAINS), Load::start(source.clients(), Wildness::Cluster));
    let _ = super::log::point_after(&fleet, Timestamp(1)).await;
    let more = |chains: &Chains| {
        let steps = chains.steps();
        eventually("more load", || (chains.steps() > steps + 300).then_some(()));
    };
    more(&chains);
    let middle = super::log::point_after(&fleet, super::log::now()).await.windows.last().unwrap().latest;
    more(&chains);
    load.stop();
    chains.stop();
    let wanted = held_by_all(&source);
    let last = super::log::point_after(&fleet, super::log::now()).await.windows.last().unwrap().latest;

    let steps = |server: &Server| {
        let mut clients = [server.client()];
        check(CHAINS, |key| get(&mut clients, key))
    };
    let (then, end) = (exported_server(&fleet, middle).await, exported_server(&fleet, last).await);
    assert!(steps(&then) > 100 && steps(&then) < steps(&end), "{} {}", steps(&then), steps(&end));
    // What expires may be there or not by now.
    let lasting =
        |all: Contents| all.into_iter().filter(|(_, (expires, _))| expires.is_none()).collect::<Contents>();
    let end = lasting(held_by(&end));
    compare("the end", &end, &lasting(wanted));
    assert!(end.len() > 50, "{}", end.len());

    let target = Server::start(Flavor::Redis, &[]);
    protect_one(&mut fleet, "target", &target).await;
    let request = RestoreRequest { at: Some(middle), ..restore_of(CLUSTER, "target") };
    let _ = fleet.restore(&request).await.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(steps(&target), steps(&then));
    compare("restored", &lasting(held_by(&target)), &lasting(held_by(&then)));
}
