//! Restores into Clusters with slots that are on their way from one node to another, or begin to move in the middle.

use std::process::{Command, Stdio};

use tidemark_agent::engine::Engine;
use tidemark_agent::engine::redis::conn::Login;
use tidemark_agent::engine::redis::{Options, Redis};
use tidemark_common::record::split_redis_key;
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_proto::id::JobId;
use tidemark_proto::{SlotSet, slot_of};
use tidemark_tests::fleet::{EngineKind, Fleet, restore_of};
use tidemark_tests::redis::{Cluster, Flavor, Reply, Server, eventually};

use super::contents::{Contents, compare, held_by, held_by_all};
use super::cut::options;
use super::fenced::{KEYS, fill, fleet, good, in_place, is_refused_by_default, spec, start, users};
use super::flow::spread;

/// All its keys are in one slot.
const TAG: &str = "moving";

/// Keys of several types in the slot of [`TAG`], some of which expire.
fn tagged() -> Vec<Vec<String>> {
    let one = |i: usize| match i % 5 {
        0 => format!("SET {{{TAG}}}:s:{i} {}", "v".repeat(1 + i)),
        1 => format!("HSET {{{TAG}}}:h:{i} a {i} b {}", i * 7),
        2 => format!("RPUSH {{{TAG}}}:l:{i} a b {}", "c".repeat(i)),
        3 => format!("ZADD {{{TAG}}}:z:{i} 1 a 2.5 b"),
        _ => format!("SET {{{TAG}}}:t:{i} {i} PXAT {}", 4_102_444_800_000_u64 + i as u64),
    };
    (0..600).map(|i| one(i).split(' ').map(str::to_owned).collect()).collect()
}

/// A Cluster with two slots that are on their way: from the first node to the second, with keys, and from the second to the
/// third.
struct Open {
    cluster: Cluster,
    ids: Vec<String>,
    slots: [(u16, usize, usize); 2],
}

impl Open {
    fn of(flavor: Flavor) -> Self {
        let cluster = Cluster::start(flavor, 3, &[]);
        let ids = cluster.clients().iter_mut().map(|c| c.run("CLUSTER MYID").text()).collect();
        let owner = cluster.owner(TAG.as_bytes()) as *const Server;
        let first = cluster.nodes.iter().position(|(_, s)| std::ptr::eq(s, owner)).expect("the owner");
        let [second, third] = [(first + 1) % 3, (first + 2) % 3];
        // The first slot of each node of three.
        let other = [0, 5461, 10923][second];
        Self { cluster, ids, slots: [(slot_of(TAG.as_bytes()), first, second), (other, second, third)] }
    }

    fn set(&self, node: usize, slot: u16, state: &str) {
        let reply = self.cluster.nodes[node].1.client().run(&format!("CLUSTER SETSLOT {slot} {state}"));
        assert!(matches!(reply, Reply::Status(_)), "{reply:?}");
    }

    fn open(&self) {
        for (slot, from, to) in self.slots {
            self.set(to, slot, &format!("IMPORTING {}", self.ids[from]));
            self.set(from, slot, &format!("MIGRATING {}", self.ids[to]));
        }
    }

    /// What clients find who ask the owner and go where it sends them: each key is with the node that they end at.
    fn is_found_by_clients(&self, wanted: &Contents) {
        let (slot, from, to) = self.slots[0];
        let keys: Vec<_> =
            wanted.keys().map(|k| split_redis_key(k).expect("a key").1).filter(|k| slot_of(k) == slot).collect();
        assert!(keys.len() >= 600, "{} keys are in the moving slot", keys.len());
        let (mut owner, mut other) = (self.cluster.nodes[from].1.client(), self.cluster.nodes[to].1.client());
        for key in keys {
            let sent = owner.ask(&[&b"TYPE"[..], key]).expect("reply");
            assert!(matches!(&sent, Reply::Error(e) if e.starts_with("ASK ")), "{sent:?}");
            let _ = other.run("ASKING");
            assert_ne!(other.call(&[&b"TYPE"[..], key]).text(), "none");
        }
    }

