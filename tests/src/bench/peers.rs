//! Peers of the system bench, as Debian ships them, with their own defaults and encryption on.

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A backup program. Its methods panic when it fails: a bench without its peer says nothing.
pub trait Peer {
    /// Its name.
    fn name(&self) -> &'static str;
    /// Whether it is installed.
    fn is_there(&self) -> bool;
    /// Makes its repository.
    fn init(&self);
    /// Backs a folder up.
    fn backup(&self, dir: &Path);
    /// Restores the newest backup.
    fn restore(&self);
    /// Bytes in its repository.
    fn stored(&self) -> u64;
}

/// A password for a throw-away repository.
const PASSWORD: &str = "bench";

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("the peer starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn is_there(name: &str) -> bool {
    Command::new(name).arg("--version").arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).map(|d| d.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries
        .iter()
        .map(|e| if e.path().is_dir() { size(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) })
        .sum()
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("temporary folder")
}

/// restic.
#[derive(Debug)]
pub struct Restic {
    dir: TempDir,
}

impl Restic {
    /// In a temporary folder.
    #[allow(clippy::new_without_default, reason = "makes a folder")]
    pub fn new() -> Self {
        Self { dir: temporary() }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("restic");
        let cache = self.dir.path().join("cache");
        let _ = command.env("RESTIC_PASSWORD", PASSWORD).arg("--cache-dir").arg(cache).arg("-q").arg("-r");
        let _ = command.arg(self.dir.path().join("repo"));
        command
    }
}

impl Peer for Restic {
    fn name(&self) -> &'static str {
        "restic"
    }

    fn is_there(&self) -> bool {
        is_there("restic")
    }

    fn init(&self) {
        run(self.command().args(["init", "--repository-version", "2"]));
    }

    fn backup(&self, dir: &Path) {
        run(self.command().arg("backup").arg(dir));
    }

    fn restore(&self) {
        let out = temporary();
        run(self.command().args(["restore", "latest", "--target"]).arg(out.path()));
    }

    fn stored(&self) -> u64 {
        size(&self.dir.path().join("repo"))
    }
}

/// borg.
#[derive(Debug)]
pub struct Borg {
    dir: TempDir,
    archives: std::cell::Cell<u32>,
}

impl Borg {
    /// In a temporary folder.
    #[allow(clippy::new_without_default, reason = "makes a folder")]
    pub fn new() -> Self {
        Self { dir: temporary(), archives: std::cell::Cell::new(0) }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("borg");
        let _ = command.env("BORG_PASSPHRASE", PASSWORD).env("BORG_BASE_DIR", self.dir.path().join("base"));
        let _ = command.env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes");
        command
    }

    fn archive(&self) -> String {
        format!("{}::a{}", self.dir.path().join("repo").display(), self.archives.get())
    }
}

impl Peer for Borg {
    fn name(&self) -> &'static str {
        "borg"
    }

    fn is_there(&self) -> bool {
        is_there("borg")
    }

    fn init(&self) {
        run(self.command().args(["init", "-e", "repokey-blake2"]).arg(self.dir.path().join("repo")));
    }

    fn backup(&self, dir: &Path) {
        self.archives.set(self.archives.get() + 1);
        run(self.command().arg("create").arg(self.archive()).arg(dir));
    }

    fn restore(&self) {
        let out = temporary();
        run(self.command().arg("extract").arg(self.archive()).current_dir(out.path()));
    }

    fn stored(&self) -> u64 {
        size(&self.dir.path().join("repo"))
    }
}
