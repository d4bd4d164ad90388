//! Settings that a server has while it forks for a base: what comes is as it was, and the server's own are back, whatever happens in
//! between.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tidemark_agent::engine::redis::conn::Login;
use tidemark_agent::engine::redis::{Options, Redis};
use tidemark_agent::engine::{Engine, ScanRange};
use tidemark_common::record::split_redis_key;
use tidemark_proto::id::JobId;
use tidemark_proto::{ErrorKind, SlotSet, Timestamp};
use tidemark_tests::fleet::{Fleet, binary, restore_of};
use tidemark_tests::redis::{Client, Flavor, Reply, Server, eventually, listening};

use super::contents::{compare, held_by};
use super::cut::{cut, options, prepare};
use super::flow::{protect_one, spec};
use super::replicas::forks;

/// Keys, and the length of their values, which LZF makes much shorter.
const KEYS: usize = 500;
const LEN: usize = 1000;
const JOB: JobId = JobId([5; 16]);
/// An agent that dies while settings are changed.
const DIES: &str = "agent.base-tuned";

fn server(flavor: Flavor, options: &[&str]) -> Server {
    let server = Server::start(flavor, options);
    fill(&server);
    server
}

fn fill(server: &Server) {
    let fill: Vec<Vec<String>> =
        (0..KEYS).map(|i| vec!["SET".to_owned(), format!("key:{i}"), format!("{i:04} ").repeat(LEN / 5)]).collect();
    let _ = server.client().pipeline(&fill);
}

fn setting(server: &Server, name: &str) -> String {
    server.client().run(&format!("CONFIG GET {name}")).array()[1].clone().text()
}

fn compression(server: &Server) -> String {
    setting(server, "rdbcompression")
}

fn engine(options: Options) -> Arc<Redis> {
    Redis::open(options).expect("engine")
}

/// Whether the values of the engine's base came uncompressed: all of them, or none.
fn is_plain(engine: &Redis, at: Timestamp) -> bool {
    let snapshot = engine.snapshot(at).expect("snapshot");
    let (mut whole, mut all) = (0, 0);
    snapshot
        .scan(&ScanRange::slots(SlotSet::all()), &mut |record| {
            assert!(split_redis_key(record.key)?.1.starts_with(b"key:"));
            (all, whole) = (all + 1, whole + usize::from(record.value.len() >= LEN));
            Ok(ControlFlow::Continue(()))
        })
        .expect("scan");
    assert!(all == KEYS && (whole == 0 || whole == all), "{whole} of {all} came as they are");
    whole > 0
}

/// Takes a base and looks at it.
fn takes_plain(engine: &Redis) -> bool {
    let at = Timestamp(9);
    prepare(engine, JOB);
    cut(engine, JOB, at);
    let plain = is_plain(engine, at);
    engine.unpin(&tidemark_agent::engine::job_pin(JOB)).expect("unpin");
    plain
}

fn note(dir: &Path) -> std::path::PathBuf {
    dir.join("base-tuning")
}

#[test]
fn a_base_comes_uncompressed_and_the_setting_is_as_it_was() {
    for flavor in Flavor::installed() {
        for (own, wanted, comes) in
            [("yes", true, true), ("yes", false, false), ("no", true, true), ("no", false, true)]
        {
            let (server, dir) = (server(flavor, &["--rdbcompression", own]), tempfile::tempdir().expect("folder"));
            let engine = engine(Options { base_uncompressed: wanted, ..options(&server, dir.path()) });
            assert_eq!(takes_plain(&engine), comes, "{own} {wanted}");
            assert_eq!(compression(&server), own);
            assert!(!note(dir.path()).exists());
        }
    }
}

/// Nobody waits for that.
#[test]
fn a_server_does_not_wait_before_it_forks() {
    for flavor in Flavor::installed() {
        let (server, dir) =
            (server(flavor, &["--repl-diskless-sync-delay", "3600"]), tempfile::tempdir().expect("folder"));
        let engine = engine(options(&server, dir.path()));
        // It has nothing to ask for early.
        engine.prepare_early(JOB, &|| false).expect("asked early");
        assert!(!server.log().contains("asks for synchronization"));
        assert!(takes_plain(&engine));
        assert_eq!(setting(&server, "repl-diskless-sync-delay"), "3600");
    }
}