    /// Ends both migrations by the servers' own tool.
    fn fix(&self, flavor: Flavor) {
        let cli = if flavor == Flavor::Redis { "redis-cli" } else { "valkey-cli" };
        let at = format!("127.0.0.1:{}", self.cluster.ports()[0]);
        let done = Command::new(cli).args(["--cluster", "fix", &at, "--cluster-yes"]).output().expect("the tool");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        for (slot, _, to) in self.slots {
            eventually("all nodes to know the new owner", || {
                let owns = |mut c: tidemark_tests::redis::Client| {
                    let nodes = c.run("CLUSTER NODES").text();
                    let line = nodes.lines().find(|l| l.starts_with(&self.ids[to])).unwrap_or_default().to_owned();
                    !nodes.contains('[')
                        && line.split(' ').skip(8).any(|r| {
                            let (a, b) = r.split_once('-').unwrap_or((r, r));
                            (a.parse().unwrap_or(u16::MAX)..=b.parse().unwrap_or(0)).contains(&slot)
                        })
                };
                self.cluster.clients().into_iter().all(owns).then_some(())
            });
        }
    }
}

/// A fleet with a backup of `orders`, of a server with keys in many slots and many in one.
async fn backed_up() -> (Fleet, Contents) {
    let source = Server::start(Flavor::Redis, &[]);
    fill(&mut source.client(), "key", KEYS);
    let _ = source.client().pipeline(&tagged());
    let mut fleet = fleet().await;
    fleet.start_agent(spec("orders", "n0", &source, ""));
    let _ = fleet.ready("orders", 1).await;
    let _ = good(fleet.backup("orders").await);
    (fleet, held_by(&source))
}

