//! What servers keep beside their records: libraries of functions, users, settings, the nodes of a Cluster.

use tidemark_common::kept::normal_user;
use tidemark_coordinator::catalog::BackupDetail;
use tidemark_coordinator::job::JobInfo;
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_coordinator::kept::KeptSummary;
use tidemark_proto::{ErrorKind, Result, SlotSet};
use tidemark_tests::fleet::{AgentSpec, CoordinatorSpec, EngineKind, Fleet, eventually as later, restore_of};
use tidemark_tests::redis::{Client, Cluster, Flavor, Reply, Server, eventually, listening};

use super::contents::holds_none;

/// The hash of the password `word`, by its beginning.
const HASH: &str = "98c1eb4ee934";
/// Rights of an agent whose backups keep everything.
const RIGHTS: &str = "resetchannels -@all +ping +psync +replconf +info +time +client|setname +client|pause \
                      +client|unpause +cluster|nodes +acl|dryrun";

fn spec(cluster: &str, node: &str, address: String) -> AgentSpec {
    let mut spec = AgentSpec::new(cluster, node, SlotSet::EMPTY);
    spec.engine = EngineKind::Redis(address, String::new());
    spec
}

fn socket(server: &Server) -> String {
    format!("unix:{}", server.socket().display())
}

async fn protect(fleet: &mut Fleet, name: &str, cluster: &Cluster) {
    for (i, port) in cluster.ports().into_iter().enumerate() {
        fleet.start_agent(spec(name, &format!("n{i}"), format!("127.0.0.1:{port}")));
    }
    let _ = fleet.ready(name, cluster.nodes.len()).await;
}

/// Protects a server whose agent has a user of its own there, with all rights.
async fn protect_as(fleet: &mut Fleet, name: &str, server: &Server, dies_at: &str) {
    let _ = server.client().run("ACL SETUSER keeper on >keepers-word ~* &* +@all");
    let mut spec = spec(name, "n0", String::new());
    spec.engine =
        EngineKind::Redis(socket(server), "user = \"keeper\"\npassword_env = \"STORE_PASSWORD\"".to_owned());
    spec.env.push(("STORE_PASSWORD".into(), "keepers-word".into()));
    if !dies_at.is_empty() {
        spec.env.push(("TIDEMARK_CRASH_AT".into(), dies_at.into()));
    }
    fleet.start_agent(spec);
    let _ = fleet.ready(name, 1).await;
}

fn good<T>(done: Result<T>) -> T {
    done.unwrap_or_else(|e| panic!("{}", e.report()))
}

fn with_users(cluster: &str, target: &str) -> RestoreRequest {
    RestoreRequest { with_users: true, ..restore_of(cluster, target) }
}

fn load(client: &mut Client, name: &str, answer: &str) {
    let code = format!("#!lua name={name}\nredis.register_function('{name}_f', function() return '{answer}' end)");
    let _ = client.call(&["FUNCTION", "LOAD", "REPLACE", &code]);
}

fn called(client: &mut Client, name: &str) -> String {
    client.call(&["FCALL", &format!("{name}_f"), "0"]).text()
}

fn users(server: &Server) -> Vec<String> {
    server.client().run("ACL LIST").array().into_iter().map(Reply::text).collect()
}

/// The line of a user, as equal rights are written alike.
fn user(server: &Server, name: &str) -> Option<String> {
    let line = users(server).into_iter().find(|line| line.starts_with(&format!("user {name} ")))?;
    let line = String::from_utf8(normal_user(line.as_bytes())).expect("text");
    // What a user that was reset says of itself; it changes nothing.
    Some(line.replace(" sanitize-payload", ""))
}

/// What the server says when it is asked as a user.
fn asked(server: &Server, login: &[&str], command: &[&str]) -> Reply {
    let mut client = server.client();
    let _ = client.call(login);
    client.ask(command).expect("reply")
}

fn kept_of(detail: &BackupDetail) -> &KeptSummary {
    detail.kept.as_ref().expect("kept things")
}

