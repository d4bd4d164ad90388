//! The past of real servers: what a restore point gives back, by extraction, restore and query, is a state that was.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_coordinator::log::WindowItem;
use tidemark_proto::Timestamp;
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, binary, restore_of};
use tidemark_tests::redis::{Client, Cluster, Flavor, Reply, Server, eventually};

use super::chains::{Chains, check};
use super::contents::{compare, held_by};
use super::flow::{get, protect, protect_one};
use super::load::{Load, Wildness};
use super::log::{POINTS, enable, fleet, now, point_after, status};

/// Keys and what they hold, as text.
pub(crate) type State = BTreeMap<String, String>;

/// Every state that one client has made, one after the other, each write acknowledged before the next was sent.
struct Model {
    states: Vec<State>,
    clients: Vec<Client>,
}

impl Model {
    fn start(cluster: &Cluster) -> Self {
        Self { states: vec![State::new()], clients: cluster.clients() }
    }

    fn ask(&mut self, command: &[String]) {
        for client in &mut self.clients {
            match client.ask(command).expect("reply") {
                Reply::Error(e) if e.starts_with("MOVED") => {}
                Reply::Error(e) => panic!("{command:?}: {e}"),
                _ => return,
            }
        }
        panic!("no node takes {command:?}");
    }

    fn write(&mut self, rng: &mut StdRng) {
        let (n, k) = (self.states.len(), rng.random_range(0..60));
        let mut state = self.states.last().expect("a state").clone();
        let line = match rng.random_range(0..10) {
            0..=2 => {
                let _ = state.insert(format!("s:{k}"), n.to_string());
                format!("SET s:{k} {n}")
            }
            3..=5 => {
                let list = state.entry(format!("l:{k}")).or_default();
                list.push_str(&format!("{n} "));
                format!("RPUSH l:{k} {n}")
            }
            6 | 7 => {
                let number = state.entry(format!("i:{k}")).or_insert_with(|| "0".into());
                *number = (number.parse::<u64>().expect("number") + 3).to_string();
                format!("INCRBY i:{k} 3")
            }
            _ => {
                let kind = ["s", "l", "i"][rng.random_range(0..3)];
                let _ = state.remove(&format!("{kind}:{k}"));
                format!("DEL {kind}:{k}")
            }
        };
        let _ = state.insert("seq".into(), n.to_string());
        self.states.push(state);
        self.ask(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        self.ask(&["SET".into(), "seq".into(), n.to_string()]);
    }

    /// Whether `given` is a state that was: that of its number, or with the write after it, before its number was.
    fn check(&self, given: &State, what: &str) -> usize {
        let n: usize = given.get("seq").map_or(0, |n| n.parse().expect("number"));
        let without = |state: &State| {
            state.iter().filter(|(k, _)| *k != "seq").map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        let (given, at): (State, State) = (without(given), without(&self.states[n]));
        let next = self.states.get(n + 1).map(without);
        let wrong =
            given.iter().find(|(k, v)| at.get(*k) != Some(v)).or(at.iter().find(|(k, _)| !given.contains_key(*k)));
        assert!(given == at || Some(&given) == next.as_ref(), "{what}: not the state of write {n}, e.g. {wrong:?}");
        n
    }
}

fn run(fleet: &Fleet, args: &[&str]) -> Output {
    let url = format!("file://{}", fleet.repository().display());
    let key = fleet.dir().join("master.key");
    Command::new(binary("tidemark"))
        .args(args)
        .args(["--cluster", "orders", "--repository", &url, "--key-file", key.to_str().expect("UTF-8")])
        .output()
        .expect("tidemark")
}

fn good(fleet: &Fleet, args: &[&str]) -> String {
    let done = run(fleet, args);
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("UTF-8")
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(|v| format!("{} ", shown(v))).collect(),
        other => other.to_string(),
    }
}

/// What an extraction at a time gives.
pub(crate) fn extracted(fleet: &Fleet, at: u64) -> State {
    let lines = good(fleet, &["repo", "extract", "--at", &at.to_string()]);
    let records = lines.lines().map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
    records.map(|r| (r["key"].as_str().expect("key").to_owned(), shown(&r["value"]))).collect()
}

/// What is told to differ between two restore points is what differs between their states.
async fn differences(fleet: &Fleet, model: &Model, window: &WindowItem, rng: &mut StdRng) {
    let ask = async |from: u64, to: u64, glob: &str| {
        let (from, to) = (from.to_string(), to.to_string());
        let args =
            ["query", "diff", "--cluster", "orders", "--from", &from, "--to", &to, "--limit", "9999", "-o", "json"];
        let told = fleet.tidemark(&[&args[..], &["--keys", glob]].concat()).await;
        serde_json::from_str::<Value>(&told).expect("JSON")
    };
    let mut seen = 0;
    for _ in 0..6 {
        let mut times = [0; 2].map(|_| rng.random_range(window.earliest..=window.latest));
        times.sort_unstable();
        let [before, after] = times.map(|at| extracted(fleet, at));
        for glob in ["*", "l:1*"] {
            let told = ask(times[0], times[1], glob).await;
            let mut changes = BTreeMap::new();
            for change in told["changes"].as_array().expect("changes") {
                let side = |name: &str| change.get(name).filter(|v| !v.is_null());
                let either = side("before").or(side("after")).expect("one of both");
                let value = |name: &str| side(name).map(|record| shown(&record["value"]));
                let key = either["key"].as_str().expect("key").to_owned();
                assert!(changes.insert(key, (value("before"), value("after"))).is_none(), "{told}");
            }
            let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            let takes = |key: &str| glob == "*" || key.starts_with("l:1");
            let wanted: BTreeMap<String, (Option<String>, Option<String>)> = keys
                .into_iter()
                .filter(|key| takes(key) && before.get(*key) != after.get(*key))
                .map(|key| (key.clone(), (before.get(key).cloned(), after.get(key).cloned())))
                .collect();
            assert_eq!(changes, wanted, "from {} to {}", times[0], times[1]);
            seen += wanted.len();
        }
    }
    assert!(seen > 50 || model.states.len() < 100, "{seen} changes");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_times_are_states_that_were() {
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    let mut fleet = fleet().await;
    protect(&mut fleet, "orders", &cluster).await;
    let (mut model, mut rng) = (Model::start(&cluster), StdRng::seed_from_u64(5));
    (0..200).for_each(|_| model.write(&mut rng));
    enable(&fleet).await;
    let _ = point_after(&fleet, Timestamp(1)).await;
    let began = now();
    for round in 0..60 {
        (0..60).for_each(|_| model.write(&mut rng));
        if round % 5 == 0 {
            // However fast the machine is, there are restore points between the writes.
            let _ = point_after(&fleet, now()).await;
        }
        if round == 30 {
            let _ = fleet.backup("orders").await.expect("a backup in between");
        }
    }
    let ended = now();
    let window = point_after(&fleet, now()).await.windows.remove(0);
    assert!(window.points > 10 && window.bases.len() == 2, "{window:?}");
    let mut seen = std::collections::BTreeSet::new();
    for i in 0..50 {
        // However long the backup and the way to its end take, most of them are times of writes.
        let at = match i {
            0 => window.earliest,
            n if n % 5 == 0 => rng.random_range(window.earliest..=window.latest),
            _ => rng.random_range(began.0.max(window.earliest)..=ended.0.min(window.latest)),
        };
        let _ = seen.insert(model.check(&extracted(&fleet, at), &format!("at {at}")));
    }
    assert!(seen.len() > 5, "different states: {seen:?}");
    let last = extracted(&fleet, window.latest);
    assert_eq!(model.check(&last, "the last point"), model.states.len() - 1);

    differences(&fleet, &model, &window, &mut rng).await;

    // The same by restores into other shapes, and by queries.
    let at = rng.random_range(window.earliest..=window.latest);
    let wanted = extracted(&fleet, at);
    let (five, alone) = (Cluster::start(Flavor::Redis, 5, &[]), Server::start(Flavor::Redis, &[]));
    protect(&mut fleet, "five", &five).await;
    protect_one(&mut fleet, "alone", &alone).await;
    for target in ["five", "alone"] {
        let request = RestoreRequest { at: Some(at), ..restore_of("orders", target) };
        let _ = fleet.restore(&request).await.unwrap_or_else(|e| panic!("{target}: {}", e.report()));
    }
    let mut holders = [five.clients(), vec![alone.client()]];
    for clients in &mut holders {
        for (key, value) in wanted.iter().filter(|(k, _)| !k.starts_with("l:")) {
            assert_eq!(get(clients, key).map(|n| n.to_string()).as_ref(), Some(value), "{key}");
        }
    }
    assert_eq!(alone.client().run("DBSIZE").integer(), wanted.len() as i64);
    let list = wanted.iter().find(|(k, _)| k.starts_with("l:")).expect("a list");
    let raw = at.to_string();
    let told = fleet.tidemark(&["query", "get", list.0, "--cluster", "orders", "--at", &raw, "-o", "json"]).await;
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(&shown(&told["record"]["value"]), list.1, "{told}");
    let history = fleet.tidemark(&["query", "history", "seq", "--cluster", "orders"]).await;
    assert!(history.contains(&format!("{}", model.states.len() - 1)), "{history}");
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_are_whole_at_every_restore_point_over_a_move_of_slots() {
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    // The agents work the log off.
    let sections = format!("{POINTS}work_off_mib = 0\n");
    let mut fleet = Fleet::start_with(CoordinatorSpec { sections, ..CoordinatorSpec::default() }).await;
    protect(&mut fleet, "orders", &cluster).await;
    enable(&fleet).await;
    let chains = Chains::start(&cluster, 3);
    let first = point_after(&fleet, Timestamp(1)).await.windows[0].earliest;
    let mut times = vec![first];
    for (from, to) in [(0, 1), (1, 2)] {
        let mut moving = super::moving::reshard(&cluster, from, to, 400).spawn().expect("redis-cli");
        eventually("the slots to be on their way", || (chains.steps() > 200).then_some(()));
        times.push(now().0);
        assert!(moving.wait().expect("redis-cli").success());
        times.push(now().0);
    }
    chains.stop();
    let window = point_after(&fleet, now()).await.windows;
    assert_eq!((window.len(), window[0].earliest), (1, first), "one window");
    times.push(window[0].latest);
    let mut rng = StdRng::seed_from_u64(9);
    times.extend((0..15).map(|_| rng.random_range(first..=window[0].latest)));
    times.sort_unstable();
    let alone = Server::start(Flavor::Redis, &[]);
    protect_one(&mut fleet, "alone", &alone).await;
    let request = RestoreRequest { at: Some(times[times.len() / 2]), ..restore_of("orders", "alone") };
    let _ = fleet.restore(&request).await.unwrap_or_else(|e| panic!("{}", e.report()));
    let (middle, mut clients) = (extracted(&fleet, times[times.len() / 2]), [alone.client()]);
    assert_eq!(alone.client().run("DBSIZE").integer(), middle.len() as i64);
    for (key, value) in &middle {
        assert_eq!(get(&mut clients, key).map(|n| n.to_string()).as_ref(), Some(value), "{key}");
    }
    let mut before = 0;
    for at in times {
        let state = extracted(&fleet, at);
        let steps = check(3, |key| state.get(key).map(|step| step.parse().expect("number")));
        assert!(steps >= before, "at {at}: {steps} steps, before {before}");
        before = steps;
    }
    assert!(before > 500, "{before} steps");
}

#[tokio::test(flavor = "multi_thread")]
async fn volatile_keys_and_commands_over_slots_are_right_long_after() {
    for flavor in Flavor::installed() {
        let (source, target) = (Server::start(flavor, &[]), Server::start(flavor, &[]));
        let mut fleet = fleet().await;
        protect_one(&mut fleet, "orders", &source).await;
        protect_one(&mut fleet, "copy", &target).await;
        enable(&fleet).await;
        let _ = point_after(&fleet, Timestamp(1)).await;
        let load = Load::start((0..3).map(|_| source.client()).collect(), Wildness::Everything);
        eventually("some load", || (load.steps() > 3000).then_some(()));
        load.stop();
        // The source stands still from here on: what it holds then is what the point holds.
        let stopped = now();
        let _ = point_after(&fleet, stopped).await;
        assert_eq!(fleet.backups("orders").await.len(), 1, "all that comes is by the log");
        let at = status(&fleet).await.windows[0].latest;
        eventually("every time to live to be over", || {
            let keyspace = source.client().run("INFO keyspace").text();
            keyspace.split("expires=").skip(1).all(|rest| rest.starts_with("0,")).then_some(())
        });
        let request = RestoreRequest { at: Some(at), ..restore_of("orders", "copy") };
        let _ = fleet.restore(&request).await.unwrap_or_else(|e| panic!("{flavor:?}: {}", e.report()));
        assert_eq!(target.digest(), source.digest(), "{flavor:?}");
        compare("by the log", &held_by(&target), &held_by(&source));
    }
}
