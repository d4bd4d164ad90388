//! Slots that move key by key, over many segments of the log (`MIGRATE`).

use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_proto::slot::RegionMap;
use tidemark_proto::{Timestamp, slot_of};
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, eventually as later, restore_of};
use tidemark_tests::redis::{Client, Cluster, Flavor, Reply, Server};

use super::contents::{Contents, compare, held_by, held_by_all};
use super::flow::{protect, protect_one, spec};
use super::log::{POINTS, enable, fleet, now, point_after, status};

/// Keys of the slot.
const KEYS: usize = 300;
const TAG: &str = "moving";
/// Slots of a region.
const REGION: u16 = RegionMap::DEFAULT_SLOTS_PER_REGION;

fn key(i: usize) -> String {
    format!("{{{TAG}}}:{i}")
}

fn good(client: &mut Client, line: &str) {
    let reply = client.run(line);
    assert!(!matches!(reply, Reply::Error(_)), "{line}: {reply:?}");
}

/// A Cluster whose slots are moved by hand while its log runs.
struct Moves<'f> {
    fleet: &'f Fleet,
    cluster: &'f Cluster,
    clients: Vec<Client>,
    ids: Vec<String>,
}

impl<'f> Moves<'f> {
    fn new(fleet: &'f Fleet, cluster: &'f Cluster) -> Self {
        let mut clients = cluster.clients();
        let ids = clients.iter_mut().map(|c| c.run("CLUSTER MYID").text()).collect();
        Self { fleet, cluster, clients, ids }
    }

    /// The node that owns the slot of a key.
    fn owner(cluster: &Cluster, key: &str) -> usize {
        let owner = cluster.owner(key.as_bytes());
        cluster.nodes.iter().position(|(_, s)| std::ptr::eq(s, owner)).expect("owner")
    }

    /// Moves the slot of `tag`, a third of its keys at a time; both nodes have told of it before the next ones go.
    async fn go(&mut self, tag: &str, from: usize, to: usize) {
        let slot = slot_of(tag.as_bytes());
        self.open(slot, from, to);
        let keys = self.keys(slot, from);
        for some in keys.chunks(keys.len().div_ceil(3).max(1)) {
            self.migrate(some, from, to);
            let moved = now();
            later("segments with what moved", async || {
                status(self.fleet).await.nodes.iter().all(|n| n.closed > moved.0).then_some(())
            })
            .await;
        }
        self.hand_over(slot, from, to);
    }

    fn open(&mut self, slot: u16, from: usize, to: usize) {
        good(&mut self.clients[to], &format!("CLUSTER SETSLOT {slot} IMPORTING {}", self.ids[from]));
        good(&mut self.clients[from], &format!("CLUSTER SETSLOT {slot} MIGRATING {}", self.ids[to]));
    }

    fn keys(&mut self, slot: u16, of: usize) -> Vec<String> {
        let keys = self.clients[of].run(&format!("CLUSTER GETKEYSINSLOT {slot} 10000")).array();
        keys.into_iter().map(Reply::text).collect()
    }

    fn migrate(&mut self, keys: &[String], from: usize, to: usize) {
        let port = self.cluster.ports()[to].to_string();
        let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        words.extend(keys.iter().map(String::as_str));
        let reply = self.clients[from].ask(&words).expect("reply");
        assert!(matches!(reply, Reply::Status(_)), "{reply:?}");
    }

    fn hand_over(&mut self, slot: u16, from: usize, to: usize) {
        for node in [to, from] {
            good(&mut self.clients[node], &format!("CLUSTER SETSLOT {slot} NODE {}", self.ids[to]));
        }
    }

