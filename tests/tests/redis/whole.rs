//! Slots that move as a whole, with all their keys at once: Valkey from 9 on (`CLUSTER MIGRATESLOTS`), Redis from 8.4 on (`CLUSTER
//! MIGRATION`). Where no server has that, the tests look whether it is so.

use tidemark_coordinator::job::JobInfo;
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_proto::id::JobId;
use tidemark_proto::{SlotSet, Timestamp, slot_of};
use tidemark_tests::fleet::{eventually as later, restore_of};
use tidemark_tests::redis::{Client, Cluster, Flavor, Reply, Server, eventually};

use super::contents::{compare, held_by, held_by_all};
use super::cut::{cut, engine, given, prepare};
use super::flow::{backup, filling, protect, protect_one, spread, words};
use super::log::{enable, fleet, logged, now, point_after, status};
use super::past::{State, extracted};

/// The servers that can do it.
fn able() -> Vec<Flavor> {
    let able = |flavor: &Flavor| flavor.is_from((8, 4), (9, 0));
    let (able, others): (Vec<_>, Vec<_>) = Flavor::installed().into_iter().partition(able);
    for flavor in others {
        let server = Server::start(flavor, &["--cluster-enabled", "yes"]);
        for words in
            [&["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", "0", "1", "NODE", "x"][..], &["CLUSTER", "MIGRATION"]]
        {
            let reply = server.client().ask(words).expect("reply");
            assert!(
                matches!(&reply, Reply::Error(e) if e.to_lowercase().contains("unknown subcommand")),
                "{reply:?}"
            );
        }
    }
    able
}

fn is_valkey(cluster: &Cluster) -> bool {
    cluster.nodes[0].1.flavor.version().starts_with("valkey")
}

/// Begins to move slots from one node to another.
fn begin(cluster: &Cluster, from: usize, to: usize, (first, last): (u16, u16)) {
    let (mut source, mut target) = (cluster.nodes[from].1.client(), cluster.nodes[to].1.client());
    let id = target.run("CLUSTER MYID").text();
    let _ = match is_valkey(cluster) {
        true => source.run(&format!("CLUSTER MIGRATESLOTS SLOTSRANGE {first} {last} NODE {id}")),
        false => target.run(&format!("CLUSTER MIGRATION IMPORT {first} {last}")),
    };
}

/// Whether all nodes know by now that this one owns the slot.
fn has_come(cluster: &Cluster, to: usize, slot: u16) -> bool {
    let port = i64::from(cluster.ports()[to]);
    cluster.clients().iter_mut().all(|client| {
        client.run("CLUSTER SLOTS").array().into_iter().map(Reply::array).any(|range| {
            let owner = range[2].clone().array()[1].integer();
            (range[0].integer()..=range[1].integer()).contains(&i64::from(slot)) && owner == port
        })
    })
}

fn move_all(cluster: &Cluster, from: usize, to: usize, slots: (u16, u16)) {
    begin(cluster, from, to, slots);
    eventually("the slots to have come", || has_come(cluster, to, slots.0).then_some(()));
}

