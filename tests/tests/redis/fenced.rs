//! What tests of restores in place need: a fleet over one server, users of many kinds, whether clients are kept off.

use tidemark_coordinator::api::ClusterDetail;
use tidemark_coordinator::job::JobInfo;
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_proto::{Result, SlotSet};
use tidemark_tests::fleet::{AgentSpec, CoordinatorSpec, EngineKind, Fleet, eventually as later, restore_of};
use tidemark_tests::redis::{Client, Reply, Server, eventually};

use super::contents::{Contents, held_by};

/// Keys that the backup holds.
pub(super) const KEYS: usize = 3000;

pub(super) fn spec(cluster: &str, node: &str, server: &Server, dies_at: &str) -> AgentSpec {
    let mut spec = AgentSpec::new(cluster, node, SlotSet::EMPTY);
    spec.engine = EngineKind::Redis(format!("unix:{}", server.socket().display()), String::new());
    spec.part_bytes = 65_536;
    if !dies_at.is_empty() {
        spec.env.push(("TIDEMARK_CRASH_AT".into(), dies_at.into()));
    }
    spec
}

/// Many parts, and a job that waits for a node long enough.
pub(super) async fn fleet() -> Fleet {
    let sections = "[backup]\nslots_per_region = 512\nagent_concurrency = 2\nnode_patience_seconds = 20";
    Fleet::start_with(CoordinatorSpec { sections: sections.into(), ..CoordinatorSpec::default() }).await
}

pub(super) fn in_place(cluster: &str, backup: &str) -> RestoreRequest {
    RestoreRequest { in_place: true, backup: backup.into(), ..restore_of(cluster, cluster) }
}

pub(super) async fn start(fleet: &Fleet, request: &RestoreRequest) -> JobInfo {
    fleet.api().post("restores", request).await.unwrap_or_else(|e| panic!("{}", e.report()))
}

pub(super) fn good<T>(done: Result<T>) -> T {
    done.unwrap_or_else(|e| panic!("{}", e.report()))
}

pub(super) fn fill(client: &mut Client, prefix: &str, keys: usize) {
    let one = |i: usize| vec!["SET".to_owned(), format!("{prefix}:{i}"), "v".repeat(1 + i % 400)];
    let _ = client.pipeline(&(0..keys).map(one).collect::<Vec<_>>());
}

/// Users of many kinds: one with rights of their own beside (where the server knows them), one that is off.
pub(super) fn make_users(server: &Server) {
    let mut client = server.client();
    for rule in
        ["app on >word ~app:* ~key:* &news +@read +set", "old off >other ~* +get", "free on nopass ~* &* +@all"]
    {
        let _ = client.run(&format!("ACL SETUSER {rule}"));
    }
    let _ = client.call(&["ACL", "SETUSER", "app", "(~side:* +get +set)"]);
}

pub(super) fn users(server: &Server) -> Vec<String> {
    server.client().run("ACL LIST").array().into_iter().map(Reply::text).collect()
}

/// What the server says when it is asked as one of its users.
pub(super) fn asked(server: &Server, login: &[&str], command: &[&str]) -> Reply {
    let mut client = server.client();
    if !login.is_empty() {
        let _ = client.call(login);
    }
    client.ask(command).expect("reply")
}

pub(super) fn is_refused(server: &Server) {
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
pub(super) fn is_cut(what: &str, client: &mut Client) {
    // What was on its way comes first.
    let end = eventually(&format!("{what} to be cut"), || client.reply().err());
    assert_ne!(end.kind(), std::io::ErrorKind::WouldBlock, "{what} waits on");
}

pub(super) fn follows(replica: &Server, what: &Contents) {
    eventually("the replica to have it all", || (held_by(replica) == *what).then_some(()));
}

pub(super) async fn is_open(fleet: &Fleet, cluster: &str, server: &Server, before: &[String]) {
    later("the server to be open with the users of before", async || {
        let state = fleet.ready(cluster, 1).await.nodes[0].state.clone();
        let mut client = server.client();
        let Ok(Reply::Array(lines)) = client.ask(&["ACL", "LIST"]) else { return None };
        let now: Vec<_> = lines.into_iter().map(Reply::text).collect();
        (state == "available" && now == before).then_some(())
    })
    .await;
}

pub(super) async fn is_restoring(fleet: &Fleet, cluster: &str) {
    later("the node to say that it is being restored", async || {
        let detail: ClusterDetail = fleet.api().get(&format!("clusters/{cluster}")).await.ok()?;
        detail.nodes.iter().all(|n| n.connected && n.state == "restoring").then_some(())
    })
    .await;
}

/// What the agent keeps of fenced servers.
pub(super) fn kept(fleet: &Fleet, name: &str) -> usize {
    let dir = fleet.dir().join(format!("{name}.state")).join("redis").join("restore-fence");
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

pub(super) fn is_refused_by_default(server: &Server) {
    let reply = asked(server, &[], &["GET", "key:1"]);
    assert!(matches!(&reply, Reply::Error(e) if e.starts_with("NOPERM")), "{reply:?}");
}
