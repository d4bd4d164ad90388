//! Options of restores: when keys expire, which keys are taken, and that both outlive whoever dies in the middle.

use serde_json::Value;
use tidemark_common::expiry::ExpiryMode;
use tidemark_common::record::split_redis_key;
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_proto::{SlotSet, Timestamp, slot_of};
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, restore_of};
use tidemark_tests::redis::{Flavor, Reply, Server, eventually};

use super::contents::{Contents, compare, held_by};
use super::fenced::{good, in_place, spec, start};

/// Keys of each kind.
const KEYS: usize = 1500;
/// Regions of this many slots, so that there are many parts.
const SECTIONS: &str = "[backup]\nslots_per_region = 512\nagent_concurrency = 2\nnode_patience_seconds = 20";

async fn fleet(coordinator_dies_at: &str) -> Fleet {
    let mut spec = CoordinatorSpec { sections: SECTIONS.into(), ..CoordinatorSpec::default() };
    if !coordinator_dies_at.is_empty() {
        spec.env.push(("TIDEMARK_CRASH_AT".into(), coordinator_dies_at.into()));
    }
    Fleet::start_with(spec).await
}

/// Keys that stay, keys that expire in hours (each at a time of its own), of databases 0, 1 and 3.
fn fill(server: &Server) {
    let mut client = server.client();
    for db in [0, 1, 3] {
        let _ = client.run(&format!("SELECT {db}"));
        let words = |line: String| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let plain = (0..KEYS).map(|i| words(format!("SET stays:{i} {}", "v".repeat(1 + i % 200))));
        let volatile = (0..KEYS).map(|i| words(format!("SET goes:{i} {i} PX {}", 3_600_000 + i * 1000)));
        let _ = client.pipeline(&plain.chain(volatile).collect::<Vec<_>>());
    }
}

async fn protect(fleet: &mut Fleet, name: &str, server: &Server, dies_at: &str) {
    fleet.start_agent(spec(name, "n0", server, dies_at));
    let _ = fleet.ready(name, 1).await;
}

fn asked(target: &str, mode: ExpiryMode) -> RestoreRequest {
    RestoreRequest { expiry: mode, ..restore_of("orders", target) }
}

fn number(result: &Value, field: &str) -> u64 {
    result[field].as_u64().unwrap_or_else(|| panic!("{field} in {result}"))
}

/// What a restore by `mode` makes of it.
fn expected(source: &Contents, mode: ExpiryMode, result: &Value) -> Contents {
    let shift = number(result, "shift_millis") as i64;
    let at = |at: i64| match mode {
        ExpiryMode::Absolute => Some(at),
        ExpiryMode::Shift => Some(at + shift),
        ExpiryMode::Drop => None,
    };
    source.iter().map(|(key, (expiry, meaning))| (key.clone(), (expiry.and_then(at), *meaning))).collect()
}

