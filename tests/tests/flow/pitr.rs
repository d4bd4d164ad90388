//! Restores to a time: whatever moment is asked for, the values are those of that moment.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_coordinator::kv::check;
use tidemark_proto::Timestamp;
use tidemark_tests::fleet::{Fleet, eventually, records_at, write};

use crate::log::{enable, restorable_to};
use crate::model::{Model, at};
use crate::steps::{Running, assert_same, chains_have, fill};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merged_segments_hold_the_same_times() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    let args = ["pitr", "enable", "--cluster", "orders", "--interval-ms", "100", "--idle-ms", "100"];
    let _ = fleet.tidemark(&args).await;
    let _ = restorable_to(&fleet, Timestamp(1)).await;
    let mut model = Model::default();
    let mut times = Vec::new();
    let merged = fleet.repository().join("clusters/orders/log-merged");
    let objects = || std::fs::read_dir(&merged).map_or(0, |found| found.count());
    let mut n = 0u32;
    eventually("three merged segments", async || {
        for _ in 0..20 {
            n += 1;
            let value = (!n.is_multiple_of(5)).then(|| n.to_le_bytes().repeat(30));
            times.push(model.write(&router, format!("key:{}", n % 40), value).await);
        }
        (objects() >= 3).then_some(())
    })
    .await;
    let last = *times.last().expect("writes");
    let window = restorable_to(&fleet, last).await.windows.pop().expect("a window");
    let told = fleet.tidemark(&["repo", "gc", "-o", "json"]).await;
    let plain = std::fs::read_dir(fleet.repository().join("clusters/orders/log")).expect("folder").count();
    assert!(objects() > 0 && plain < 40, "{plain} objects stay that were merged; {told}");
    fleet.add_cluster("copy", 1).await;
    let copy = fleet.router("copy", 1).await;
    let within: Vec<_> = times.iter().filter(|at| at.0 >= window.earliest).collect();
    for at_time in within.iter().step_by(within.len() / 12 + 1) {
        let request = RestoreRequest { no_safety_backup: true, ..at("copy", **at_time) };
        let _ = fleet.restore(&request).await.unwrap();
        assert_same(&records_at(&copy, None).await, &model.at(**at_time));
    }
    // A coordinator that reads the log anew finds one window, and goes on.
    fleet.restart_coordinator().await;
    let _ = fleet.ready("orders", 2).await;
    let next = write(&fleet.router("orders", 2).await, b"next", Some(b"1")).await.unwrap();
    let status = restorable_to(&fleet, next).await;
    assert_eq!((status.windows.len(), status.windows[0].earliest), (1, window.earliest), "{status:?}");
    // Where a merged one is lost, what it stood for is read as long as it is there; here it is gone.
    let all = std::fs::read_dir(&merged).expect("folder").map(|f| f.expect("file").path());
    // The oldest, and of those the widest: what it stands for was collected.
    let lost = all
        .min_by_key(|path| {
            let name = path.file_name().expect("name").to_str().expect("UTF-8").to_owned();
            let (first, last) = name.split_once('-').expect("a range");
            (first.to_owned(), std::cmp::Reverse(last.to_owned()))
        })
        .expect("one");
    std::fs::write(&lost, b"no segment").expect("damage");
    assert!(fleet.check_repository().await.iter().any(Result::is_err));
    let split = eventually("a window behind the damage", async || {
        let status = crate::log::status(&fleet).await;
        (status.healthy && status.windows.last()?.earliest > next.0).then_some(status)
    })
    .await;
    // The backup that the old window began from lies in what is lost: its cut alone can be restored.
    assert_eq!(split.windows.len(), 1, "{split:?}");
    assert_eq!(fleet.plan(&at("orders", next)).await.unwrap().state().0, window.earliest);
}
