//! Queries of the past: what they say is what a model of all writes says.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_coordinator::query::{Difference, Found, History, Page};
use tidemark_proto::{ErrorKind, Timestamp};
use tidemark_tests::fleet::{Fleet, Records};

use crate::log::{enable, restorable_to};
use crate::model::Model;

async fn get(fleet: &Fleet, key: &str, at: Timestamp) -> Found {
    let query = serde_json::json!({"cluster": "orders", "key": key, "at": at.0});
    fleet.api().post("queries/get", &query).await.expect("an answer")
}

/// The value of a record as answers show it.
fn value_of(record: &serde_json::Value) -> Vec<u8> {
    let text = record["value"].as_str().expect("a value");
    match record["value_encoding"].as_str() {
        Some("base64") => data_encoding::BASE64.decode(text.as_bytes()).expect("base64"),
        _ => text.as_bytes().to_vec(),
    }
}

fn key_of(record: &serde_json::Value) -> Vec<u8> {
    record["key"].as_str().expect("a key").as_bytes().to_vec()
}

/// All records at a time, page by page.
async fn scanned(fleet: &Fleet, prefix: &str, at: Timestamp) -> Records {
    let (mut all, mut cursor) = (Records::new(), String::new());
    loop {
        let query = serde_json::json!(
            {"cluster": "orders", "prefix": prefix, "at": at.0, "limit": 17, "cursor": cursor}
        );
        let page: Page = fleet.api().post("queries/scan", &query).await.expect("a page");
        assert!(page.records.len() <= 17 && page.at == at.0, "{page:?}");
        for item in page.records {
            let record = serde_json::Value::Object(item.record);
            assert!(all.insert(key_of(&record), value_of(&record)).is_none(), "a record is there twice");
        }
        if page.cursor.is_empty() {
            return all;
        }
        cursor = page.cursor;
    }
}

async fn differ(fleet: &Fleet, from: Timestamp, to: Timestamp) -> BTreeMap<Vec<u8>, String> {
    let query = serde_json::json!({"cluster": "orders", "from": from.0, "to": to.0, "limit": 1000});
    let found: Difference = fleet.api().post("queries/diff", &query).await.expect("a difference");
    assert!(!found.more);
    let item = |item: tidemark_coordinator::query::DiffItem| {
        (key_of(item.before.as_ref().or(item.after.as_ref()).expect("a record")), item.change)
    };
    found.changes.into_iter().map(item).collect()
}

