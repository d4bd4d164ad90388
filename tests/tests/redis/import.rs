//! RDB files that are taken into a repository.

use std::path::PathBuf;
use std::time::Duration;

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_coordinator::job::JobInfo;
use tidemark_tests::fleet::{Fleet, eventually as later, restore_of};
use tidemark_tests::redis::{Cluster, Flavor, Server};

use super::contents::{Contents, compare, held_by, held_by_all};
use super::flow::{filling, protect, protect_one, spread};

/// Since 1970.
fn now() -> Duration {
    Duration::from_millis(SystemClock.millis())
}

/// Runs `tidemark import` on files; what it says when it does not end well.
async fn import(fleet: &Fleet, cluster: &str, more: &[&str], files: &[&PathBuf]) -> Result<String, String> {
    let (pki, agents) = (fleet.dir().join("pki"), fleet.coordinator().agent_address.to_string());
    let mut args = vec!["import", "--cluster", cluster, "--authority", pki.to_str().expect("text")];
    args.extend(["--agents-address", &agents]);
    args.extend_from_slice(more);
    args.extend(files.iter().map(|f| f.to_str().expect("text")));
    fleet.try_tidemark(&args).await
}

async fn restored(fleet: &mut Fleet, from: &str, name: &str) -> Contents {
    let target = Server::start(Flavor::Redis, &[]);
    protect_one(fleet, name, &target).await;
    let _ = fleet.restore(&restore_of(from, name)).await.unwrap_or_else(|e| panic!("{}", e.report()));
    held_by(&target)
}

