//! Restores to a time: whatever moment is asked for, the values are those of that moment.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_coordinator::kv::{Router, check};
use tidemark_proto::Timestamp;
use tidemark_tests::fleet::{Fleet, Records, eventually, records_at, restore_of, write};

use crate::log::{enable, restorable_to};
use crate::steps::{Running, assert_same, chains_have, fill};

/// All that was written, by time.
#[derive(Default)]
struct Model(BTreeMap<Timestamp, (Vec<u8>, Option<Vec<u8>>)>);

impl Model {
    async fn write(&mut self, router: &Router, key: String, value: Option<Vec<u8>>) -> Timestamp {
        let at = write(router, key.as_bytes(), value.as_deref()).await.expect("a write");
        let _ = self.0.insert(at, (key.into_bytes(), value));
        at
    }

    /// The state at `at`.
    fn at(&self, at: Timestamp) -> Records {
        let mut records = Records::new();
        for (key, value) in self.0.range(..=at).map(|(_, change)| change) {
            match value {
                Some(value) => drop(records.insert(key.clone(), value.clone())),
                None => drop(records.remove(key)),
            }
        }
        records
    }
}

fn at(target: &str, at: Timestamp) -> RestoreRequest {
    RestoreRequest { backup: String::new(), at: Some(at.0), in_place: true, ..restore_of("orders", target) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_of_all_writes_agrees_at_fifty_random_times() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 3).await;
    let router = fleet.router("orders", 3).await;
    enable(&fleet).await;
    let _ = restorable_to(&fleet, Timestamp(1)).await;
    let mut rng = StdRng::seed_from_u64(77);
    let mut model = Model::default();
    let mut last = Timestamp::ZERO;
    for n in 0..1200u32 {
        let key = format!("key:{}", rng.random_range(0..150));
        let value = rng.random_bool(0.8).then(|| (0..rng.random_range(0..400)).map(|_| rng.random()).collect());
        last = model.write(&router, key, value).await;
        if n % 300 == 150 {
            // Some times are restored from one backup, some from another.
            let _ = fleet.backup("orders").await.unwrap();
        }
    }
    let window = restorable_to(&fleet, last).await.windows.pop().expect("a window");
    fleet.add_cluster("copy", 2).await;
    let copy = fleet.router("copy", 2).await;
    for round in 0..50 {
        let wanted = match round {
            0 => Timestamp(window.earliest),
            1 => last,
            _ => Timestamp(rng.random_range(window.earliest..=last.0)),
        };
        let request = RestoreRequest { no_safety_backup: true, ..at("copy", wanted) };
        let plan = fleet.plan(&request).await.unwrap();
        assert_eq!(plan.state(), wanted, "any timestamp in the window is a restore point");
        let _ = fleet.restore(&request).await.unwrap();
        assert_same(&records_at(&copy, None).await, &model.at(wanted));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chains_are_whole_at_every_time_in_other_shapes_and_in_place() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 3).await;
    let router = fleet.router("orders", 3).await;
    fill(&router, 5, 2000).await;
    enable(&fleet).await;
    let window = restorable_to(&fleet, Timestamp(1)).await.windows.pop().expect("a window");
    let load = Running::start(&router, 6, 2000);
    chains_have(&router, 400).await;
    let middle = write(&router, b"middle", Some(b"1")).await.unwrap();
    chains_have(&router, 800).await;
    let expected = records_at(&router, Some(middle)).await;
    let _ = load.stop().await;
    let _ = restorable_to(&fleet, write(&router, b"last", Some(b"1")).await.unwrap()).await;
    for (target, nodes) in [("five", 5), ("one", 1)] {
        fleet.add_cluster(target, nodes).await;
        let _ = fleet.restore(&RestoreRequest { in_place: false, ..at(target, middle) }).await.unwrap();
        let copy = fleet.router(target, usize::from(nodes)).await;
        assert_same(&records_at(&copy, None).await, &expected);
        let checked = check(&copy, None).await.unwrap();
        assert!(checked.is_clean() && checked.chain_steps >= 400, "{checked:?}");
    }
    // Only some keys.
    fleet.add_cluster("some", 2).await;
    let some = RestoreRequest { in_place: false, keys: vec!["mid*".into()], ..at("some", middle) };
    let _ = fleet.restore(&some).await.unwrap();
    let held = records_at(&fleet.router("some", 2).await, None).await;
    assert_eq!(held.into_keys().collect::<Vec<_>>(), [b"middle".to_vec()]);
    // In place: a new log begins by itself behind it.
    let out =
        fleet.tidemark(&["restore", "run", "--at", &middle.to_string(), "-C", "orders", "--in-place", "-y"]).await;
    assert!(out.contains(&middle.to_string()) || !out.is_empty(), "{out}");
    assert_same(&records_at(&fleet.router("orders", 3).await, None).await, &expected);
    let after = eventually("a second window", async || {
        let status = crate::log::status(&fleet).await;
        (status.windows.len() == 2 && status.healthy).then_some(status)
    })
    .await;
    assert_eq!(after.windows[0].earliest, window.earliest, "the old window can still be restored");
    let _ = fleet.plan(&at("orders", middle)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_restored_is_said() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 1).await;
    let router = fleet.router("orders", 1).await;
    fill(&router, 5, 200).await;
    let before = write(&router, b"before", Some(b"1")).await.unwrap();
    enable(&fleet).await;
    let window = restorable_to(&fleet, Timestamp(1)).await.windows.pop().expect("a window");
    let e = fleet.plan(&at("orders", before)).await.unwrap_err();
    assert!(e.message().contains("the earliest is"), "{e}");
    // A time that has not come is the latest there is, and the plan says which that is.
    let plan = fleet.plan(&at("orders", Timestamp(u64::MAX >> 2))).await.unwrap();
    assert!(plan.state() >= Timestamp(window.latest) && plan.state().millis() < 1 << 45, "{plan:?}");
    let e = fleet.try_tidemark(&["restore", "plan", "--at", "yesterday", "-C", "orders"]).await.unwrap_err();
    assert!(e.contains("is no time"), "{e}");
}