    /// A restore point, and what the Cluster holds at it.
    async fn state(&self) -> (u64, Contents) {
        let at = point_after(self.fleet, now()).await.windows.last().expect("a window").latest;
        (at, held_by_all(self.cluster))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_over_many_segments_loses_no_key() {
    let (cluster, copy) = (Cluster::start(Flavor::Redis, 3, &[]), Cluster::start(Flavor::Redis, 3, &[]));
    let from = Moves::owner(&cluster, TAG);
    let to = (from + 1) % 3;
    (0..KEYS).for_each(|i| good(&mut cluster.clients()[from], &format!("SET {} {i}", key(i))));
    let mut fleet = fleet().await;
    protect(&mut fleet, "orders", &cluster).await;
    enable(&fleet).await;
    let _ = point_after(&fleet, Timestamp(1)).await;
    let mut moves = Moves::new(&fleet, &cluster);
    moves.go(TAG, from, to).await;
    good(&mut moves.clients[to], &format!("SET {} again", key(0)));
    let (at, held) = moves.state().await;
    drop(moves);
    protect(&mut fleet, "copy", &copy).await;
    let request = RestoreRequest { at: Some(at), ..restore_of("orders", "copy") };
    let _ = fleet.restore(&request).await.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(held.len(), KEYS);
    compare("restored", &held_by_all(&copy), &held);
}

/// `work_off_mib`: logs up to this are worked off by the coordinator.
async fn exchanged(work_off_mib: u64) {
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    let a = Moves::owner(&cluster, TAG);
    let b = (a + 1) % 3;
    // Another slot of the same region and node.
    let near = |tag: &String| {
        let (slot, own) = (slot_of(tag.as_bytes()), slot_of(TAG.as_bytes()));
        slot / REGION == own / REGION && slot != own && Moves::owner(&cluster, tag) == a
    };
    let other = (0..).map(|i| format!("near-{i}")).find(near).expect("a slot of the same region");
    (0..KEYS).for_each(|i| good(&mut cluster.clients()[a], &format!("SET {} {i}", key(i))));
    (0..20).for_each(|i| good(&mut cluster.clients()[a], &format!("RPUSH {{{other}}}:{i} {i}")));
    let sections = format!("{POINTS}work_off_mib = {work_off_mib}\n");
    let mut fleet = Fleet::start_with(CoordinatorSpec { sections, ..CoordinatorSpec::default() }).await;
    protect(&mut fleet, "orders", &cluster).await;
    enable(&fleet).await;
    let _ = point_after(&fleet, Timestamp(1)).await;

    let (mut moves, mut states) = (Moves::new(&fleet, &cluster), Vec::new());
    good(&mut moves.clients[a], &format!("DEL {}", key(1)));
    moves.go(TAG, a, b).await;
    for line in [format!("SET {} there", key(0)), format!("RPUSH {} x y", key(1)), format!("DEL {}", key(2))] {
        good(&mut moves.clients[b], &line);
    }
    states.push(moves.state().await);
    // Back again; nothing is written behind it.
    moves.go(TAG, b, a).await;
    states.push(moves.state().await);
    for line in [format!("APPEND {} back", key(0)), format!("LPOP {}", key(1)), format!("SET {} new", key(2))] {
        good(&mut moves.clients[a], &line);
    }
    moves.go(&other, a, b).await;
    good(&mut moves.clients[b], &format!("RPUSH {{{other}}}:0 more"));
    states.push(moves.state().await);
    moves.go(TAG, a, b).await;
    states.push(moves.state().await);
    drop(moves);

    for (i, (at, held)) in states.iter().enumerate() {
        let (target, name) = (Server::start(Flavor::Redis, &[]), format!("copy-{i}"));
        protect_one(&mut fleet, &name, &target).await;
        let request = RestoreRequest { at: Some(*at), ..restore_of("orders", &name) };
        let _ = fleet.restore(&request).await.unwrap_or_else(|e| panic!("{}", e.report()));
        assert!(held.len() > KEYS);
        compare(&name, &held_by(&target), held);
        fleet.agent(&name, "n0").process.stop().await;
    }
    for (at, wanted) in states.iter().map(|(at, _)| *at).zip(["there", "there", "thereback", "thereback"]) {
        let (at, key) = (at.to_string(), key(0));
        let told = fleet.tidemark(&["query", "get", &key, "--cluster", "orders", "--at", &at]).await;
        assert!(told.lines().any(|line| line.contains(wanted)), "{told}");
        assert!(wanted.ends_with("back") || !told.contains("thereback"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_nodes_exchange_lose_no_key_where_the_coordinator_works_the_log_off() {
    exchanged(256).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_nodes_exchange_lose_no_key_where_agents_work_the_log_off() {
    exchanged(0).await;
}

/// An agent that comes late: keys that arrived before its log began are in no log.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_new_node_begins_when_what_was_on_its_way_has_come() {
    let mut cluster = Cluster::start(Flavor::Redis, 3, &[]);
    let from = Moves::owner(&cluster, TAG);
    (0..KEYS).for_each(|i| good(&mut cluster.clients()[from], &format!("SET {} {i}", key(i))));
    let mut fleet = fleet().await;
    protect(&mut fleet, "orders", &cluster).await;
    enable(&fleet).await;
    let first = point_after(&fleet, Timestamp(1)).await.windows.len();
    cluster.add_primary();
    let (slot, to) = (slot_of(TAG.as_bytes()), 3);
    let mut moves = Moves::new(&fleet, &cluster);
    moves.open(slot, from, to);
    let keys = moves.keys(slot, from);
    moves.migrate(&keys[..KEYS / 2], from, to);
    let Moves { clients, ids, .. } = moves;
    fleet.start_agent(spec("orders", "n3", format!("127.0.0.1:{}", cluster.ports()[to])));
    later("the new node to be told of", async || {
        let nodes = status(&fleet).await.nodes;
        nodes.iter().any(|n| n.node == "n3" && n.error.contains("slots are on their way")).then_some(())
    })
    .await;
    let mut moves = Moves { fleet: &fleet, cluster: &cluster, clients, ids };
    moves.migrate(&keys[KEYS / 2..], from, to);
    moves.hand_over(slot, from, to);
    later("a window that begins behind the move", async || {
        let windows = status(&fleet).await.windows;
        (windows.len() > first && windows.last().is_some_and(|w| w.ended.is_empty())).then_some(())
    })
    .await;
    good(&mut moves.clients[to], &format!("SET {} again", key(0)));
    let (at, held) = moves.state().await;
    drop(moves);
    let target = Server::start(Flavor::Redis, &[]);
    protect_one(&mut fleet, "copy", &target).await;
    let request = RestoreRequest { at: Some(at), ..restore_of("orders", "copy") };
    let _ = fleet.restore(&request).await.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(held.len(), KEYS);
    compare("restored", &held_by(&target), &held);
}