/// Writes the file that each node of a Cluster would save.
fn files_of(cluster: &Cluster, fleet: &Fleet) -> Vec<PathBuf> {
    let write = |(n, (_, server)): (usize, &(u16, Server))| {
        let path = fleet.dir().join(format!("shard {n}.rdb"));
        std::fs::write(&path, server.save()).expect("file");
        path
    };
    cluster.nodes.iter().enumerate().map(write).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_cluster_become_a_backup_that_is_restored_and_searched() {
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    spread(&cluster, filling());
    for mut client in cluster.clients() {
        let code = "#!lua name=mine\nredis.register_function('two', function() return 2 end)";
        if Flavor::Redis.is_from_7_0() {
            let _ = client.call(&["FUNCTION", "LOAD", code]);
        }
    }
    let mut fleet = Fleet::start().await;
    let files = files_of(&cluster, &fleet);
    let wanted = held_by_all(&cluster);
    let told = import(&fleet, "old", &[], &files.iter().collect::<Vec<_>>()).await.unwrap();
    assert!(told.contains("30,000 records") || told.contains("30000"), "{told}");
    let taken = fleet.backups("old").await;
    assert_eq!((taken.len(), taken[0].records, taken[0].state.as_str()), (1, wanted.len() as u64, "complete"));
    compare("restored", &restored(&mut fleet, "old", "copy").await, &wanted);
    let shown = fleet.tidemark(&["backup", "show", "--cluster", "old"]).await;
    assert_eq!(shown.contains("mine"), Flavor::Redis.is_from_7_0(), "{shown}");
    let all = fleet.tidemark(&["backup", "show", "--cluster", "old", "-o", "json"]).await;
    assert!(all.contains("shard 2.rdb") && all.contains(&format!("by {}", Flavor::Redis.version())), "{all}");
    let _ = fleet.verify("old", "latest").await.unwrap_or_else(|e| panic!("{}", e.report()));
    // Nothing of the importing agent stays.
    later("the agent to be gone", async || {
        let clusters: serde_json::Value = fleet.api().get("clusters/old").await.ok()?;
        clusters["nodes"].as_array()?.iter().all(|n| n["connected"] == false).then_some(())
    })
    .await;
    // Once more: another backup of the same.
    let _ = import(&fleet, "old", &[], &[&files[0]]).await.unwrap();
    assert_eq!(fleet.backups("old").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_of_an_old_file_is_as_it_was_or_moved() {
    let source = Server::start(Flavor::Redis, &[]);
    let mut client = source.client();
    let _ = client.run("SET stays 1");
    // A file of an hour ago, by a key that had 100 s to live.
    let written = Duration::from_secs(now().as_secs() - 3600);
    let _ = client.run("DEBUG SET-ACTIVE-EXPIRE 0");
    let _ = client.run(&format!("SET volatile 1 PXAT {}", (written + Duration::from_secs(100)).as_millis()));
    let mut fleet = Fleet::start().await;
    let path = fleet.dir().join("old.rdb");
    std::fs::write(&path, with_ctime(source.save(), written.as_secs())).expect("file");
    let _ = import(&fleet, "as-it-was", &[], &[&path]).await.unwrap();
    assert_eq!(restored(&mut fleet, "as-it-was", "one").await.len(), 1);
    let _ = import(&fleet, "moved", &["--shift-expiry"], &[&path]).await.unwrap();
    let found = restored(&mut fleet, "moved", "two").await;
    let expiry = found.values().find_map(|(expiry, _)| *expiry).expect("the volatile key");
    let left = Duration::from_millis(expiry as u64) - now();
    assert!(found.len() == 2 && left <= Duration::from_secs(100) && left > Duration::from_secs(40), "{left:?}");
}

/// The file with another time at which it was written; its checksum is left out.
fn with_ctime(mut rdb: Vec<u8>, seconds: u64) -> Vec<u8> {
    let field = b"\x05ctime";
    let at = rdb.windows(field.len()).position(|w| w == field).expect("ctime") + field.len();
    // An integer of 32 bits.
    assert_eq!(rdb[at], 0xc2);
    rdb[at + 1..at + 5].copy_from_slice(&u32::try_from(seconds).expect("32 bits").to_le_bytes());
    let end = rdb.len() - 8;
    rdb[end..].fill(0);
    rdb
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_is_refused_and_leaves_nothing() {
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    spread(&cluster, filling().into_iter().take(300).collect());
    let mut fleet = Fleet::start().await;
    protect(&mut fleet, "orders", &cluster).await;
    let files = files_of(&cluster, &fleet);
    let live = import(&fleet, "orders", &[], &[&files[0]]).await.unwrap_err();
    assert!(live.contains("orders") && live.contains("another name"), "{live}");
    let twice = import(&fleet, "old", &[], &[&files[0], &files[0]]).await.unwrap_err();
    assert!(twice.contains("stands in two of the files"), "{twice}");
    let none = import(&fleet, "old", &[], &[&fleet.dir().join("nothing.rdb")]).await.unwrap_err();
    assert!(none.contains("nothing.rdb"), "{none}");
    let text = fleet.dir().join("text.rdb");
    std::fs::write(&text, "these are no records").expect("file");
    let wrong = import(&fleet, "old", &[], &[&text]).await.unwrap_err();
    assert!(wrong.contains("text.rdb"), "{wrong}");
    // A file that is cut short, and one with a byte changed.
    let whole = std::fs::read(&files[0]).expect("file");
    let (short, changed) = (fleet.dir().join("short.rdb"), fleet.dir().join("changed.rdb"));
    std::fs::write(&short, &whole[..whole.len() - 100]).expect("file");
    let mut bytes = whole.clone();
    bytes[whole.len() / 2] ^= 1;
    std::fs::write(&changed, bytes).expect("file");
    for path in [&short, &changed] {
        let told = import(&fleet, "old", &[], &[path]).await.unwrap_err();
        assert!(told.contains(path.file_name().and_then(|n| n.to_str()).expect("name")), "{told}");
    }
    let running: Vec<JobInfo> = fleet.api().get("jobs").await.unwrap();
    assert!(running.iter().all(tidemark_tests::fleet::ended), "{running:?}");
    let made = fleet.backups("old").await;
    assert!(made.iter().all(|b| b.state == "failed"), "{made:?}");
}
