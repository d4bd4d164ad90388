//! Without a coordinator: the repository alone gives everything back.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use data_encoding::BASE64;
use tidemark_coordinator::catalog::{BackupDetail, BackupItem};
use tidemark_proto::slot::SLOT_COUNT;
use tidemark_proto::{SlotSet, slot_of};
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, Records, binary, restore_of, write};

use crate::steps::{assert_holds, assert_same, at_cut, fill};

/// Bytes of the longest value: it goes to continuation blocks.
const LONG: usize = 3 << 19;

/// One node with neighbouring slots; two whose slots lie between each other within every region.
pub(crate) fn slots(node: &str) -> SlotSet {
    let middle = SLOT_COUNT / 2;
    let stripes = |first| (middle + first..SLOT_COUNT).step_by(400).map(|slot| (slot, slot + 199));
    match node {
        "n0" => SlotSet::range(0, middle - 1),
        "n1" => SlotSet::from_ranges(stripes(0)),
        _ => SlotSet::from_ranges(stripes(200)),
    }
}

/// A fleet with parts by key range, those of a region behind each other, and nodes whose slots lie between each other.
pub(crate) async fn interleaved() -> Fleet {
    let sections = "[backup]\nslots_per_region = 8192".to_owned();
    let mut fleet = Fleet::start_with(CoordinatorSpec { sections, ..CoordinatorSpec::default() }).await;
    fleet
        .add_cluster_with("orders", 3, |agent| {
            agent.slots = slots(&agent.node);
            agent.part_bytes = 64 << 10;
        })
        .await;
    fleet
}

/// A fleet that took a full backup and a delta, and is gone; what each of both holds.
async fn lost() -> (Fleet, Vec<(BackupDetail, Records)>) {
    let mut fleet = interleaved().await;
    let router = fleet.router("orders", 3).await;
    fill(&router, 1, 4000).await;
    let long: Vec<u8> = (0..LONG).map(|i| (i * i % 253) as u8).collect();
    let odd: [(&[u8], &[u8]); 5] = [
        (b"empty", b""),
        (b"\xff\x00\xfe binary", b"\x00\x80"),
        (b"quoted \"\\\n", "ä\u{2028}".as_bytes()),
        (b"long", &long),
        (b"{tag}gone later", b"x"),
    ];
    for (key, value) in odd {
        let _ = write(&router, key, Some(value)).await.unwrap();
    }
    let full = fleet.backup("orders").await.unwrap();
    assert!(full.parts >= 7, "three lanes of several parts: {}", full.parts);
    let mut states = vec![(full.clone(), at_cut(&router, &full).await)];
    fill(&router, 2, 50).await;
    let _ = write(&router, b"{tag}gone later", None).await.unwrap();
    let _ = write(&router, b"empty", Some(b"not any more")).await.unwrap();
    let delta = fleet.backup("orders").await.unwrap();
    assert!(delta.delta_parts > 0 && delta.full_parts < delta.parts, "{} of {}", delta.full_parts, delta.parts);
    states.push((delta.clone(), at_cut(&router, &delta).await));
    fleet.kill_all();
    (fleet, states)
}

fn tidemark(fleet: &Fleet, verb: &str, args: &[&str]) -> Command {
    let mut command = Command::new(binary("tidemark"));
    let url = format!("file://{}", fleet.repository().display());
    let _ = command
        .args(["repo", verb, "--repository", &url, "--key-file"])
        .arg(fleet.dir().join("master.key"))
        .args(args)
        .env_remove("TIDEMARK_CLUSTER")
        .env_remove("TIDEMARK_MASTER_KEY")
        .stdin(Stdio::null());
    command
}

pub(crate) fn run(fleet: &Fleet, verb: &str, args: &[&str]) -> Output {
    tidemark(fleet, verb, args).output().unwrap()
}

