//! Without a coordinator, at a time: the nearest backup and the log after it give every moment back.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_proto::Timestamp;
use tidemark_tests::fleet::{Fleet, Records, write};

use crate::direct::{good, interleaved, records, run};
use crate::log::{enable, restorable_to, segment_files};
use crate::model::Model;
use crate::steps::assert_same;

fn extracted(fleet: &Fleet, at: Timestamp, args: &[&str]) -> Records {
    let at = at.to_string();
    records(&good(fleet, "extract", &[&["--at", &at], args].concat()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_moment_is_extracted_without_a_coordinator() {
    let mut fleet = interleaved().await;
    let router = fleet.router("orders", 3).await;
    let mut rng = StdRng::seed_from_u64(78);
    let mut model = Model::default();
    let mut last = Timestamp::ZERO;
    let before = write(&router, b"{before}", None).await.unwrap();
    // The log begins when there is something already.
    for n in 0..300u32 {
        let value = (0..rng.random_range(0..6000)).map(|_| rng.random()).collect();
        last = model.write(&router, format!("key:{n}"), Some(value)).await;
    }
    enable(&fleet).await;
    let began = restorable_to(&fleet, last).await.windows[0].earliest;
    for n in 0..900u32 {
        let key = format!("key:{}", rng.random_range(0..400));
        let value = rng.random_bool(0.7).then(|| (0..rng.random_range(0..1500)).map(|_| rng.random()).collect());
        last = model.write(&router, key, value).await;
        if n == 450 {
            let backup = fleet.backup("orders").await.unwrap();
            assert!(backup.parts >= 5, "several parts, of nodes that lie between each other: {}", backup.parts);
        }
    }
    let _ = restorable_to(&fleet, last).await;
    fleet.kill_all();
    for round in 0..16 {
        let at = match round {
            0 => Timestamp(began),
            1 => last,
            _ => Timestamp(rng.random_range(began..=last.0)),
        };
        assert_same(&extracted(&fleet, at, &[]), &model.at(at));
    }
    let some: Records = model.at(last).into_iter().filter(|(k, _)| k.ends_with(b"7") && k != b"key:17").collect();
    assert!(some.len() > 10);
    assert_same(&extracted(&fleet, last, &["--keys", "*7", "--keys", "!key:17"]), &some);
    let half: Records = model.at(last).into_iter().filter(|(k, _)| tidemark_proto::slot_of(k) < 8000).collect();
    assert_same(&extracted(&fleet, last, &["--slots", "0-7999"]), &half);
    // As a file, with what it is of; a time that has not come is the last that can be had.
    let (out, at) = (fleet.dir().join("then.jsonl"), Timestamp(last.0 - 1));
    let done = run(&fleet, "extract", &["--at", &at.to_string(), "--out", out.to_str().unwrap(), "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["at"].as_u64(), Some(at.0), "{report}");
    assert!(report["cut"].as_u64() < Some(at.0) && report["records"].as_u64() == Some(model.at(at).len() as u64));
    let told = String::from_utf8(done.stderr).unwrap();
    assert!(told.contains(&format!("(timestamp {at})")) && told.contains("of the log"), "{told}");
    assert_same(&records(&std::fs::read_to_string(&out).unwrap()), &model.at(at));
    let now = records(&good(&fleet, "export", &["--at", "now", "--format", "jsonl"]));
    assert_same(&now, &model.at(last));
    let early = run(&fleet, "extract", &["--at", &before.to_string()]);
    let told = String::from_utf8_lossy(&early.stderr).into_owned();
    assert!(early.status.code() == Some(3) && told.contains("the earliest is"), "{early:?}");
    assert!(told.contains(&began.to_string()) && early.stdout.is_empty(), "{early:?}");
    for args in [&["--at", "-5m", "--backup", "latest"], &["--at", "yesterday", "--encoding", "text"]] {
        assert_eq!(run(&fleet, "extract", args).status.code(), Some(2), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_log_the_newest_backup_before_is_taken() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 1).await;
    let router = fleet.router("orders", 1).await;
    let (mut model, mut backups, mut times) = (Model::default(), Vec::new(), Vec::new());
    for n in 0..3u8 {
        let _ = model.write(&router, "key".into(), Some(vec![n])).await;
        backups.push(fleet.backup("orders").await.unwrap().item);
        times.push(model.write(&router, "key".into(), Some(b"in no backup".to_vec())).await);
    }
    fleet.kill_all();
    for (backup, at) in backups.iter().zip(times) {
        assert_same(&extracted(&fleet, at, &[]), &model.at(Timestamp(backup.cut)));
        assert_same(&extracted(&fleet, Timestamp(backup.cut), &[]), &model.at(Timestamp(backup.cut)));
        let done = run(&fleet, "export", &["--at", &at.to_string(), "--format", "jsonl"]);
        let told = String::from_utf8(done.stderr).unwrap();
        let point = format!("(timestamp {}): backup {}", backup.cut, backup.id);
        assert!(done.status.success() && told.contains(&point), "{told}");
    }
    let early = run(&fleet, "extract", &["--at", &(backups[0].cut - 1).to_string()]);
    assert_eq!(early.status.code(), Some(3), "{early:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_ends_the_extraction_and_leaves_no_file() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    enable(&fleet).await;
    let _ = restorable_to(&fleet, Timestamp(1)).await;
    let many = segment_files(&fleet).len();
    let last = write(&router, b"key", Some(&[7; 5000])).await.unwrap();
    let _ = restorable_to(&fleet, last).await;
    fleet.kill_all();
    assert_eq!(extracted(&fleet, last, &[]).into_keys().collect::<Vec<_>>(), [b"key".to_vec()]);
    // What merges it stands before it.
    let merged = std::fs::read_dir(fleet.repository().join("clusters/orders/log-merged"));
    let mut lost: Vec<_> = merged.into_iter().flatten().map(|f| f.unwrap().path()).collect();
    lost.extend(segment_files(&fleet)[many..].iter().max_by_key(|f| f.metadata().unwrap().len()).cloned());
    for path in lost {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let out = fleet.dir().join("then.jsonl");
    let done = run(&fleet, "extract", &["--at", &last.to_string(), "--out", out.to_str().unwrap()]);
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.code() == Some(65) && told.contains("clusters/orders/log"), "{done:?}");
    let mut names = std::fs::read_dir(fleet.dir()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(!names.any(|n| n.starts_with("then.jsonl")));
}