/// Loads a library and sets a key in one transaction, again and again: both tell the same number at every moment.
fn load_in_step(server: &Server, stop: &std::sync::atomic::AtomicBool) -> usize {
    let mut client = server.client();
    let mut n = 0;
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        n += 1;
        let _ = client.run("MULTI");
        load(&mut client, "step", &n.to_string());
        let _ = client.run(&format!("SET step {n}"));
        let done = client.run("EXEC").array();
        assert!(done.iter().all(|r| !matches!(r, Reply::Error(_))), "{done:?}");
    }
    n
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_are_those_of_the_cut_on_every_node_of_another_shape() {
    for flavor in Flavor::installed() {
        let source = Server::start(flavor, &[]);
        let mut client = source.client();
        load(&mut client, "early", "before the base");
        load(&mut client, "gone", "deleted before the base");
        let _ = client.run("FUNCTION DELETE gone");
        for i in 0..20_000 {
            let _ = client.run(&format!("SET key:{i} {i}"));
        }
        let target = Cluster::start(Flavor::Redis, 3, &[]);
        let mut fleet = Fleet::start().await;
        fleet.start_agent(spec("orders", "n0", socket(&source)));
        let _ = fleet.ready("orders", 1).await;
        protect(&mut fleet, "copy", &target).await;
        let stop = std::sync::atomic::AtomicBool::new(false);
        let (taken, steps) = tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                let loading = scope.spawn(|| load_in_step(&source, &stop));
                eventually("steps", || (source.client().run("EXISTS step").integer() == 1).then_some(()));
                let taken = tokio::runtime::Handle::current().block_on(fleet.backup("orders"));
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                (taken, loading.join().expect("steps"))
            })
        });
        let taken = good(taken);
        let names: Vec<_> = kept_of(&taken).libraries.iter().map(|l| (&l.name[..], &l.engine[..])).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.contains(&("early", "lua")) && names.contains(&("step", "lua")), "{names:?}");
        let result = good(fleet.restore(&restore_of("orders", "copy")).await);
        assert_eq!(result["warnings"], serde_json::json!([]), "{result}");
        let mut owner = target.owner(b"step").client();
        let step = owner.run("GET step").text();
        assert!(step.parse::<usize>().expect("number") < steps, "the cut was before the end");
        for mut client in target.clients() {
            assert_eq!(called(&mut client, "early"), "before the base");
            assert_eq!(called(&mut client, "step"), step, "function and key are of one moment");
            assert_eq!(client.run("FUNCTION LIST").array().len(), 2);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_come_where_they_are_asked_for_and_no_secret_shows_anywhere() {
    let source = Cluster::start(Flavor::Redis, 3, &["--maxmemory-policy", "noeviction"]);
    for mut client in source.clients() {
        let _ = client.run("ACL SETUSER app on >word ~app:* &news +@read +set");
        let _ = client.call(&["ACL", "SETUSER", "app", "(~side:* +get +set)"]);
        let _ = client.run("ACL SETUSER both off nopass ~* +@all");
        let _ = client.run("ACL SETUSER keeper on >another ~* +@all");
        let _ = client.run("CONFIG SET masterauth secret-of-masters");
    }
    let (port, target) = listening(Flavor::Redis, &[]);
    let (_, replica) = listening(Flavor::Redis, &["--replicaof", &format!("127.0.0.1 {port}")]);
    for server in [&target, &replica] {
        let _ = server.client().run("ACL SETUSER local on >mine ~* +get");
        let _ = server.client().run("ACL SETUSER app on >old ~old:* +get");
        let _ = server.client().run("ACL SETUSER keeper on >keepers-word ~* &* +@all");
    }
    eventually("the replica to follow", || {
        replica.client().run("INFO replication").text().contains("master_link_status:up").then_some(())
    });
    let mut fleet = Fleet::start().await;
    protect(&mut fleet, "orders", &source).await;
    let taken = good(fleet.backup("orders").await);
    let kept = kept_of(&taken);
    let names: Vec<_> = kept.users.iter().map(|u| (&u.name[..], u.nodes.len())).collect();
    assert_eq!(names, [("app", 3), ("both", 3), ("default", 3), ("keeper", 3)]);
    assert!(kept.users[0].rules.contains("#(hidden)") && kept.users[0].rules.contains("~app:*"));
    assert_eq!((kept.settings.len(), kept.topology.len(), kept.missing.len()), (3, 3, 0));
    assert_eq!(kept.settings[0].values["maxmemory-policy"], "noeviction");
    assert!(!kept.settings[0].values.contains_key("masterauth"));
    let slots: Vec<_> = kept.topology.iter().map(|n| (&n.node[..], &n.slots[..], &n.role[..])).collect();
    let own: Vec<_> = taken.node_evidence.iter().map(|n| (&n.node[..], &n.slots[..], "primary")).collect();
    assert_eq!(slots, own);

    protect_as(&mut fleet, "copy", &target, "").await;
    let before = [users(&target), users(&replica)];
    let _ = good(fleet.restore(&restore_of("orders", "copy")).await);
    assert_eq!([users(&target), users(&replica)], before, "nobody asked for users");
    let _ = target.client().run("FLUSHALL");
    let result = good(fleet.restore(&with_users("orders", "copy")).await);
    let told = result["warnings"].to_string();
    assert!(told.contains("has no file of users") && !told.contains("was not set"), "{told}");
    for (server, before) in [&target, &replica].into_iter().zip(before) {
        assert_eq!(user(server, "app"), user(&source.nodes[0].1, "app"));
        let app = ["AUTH", "app", "word"];
        assert!(matches!(asked(server, &app, &["GET", "side:1"]), Reply::Nil));
        assert!(matches!(asked(server, &app, &["GET", "old:1"]), Reply::Error(e) if e.starts_with("NOPERM")));
        assert_eq!(user(server, "both"), user(&source.nodes[0].1, "both"));
        let now = users(server);
        for untouched in ["local", "keeper"] {
            let line = before.iter().find(|l| l.starts_with(&format!("user {untouched} "))).expect("a user");
            assert!(now.contains(line), "{untouched}");
        }
    }

    let shown = fleet.tidemark(&["backup", "show", "--cluster", "orders"]).await;
    for word in ["app", "#(hidden)", "~app:*", "settings", "nodes of the store", "primary", "of node n2"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let json = fleet.tidemark(&["backup", "show", "--cluster", "orders", "-o", "json"]).await;
    assert!(json.contains("maxmemory-policy"));
    let (url, key) = (format!("file://{}", fleet.repository().display()), fleet.dir().join("master.key"));
    let direct = ["repo", "show", "--repository", &url, "--key-file", key.to_str().expect("UTF-8")];
    let direct = fleet.tidemark(&direct).await;
    assert!(direct.contains("~app:*"), "{direct}");
    let secrets = [HASH, "secret-of-masters"];
    for text in [&shown, &json, &direct, &result.to_string(), &serde_json::to_string(&taken).expect("JSON")] {
        assert!(secrets.iter().all(|s| !text.contains(s)), "{text}");
    }
    let mut words = secrets.to_vec();
    words.push("~app:*");
    assert!(holds_none(&fleet.repository(), &words) > 10);
    let _ = words.pop();
    // Logs, configurations, states of agents.
    let _ = holds_none(fleet.dir(), &words);
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_missing_cost_what_they_are_for_and_are_told() {
    let server = Server::start(Flavor::Redis, &[]);
    load(&mut server.client(), "lib", "there");
    let _ = server.client().run(&format!("ACL SETUSER backup on >secret-word {RIGHTS}"));
    let mut fleet = Fleet::start().await;
    let mut spec = spec("orders", "n0", String::new());
    let more = "user = \"backup\"\npassword_env = \"STORE_PASSWORD\"".to_owned();
    spec.engine = EngineKind::Redis(socket(&server), more);
    spec.env.push(("STORE_PASSWORD".into(), "secret-word".into()));
    fleet.start_agent(spec);
    let _ = fleet.ready("orders", 1).await;
    let check = |fleet: &Fleet| {
        let config = fleet.dir().join("orders-n0.toml");
        let mut command = std::process::Command::new(tidemark_tests::fleet::binary("tidemark-agent"));
        let command = command.arg("--config").arg(config).arg("check").env("STORE_PASSWORD", "secret-word");
        String::from_utf8(command.output().expect("agent").stdout).expect("UTF-8")
    };
    let text = check(&fleet);
    for right in [
        "users of this server: ACL SETUSER backup +acl|list",
        "settings of this server: ACL SETUSER backup +config|get",
    ] {
        assert!(text.contains(right), "{right}: {text}");
    }
    let taken = good(fleet.backup("orders").await);
    let missing: Vec<_> = kept_of(&taken).missing.iter().map(|m| format!("{} {}", m.what, m.why)).collect();
    assert!(missing.len() == 2 && missing[0].contains("users") && missing[0].contains("+acl|list"), "{missing:?}");
    assert!(missing[1].contains("settings") && missing[1].contains("+config|get"), "{missing:?}");
    // No right is needed for functions: they come with the base.
    assert_eq!(kept_of(&taken).libraries[0].name, "lib");
    let shown = fleet.tidemark(&["backup", "show", "--cluster", "orders"]).await;
    assert!(shown.contains("NOT KEPT: users of node n0") && shown.contains("+acl|list"), "{shown}");
    later("the event", async || {
        let events = fleet.tidemark(&["events", "--cluster", "orders"]).await;
        (events.contains("users of this node are not kept") && events.contains("+acl|list")).then_some(())
    })
    .await;
    let plan = good(fleet.plan(&with_users("orders", "orders")).await);
    let problem = plan.problems.iter().find(|p| p.contains("--with-users")).expect("a problem");
    assert!(problem.contains("holds no users") && problem.contains("+acl|list"), "{problem}");

    let _ = server.client().run("ACL SETUSER backup +acl|list +config|get");
    assert!(check(&fleet).contains("backups keep the users of this server"));
    let taken = good(fleet.backup("orders").await);
    assert!(kept_of(&taken).missing.is_empty() && kept_of(&taken).users.len() == 2);
    // A restore with users needs a right that the backup does not: asked for before anything is touched.
    let target = Server::start(Flavor::Redis, &[]);
    let _ =
        target.client().run(&format!("ACL SETUSER backup on >secret-word {RIGHTS} ~* +restore +select +flushall"));
    let mut spec = fleet.agent("orders", "n0").spec.clone();
    (spec.cluster, spec.env) = ("copy".into(), vec![("STORE_PASSWORD".into(), "secret-word".into())]);
    spec.engine = EngineKind::Redis(socket(&target), "user = \"backup\"\npassword_env = \"STORE_PASSWORD\"".into());
    fleet.start_agent(spec);
    let _ = fleet.ready("copy", 1).await;
    let failed = fleet.restore(&with_users("orders", "copy")).await.unwrap_err().report();
    assert!(failed.contains("+acl|setuser") && failed.contains("nothing was touched"), "{failed}");
    // One without users needs the right to load libraries; what was loaded is taken away again.
    let failed = fleet.restore(&restore_of("orders", "copy")).await.unwrap_err().report();
    assert!(failed.contains("+function|load"), "{failed}");
    assert_eq!(target.client().run("DBSIZE").integer(), 0);
    let _ = target.client().run("ACL SETUSER backup +function|load +function|delete +acl|setuser");
    let result = good(fleet.restore(&with_users("orders", "copy")).await);
    assert_eq!(called(&mut target.client(), "lib"), "there");
    assert!(!result["warnings"].to_string().contains("not set"), "{result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_in_place_gives_the_users_of_the_backup_also_after_crashes() {
    let server = Server::start(Flavor::Redis, &[]);
    let mut client = server.client();
    let _ = client.run("ACL SETUSER app on >word ~app:* +@read +set");
    load(&mut client, "lib", "then");
    let _ = client.run("SET key 1");
    let sections = "[backup]\nnode_patience_seconds = 20".to_owned();
    let env = vec![("TIDEMARK_CRASH_AT".to_owned(), "restore.switched".to_owned())];
    let mut fleet = Fleet::start_with(CoordinatorSpec { sections, env, ..CoordinatorSpec::default() }).await;
    protect_as(&mut fleet, "orders", &server, "").await;
    let taken = good(fleet.backup("orders").await);
    let wanted = user(&server, "app");
    assert!(wanted.is_some());

    let _ = client.run("ACL SETUSER app reset on >other ~other:* +get");
    let _ = client.run("ACL SETUSER late on >late ~* +get");
    let late = user(&server, "late");
    load(&mut client, "lib", "now");
    load(&mut client, "newer", "now");
    let in_place = RestoreRequest {
        in_place: true,
        no_safety_backup: true,
        backup: taken.item.id.clone(),
        ..with_users("orders", "orders")
    };
    fleet.stop_agent("orders", "n0").await;
    // Dies when it has loaded the libraries, and again when it has set the users.
    protect_as(&mut fleet, "orders", &server, "agent.kept-libraries").await;
    let job: JobInfo = good(fleet.api().post("restores", &in_place).await);
    fleet.revive_agent_with("orders", "n0", "agent.kept-users").await;
    // The coordinator dies when all have switched: the next one knows that users are due.
    fleet.revive_coordinator().await;
    fleet.revive_agent_with("orders", "n0", "").await;
    let result = fleet.api().job_end(&job).await;
    let result = good(result);
    assert_eq!(user(&server, "app"), wanted, "{result}");
    assert_eq!(user(&server, "late"), late, "those that the backup does not know stay");
    assert!(users(&server).iter().all(|u| !u.contains("tidemark-restore")));
    let mut client = server.client();
    assert_eq!(called(&mut client, "lib"), "then");
    assert_eq!(client.run("FUNCTION LIST").array().len(), 1, "libraries of after the backup are gone");
    let set = asked(&server, &["AUTH", "app", "word"], &["SET", "app:1", "1"]);
    assert!(matches!(set, Reply::Status(_)), "{set:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_without_users_and_damaged_ones_refuse_users_and_nothing_else() {
    let (source, target) = (Server::start(Flavor::Redis, &[]), Server::start(Flavor::Redis, &[]));
    let _ = source.client().run("ACL SETUSER app on >word ~* +get");
    load(&mut source.client(), "lib", "there");
    let _ = source.client().run("SET key 1");
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("embedded", 1).await;
    fleet.start_agent(spec("orders", "n0", socket(&source)));
    fleet.start_agent(spec("copy", "n0", socket(&target)));
    let _ = fleet.ready("orders", 1).await;
    let _ = fleet.ready("copy", 1).await;
    let plain = good(fleet.backup("embedded").await);
    assert!(plain.kept.is_none());
    let refused = fleet.restore(&with_users("embedded", "embedded")).await.unwrap_err().report();
    assert!(refused.contains("stores of its kind have none"), "{refused}");

    let taken = good(fleet.backup("orders").await);
    assert_eq!(kept_of(&taken).users.len(), 2);
    let roots = fleet.repository().join("clusters/orders/roots");
    let of_kept = |path: &std::path::PathBuf| std::fs::read(path).expect("object")[4] == 19;
    let objects = || std::fs::read_dir(&roots).expect("roots").map(|e| e.expect("entry").path());
    let object = objects().find(of_kept).expect("the kept things");
    let mut bytes = std::fs::read(&object).expect("object");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&object, &bytes).expect("damage");
    let name = object.file_name().expect("name").to_string_lossy().into_owned();
    let verified = fleet.verify("orders", "latest").await.unwrap_err();
    assert!(verified.kind() == ErrorKind::Damaged && verified.report().contains(&name), "{}", verified.report());
    let shown = fleet.tidemark(&["backup", "show", "--cluster", "orders"]).await;
    assert!(shown.contains("NOT KEPT: everything") && shown.contains(&name), "{shown}");
    let refused = fleet.restore(&with_users("orders", "copy")).await.unwrap_err().report();
    assert!(refused.contains("leave out --with-users") && refused.contains(&name), "{refused}");
    let result = good(fleet.restore(&restore_of("orders", "copy")).await);
    assert_eq!(result["complete"], false);
    assert!(result["missing"].to_string().contains(&name), "{result}");
    assert_eq!(target.client().run("GET key").text(), "1");

    // The next backup has its own; what the deleted one kept goes.
    let next = good(fleet.backup("orders").await);
    assert_eq!(objects().filter(of_kept).count(), 2);
    let _ = fleet.tidemark(&["backup", "delete", &taken.item.id, "--cluster", "orders", "--yes"]).await;
    let _ = fleet.tidemark(&["repo", "gc", "--cluster", "orders"]).await;
    assert!(!object.exists() && objects().filter(of_kept).count() == 1);
    let _ = target.client().run("FLUSHALL");
    let _ = good(fleet.restore(&RestoreRequest { backup: next.item.id, ..with_users("orders", "copy") }).await);
    assert_eq!(called(&mut target.client(), "lib"), "there");
    assert_eq!(user(&target, "app"), user(&source, "app"));
}
