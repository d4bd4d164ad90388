//! Restores onto servers that hold data: clients are kept off meanwhile, and come back with the rights that they had.

use tidemark_coordinator::api::ClusterDetail;
use tidemark_coordinator::job::JobInfo;
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_proto::{Result, SlotSet};
use tidemark_tests::fleet::{AgentSpec, CoordinatorSpec, EngineKind, Fleet, eventually as later, restore_of};
use tidemark_tests::redis::{Client, Cluster, Flavor, Reply, Server, eventually, listening};

use super::contents::{Contents, compare, held_by, held_by_all};

/// Keys that the backup holds.
const KEYS: usize = 3000;
/// The rights that the example configuration names for a restore in place.
const RIGHTS: &str = "~* +restore +select +flushall +acl|list +acl|setuser +acl|deluser +acl|save +config|rewrite \
                      +client|list +client|kill";

fn spec(cluster: &str, node: &str, server: &Server, dies_at: &str) -> AgentSpec {
    let mut spec = AgentSpec::new(cluster, node, SlotSet::EMPTY);
    spec.engine = EngineKind::Redis(format!("unix:{}", server.socket().display()), String::new());
    spec.part_bytes = 65_536;
    if !dies_at.is_empty() {
        spec.env.push(("TIDEMARK_CRASH_AT".into(), dies_at.into()));
    }
    spec
}

/// Many parts, and a job that waits for a node long enough.
async fn fleet() -> Fleet {
    let sections = "[backup]\nslots_per_region = 512\nagent_concurrency = 2\nnode_patience_seconds = 20";
    Fleet::start_with(CoordinatorSpec { sections: sections.into(), ..CoordinatorSpec::default() }).await
}

fn in_place(cluster: &str, backup: &str) -> RestoreRequest {
    RestoreRequest { in_place: true, backup: backup.into(), ..restore_of(cluster, cluster) }
}

async fn start(fleet: &Fleet, request: &RestoreRequest) -> JobInfo {
    fleet.api().post("restores", request).await.unwrap_or_else(|e| panic!("{}", e.report()))
}

fn good<T>(done: Result<T>) -> T {
    done.unwrap_or_else(|e| panic!("{}", e.report()))
}

fn fill(client: &mut Client, prefix: &str, keys: usize) {
    let one = |i: usize| vec!["SET".to_owned(), format!("{prefix}:{i}"), "v".repeat(1 + i % 400)];
    let _ = client.pipeline(&(0..keys).map(one).collect::<Vec<_>>());
}

/// Users of many kinds: one with rights of their own beside (where the server knows them), one that is off.
fn make_users(server: &Server) {
    let mut client = server.client();
    for rule in
        ["app on >word ~app:* ~key:* &news +@read +set", "old off >other ~* +get", "free on nopass ~* &* +@all"]
    {
        let _ = client.run(&format!("ACL SETUSER {rule}"));
    }
    let _ = client.call(&["ACL", "SETUSER", "app", "(~side:* +get +set)"]);
}

fn users(server: &Server) -> Vec<String> {
    server.client().run("ACL LIST").array().into_iter().map(Reply::text).collect()
}

/// What the server says when it is asked as one of its users.
fn asked(server: &Server, login: &[&str], command: &[&str]) -> Reply {
    let mut client = server.client();
    if !login.is_empty() {
        let _ = client.call(login);
    }
    client.ask(command).expect("reply")
}

fn is_refused(server: &Server) {
    let auth: [&[&str]; 3] = [&[], &["AUTH", "app", "word"], &["AUTH", "free", "any"]];
    let commands: [&[&str]; 4] = [&["GET", "side:1"], &["SET", "key:1", "1"], &["ACL", "LIST"], &["MONITOR"]];
    for login in auth {
        for command in commands {
            let reply = asked(server, login, command);
            assert!(
                matches!(&reply, Reply::Error(e) if e.starts_with("NOPERM")),
                "{login:?} {command:?}: {reply:?}"
            );
        }
    }
}