fn expected_diff(before: &Records, after: &Records) -> BTreeMap<Vec<u8>, String> {
    let keys = before.keys().chain(after.keys());
    keys.filter_map(|key| {
        let change = match (before.get(key), after.get(key)) {
            (None, Some(_)) => "added",
            (Some(_), None) => "removed",
            (a, b) if a != b => "changed",
            _ => return None,
        };
        Some((key.clone(), change.to_owned()))
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_those_of_a_model_of_all_writes() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    let (mut rng, mut model) = (StdRng::seed_from_u64(21), Model::default());
    for n in 0..150 {
        let _ = model.write(&router, format!("key:{n}"), Some(format!("first {n}").into_bytes())).await;
    }
    enable(&fleet).await;
    let earliest = Timestamp(restorable_to(&fleet, Timestamp(1)).await.windows[0].earliest);
    let mut last = earliest;
    for n in 0..900u32 {
        let key = format!("key:{}", rng.random_range(0..200));
        let value = rng.random_bool(0.8).then(|| (0..rng.random_range(0..300)).map(|_| rng.random()).collect());
        last = model.write(&router, key, value).await;
        if n == 400 {
            let _ = fleet.backup("orders").await.unwrap();
        }
    }
    let _ = restorable_to(&fleet, last).await;
    let mut time = || Timestamp(rng.random_range(earliest.0..=last.0));
    let times: Vec<Timestamp> = (0..12).map(|_| time()).collect();
    for at in &times {
        let state = model.at(*at);
        for n in (0..210).step_by(23) {
            let key = format!("key:{n}");
            let found = get(&fleet, &key, *at).await;
            assert_eq!(found.at, at.0);
            let value = found.record.as_ref().map(value_of);
            assert_eq!(value.as_ref(), state.get(key.as_bytes()), "{key} at {at}");
        }
    }
    assert_eq!(scanned(&fleet, "key:1", times[0]).await, {
        let mut state = model.at(times[0]);
        state.retain(|key, _| key.starts_with(b"key:1"));
        state
    });
    for pair in times.chunks(2) {
        let (from, to) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
        assert_eq!(differ(&fleet, from, to).await, expected_diff(&model.at(from), &model.at(to)));
    }
    // Every version since the log began, and what the backup knew before.
    let query = serde_json::json!({"cluster": "orders", "key": "key:7"});
    let history: History = fleet.api().post("queries/history", &query).await.unwrap();
    let logged: Vec<_> = history.versions.iter().filter(|v| v.known_by == "log" && v.at > earliest.0).collect();
    let written = model.versions(b"key:7", earliest);
    assert_eq!(
        logged.iter().map(|v| Timestamp(v.at)).collect::<Vec<_>>(),
        written.keys().copied().collect::<Vec<_>>()
    );
    for (version, value) in logged.iter().zip(written.values()) {
        assert_eq!(version.record.as_ref().map(value_of).as_ref(), value.as_ref());
    }
    assert!(history.complete.iter().any(|(from, to)| *from <= earliest.0 && *to >= last.0), "{history:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_answers_and_refuses() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 1).await;
    let router = fleet.router("orders", 1).await;
    let mut model = Model::default();
    let _ = model.write(&router, "colour".into(), Some(b"red".to_vec())).await;
    let first = fleet.backup("orders").await.unwrap().item.cut;
    let _ = model.write(&router, "colour".into(), Some(b"blue".to_vec())).await;
    let _ = model.write(&router, "shape".into(), Some(b"round".to_vec())).await;
    let second = fleet.backup("orders").await.unwrap().item.cut;
    let (first, second) = (first.to_string(), second.to_string());
    let ask = |args: &[&str]| {
        let line: Vec<String> = ["query", "-C", "orders"].iter().chain(args).map(|s| (*s).to_owned()).collect();
        let fleet = &fleet;
        async move { fleet.try_tidemark(&line.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    assert!(ask(&["get", "colour", "--at", &first]).await.unwrap().contains("red"));
    assert!(ask(&["get", "colour"]).await.unwrap().contains("blue"));
    assert!(ask(&["get", "size"]).await.unwrap_err().contains("did not exist"));
    // Without a log: two cuts of backups, side by side.
    let told = ask(&["diff", "--from", &first, "--to", &second]).await.unwrap();
    assert!(told.contains("~ ") && told.contains("+ ") && told.contains("round"), "{told}");
    let told = ask(&["diff", "--from", &first, "--to", &second, "--keys", "sha*"]).await.unwrap();
    assert!(!told.contains("blue") && told.contains("round"), "{told}");
    let told = ask(&["history", "colour"]).await.unwrap();
    assert!(told.contains("red") && told.contains("blue") && told.contains("or before"), "{told}");
    let told = ask(&["scan", "s", "--limit", "1"]).await.unwrap();
    assert!(told.contains("round") && !told.contains("more:"), "{told}");
    let e = ask(&["get", "colour", "--at", "2020-01-01T00:00:00Z"]).await.unwrap_err();
    assert!(e.contains("the earliest is"), "{e}");
    assert!(ask(&["scan", "--limit", "0"]).await.unwrap_err().contains("1 to 10000"));
    assert!(ask(&["get", "colour", "--db", "3"]).await.unwrap_err().contains("have no databases"));
    // A block that is needed and damaged is named.
    for pack in fleet.packs("orders") {
        let mut bytes = std::fs::read(&pack).unwrap();
        bytes[40..].iter_mut().for_each(|b| *b ^= 0x55);
        std::fs::write(&pack, bytes).unwrap();
    }
    let query = serde_json::json!({"cluster": "orders", "key": "colour"});
    let e = fleet.api().post::<Found>("queries/get", &query).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Damaged && e.message().contains("packs/"), "{e}");
}