/// Runs a command at the node that takes it.
fn ask(clients: &mut [Client], command: &[String]) {
    eventually("a node that takes the command", || {
        clients.iter_mut().find_map(|client| match client.ask(command).expect("reply") {
            Reply::Error(e) if ["MOVED", "CLUSTERDOWN", "TRYAGAIN", "ASK"].iter().any(|k| e.starts_with(k)) => None,
            Reply::Error(e) => panic!("{command:?}: {e}"),
            _ => Some(()),
        })
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_beside_them_lose_and_double_nothing() {
    for flavor in able() {
        let cluster = Cluster::start(flavor, 3, &[]);
        spread(&cluster, filling());
        let wanted = held_by_all(&cluster);
        let mut fleet = fleet().await;
        protect(&mut fleet, "orders", &cluster).await;
        let _ = backup(&fleet, "orders").await;
        for (i, (from, to, slots)) in
            [(0, 1, (0, 1499)), (1, 2, (6000, 8000)), (1, 0, (0, 1499))].into_iter().enumerate()
        {
            begin(&cluster, from, to, slots);
            let taken = backup(&fleet, "orders").await;
            assert_eq!(taken.item.records, wanted.len() as u64);
            eventually("the slots to have come", || has_come(&cluster, to, slots.0).then_some(()));
            let (target, name) = (Server::start(flavor, &[]), format!("copy-{i}"));
            protect_one(&mut fleet, &name, &target).await;
            let _ = fleet.restore(&restore_of("orders", &name)).await.unwrap_or_else(|e| panic!("{}", e.report()));
            compare(&name, &held_by(&target), &wanted);
            fleet.agent(&name, "n0").process.stop().await;
        }
        later("the source to have dropped what went", async || (keys(&cluster) == wanted.len()).then_some(()))
            .await;
        compare("the source", &held_by_all(&cluster), &wanted);
    }
}

fn keys(cluster: &Cluster) -> usize {
    cluster.clients().iter_mut().map(|client| client.run("DBSIZE").integer() as usize).sum()
}

/// Valkey lets a migration be held up just before its end.
#[tokio::test(flavor = "multi_thread")]
async fn no_cut_is_taken_while_they_are_on_their_way() {
    for flavor in able().into_iter().filter(|flavor| flavor.version().starts_with("valkey")) {
        let cluster = Cluster::start(flavor, 3, &[]);
        spread(&cluster, filling().into_iter().take(3000).collect());
        let wanted = held_by_all(&cluster);
        let mut fleet = fleet().await;
        protect(&mut fleet, "orders", &cluster).await;
        let _ = cluster.nodes[0].1.client().run("DEBUG SLOTMIGRATION PREVENT-PAUSE 1");
        begin(&cluster, 0, 1, (0, 1499));
        eventually("the keys to be on both nodes", || {
            let told = cluster.nodes[0].1.client().run("CLUSTER GETSLOTMIGRATIONS").array();
            let state =
                told.into_iter().next()?.array().into_iter().skip_while(|r| *r != Reply::Bulk("state".into()));
            (state.skip(1).map(Reply::text).next()? == "waiting-to-pause").then_some(())
        });
        let job = fleet.start_backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
        later("the job to wait for the slots", async || {
            let info: JobInfo = fleet.api().get(&format!("jobs/{}", job.id)).await.ok()?;
            (info.phase == "waiting for slots that move").then_some(())
        })
        .await;
        let _ = cluster.nodes[0].1.client().run("DEBUG SLOTMIGRATION PREVENT-PAUSE 0");
        let _ = fleet.api().job_end(&job).await.unwrap_or_else(|e| panic!("{}", e.report()));
        assert!(has_come(&cluster, 1, 0));
        assert_eq!(fleet.backups("orders").await[0].records, wanted.len() as u64);
    }
}

/// Lists that grow, each by the same numbers.
struct Lists {
    clients: Vec<Client>,
    rounds: u64,
}

const LISTS: u64 = 200;

impl Lists {
    fn write(&mut self, rounds: u64) {
        for round in self.rounds..self.rounds + rounds {
            (0..LISTS).for_each(|i| ask(&mut self.clients, &words(format!("RPUSH l:{i} {round}"))));
        }
        self.rounds += rounds;
    }
}

/// Elements of all lists, each of which holds the numbers from 0 on.
fn elements(state: &State, what: &str) -> u64 {
    let mut total = 0;
    for (key, value) in state {
        let found: Vec<u64> = value.split_whitespace().map(|n| n.parse().expect("a number")).collect();
        let wanted: Vec<u64> = (0..found.len() as u64).collect();
        assert_eq!(found, wanted, "{what}: {key}");
        total += found.len() as u64;
    }
    total
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_begins_anew_behind_them_and_every_point_is_a_state_that_was() {
    let able = able();
    for flavor in Flavor::installed() {
        let cluster = Cluster::start(flavor, 3, &[]);
        let mut fleet = fleet().await;
        protect(&mut fleet, "orders", &cluster).await;
        enable(&fleet).await;
        let mut lists = Lists { clients: cluster.clients(), rounds: 0 };
        lists.write(3);
        let _ = point_after(&fleet, now()).await;
        for (from, to, slots) in [(0, 1, (0, 1499)), (1, 2, (6000, 8000)), (1, 0, (0, 1499))] {
            lists.write(2);
            if able.contains(&flavor) {
                begin(&cluster, from, to, slots);
                while !has_come(&cluster, to, slots.0) {
                    lists.write(1);
                }
            }
            lists.write(2);
            let _ = point_after(&fleet, now()).await;
        }
        lists.write(2);
        let status = {
            let _ = point_after(&fleet, now()).await;
            status(&fleet).await
        };
        let ended = if able.contains(&flavor) { status.windows.len() > 3 } else { status.windows.len() == 1 };
        assert!(ended, "each move ends a window: {status:?}");
        let mut before = 0;
        for window in &status.windows {
            for at in [window.earliest, window.earliest + (window.latest - window.earliest) / 2, window.latest] {
                let state = extracted(&fleet, at);
                let found = elements(&state, &format!("at {at} of {window:?}"));
                assert!(found >= before, "at {at}: {found} elements, before {before}");
                before = found;
            }
        }
        assert_eq!(before, LISTS * lists.rounds, "the last point");
    }
}

#[test]
fn slots_that_went_and_came_back_between_base_and_cut_hold_what_they_then_hold() {
    for flavor in able() {
        let cluster = Cluster::start(flavor, 3, &[]);
        spread(&cluster, filling().into_iter().take(6000).collect());
        let (server, dir) = (&cluster.nodes[0].1, tempfile::tempdir().expect("folder"));
        let engine = engine(server, dir.path());
        let (job, at) = (JobId([7; 16]), Timestamp(42));
        prepare(&engine, job);
        let mut clients = cluster.clients();
        let mut run = |line: String| ask(&mut clients, &words(line));
        // Of these the log names some before they go, some while they are away, some when they are back, some never.
        (0..600).step_by(30).for_each(|i| run(format!("RPUSH l:{} before", i + 2)));
        move_all(&cluster, 0, 1, (0, 2999));
        for i in (0..600).step_by(60) {
            run(format!("RPUSH l:{} away", i + 2));
            run(format!("DEL l:{}", i + 8));
            run(format!("DEL s:{i}"));
        }
        move_all(&cluster, 1, 0, (0, 2999));
        (0..600).step_by(90).for_each(|i| run(format!("RPUSH l:{} back", i + 2)));
        // A slot of a node's own, without a word of its keys.
        if is_valkey(&cluster) {
            let slot = (0..).map(|i| slot_of(format!("h:{}", 6 * i + 1).as_bytes())).find(|slot| *slot < 5000);
            let _ = server.client().run(&format!("CLUSTER FLUSHSLOT {}", slot.expect("a slot")));
        }
        cut(&engine, job, at);
        let mut wanted = held_by(server);
        wanted.retain(|key, _| slot_of(&key[1..]) < 5461);
        assert!(wanted.len() > 1000);
        compare("at the cut", &given(&engine, at, SlotSet::range(0, 5460)), &wanted);
    }
}

/// Valkey from 9 on can give a Cluster several databases. Which one commands are for was said before a log begins.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_several_databases_is_backed_up_logged_and_restored() {
    for flavor in Flavor::installed() {
        let several = flavor.is_from((u32::MAX, 0), (9, 0));
        let options: &[&str] = if several { &["--cluster-databases", "4"] } else { &[] };
        let (cluster, copy) = (Cluster::start(flavor, 3, options), Cluster::start(flavor, 3, options));
        let mut clients = cluster.clients();
        for client in &mut clients {
            let reply = client.ask(&["SELECT", "3"]).expect("reply");
            assert_eq!(matches!(reply, Reply::Status(_)), several, "{reply:?}");
        }
        let mut write =
            |value: &str| (0..300).for_each(|i| ask(&mut clients, &words(format!("SET key:{i} {value}"))));
        write("before");
        let mut fleet = fleet().await;
        protect(&mut fleet, "orders", &cluster).await;
        enable(&fleet).await;
        let _ = point_after(&fleet, Timestamp(1)).await;
        write("after");
        let _ = point_after(&fleet, now()).await;
        let found = logged(&fleet).await;
        let db = if several { 3 } else { 0 };
        assert!(found.iter().all(|(_, _, of, _)| *of == db), "{found:?}");
        assert!(found.iter().filter(|(.., line)| line.ends_with("after")).count() >= 300, "{found:?}");
        protect(&mut fleet, "copy", &copy).await;
        let at = Some(status(&fleet).await.windows.last().expect("a window").latest);
        let request = RestoreRequest { at, ..restore_of("orders", "copy") };
        let _ = fleet.restore(&request).await.unwrap_or_else(|e| panic!("{}", e.report()));
        compare(&flavor.version(), &held_by_all(&copy), &held_by_all(&cluster));
    }
}
