//! Servers that wait before they send a base: the wait of one passes while the base of another one of its host is taken, and
//! no more of them fork at a time than may.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use tidemark_coordinator::job::JobInfo;
use tidemark_tests::fleet::{EngineKind, Fleet, eventually as later, restore_of};
use tidemark_tests::redis::{Client, Cluster, Flavor, Server};

use super::contents::{compare, held_by};
use super::flow::{backup, protect_one, spec, spread, words};
use super::replicas::forks;

/// How long the servers wait, in seconds.
const DELAY: [&str; 2] = ["--repl-diskless-sync-delay", "5"];
/// Keys of each server, about, and the time that a base takes for each: long enough that bases that may overlap do.
const KEYS: usize = 300;
const SLOW_KEYS: &str = "CONFIG SET rdb-key-save-delay 10000";
/// How often servers are looked at.
const LOOK: Duration = Duration::from_millis(20);

fn filled() -> Arc<Cluster> {
    let cluster = Cluster::start(Flavor::Redis, 3, &DELAY);
    spread(&cluster, (0..3 * KEYS).map(|i| words(format!("SET key:{i} {i}"))).collect());
    for (_, server) in &cluster.nodes {
        let _ = server.client().run(SLOW_KEYS);
    }
    Arc::new(cluster)
}

/// Starts an agent beside each node, none of which may set the wait to nothing.
async fn protect(fleet: &mut Fleet, cluster: &Cluster) {
    for (i, (port, (_, server))) in cluster.ports().into_iter().zip(&cluster.nodes).enumerate() {
        let _ = server.client().run("ACL SETUSER keeper on >keepers-word ~* &* +@all -config|set");
        let mut spec = spec("orders", &format!("n{i}"), String::new());
        let user = "user = \"keeper\"\npassword_env = \"STORE_PASSWORD\"";
        spec.engine = EngineKind::Redis(format!("127.0.0.1:{port}"), user.to_owned());
        spec.env.push(("STORE_PASSWORD".into(), "keepers-word".into()));
        fleet.start_agent(spec);
    }
    let _ = fleet.ready("orders", cluster.nodes.len()).await;
}

fn asked(server: &Server) -> usize {
    server.log().matches("asks for synchronization").count()
}

fn asked_of(cluster: &Cluster) -> Vec<usize> {
    cluster.nodes.iter().map(|(_, server)| asked(server)).collect()
}

fn is_forked(client: &mut Client) -> bool {
    client.run("INFO persistence").text().contains("rdb_bgsave_in_progress:1")
}

/// What was seen of the servers during a backup.
#[derive(Debug, Default)]
struct Seen {
    /// Most forks at a time.
    most: usize,
    /// Servers as their forks began and ended, with how often each of all had been asked for a base by then.
    begun: Vec<(usize, Vec<usize>)>,
    ended: Vec<(usize, Vec<usize>)>,
}

fn watch(cluster: &Cluster, until: &Receiver<()>) -> Seen {
    let mut clients = cluster.clients();
    let (mut seen, mut was) = (Seen::default(), vec![false; clients.len()]);
    while until.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let now: Vec<bool> = clients.iter_mut().map(is_forked).collect();
        seen.most = seen.most.max(now.iter().filter(|forked| **forked).count());
        for n in 0..now.len() {
            match (was[n], now[n]) {
                (false, true) => seen.begun.push((n, asked_of(cluster))),
                (true, false) => seen.ended.push((n, asked_of(cluster))),
                _ => {}
            }
        }
        was = now;
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_of_servers_of_one_host_pass_beside_its_bases_and_forks_do_not() {
    let cluster = filled();
    let mut fleet = Fleet::start().await;
    protect(&mut fleet, &cluster).await;
    let (over, until) = sync_channel(1);
    let watched = cluster.clone();
    let watching = std::thread::spawn(move || watch(&watched, &until));
    let taken = backup(&fleet, "orders").await;
    drop(over);
    let seen = watching.join().expect("the watch");
    assert_eq!(taken.item.records, 3 * KEYS as u64);
    assert_eq!((seen.most, seen.begun.len(), seen.ended.len()), (1, 3, 3), "{seen:?}");
    let at_the_end = asked_of(&cluster);
    for i in 0..2 {
        let (before, next) = (seen.ended[i].0, seen.begun[i + 1].0);
        assert_ne!(before, next);
        // Its base came of a question that was put before the other base had ended.
        let asked = seen.ended[i].1[next];
        assert!(asked > 0, "node {next} was not asked early: {seen:?}");
        assert_eq!(asked, at_the_end[next], "node {next} was asked anew: {seen:?}");
    }
    assert_eq!(seen.begun[0].1[seen.begun[2].0], 0, "only the one that comes next waits: {seen:?}");
    assert!(cluster.nodes.iter().all(|(_, server)| forks(server) == 1), "a fork that was not wanted: {seen:?}");
}

fn waiting(server: &Server) -> usize {
    server.client().run("INFO replication").text().matches("state=wait_bgsave").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_backup_leaves_the_servers_that_wait() {
    let cluster = filled();
    let mut fleet = Fleet::start().await;
    protect(&mut fleet, &cluster).await;
    let job = fleet.start_backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
    later("two servers to wait", async || {
        (cluster.nodes.iter().filter(|(_, server)| waiting(server) > 0).count() == 2).then_some(())
    })
    .await;
    let _: JobInfo = fleet.api().delete(&format!("jobs/{}", job.id)).await.unwrap();
    let _ = fleet.api().job_end(&job).await.unwrap_err();
    for (_, server) in &cluster.nodes {
        later("nobody to wait", async || (waiting(server) == 0).then_some(())).await;
    }
    // The one whose turn it was may have forked, as a server without a delay would have at once; those that came later have not.
    let before: Vec<u64> = cluster.nodes.iter().map(|(_, server)| forks(server)).collect();
    assert!(before.iter().sum::<u64>() <= 1, "{before:?}");
    let _ = backup(&fleet, "orders").await;
    for ((_, server), before) in cluster.nodes.iter().zip(before) {
        assert_eq!(forks(server), before + 1);
    }
}

/// A base through the server's file waits for nobody, and is not taken where the file would stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_through_the_file_begins_at_once() {
    // Nobody waits for that.
    let server = Server::start(Flavor::Redis, &["--repl-diskless-sync-delay", "3600"]);
    spread_one(&server);
    let mut fleet = Fleet::start().await;
    let mut through_file = spec("alone", "n0", format!("unix:{}", server.socket().display()));
    if let EngineKind::Redis(_, lines) = &mut through_file.engine {
        lines.push_str("base_through_file = true\n");
    }
    fleet.start_agent(through_file);
    let _ = fleet.ready("alone", 1).await;
    let told = fleet.backup("alone").await.unwrap_err().report();
    assert!(told.contains("rdb-del-sync-files"), "{told}");
    let _ = server.client().run("CONFIG SET rdb-del-sync-files yes");
    let whole = backup(&fleet, "alone").await;
    assert_eq!(whole.item.records, KEYS as u64);
    assert_eq!(forks(&server), 1);
    let target = Server::start(Flavor::Redis, &[]);
    protect_one(&mut fleet, "copy", &target).await;
    let _ = fleet.restore(&restore_of("alone", "copy")).await.unwrap_or_else(|e| panic!("{}", e.report()));
    compare("copy", &held_by(&target), &held_by(&server));
}

fn spread_one(server: &Server) {
    let mut client = server.client();
    (0..KEYS).for_each(|i| drop(client.run(&format!("SET key:{i} {i}"))));
}
