//! Throw-away servers end with the process that started them, also where that is killed, and leave nothing behind.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tidemark_tests::fleet::{Fleet, binary};
use tidemark_tests::redis::{Client, Flavor, Server, eventually};

use super::flow::{backup, protect_one};
use super::handmade::{Both, CLUSTER, Writer};

/// `tidemark` on the repository of a fleet, with `dir` for temporary files.
fn tidemark(fleet: &Fleet, verb: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(binary("tidemark"));
    let url = format!("file://{}", fleet.repository().display());
    let _ = command.args(verb).args(["--repository", &url, "--key-file"]).arg(fleet.dir().join("master.key"));
    let _ = command.args(["--cluster", CLUSTER, "-o", "json"]).env("TMPDIR", dir).stdin(Stdio::null());
    command
}

/// Processes that work in a folder, or did when it was there.
fn working_in(dir: &Path) -> usize {
    let all =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.path().join("cwd").read_link().ok());
    all.filter(|cwd| cwd.starts_with(dir)).count()
}

async fn nothing_is_left(dir: &Path) {
    let dir = dir.to_owned();
    let look = move || {
        eventually("its processes are gone", || (working_in(&dir) == 0).then_some(()));
        eventually("its folders are gone", || (std::fs::read_dir(&dir).unwrap().count() == 0).then_some(()));
    };
    tokio::task::spawn_blocking(look).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_and_a_scratch_server_end_with_a_command_that_is_killed() {
    let source = Server::start(Flavor::Redis, &[]);
    let _ = source.client().run("SET before 1");
    let mut fleet = Fleet::start().await;
    protect_one(&mut fleet, CLUSTER, &source).await;
    let first = backup(&fleet, CLUSTER).await;
    let log = Writer::begin(&fleet, first.item.cut).await;
    let mut both = Both { server: &source, log };
    both.run("0 APPEND before 2");
    let (at, _) = both.point().await;
    let at = at.to_string();

    let dir = tempfile::tempdir().unwrap();
    let mut command = tidemark(&fleet, &["clone", "run"], dir.path());
    let mut running = command.args(["--at", &at]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = running.stdout.take().unwrap();
    let stood = move || serde_json::Deserializer::from_reader(&mut out).into_iter::<serde_json::Value>().next();
    let standing = tokio::task::spawn_blocking(stood).await.unwrap().unwrap().unwrap();
    let port: u16 = standing["address"].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
    assert_eq!(Client::tcp(port).unwrap().run("GET before").text(), "12");
    assert!(working_in(dir.path()) > 0);
    // SIGKILL.
    running.kill().unwrap();
    assert_eq!(running.wait().unwrap().signal(), Some(9));
    nothing_is_left(dir.path()).await;
    assert!(Client::tcp(port).is_err());

    // One that works the log off, at the moment when its server has come.
    let mut command = tidemark(&fleet, &["export"], dir.path());
    let _ = command.args(["--at", &at, "--format", "rdb"]).env("TIDEMARK_CRASH_AT", "scratch.joined");
    let died = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(died.status.signal(), Some(6), "{}", String::from_utf8_lossy(&died.stderr));
    nothing_is_left(dir.path()).await;
}
