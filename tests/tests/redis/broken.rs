//! What may go wrong: an error that says what to do, nothing lost, nothing left behind.

use std::path::PathBuf;

use tidemark_proto::SlotSet;
use tidemark_tests::fleet::{AgentSpec, EngineKind, Fleet, binary, eventually as later, restore_of};
use tidemark_tests::redis::{Flavor, Server};

use super::contents::{compare, held_by};

/// The rights that the documentation names.
const RIGHTS: &str = "resetchannels -@all +ping +psync +replconf +info +time +client|setname +client|pause \
                      +client|unpause +cluster|nodes +acl|dryrun +acl|list +config|get";

fn spec(name: &str, server: &Server, more: &str) -> AgentSpec {
    let mut spec = AgentSpec::new(name, "n0", SlotSet::EMPTY);
    spec.engine = EngineKind::Redis(format!("unix:{}", server.socket().display()), more.to_owned());
    spec
}

fn fill(server: &Server, keys: usize) {
    let commands: Vec<Vec<String>> =
        (0..keys).map(|i| vec!["SET".to_owned(), format!("key:{i}"), "v".repeat(1 + i % 500)]).collect();
    let _ = server.client().pipeline(&commands);
}

/// The folder in which an agent keeps what a backup needs.
fn jobs(fleet: &Fleet, name: &str) -> PathBuf {
    fleet.dir().join(format!("{name}-n0.state")).join("redis").join("jobs")
}

fn is_empty(dir: &PathBuf) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut d| d.next().is_none())
}

/// Runs `tidemark-agent check` on a configuration of a server.
fn check(fleet: &Fleet, name: &str) -> (bool, String) {
    let config = fleet.dir().join(format!("{name}-n0.toml"));
    let mut command = std::process::Command::new(binary("tidemark-agent"));
    let done = command.arg("--config").arg(config).arg("check").env_remove("TIDEMARK_LOG").output().expect("agent");
    let text = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8(text).expect("UTF-8"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_in_the_documents_are_enough_and_missing_ones_are_named() {
    let documents = std::fs::read_to_string("../deploy/config/agent.example.toml").expect("example");
    let told = documents.replace("\n#", " ").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        told.contains(&RIGHTS.split_whitespace().collect::<Vec<_>>().join(" ")),
        "the example names other rights"
    );
    let server = Server::start(Flavor::Redis, &[]);
    fill(&server, 2000);
    let rule = format!("ACL SETUSER backup on >secret-word {RIGHTS}");
    let _ = server.client().run(&rule);
    let mut fleet = Fleet::start().await;
    let file = fleet.dir().join("password");
    std::fs::write(&file, "secret-word\n").expect("password");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    let more = format!("user = \"backup\"\npassword_file = {file:?}");
    fleet.start_agent(spec("orders", &server, &more));
    let _ = fleet.ready("orders", 1).await;
    let (good, text) = check(&fleet, "orders");
    assert!(good && text.contains("all that a backup needs"), "{text}");
    assert!(text.contains("client-output-buffer-limit") && text.contains("268435456"), "{text}");
    let taken = fleet.backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(taken.item.records, 2000);
    assert!(taken.kept.is_some_and(|kept| kept.missing.is_empty()));
    assert!(is_empty(&jobs(&fleet, "orders")), "nothing stays behind");

    let _ = server.client().run("ACL SETUSER backup -client|pause -psync");
    let (good, text) = check(&fleet, "orders");
    assert!(!good && text.contains("+client|pause +psync") && !text.contains("secret-word"), "{text}");
    let refused = fleet.backup("orders").await.unwrap_err().report();
    assert!(refused.contains("n0") && refused.contains("NOPERM"), "{refused}");
    assert!(is_empty(&jobs(&fleet, "orders")), "nothing stays behind");
    let _ = server.client().run(&rule);
    let _ = fleet.backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_and_shown_nowhere() {
    let server = Server::start(Flavor::Redis, &[]);
    let _ = server.client().run("CONFIG SET requirepass right-word");
    let mut fleet = Fleet::start().await;
    let mut spec = spec("orders", &server, "password_env = \"STORE_PASSWORD\"");
    spec.env.push(("STORE_PASSWORD".into(), "wrong-word".into()));
    fleet.start_agent(spec);
    let found = later("a refused backup that says why", async || {
        let error = fleet.backup("orders").await.err()?.report();
        error.contains("WRONGPASS").then_some(error)
    })
    .await;
    assert!(found.contains("n0") && !found.contains("wrong-word"), "{found}");
    let log = std::fs::read_to_string(fleet.dir().join("orders-n0.log")).expect("log");
    assert!(!log.contains("wrong-word"));
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_that_cannot_take_a_restore_are_refused_and_full_ones_are_left_empty() {
    let source = Server::start(Flavor::Redis, &[]);
    fill(&source, 5000);
    let replica = Server::start(Flavor::Redis, &["--replicaof", "127.0.0.1 1"]);
    let small = Server::start(Flavor::Redis, &["--maxmemory", "2mb", "--maxmemory-policy", "noeviction"]);
    let mut fleet = Fleet::start().await;
    for (name, server) in [("orders", &source), ("replica", &replica), ("small", &small)] {
        fleet.start_agent(spec(name, server, ""));
        let _ = fleet.ready(name, 1).await;
    }
    let _ = fleet.backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
    let refused = fleet.restore(&restore_of("orders", "replica")).await.unwrap_err().report();
    assert!(refused.contains("n0") || refused.contains("slots"), "{refused}");
    let full = fleet.restore(&restore_of("orders", "small")).await.unwrap_err().report();
    assert!(full.contains("OOM") && full.contains("n0"), "{full}");
    later("the target to be empty and open again", async || {
        let empty = small.client().run("DBSIZE").integer() == 0;
        let detail = fleet.ready("small", 1).await;
        (empty && detail.nodes[0].state == "available").then_some(())
    })
    .await;
    // With room it goes well.
    let _ = small.client().run("CONFIG SET maxmemory 0");
    let _ = fleet.restore(&restore_of("orders", "small")).await.unwrap_or_else(|e| panic!("{}", e.report()));
    compare("after more room", &held_by(&small), &held_by(&source));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_at_any_step_of_a_backup_is_named_and_the_next_backup_needs_no_help() {
    let server = Server::start(Flavor::Redis, &[]);
    fill(&server, 20_000);
    let mut fleet = Fleet::start().await;
    for point in ["agent.held", "agent.sealed", "agent.released", "agent.settling"] {
        let mut spec = spec("orders", &server, "");
        spec.env.push(("TIDEMARK_CRASH_AT".into(), point.into()));
        fleet.start_agent(spec);
        let _ = fleet.ready("orders", 1).await;
        let job = fleet.start_backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
        fleet.revive_agent("orders", "n0").await;
        let _ = fleet.ready("orders", 1).await;
        match fleet.api().job_end(&job).await {
            // It came back in time, and the base was taken again where it was lost.
            Ok(_) => {}
            Err(e) => assert!(e.report().contains("n0"), "{point}: {}", e.report()),
        }
        // Writes go on, and the next backup is good.
        let _ = server.client().run(&format!("SET after {point}"));
        let taken = fleet.backup("orders").await.unwrap_or_else(|e| panic!("{point}: {}", e.report()));
        assert_eq!(taken.item.records, 20_001, "{point}");
        let jobs = jobs(&fleet, "orders");
        later("nothing to stay behind", async || is_empty(&jobs).then_some(())).await;
        assert_eq!(server.client().run("INFO replication").text().matches("slave0:").count(), 0, "no link stays");
        fleet.agent("orders", "n0").process.stop().await;
    }
}