/// The connection was ended by the server.
fn is_cut(what: &str, client: &mut Client) {
    // What was on its way comes first.
    let end = eventually(&format!("{what} to be cut"), || client.reply().err());
    assert_ne!(end.kind(), std::io::ErrorKind::WouldBlock, "{what} waits on");
}

fn follows(replica: &Server, what: &Contents) {
    eventually("the replica to have it all", || (held_by(replica) == *what).then_some(()));
}

async fn is_open(fleet: &Fleet, cluster: &str, server: &Server, before: &[String]) {
    later("the server to be open with the users of before", async || {
        let state = fleet.ready(cluster, 1).await.nodes[0].state.clone();
        let mut client = server.client();
        let Ok(Reply::Array(lines)) = client.ask(&["ACL", "LIST"]) else { return None };
        let now: Vec<_> = lines.into_iter().map(Reply::text).collect();
        (state == "available" && now == before).then_some(())
    })
    .await;
}

async fn is_restoring(fleet: &Fleet, cluster: &str) {
    later("the node to say that it is being restored", async || {
        let detail: ClusterDetail = fleet.api().get(&format!("clusters/{cluster}")).await.ok()?;
        detail.nodes.iter().all(|n| n.connected && n.state == "restoring").then_some(())
    })
    .await;
}