/// Without keys whose names begin with `prefix`.
fn without(contents: &Contents, prefix: &str) -> Contents {
    let name = |key: &[u8]| split_redis_key(key).expect("key").1.starts_with(prefix.as_bytes());
    contents.iter().filter(|(key, _)| !name(key)).map(|(k, v)| (k.clone(), *v)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_expire_as_they_did_or_later_or_never_and_those_that_have_expired_are_counted_apart() {
    let source = Server::start(Flavor::Redis, &[]);
    fill(&source);
    let mut client = source.client();
    // Expired before the cut, and still in the server's memory.
    let _ = client.run("DEBUG SET-ACTIVE-EXPIRE 0");
    let gone =
        (0..20).map(|i| ["SET".to_owned(), format!("gone:{i}"), "1".into(), "PX".into(), "1".into()].to_vec());
    let _ = client.pipeline(&gone.collect::<Vec<_>>());
    let last = Timestamp::new(client.run("TIME").array()[0].clone().text().parse::<u64>().expect("time") * 1000, 0);
    let soon = |i: usize| ["SET".to_owned(), format!("soon:{i}"), "1".into(), "PX".into(), "6000".into()].to_vec();
    let _ = client.pipeline(&(0..30).map(soon).collect::<Vec<_>>());
    let mut fleet = fleet("").await;
    protect(&mut fleet, "orders", &source, "").await;
    let taken = good(fleet.backup("orders").await);
    assert_eq!(taken.item.records, 6 * KEYS as u64 + 50);
    let cut = Timestamp(taken.item.cut);
    assert!(cut > last && cut.millis() < last.millis() + 7000, "the keys live at the cut");
    let all = held_by(&source);
    eventually("the short-lived keys to expire", || {
        (client.ask(&["GET", "soon:29"]).ok()? == Reply::Nil).then_some(())
    });

    let copies = [ExpiryMode::Absolute, ExpiryMode::Shift, ExpiryMode::Drop];
    for mode in copies {
        let target = Server::start(Flavor::Redis, &[]);
        protect(&mut fleet, mode.word(), &target, "").await;
        let before = Timestamp::new(std::time::UNIX_EPOCH.elapsed().expect("time").as_millis() as u64, 0);
        let result = good(fleet.restore(&asked(mode.word(), mode)).await);
        let (records, expired, shift) =
            (number(&result, "records"), number(&result, "expired"), number(&result, "shift_millis"));
        assert_eq!(records + expired, 6 * KEYS as u64 + 50, "{mode:?}: {result}");
        let (held, wanted) = (held_by(&target), expected(&without(&all, "gone:"), mode, &result));
        match mode {
            ExpiryMode::Absolute => {
                assert_eq!((expired, shift), (50, 0));
                compare("absolute", &held, &without(&wanted, "soon:"));
            }
            ExpiryMode::Drop => {
                assert_eq!((expired, shift), (20, 0));
                compare("drop", &held, &wanted);
            }
            ExpiryMode::Shift => {
                assert!(shift >= before.millis() - cut.millis() && shift < 60_000, "{shift}");
                // On a slow machine they may have expired once more.
                assert!((20..=50).contains(&expired), "{expired}");
                compare("shift", &without(&held, "soon:"), &without(&wanted, "soon:"));
                let soon = |c: &Contents| c.iter().filter(|(k, v)| wanted.get(*k) == Some(v)).count() as u64;
                assert_eq!(soon(&held), held.len() as u64, "every key has its own time");
            }
        }
        fleet.agent(mode.word(), "n0").process.stop().await;
    }
    // Who asks a store without expiry for it is told.
    fleet.add_cluster("plain", 1).await;
    let _ = good(fleet.backup("plain").await);
    for (request, word) in [
        (RestoreRequest { expiry: ExpiryMode::Drop, ..restore_of("plain", "plain") }, "--expiry"),
        (RestoreRequest { dbs: vec![1], ..restore_of("plain", "plain") }, "--db"),
    ] {
        let refused = fleet.plan(&request).await.unwrap_err().report();
        assert!(refused.contains(word) && refused.contains("embedded"), "{refused}");
    }
}

fn only(contents: &Contents, slots: &SlotSet, dbs: &[u64]) -> Contents {
    let wanted = |key: &[u8]| {
        let (db, name) = split_redis_key(key).expect("key");
        slots.contains(slot_of(name)) && (dbs.is_empty() || dbs.contains(&db))
    };
    contents.iter().filter(|(key, _)| wanted(key)).map(|(k, v)| (k.clone(), *v)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_and_databases_are_taken_alone_and_parts_without_them_are_not_fetched() {
    let (source, target) = (Server::start(Flavor::Redis, &[]), Server::start(Flavor::Redis, &[]));
    fill(&source);
    let mut fleet = fleet("").await;
    protect(&mut fleet, "orders", &source, "").await;
    protect(&mut fleet, "copy", &target, "").await;
    let _ = good(fleet.backup("orders").await);
    let all = held_by(&source);
    // It ends inside a region: the part that holds its end is read whole, and compared.
    let slots: SlotSet = "0-700,16000-16383".parse().expect("slots");
    let dbs = [0, 3];
    let request = RestoreRequest { slots: Some(slots.clone()), dbs: dbs.to_vec(), ..restore_of("orders", "copy") };
    let parts = good(fleet.plan(&restore_of("orders", "copy")).await).targets[0].parts;
    let fewer = good(fleet.plan(&request).await).targets[0].parts;
    assert!(fewer > 0 && fewer * 4 < parts, "{fewer} of {parts} parts");
    let result = good(fleet.restore(&request).await);
    let wanted = only(&all, &slots, &dbs);
    assert!(!wanted.is_empty());
    assert_eq!((number(&result, "parts"), number(&result, "records")), (fewer, wanted.len() as u64));
    compare("some slots, some databases", &held_by(&target), &wanted);
    let slots_of_nothing = RestoreRequest { slots: Some(SlotSet::EMPTY), ..restore_of("orders", "copy") };
    let refused = fleet.plan(&slots_of_nothing).await.unwrap_err().report();
    assert!(refused.contains("--slots"), "{refused}");

    // In place nothing else is left, here by the command line.
    let keys = RestoreRequest { dbs: vec![1], keys: vec!["goes:*".into()], ..in_place("orders", "latest") };
    let args = ["restore", "run", "latest", "--cluster", "orders", "--in-place", "--yes", "--db", "1"];
    let rest = ["--keys", "goes:*", "--expiry", "drop", "--no-safety-backup"];
    let told = fleet.tidemark(&[&args[..], &rest[..]].concat()).await;
    assert!(told.contains(&format!("{},{:03} records", KEYS / 1000, KEYS % 1000)), "{told}");
    let wanted = expected(&only(&all, &SlotSet::all(), &keys.dbs), ExpiryMode::Drop, &result);
    compare("in place, one database", &held_by(&source), &without(&wanted, "stays:"));
}

/// A restore with options, in which the coordinator, the agent, or both die.
async fn survives(coordinator: &str, agent: &str) {
    let (source, target) = (Server::start(Flavor::Redis, &[]), Server::start(Flavor::Redis, &[]));
    fill(&source);
    let _ = source.client().run("SET soon 1 PX 1");
    let mut fleet = fleet(coordinator).await;
    protect(&mut fleet, "orders", &source, "").await;
    let _ = good(fleet.backup("orders").await);
    let all = held_by(&source);
    protect(&mut fleet, "copy", &target, agent).await;
    let slots = SlotSet::range(0, 9000);
    let request =
        RestoreRequest { slots: Some(slots.clone()), dbs: vec![1, 3], ..asked("copy", ExpiryMode::Shift) };
    let cut = Timestamp(good(fleet.plan(&request).await).cut).millis();
    let job = start(&fleet, &request).await;
    if !agent.is_empty() {
        fleet.revive_agent("copy", "n0").await;
    }
    if !coordinator.is_empty() {
        fleet.revive_coordinator().await;
    }
    let _ = good(fleet.api().job_end(&job).await);
    let held = held_by(&target);
    let wanted = only(&all, &slots, &[1, 3]);
    let shifts: std::collections::BTreeSet<i64> =
        held.iter().filter_map(|(key, (at, _))| Some((*at)? - wanted.get(key)?.0?)).collect();
    let [shift] = shifts.into_iter().collect::<Vec<_>>()[..] else { panic!("keys were moved by several times") };
    assert_eq!(shift as u64, job.started_millis - cut, "the moment of the request counts");
    let result = serde_json::json!({"shift_millis": shift});
    compare("with both options", &held, &expected(&wanted, ExpiryMode::Shift, &result));
}

#[tokio::test(flavor = "multi_thread")]
async fn options_outlive_the_agent() {
    survives("", "agent.part-loaded:5").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_outlive_the_coordinator() {
    survives("serve.part:9", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_outlive_both() {
    // More parts than are under way at once are between the two.
    survives("serve.part:14", "agent.part-loaded:3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_outlive_a_coordinator_that_has_it_all_verified() {
    survives("restore.verified", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_counted_outlives_a_coordinator_in_the_switch() {
    let (source, target) = (Server::start(Flavor::Redis, &[]), Server::start(Flavor::Redis, &[]));
    fill(&source);
    let _ = source.client().run("DEBUG SET-ACTIVE-EXPIRE 0");
    let _ = source.client().run("SET gone 1 PX 1");
    let mut fleet = fleet("restore.switching").await;
    protect(&mut fleet, "orders", &source, "").await;
    protect(&mut fleet, "copy", &target, "").await;
    let _ = good(fleet.backup("orders").await);
    let job = start(&fleet, &asked("copy", ExpiryMode::Absolute)).await;
    fleet.revive_coordinator().await;
    let result = good(fleet.api().job_end(&job).await);
    assert_eq!((number(&result, "expired"), number(&result, "records")), (1, 6 * KEYS as u64));
}
