//! One server.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tidemark_common::rdb::version_of_server;
use tidemark_common::redis::scratch::version_of;

use super::{Client, eventually};

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavor {
    /// `redis-server`.
    Redis,
    /// `valkey-server`.
    Valkey,
}

impl Flavor {
    /// Those that are installed. Redis must be: a test without it would test nothing.
    pub fn installed() -> Vec<Self> {
        let there = |flavor: &Self| Command::new(flavor.program()).arg("--version").output().is_ok();
        assert!(there(&Self::Redis), "redis-server is not installed: tests/run installs it");
        [Self::Redis, Self::Valkey].into_iter().filter(there).collect()
    }

    /// Name of the server's program. By this name the one that `tests/run` was told of is found as well, of whichever kind and version.
    pub fn program(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Valkey => "valkey-server",
        }
    }

    /// Kind and version of the program (`redis 7.0.15`, `valkey 8.0.1`).
    pub fn version(self) -> String {
        version_of(self.program()).unwrap_or_else(|e| panic!("{}", e.report()))
    }

    /// Version of the RDB format that it writes.
    pub fn rdb_version(self) -> u16 {
        version_of_server(&self.version()).unwrap_or_else(|| panic!("{}", self.version()))
    }

    /// Whether it is at least as new as this: Redis of the first version, or Valkey of the second.
    pub fn is_from(self, redis: (u32, u32), valkey: (u32, u32)) -> bool {
        let version = self.version();
        let (kind, numbers) = version.split_once(' ').expect("kind and version");
        let mut numbers = numbers.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        let release = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        release >= if kind == "valkey" { valkey } else { redis }
    }

    /// Whether it has functions, tells times to live as absolute ones, and so on: Redis 7.0, and all of Valkey.
    pub fn is_from_7_0(self) -> bool {
        self.is_from((7, 0), (7, 2))
    }
}

/// A running server, alone or a node of a Cluster.
pub struct Server {
    /// Which program.
    pub flavor: Flavor,
    child: Child,
    dir: Option<TempDir>,
    options: Vec<String>,
}

impl Server {
    /// Starts a server with nothing in it, with options as on its command line (`["--maxmemory-policy", "allkeys-lfu"]`).
    pub fn start(flavor: Flavor, options: &[&str]) -> Self {
        Self::load(flavor, options, None)
    }

    /// Starts a server that has a file of settings, which it can write anew (`CONFIG REWRITE`).
    pub fn with_settings(flavor: Flavor, options: &[&str]) -> Self {
        Self::start_on(&[(SETTINGS, b"")], flavor, options)
    }

    /// Starts a server that loads a file first.
    pub fn load(flavor: Flavor, options: &[&str], rdb: Option<&[u8]>) -> Self {
        let files: Vec<(&str, &[u8])> = rdb.map(|rdb| (FILE, rdb)).into_iter().collect();
        Self::start_on(&files, flavor, options)
    }

    fn start_on(files: &[(&str, &[u8])], flavor: Flavor, options: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("redis").tempdir().expect("folder");
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).expect("file");
        }
        let child = spawn(flavor, dir.path(), options);
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        let mut server = Self { flavor, child, dir: Some(dir), options };
        server.answers();
        server
    }

    fn answers(&mut self) {
        eventually("the server to answer", || {
            if let Some(status) = self.child.try_wait().expect("status") {
                panic!("the server ended with {status}: {}", self.log());
            }
            let mut client = Client::unix(&self.socket()).ok()?;
            // While it loads it says so.
            (client.ask(&["PING"]).ok()? == super::Reply::Status("PONG".into())).then_some(())
        });
    }

    /// Starts one that was killed again, with the same options, on what its folder holds.
    pub fn restart(&mut self) {
        self.kill();
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        self.child = spawn(self.flavor, self.dir(), &options);
        self.answers();
    }

    /// A new connection.
    pub fn client(&self) -> Client {
        Client::unix(&self.socket()).expect("connection")
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("folder until it is dropped").path()
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("socket")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Saves, and returns the file. A child that serves a replica may have to end first.
    pub fn save(&self) -> Vec<u8> {
        let mut client = self.client();
        eventually("a save", || match client.ask(&["SAVE"]).expect("reply") {
            super::Reply::Error(e) if e.contains("already in progress") => None,
            super::Reply::Error(e) => panic!("SAVE: {e}"),
            _ => Some(()),
        });
        std::fs::read(self.dir().join(FILE)).expect("file")
    }

    /// The digest of all its data. Equal data have equal digests on servers of one version.
    pub fn digest(&self) -> String {
        self.client().run("DEBUG DIGEST").text()
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Name of its file.
const FILE: &str = "dump.rdb";
/// Name of its file of settings, where it has one.
const SETTINGS: &str = "redis.conf";

fn spawn(flavor: Flavor, dir: &Path, options: &[&str]) -> Child {
    let fixed =
        ["--port", "0", "--unixsocket", "socket", "--logfile", "log", "--daemonize", "no", "--dbfilename", FILE];
    let loose = ["--appendonly", "no", "--repl-diskless-sync-delay", "0"];
    // Before 7.0 everybody may.
    let debug: &[&str] = if flavor.is_from_7_0() { &["--enable-debug-command", "local"] } else { &[] };
    let settings = dir.join(SETTINGS).exists().then_some(SETTINGS);
    let started = Command::new(flavor.program())
        .current_dir(dir)
        .args(settings)
        .args(fixed)
        .args(loose)
        .args(debug)
        .args(["--save", ""])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    started.unwrap_or_else(|e| panic!("{}: {e}", flavor.program()))
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("the server's folder stays: {}", dir.keep().display());
        }
    }
}