/// What the agent keeps of fenced servers.
fn kept(fleet: &Fleet, name: &str) -> usize {
    let dir = fleet.dir().join(format!("{name}.state")).join("redis").join("restore-fence");
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_cut_and_refused_on_primary_and_replica_and_come_back_as_they_were() {
    let (port, primary) = listening(Flavor::Redis, &[]);
    let (_, replica) = listening(Flavor::Redis, &["--replicaof", &format!("127.0.0.1 {port}")]);
    make_users(&primary);
    make_users(&replica);
    fill(&mut primary.client(), "key", KEYS);
    let mut fleet = fleet().await;
    fleet.start_agent(spec("orders", "n0", &primary, "agent.emptied"));
    let _ = fleet.ready("orders", 1).await;
    let taken = good(fleet.backup("orders").await);
    let wanted = held_by(&primary);
    fill(&mut primary.client(), "later", 50);
    let _ = primary.client().run("DEL key:1 key:2 key:3");
    let present = held_by(&primary);
    let before = [users(&primary), users(&replica)];

    let refused = fleet.restore(&restore_of("orders", "orders")).await.unwrap_err().report();
    assert!(refused.contains("--in-place"), "{refused}");
    compare("refused", &held_by(&primary), &present);

    let mut clients = Vec::new();
    for command in [&["MONITOR"][..], &["SUBSCRIBE", "news"], &["BLPOP", "nothing", "0"], &["PING"]] {
        for server in [&primary, &replica] {
            if command[0] == "BLPOP" && std::ptr::eq(server, &replica) {
                continue;
            }
            let mut client = server.client();
            client.send(command).expect("sent");
            if command[0] != "BLPOP" {
                let _ = client.reply().expect("reply");
            }
            clients.push((command[0], client));
        }
    }
    let job = start(&fleet, &in_place("orders", &taken.item.id)).await;
    let _ = fleet.agent("orders", "n0").process.ended().await;
    // Fenced and emptied, and nobody there who could open it.
    clients.iter_mut().for_each(|(what, client)| is_cut(what, client));
    is_refused(&primary);
    is_refused(&replica);
    assert_eq!(kept(&fleet, "orders-n0"), 2);
    fleet.revive_agent("orders", "n0").await;
    let ended = fleet.api().job_end(&job).await;
    let ended = good(ended);
    assert_eq!([users(&primary), users(&replica)], before);
    compare("in place", &held_by(&primary), &wanted);
    follows(&replica, &wanted);
    assert_eq!(kept(&fleet, "orders-n0"), 0);
    let log = fleet.agent("orders", "n0").process.log();
    // The hash of the user's password.
    assert!(!log.contains("98c1eb4ee934") && !log.contains("+@read"), "rules are nobody's business");

    // What was there is there: by its own restore.
    let safety = ended["safety_backup"].as_str().expect("a safety backup").to_owned();
    let _ = good(fleet.restore(&in_place("orders", &safety)).await);
    compare("the safety backup", &held_by(&primary), &present);
    assert_eq!([users(&primary), users(&replica)], before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_at_any_step_leaves_the_old_data_or_the_new_and_the_users_of_before() {
    let server = Server::start(Flavor::Redis, &[]);
    make_users(&server);
    let before = users(&server);
    fill(&mut server.client(), "key", KEYS);
    let mut fleet = fleet().await;
    fleet.start_agent(spec("orders", "n0", &server, ""));
    let _ = fleet.ready("orders", 1).await;
    let taken = good(fleet.backup("orders").await);
    let wanted = held_by(&server);
    fleet.stop_agent("orders", "n0").await;
    let points = [
        ("agent.fence-saved", false),
        ("agent.fence-user", false),
        ("agent.restore-begun", false),
        ("agent.emptying", true),
        ("agent.emptied", true),
        ("agent.part-loaded:3", true),
        ("agent.verified", false),
        ("agent.switching", true),
        ("agent.committed", true),
        ("agent.fence-lowered", true),
        ("agent.switched", true),
    ];
    for (point, goes_on) in points {
        let _ = server.client().call(&["SET", "later", point]);
        let present = held_by(&server);
        fleet.start_agent(spec("orders", "n0", &server, point));
        let _ = fleet.ready("orders", 1).await;
        let request = RestoreRequest { no_safety_backup: true, ..in_place("orders", &taken.item.id) };
        let job = start(&fleet, &request).await;
        fleet.revive_agent("orders", "n0").await;
        let ended = fleet.api().job_end(&job).await;
        if let Err(e) = &ended {
            assert!(!goes_on && e.report().contains("n0"), "{point}: {}", e.report());
        }
        if point == "agent.verified" && ended.is_err() {
            // The data of before is gone: another restore opens the server.
            let _ = later("a restore that may take over", async || fleet.restore(&request).await.ok()).await;
            compare(point, &held_by(&server), &wanted);
        } else {
            is_open(&fleet, "orders", &server, &before).await;
            compare(point, &held_by(&server), if ended.is_ok() { &wanted } else { &present });
        }
        is_open(&fleet, "orders", &server, &before).await;
        assert_eq!(kept(&fleet, "orders-n0"), 0, "{point}");
        fleet.stop_agent("orders", "n0").await;
    }
}

/// The server dies in the middle and comes back, with its users in a file or not.
async fn server_dies(with_file: bool) {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("users.acl");
    std::fs::write(&file, "user default on nopass ~* &* +@all\n").expect("users");
    let options: &[&str] = if with_file { &["--aclfile", file.to_str().expect("UTF-8")] } else { &[] };
    let mut server = Server::start(Flavor::Redis, options);
    if with_file {
        make_users(&server);
        // A server writes rules of this kind into its file in another order each time.
        let _ = server.client().run("ACL SETUSER app clearselectors");
        let _ = server.client().run("ACL SAVE");
        // So that they are as the file has them.
        server.restart();
    }
    let before = users(&server);
    fill(&mut server.client(), "key", KEYS);
    let mut fleet = fleet().await;
    fleet.start_agent(spec("orders", "n0", &server, "agent.part-loaded:5"));
    let _ = fleet.ready("orders", 1).await;
    let taken = good(fleet.backup("orders").await);
    let wanted = held_by(&server);
    fill(&mut server.client(), "later", 50);
    // An old dump, which the server will load.
    let _ = held_by(&server);
    let job = start(&fleet, &in_place("orders", &taken.item.id)).await;
    let _ = fleet.agent("orders", "n0").process.ended().await;
    is_refused_by_default(&server);
    server.restart();
    match with_file {
        true => is_refused_by_default(&server),
        // Nothing of the fence is left, and the old data is back.
        false => assert_eq!(server.client().run("DBSIZE").integer(), KEYS as i64 + 50),
    }
    fleet.revive_agent("orders", "n0").await;
    let _ = good(fleet.api().job_end(&job).await);
    let log = fleet.agent("orders", "n0").process.log();
    assert!(log.contains("started anew in the middle"), "the restart was seen");
    is_open(&fleet, "orders", &server, &before).await;
    compare("after a restart of the server", &held_by(&server), &wanted);
    // The file has them back as well.
    server.restart();
    assert_eq!(users(&server), before);
}

fn is_refused_by_default(server: &Server) {
    let reply = asked(server, &[], &["GET", "key:1"]);
    assert!(matches!(&reply, Reply::Error(e) if e.starts_with("NOPERM")), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgets_its_fence_in_a_restart_is_fenced_emptied_and_loaded_anew() {
    server_dies(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_file_of_users_stays_fenced_over_a_restart() {
    server_dies(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_restored_in_place_and_a_replica_out_of_reach_stops_it_before_anything_is_lost() {
    let mut cluster = Cluster::start(Flavor::Redis, 3, &[]);
    cluster.nodes.iter().for_each(|(_, server)| make_users(server));
    let set = |i: usize| vec!["SET".to_owned(), format!("key:{i}"), "v".repeat(1 + i % 400)];
    for mut client in cluster.clients() {
        let _ = client.pipeline(&(0..KEYS).map(set).collect::<Vec<_>>());
    }
    let mut fleet = fleet().await;
    for (i, (_, server)) in cluster.nodes.iter().enumerate() {
        fleet.start_agent(spec("orders", &format!("n{i}"), server, ""));
    }
    let _ = fleet.ready("orders", 3).await;
    let taken = good(fleet.backup("orders").await);
    let wanted = held_by_all(&cluster);
    assert_eq!(wanted.len(), KEYS);
    for mut client in cluster.clients() {
        let later: Vec<_> = (0..50).map(|i| vec!["SET".to_owned(), format!("later:{i}"), "1".into()]).collect();
        let _ = client.pipeline(&later);
    }
    let present = held_by_all(&cluster);
    cluster.add_replica(1, &[]);
    let mut replica = cluster.nodes.pop().expect("the replica").1;
    let before: Vec<_> = cluster.nodes.iter().map(|(_, server)| users(server)).collect();
    let id = cluster.nodes[1].1.client().run("CLUSTER MYID").text();
    eventually("all to know whom the replica follows", || {
        let known = |mut c: Client| c.run("CLUSTER NODES").text().contains(&format!("slave {id} "));
        cluster.clients().into_iter().all(known).then_some(())
    });

    replica.kill();
    let failed = fleet.restore(&in_place("orders", &taken.item.id)).await.unwrap_err().report();
    assert!(failed.contains("keeping clients off server 127.0.0.1:") && failed.contains("n1"), "{failed}");
    later("all to be as it was", async || {
        let open = fleet.ready("orders", 3).await.nodes.iter().all(|n| n.state == "available");
        let now: Vec<_> = cluster.nodes.iter().map(|(_, server)| users(server)).collect();
        (open && now == before).then_some(())
    })
    .await;
    compare("called off", &held_by_all(&cluster), &present);

    replica.restart();
    let _ = good(fleet.restore(&in_place("orders", &taken.item.id)).await);
    compare("a Cluster in place", &held_by_all(&cluster), &wanted);
    assert_eq!(cluster.nodes.iter().map(|(_, server)| users(server)).collect::<Vec<_>>(), before);
    assert_eq!(users(&replica).len(), 1);
    let owned = held_by(&cluster.nodes[1].1);
    follows(&replica, &owned);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_half_way_keeps_clients_out_until_the_safety_backup_is_back() {
    let big = Server::start(Flavor::Redis, &[]);
    fill(&mut big.client(), "big", 20_000);
    let small = Server::start(Flavor::Redis, &["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"]);
    fill(&mut small.client(), "key", 100);
    make_users(&small);
    let (before, present) = (users(&small), held_by(&small));
    let mut fleet = fleet().await;
    for (name, server) in [("big", &big), ("small", &small)] {
        fleet.start_agent(spec(name, "n0", server, ""));
        let _ = fleet.ready(name, 1).await;
    }
    let _ = good(fleet.backup("big").await);
    let request = RestoreRequest { in_place: true, ..restore_of("big", "small") };
    let failed = fleet.restore(&request).await.unwrap_err().report();
    for word in ["OOM", "n0", "safety backup", "--in-place", "what was there before is backup"] {
        assert!(failed.contains(word), "{word}: {failed}");
    }
    is_refused(&small);
    is_restoring(&fleet, "small").await;
    let safety = fleet.backups("small").await.into_iter().next().expect("the safety backup");
    assert!(failed.contains(&safety.id), "{failed}");
    let other = fleet.restore(&RestoreRequest { in_place: false, ..in_place("small", &safety.id) }).await;
    assert!(other.unwrap_err().report().contains("in place"));
    fleet.stop_agent("small", "n0").await;
    fleet.restart_agent("small", "n0");
    is_restoring(&fleet, "small").await;
    let _ = good(fleet.restore(&in_place("small", &safety.id)).await);
    is_open(&fleet, "small", &small, &before).await;
    compare("the safety backup", &held_by(&small), &present);
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_missing_are_named_before_anything_changes_and_the_documented_ones_are_enough() {
    let documents = std::fs::read_to_string("../deploy/config/agent.example.toml").expect("example");
    let told = documents.replace("\n#", " ").split_whitespace().collect::<Vec<_>>().join(" ");
    let words = RIGHTS.split_whitespace().collect::<Vec<_>>();
    assert!(told.contains(&words.join(" ")), "the example names other rights");
    let server = Server::start(Flavor::Redis, &[]);
    fill(&mut server.client(), "key", 500);
    let backup = "resetchannels -@all +ping +psync +replconf +info +time +client|setname +client|pause \
                  +client|unpause +cluster|nodes +acl|dryrun";
    let _ = server.client().run(&format!("ACL SETUSER agent on >secret-word {backup}"));
    let mut fleet = fleet().await;
    let mut spec = spec("orders", "n0", &server, "");
    let more = "user = \"agent\"\npassword_env = \"STORE_PASSWORD\"".to_owned();
    spec.engine = EngineKind::Redis(format!("unix:{}", server.socket().display()), more);
    spec.env.push(("STORE_PASSWORD".into(), "secret-word".into()));
    fleet.start_agent(spec);
    let _ = fleet.ready("orders", 1).await;
    let taken = good(fleet.backup("orders").await);
    let wanted = held_by(&server);
    let _ = server.client().run("SET later 1");
    let present = held_by(&server);
    let request = RestoreRequest { no_safety_backup: true, ..in_place("orders", &taken.item.id) };
    for right in ["+acl|list", "+acl|deluser", "+acl|setuser"] {
        let failed = fleet.restore(&request).await.unwrap_err().report();
        assert!(failed.contains(right) && failed.contains("n0"), "{right}: {failed}");
        compare("refused", &held_by(&server), &present);
        let _ = server.client().run(&format!("ACL SETUSER agent {right}"));
    }
    let _ = server.client().run(&format!("ACL SETUSER agent reset on >secret-word {backup} {RIGHTS}"));
    let before = users(&server);
    let _ = good(fleet.restore(&request).await);
    is_open(&fleet, "orders", &server, &before).await;
    compare("with the documented rights", &held_by(&server), &wanted);
}