async fn agents(fleet: &mut Fleet, name: &str, cluster: &Cluster, dies: (usize, &str), options: &str) {
    for (i, (_, server)) in cluster.nodes.iter().enumerate() {
        let mut spec = spec(name, &format!("n{i}"), server, if i == dies.0 { dies.1 } else { "" });
        spec.engine = EngineKind::Redis(format!("unix:{}", server.socket().display()), options.into());
        fleet.start_agent(spec);
    }
    let _ = fleet.ready(name, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_slots_on_their_way_are_where_clients_are_sent_and_stay_when_the_migration_ends() {
    let (mut fleet, wanted) = backed_up().await;
    for flavor in Flavor::installed() {
        // As payloads, by commands, and with the migration ended in the middle.
        for (options, early) in [("", false), ("native_over_bytes = 8", false), ("", true)] {
            let open = Open::of(flavor);
            open.open();
            let name = format!("copy-{}-{}-{early}", flavor == Flavor::Redis, options.len());
            let dies = (open.slots[0].2, "agent.part-loaded:3");
            agents(&mut fleet, &name, &open.cluster, dies, options).await;
            let plan = good(fleet.plan(&restore_of("orders", &name)).await);
            assert_eq!(plan.problems, Vec::<String>::new());
            let told = plan.warnings.join("; ");
            for (slot, from, to) in open.slots {
                assert!(
                    told.contains(&format!("slots {slot} are moving from node n{from} to node n{to}")),
                    "{told}"
                );
            }
            let job = start(&fleet, &restore_of("orders", &name)).await;
            let dead = format!("n{}", open.slots[0].2);
            let _ = fleet.agent(&name, &dead).process.ended().await;
            if early {
                open.fix(flavor);
            }
            fleet.revive_agent(&name, &dead).await;
            let ended = good(fleet.api().job_end(&job).await);
            assert_eq!(ended["records"], wanted.len());
            compare("slots on their way", &held_by_all(&open.cluster), &wanted);
            assert!(!fleet.coordinator().process.log().contains("begins anew"), "nothing had to be loaded again");
            if !early {
                open.is_found_by_clients(&wanted);
                open.fix(flavor);
            }
            compare("the migration has ended", &held_by_all(&open.cluster), &wanted);
            for i in 0..3 {
                fleet.agent(&name, &format!("n{i}")).process.stop().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_place_over_a_half_moved_slot_with_an_agent_killed_on_either_side() {
    for side in [1, 0] {
        let open = Open::of(Flavor::Redis);
        let cluster = &open.cluster;
        let mut keys = tagged();
        keys.extend((0..KEYS).map(|i| vec!["SET".into(), format!("key:{i}"), "v".repeat(1 + i % 400)]));
        spread(cluster, keys);
        let wanted = held_by_all(cluster);
        let mut fleet = fleet().await;
        let (_, from, to) = open.slots[0];
        let dying = [from, to][side];
        agents(&mut fleet, "orders", cluster, (dying, "agent.part-loaded:3"), "").await;
        let taken = good(fleet.backup("orders").await);
        // Another state by now: keys that the backup does not have, and half of the slot has moved.
        spread(cluster, (0..50).map(|i| vec!["SET".into(), format!("{{{TAG}}}:later:{i}"), "1".into()]).collect());
        open.open();
        let (slot, port) = (open.slots[0].0, cluster.nodes[to].0.to_string());
        let mut owner = cluster.nodes[from].1.client();
        for key in owner.run(&format!("CLUSTER GETKEYSINSLOT {slot} 300")).array() {
            let _ = owner.call(&["MIGRATE", "127.0.0.1", &port, &key.text(), "0", "5000"]);
        }
        let held = |n: usize| cluster.nodes[n].1.client().run(&format!("CLUSTER COUNTKEYSINSLOT {slot}")).integer();
        assert_eq!((held(from), held(to)), (350, 300), "half of it has moved");
        let before: Vec<_> = cluster.nodes.iter().map(|(_, server)| users(server)).collect();

        let request = RestoreRequest { no_safety_backup: true, ..in_place("orders", &taken.item.id) };
        let job = start(&fleet, &request).await;
        let dead = format!("n{dying}");
        let _ = fleet.agent("orders", &dead).process.ended().await;
        is_refused_by_default(&cluster.nodes[dying].1);
        fleet.revive_agent("orders", &dead).await;
        let _ = good(fleet.api().job_end(&job).await);
        compare("in place", &held_by_all(cluster), &wanted);
        assert_eq!((held(from), held(to)), (0, 600));
        assert_eq!(cluster.nodes.iter().map(|(_, server)| users(server)).collect::<Vec<_>>(), before);
        open.is_found_by_clients(&wanted);
        // By hand, as a tool does it.
        for (slot, from, to) in open.slots {
            for node in [to, from, 3 - from - to] {
                open.set(node, slot, &format!("NODE {}", open.ids[to]));
            }
        }
        compare("the migration has ended", &held_by_all(cluster), &wanted);
        let key = format!("{{{TAG}}}:s:5");
        assert_eq!(cluster.nodes[to].1.client().call(&["STRLEN", &key]).integer(), 6);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_in_the_middle_with_what_was_loaded_are_followed() {
    let (mut fleet, mut wanted) = backed_up().await;
    let open = Open::of(Flavor::Redis);
    let (slot, from, to) = open.slots[0];
    agents(&mut fleet, "copy", &open.cluster, (from, "agent.part-loaded:9"), "").await;
    let job = start(&fleet, &restore_of("orders", "copy")).await;
    let dead = format!("n{from}");
    let _ = fleet.agent("copy", &dead).process.ended().await;
    // Slots, with what is in them, get another owner; one more is left on its way.
    let moved = Command::new("redis-cli")
        .args(["--cluster", "reshard", &format!("127.0.0.1:{}", open.cluster.ports()[0]), "--cluster-yes"])
        .args(["--cluster-from", &open.ids[from], "--cluster-to", &open.ids[to], "--cluster-slots", "700"])
        .stdout(Stdio::null())
        .status();
    assert!(moved.expect("redis-cli").success());
    if std::ptr::eq(open.cluster.owner(TAG.as_bytes()), &raw const open.cluster.nodes[from].1) {
        open.set(to, slot, &format!("IMPORTING {}", open.ids[from]));
        open.set(from, slot, &format!("MIGRATING {}", open.ids[to]));
    }
    fleet.revive_agent("copy", &dead).await;
    let ended = good(fleet.api().job_end(&job).await);
    assert_eq!(ended["records"], wanted.len());
    let log = fleet.coordinator().process.log();
    assert!(log.contains("it begins anew"), "the move was seen");
    compare("followed", &held_by_all(&open.cluster), &std::mem::take(&mut wanted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_leaves_its_node_for_none_is_named_and_nothing_is_touched() {
    let (mut fleet, wanted) = backed_up().await;
    let open = Open::of(Flavor::Redis);
    let (slot, from, to) = open.slots[0];
    agents(&mut fleet, "copy", &open.cluster, (9, ""), "").await;
    open.set(from, slot, &format!("MIGRATING {}", open.ids[to]));
    let told = fleet.restore(&restore_of("orders", "copy")).await.unwrap_err().report();
    for word in [&format!("slots {slot} "), &format!("node n{from}"), "none that takes them", "--cluster fix"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    // What arrives somewhere while its owner sends nobody there is the owner's.
    open.set(from, slot, "STABLE");
    open.set(to, slot, &format!("IMPORTING {}", open.ids[from]));
    let _ = good(fleet.restore(&restore_of("orders", "copy")).await);
    compare("the owner has them", &held_by_all(&open.cluster), &wanted);
    let held = open.cluster.nodes[from].1.client().run(&format!("CLUSTER COUNTKEYSINSLOT {slot}")).integer();
    assert_eq!(held, 600);
}

#[test]
fn a_restore_goes_on_with_the_slots_that_it_began_with_and_names_the_right_that_open_slots_need() {
    let open = Open::of(Flavor::Redis);
    open.open();
    let (arriving, leaving, server) = (open.slots[0].0, open.slots[1].0, &open.cluster.nodes[open.slots[0].2].1);
    let rights = "~* +ping +info +time +client|setname +cluster|nodes +acl|dryrun +restore +select +flushall";
    let _ = server.client().run(&format!("ACL SETUSER agent on >secret-word -@all {rights}"));
    if Flavor::Redis.is_from((8, 4), (9, 0)) {
        // Where slots can move as a whole, it must see those that do.
        let valkey = Flavor::Redis.version().starts_with("valkey");
        let right = if valkey { "+cluster|getslotmigrations" } else { "+cluster|migration" };
        let _ = server.client().run(&format!("ACL SETUSER agent {right}"));
    }
    let dir = tempfile::tempdir().expect("folder");
    let login = Login { user: "agent".into(), password: "secret-word".into(), tls: None };
    let engine = Redis::open(Options { login, ..options(server, dir.path()) }).expect("engine");
    let begin = |job: u128, slot: u16| engine.restore(JobId::from_u128(job), SlotSet::range(slot, slot), false);
    let refused = |job: u128, slot: u16, words: &[&str]| {
        let told = begin(job, slot).err().expect("refused").report();
        words.iter().for_each(|word| assert!(told.contains(word), "{word}: {told}"));
    };
    refused(1, arriving, &["ACL SETUSER agent ~* +asking"]);
    refused(1, leaving, &[&format!("slots {leaving} are moving from the server"), "restore again"]);
    // What is not on its way needs no such right.
    drop(begin(1, leaving + 1).expect("begun"));
    let _ = server.client().run("ACL SETUSER agent +asking");
    refused(1, arriving, &[&format!("with slots {}", leaving + 1), &format!("with {arriving}"), "moved meanwhile"]);
    drop(begin(1, leaving + 1).expect("taken up again"));
    engine.abort_restore(JobId::from_u128(1), SlotSet::EMPTY).expect("called off");
    drop(begin(1, arriving).expect("begun anew with others"));
}
