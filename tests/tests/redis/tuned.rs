//! Settings that a server has while it forks for a base: what comes is as it was, and the server's own are back, whatever happens in
//! between.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use tidemark_agent::engine::redis::conn::Login;
use tidemark_agent::engine::redis::{Options, Redis};
use tidemark_agent::engine::{Engine, ScanRange};
use tidemark_common::record::split_redis_key;
use tidemark_proto::id::JobId;
use tidemark_proto::{SlotSet, Timestamp};
use tidemark_tests::fleet::{Fleet, binary, restore_of};
use tidemark_tests::redis::{Flavor, Reply, Server};

use super::contents::{compare, held_by};
use super::cut::{cut, options, prepare};
use super::flow::{protect_one, spec};

/// Keys, and the length of their values, which LZF makes much shorter.
const KEYS: usize = 500;
const LEN: usize = 1000;
const JOB: JobId = JobId([5; 16]);
/// An agent that dies while settings are changed.
const DIES: &str = "agent.base-tuned";

fn server(flavor: Flavor, options: &[&str]) -> Server {
    let server = Server::start(flavor, options);
    let fill: Vec<Vec<String>> =
        (0..KEYS).map(|i| vec!["SET".to_owned(), format!("key:{i}"), format!("{i:04} ").repeat(LEN / 5)]).collect();
    let _ = server.client().pipeline(&fill);
    server
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
            let engine = engine(Options { base_tuning: wanted, ..options(&server, dir.path()) });
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

#[test]
fn what_a_server_or_somebody_else_has_set_since_is_left_alone() {
    let (server, dir) = (server(Flavor::Redis, &["--rdbcompression", "no"]), tempfile::tempdir().expect("folder"));
    let engine = engine(options(&server, dir.path()));
    let look = |run_id: &str, lines: &str| {
        std::fs::write(note(dir.path()), format!("1 {run_id}\n{lines}")).expect("note");
        let _ = engine.describe().expect("description");
        assert!(!note(dir.path()).exists());
        compression(&server)
    };
    assert_eq!(look("an-earlier-life", "rdbcompression yes no"), "no");
    let info = server.client().run("INFO server").text();
    let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).expect("run_id").trim();
    // Somebody else has changed it since.
    assert_eq!(look(run_id, "rdbcompression no yes"), "no");
    assert_eq!(look(run_id, "rdbcompression yes no"), "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_meanwhile_puts_it_back_when_it_comes_again() {
    let server = server(Flavor::Redis, &[]);
    let mut fleet = Fleet::start().await;
    let mut dies = spec("orders", "n0", format!("unix:{}", server.socket().display()));
    dies.env.push(("TIDEMARK_CRASH_AT".into(), DIES.into()));
    fleet.start_agent(dies);
    let _ = fleet.ready("orders", 1).await;
    let config = fleet.dir().join("orders-n0.toml");
    let told =
        std::process::Command::new(binary("tidemark-agent")).arg("--config").arg(config).arg("check").output();
    let told = String::from_utf8(told.expect("agent").stdout).expect("UTF-8");
    assert!(told.contains("while the server forks for a base"), "{told}");
    let job = fleet.start_backup("orders").await.unwrap();
    let _ = fleet.agent("orders", "n0").process.ended().await;
    assert_eq!(compression(&server), "no");
    fleet.revive_agent("orders", "n0").await;
    let _ = fleet.api().job_end(&job).await.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(compression(&server), "yes");
    let target = Server::start(Flavor::Redis, &[]);
    protect_one(&mut fleet, "copy", &target).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap_or_else(|e| panic!("{}", e.report()));
    compare("copy", &held_by(&target), &held_by(&server));
}