#[test]
fn a_user_without_the_right_gets_a_compressed_base_and_no_refusal_is_noted() {
    let server = server(Flavor::Redis, &[]);
    let mut client = server.client();
    for rule in ["on", ">word", "~*", "+@all", "-config|set"] {
        assert!(!matches!(client.run(&format!("ACL SETUSER keeper {rule}")), Reply::Error(_)));
    }
    let dir = tempfile::tempdir().expect("folder");
    let login = Login { user: "keeper".into(), password: "word".into(), tls: None };
    let engine = engine(Options { login, ..options(&server, dir.path()) });
    assert!(!takes_plain(&engine));
    assert!(client.run("ACL LOG").array().is_empty());
    let _ = client.run("ACL SETUSER keeper +config|set");
    assert!(takes_plain(&engine));
}

#[test]
fn a_file_that_stays_is_compressed_as_its_owner_wants_it() {
    let (keeps, stores_nothing) = (["--save", "3600 1"], ["--rdb-del-sync-files", "yes"]);
    // The server's own word counts as the agent's does.
    let own_way = ["--save", "3600 1", "--repl-diskless-sync", "no"];
    for (server_options, through_file, comes) in
        [(&keeps[..], true, false), (&own_way, false, false), (&stores_nothing, true, true), (&keeps, false, true)]
    {
        let (server, dir) = (server(Flavor::Redis, server_options), tempfile::tempdir().expect("folder"));
        let engine = engine(Options { base_through_file: through_file, ..options(&server, dir.path()) });
        assert_eq!(takes_plain(&engine), comes, "{server_options:?} {through_file}");
        assert_eq!(compression(&server), "yes");
    }
}

fn run_id(server: &Server) -> String {
    let info = server.client().run("INFO server").text();
    info.lines().find_map(|line| line.strip_prefix("run_id:")).expect("run_id").trim().to_owned()
}

/// Lets an agent find what an earlier one has left; what the server has then.
fn finds(engine: &Redis, dir: &Path, server: &Server, run_id: &str, line: &str) -> String {
    std::fs::write(note(dir), format!("1 {run_id} 0\n{line}")).expect("note");
    let _ = engine.describe().expect("description");
    assert!(!note(dir).exists());
    compression(server)
}

#[test]
fn what_a_server_or_somebody_else_has_set_since_is_left_alone() {
    let (server, dir) = (server(Flavor::Redis, &["--rdbcompression", "no"]), tempfile::tempdir().expect("folder"));
    let engine = engine(options(&server, dir.path()));
    let finds = |run_id: &str, line: &str| finds(&engine, dir.path(), &server, run_id, line);
    assert_eq!(finds("an-earlier-life", "rdbcompression yes no"), "no");
    // Somebody else has changed it since.
    assert_eq!(finds(&run_id(&server), "rdbcompression no yes"), "no");
    assert_eq!(finds(&run_id(&server), "rdbcompression yes no"), "yes");
}

#[test]
fn a_file_of_settings_that_was_written_meanwhile_is_written_again() {
    for flavor in Flavor::installed() {
        let (mut server, dir) = (Server::with_settings(flavor, &[]), tempfile::tempdir().expect("folder"));
        let engine = engine(options(&server, dir.path()));
        let mut client = server.client();
        for command in ["CONFIG SET rdbcompression no", "CONFIG REWRITE"] {
            assert_eq!(client.run(command), Reply::Status("OK".into()));
        }
        assert_eq!(finds(&engine, dir.path(), &server, &run_id(&server), "rdbcompression yes no"), "yes");
        server.restart();
        assert_eq!(compression(&server), "yes");
    }
}

/// Its children take long.
fn slow(server: &Server) -> Client {
    let mut client = server.client();
    assert_eq!(client.run("CONFIG SET rdb-key-save-delay 5000"), Reply::Status("OK".into()));
    client
}

fn has_child(client: &mut Client) -> bool {
    client.run("INFO persistence").text().contains("rdb_bgsave_in_progress:1")
}

