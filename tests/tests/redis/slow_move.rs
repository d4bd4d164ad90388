//! A slot that moves key by key, over many segments of the log (`MIGRATE`).

use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_proto::slot_of;
use tidemark_tests::fleet::{eventually as later, restore_of};
use tidemark_tests::redis::{Client, Cluster, Flavor, Reply};

use super::contents::{compare, held_by_all};
use super::flow::protect;
use super::log::{enable, fleet, now, point_after, status};

/// Keys of the slot.
const KEYS: usize = 300;
const TAG: &str = "moving";

fn key(i: usize) -> String {
    format!("{{{TAG}}}:{i}")
}

fn good(client: &mut Client, line: &str) {
    let reply = client.run(line);
    assert!(!matches!(reply, Reply::Error(_)), "{line}: {reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_over_many_segments_loses_no_key() {
    let (cluster, copy) = (Cluster::start(Flavor::Redis, 3, &[]), Cluster::start(Flavor::Redis, 3, &[]));
    let from =
        cluster.nodes.iter().position(|(_, s)| std::ptr::eq(s, cluster.owner(TAG.as_bytes()))).expect("owner");
    let to = (from + 1) % 3;
    let (slot, mut clients) = (slot_of(TAG.as_bytes()), cluster.clients());
    (0..KEYS).for_each(|i| good(&mut clients[from], &format!("SET {} {i}", key(i))));
    let mut fleet = fleet().await;
    protect(&mut fleet, "orders", &cluster).await;
    enable(&fleet).await;
    let _ = point_after(&fleet, tidemark_proto::Timestamp(1)).await;
    let ids: Vec<String> = clients.iter_mut().map(|c| c.run("CLUSTER MYID").text()).collect();
    good(&mut clients[to], &format!("CLUSTER SETSLOT {slot} IMPORTING {}", ids[from]));
    good(&mut clients[from], &format!("CLUSTER SETSLOT {slot} MIGRATING {}", ids[to]));
    for some in (0..KEYS).collect::<Vec<_>>().chunks(KEYS / 3) {
        let keys: Vec<String> = some.iter().map(|i| key(*i)).collect();
        let port = cluster.ports()[to].to_string();
        let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        words.extend(keys.iter().map(String::as_str));
        let reply = clients[from].ask(&words).expect("reply");
        assert!(matches!(reply, Reply::Status(_)), "{reply:?}");
        // Both nodes have told of it before the next ones go.
        let moved = now();
        later("segments with what moved", async || {
            status(&fleet).await.nodes.iter().all(|n| n.closed > moved.0).then_some(())
        })
        .await;
    }
    for node in [to, from] {
        good(&mut clients[node], &format!("CLUSTER SETSLOT {slot} NODE {}", ids[to]));
    }
    good(&mut clients[to], &format!("SET {} again", key(0)));
    let at = point_after(&fleet, now()).await.windows.last().expect("a window").latest;
    protect(&mut fleet, "copy", &copy).await;
    let request = RestoreRequest { at: Some(at), ..restore_of("orders", "copy") };
    let _ = fleet.restore(&request).await.unwrap_or_else(|e| panic!("{}", e.report()));
    let held = held_by_all(&cluster);
    assert_eq!(held.len(), KEYS);
    compare("restored", &held_by_all(&copy), &held);
}
