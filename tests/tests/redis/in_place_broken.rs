//! Restores in place that break: servers that die in the middle, that are too small, that give too few rights.

use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_tests::fleet::{EngineKind, restore_of};
use tidemark_tests::redis::{Flavor, Server};

use super::contents::{compare, held_by};

use super::fenced::*;

/// The rights that the example configuration names for a restore in place.
const RIGHTS: &str = "~* +restore +select +flushall +acl|list +acl|setuser +acl|deluser +acl|save +config|rewrite \
                      +client|list +client|kill";

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

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgets_its_fence_in_a_restart_is_fenced_emptied_and_loaded_anew() {
    server_dies(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_file_of_users_stays_fenced_over_a_restart() {
    server_dies(true).await;
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