pub(crate) fn good(fleet: &Fleet, verb: &str, args: &[&str]) -> String {
    let done = run(fleet, verb, args);
    assert!(done.status.success(), "{verb} {args:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// Every object with its size and the time of its last change.
fn objects(folder: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let about = path.metadata().unwrap();
        found.push((path.clone(), if about.is_dir() { 0 } else { about.len() }, about.modified().unwrap()));
        if about.is_dir() {
            found.extend(objects(&path));
        }
    }
    found.sort();
    found
}

fn decoded(line: &serde_json::Value, name: &str) -> Vec<u8> {
    let text = line[name].as_str().unwrap();
    match line[format!("{name}_encoding")].as_str().unwrap() {
        "text" => text.as_bytes().to_vec(),
        "base64" => BASE64.decode(text.as_bytes()).unwrap(),
        other => panic!("{other}"),
    }
}

/// The records of JSON Lines, which must be in order.
pub(crate) fn records(lines: &str) -> Records {
    let (mut found, mut last) = (Records::new(), (0, Vec::new()));
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let (key, value) = (decoded(&line, "key"), decoded(&line, "value"));
        let place = (slot_of(&key), key.clone());
        assert_eq!(line["slot"].as_u64(), Some(u64::from(place.0)));
        assert!(found.is_empty() || last < place, "out of order: {place:?}");
        last = place;
        let _ = found.insert(key, value);
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bucket_the_key_and_one_binary_are_enough() {
    let (fleet, states) = lost().await;
    let before = objects(&fleet.repository());
    let listed: Vec<BackupItem> = serde_json::from_str(&good(&fleet, "backups", &["-o", "json"])).unwrap();
    let ids: Vec<_> = listed.iter().map(|b| b.id.as_str()).collect();
    assert_eq!(ids, [&states[1].0.item.id[..], &states[0].0.item.id[..]]);
    assert!(good(&fleet, "backups", &["--cluster", "orders"]).contains(&ids[0][..8]));
    for (backup, expected) in &states {
        let id = &backup.item.id[..];
        let shown: BackupDetail =
            serde_json::from_str(&good(&fleet, "show", &["--backup", id, "-o", "json"])).unwrap();
        assert_eq!(&shown, backup);
        let verified: serde_json::Value =
            serde_json::from_str(&good(&fleet, "verify", &["--backup", id, "-o", "json"])).unwrap();
        assert_eq!(verified["result"]["records"].as_u64(), Some(backup.item.records), "{verified}");
        assert_same(&records(&good(&fleet, "extract", &["--backup", id])), expected);
        assert_same(&records(&good(&fleet, "extract", &["--backup", id, "--encoding", "base64"])), expected);
    }
    let out = fleet.dir().join("orders.jsonl");
    let report = good(&fleet, "extract", &["--out", out.to_str().unwrap(), "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["records"].as_u64(), Some(states[1].0.item.records), "{report}");
    assert_same(&records(&std::fs::read_to_string(&out).unwrap()), &states[1].1);
    let some = records(&good(&fleet, "extract", &["--keys", "load:*", "--keys", "!*1"]));
    let wanted = |k: &Vec<u8>| k.starts_with(b"load:") && !k.ends_with(b"1");
    let expected: Records =
        states[1].1.iter().filter(|(k, _)| wanted(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
    assert!(!expected.is_empty());
    assert_same(&some, &expected);
    assert_eq!(objects(&fleet.repository()), before, "reading changed the repository");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_direct_verbs_say_what_to_do() {
    let (mut fleet, _) = lost().await;
    let out = fleet.dir().join("orders.jsonl");
    std::fs::write(&out, "precious").unwrap();
    let refused = run(&fleet, "extract", &["--out", out.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "precious");
    let text = run(&fleet, "extract", &["--encoding", "text", "--out", fleet.dir().join("t").to_str().unwrap()]);
    assert_eq!(text.status.code(), Some(2), "{text:?}");
    assert!(String::from_utf8_lossy(&text.stderr).contains("--encoding"), "{text:?}");
    for args in [["--backup", "ffffffff"], ["--cluster", "unknown"]] {
        assert_eq!(run(&fleet, "show", &args).status.code(), Some(3), "{args:?}");
    }
    // A reader that has had enough.
    let mut child = tidemark(&fleet, "extract", &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    // Damage: the exit code of a verification, and no file that looks whole.
    let pack = fleet.packs("orders").remove(0);
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&pack, &bytes).unwrap();
    assert_eq!(run(&fleet, "verify", &[]).status.code(), Some(65));
    let whole = fleet.dir().join("whole.jsonl");
    let damaged = run(&fleet, "extract", &["--out", whole.to_str().unwrap()]);
    assert_eq!(damaged.status.code(), Some(65), "{damaged:?}");
    let partial = |n: &str| n.starts_with("whole.jsonl") || n.starts_with("t.");
    let names = std::fs::read_dir(fleet.dir()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|n| partial(n)).collect::<Vec<_>>(), Vec::<String>::new());
    bytes[60] ^= 1;
    std::fs::write(&pack, &bytes).unwrap();
    // Several clusters are named, a folder that is not there is not made.
    fleet.start_anew("pki").await;
    fleet.add_cluster("users", 1).await;
    let _ = fleet.backup("users").await.unwrap();
    fleet.kill_all();
    let which = run(&fleet, "backups", &[]);
    assert_eq!(which.status.code(), Some(2), "{which:?}");
    assert!(String::from_utf8_lossy(&which.stderr).contains("orders, users"), "{which:?}");
    assert!(good(&fleet, "extract", &["--cluster", "users"]).is_empty());
    let nowhere = fleet.dir().join("nowhere");
    let url = format!("file://{}", nowhere.display());
    let done = Command::new(binary("tidemark")).args(["repo", "backups", "--repository", &url]).output().unwrap();
    assert!(done.status.code() == Some(3) && !nowhere.exists(), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_coordinator_restores_everything() {
    let (mut fleet, states) = lost().await;
    // Of the same authority, then of another one: the repository does not care.
    for (round, pki) in ["pki", "pki-of-another-fleet"].into_iter().enumerate() {
        fleet.start_anew(pki).await;
        assert_eq!(fleet.backups("orders").await.len(), states.len());
        for (n, (backup, expected)) in states.iter().enumerate() {
            let target = format!("copy-{round}-{n}");
            fleet.add_cluster(&target, 2 + n as u16).await;
            let mut request = restore_of("orders", &target);
            request.backup = backup.item.id.clone();
            let _ = fleet.restore(&request).await.unwrap();
            assert_holds(&fleet, &target, 2 + n, expected).await;
        }
        fleet.kill_all();
    }
}
