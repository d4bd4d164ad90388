//! Slots that move between the nodes of a Cluster, with their keys, while backups are taken.

use std::process::{Command, Stdio};

use tidemark_tests::fleet::{Fleet, restore_of};
use tidemark_tests::redis::{Cluster, Flavor, Server};

use super::contents::{Contents, compare, held_by, held_by_all};
use super::flow::{backup, filling, protect, protect_one, spread};

/// Moves `slots` slots of one node to another, with their keys, by the servers' own tool.
pub(crate) fn reshard(cluster: &Cluster, from: usize, to: usize, slots: u32) -> Command {
    let id = |n: usize| cluster.nodes[n].1.client().run("CLUSTER MYID").text();
    let mut command = Command::new("redis-cli");
    let _ = command
        .args(["--cluster", "reshard", &format!("127.0.0.1:{}", cluster.ports()[0]), "--cluster-yes"])
        .args(["--cluster-pipeline", "1"])
        .args(["--cluster-from", &id(from), "--cluster-to", &id(to), "--cluster-slots", &slots.to_string()])
        .stdout(Stdio::null());
    command
}

/// Without the moments of expiry: a server that moves a key tells its time to live, and the clock goes on meanwhile.
fn timeless(contents: Contents) -> Contents {
    contents.into_iter().map(|(key, (expiry, value))| (key, (expiry.map(|_| 0), value))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_slots_that_move_are_neither_lost_nor_doubled() {
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    spread(&cluster, filling());
    let wanted = timeless(held_by_all(&cluster));
    let mut fleet = Fleet::start().await;
    protect(&mut fleet, "orders", &cluster).await;
    let _ = backup(&fleet, "orders").await;
    // To and fro: each backup begins while slots are on their way.
    for (i, (from, to)) in [(0, 1), (1, 2), (1, 0)].into_iter().enumerate() {
        let mut moving = reshard(&cluster, from, to, 1500).spawn().expect("redis-cli");
        let taken = backup(&fleet, "orders").await;
        assert_eq!(taken.item.records, wanted.len() as u64);
        assert!(moving.wait().expect("redis-cli").success());
        let (target, name) = (Server::start(Flavor::Redis, &[]), format!("copy-{i}"));
        protect_one(&mut fleet, &name, &target).await;
        let _ = fleet.restore(&restore_of("orders", &name)).await.unwrap_or_else(|e| panic!("{}", e.report()));
        compare(&name, &timeless(held_by(&target)), &wanted);
        fleet.agent(&name, "n0").process.stop().await;
    }
    compare("the source", &timeless(held_by_all(&cluster)), &wanted);
}