#[test]
fn the_server_has_its_own_settings_while_the_base_comes() {
    let (server, dir) =
        (server(Flavor::Redis, &["--repl-diskless-sync-delay", "5"]), tempfile::tempdir().expect("folder"));
    let engine = engine(options(&server, dir.path()));
    let mut client = slow(&server);
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| takes_plain(&engine));
        eventually("a child", || has_child(&mut client).then_some(()));
        eventually("its own settings", || {
            let own = (compression(&server), setting(&server, "repl-diskless-sync-delay"));
            (own == ("yes".into(), "5".into()) && !note(dir.path()).exists()).then_some(())
        });
        assert!(has_child(&mut client), "the base has come before");
        assert!(taking.join().expect("thread"));
    });
}

#[test]
fn a_server_that_is_busy_keeps_its_settings() {
    let ((port, server), dir) = (listening(Flavor::Redis, &[]), tempfile::tempdir().expect("folder"));
    fill(&server);
    let engine = engine(options(&server, dir.path()));
    let mut client = slow(&server);
    let _ = client.run("BGSAVE");
    assert!(has_child(&mut client));
    // The base comes when that has ended, as ever.
    assert!(!takes_plain(&engine));
    // A replica of its own that waits for its base is not hurried, and shares the fork.
    for command in ["CONFIG SET rdb-key-save-delay 0", "CONFIG SET repl-diskless-sync-delay 2"] {
        let _ = client.run(command);
    }
    let before = forks(&server);
    let _replica = Server::start(Flavor::Redis, &["--replicaof", &format!("127.0.0.1 {port}")]);
    eventually("a replica that waits", || {
        client.run("INFO replication").text().contains("state=wait_bgsave").then_some(())
    });
    assert!(!takes_plain(&engine));
    assert_eq!(forks(&server), before + 1);
}

#[test]
fn a_base_that_waits_for_another_child_can_be_called_off() {
    let (server, dir) = (server(Flavor::Redis, &[]), tempfile::tempdir().expect("folder"));
    let engine = engine(options(&server, dir.path()));
    let mut client = slow(&server);
    let _ = client.run("CONFIG SET rdb-key-save-delay 1000000");
    let _ = client.run("BGSAVE");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| engine.prepare(JOB, true, &|| over.load(Ordering::Relaxed), &|_| ()));
        eventually("a base that is asked for", || server.log().contains("asks for synchronization").then_some(()));
        over.store(true, Ordering::Relaxed);
        assert_eq!(taking.join().expect("thread").unwrap_err().kind(), ErrorKind::Cancelled);
    });
    engine.unpin(&tidemark_agent::engine::job_pin(JOB)).expect("unpin");
    assert!(has_child(&mut client), "the other child has ended before");
    assert_eq!(compression(&server), "yes");
}

fn check(fleet: &Fleet) -> String {
    let config = fleet.dir().join("orders-n0.toml");
    let told =
        std::process::Command::new(binary("tidemark-agent")).arg("--config").arg(config).arg("check").output();
    String::from_utf8(told.expect("agent").stdout).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_meanwhile_puts_it_back_when_it_comes_again() {
    let server = server(Flavor::Redis, &[]);
    let mut fleet = Fleet::start().await;
    let mut dies = spec("orders", "n0", format!("unix:{}", server.socket().display()));
    dies.env.push(("TIDEMARK_CRASH_AT".into(), DIES.into()));
    fleet.start_agent(dies);
    let _ = fleet.ready("orders", 1).await;
    let told = check(&fleet);
    assert!(told.contains("while the server forks for a base"), "{told}");
    let job = fleet.start_backup("orders").await.unwrap();
    let _ = fleet.agent("orders", "n0").process.ended().await;
    assert_eq!(compression(&server), "no");
    let left = check(&fleet);
    assert!(left.contains("not back yet") && left.contains("rdbcompression no (its own value: yes)"), "{left}");
    fleet.revive_agent("orders", "n0").await;
    let _ = fleet.api().job_end(&job).await.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(compression(&server), "yes");
    let target = Server::start(Flavor::Redis, &[]);
    protect_one(&mut fleet, "copy", &target).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap_or_else(|e| panic!("{}", e.report()));
    compare("copy", &held_by(&target), &held_by(&server));
}
