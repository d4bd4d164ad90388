//! A child process with its log in a file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually;

/// A built binary of this workspace: it lies two folders above the test's executable.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    let profile = test.parent().and_then(Path::parent).expect("target/<profile>/deps");
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run the tests by `tests/run` or `cargo nextest run`, or build with `cargo build --workspace`",
        path.display()
    );
    path
}

/// A running child; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a binary of this workspace with `env` beside its environment; its output goes to `log`, appended.
    pub fn start(name: &str, args: &[&str], env: &[(String, String)], log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("log file");
        let mut command = Command::new(binary(name));
        let _ = command
            .args(args)
            .env_remove("TIDEMARK_MASTER_KEY")
            .env_remove("TIDEMARK_LOG")
            .envs(env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("log file"))
            .stderr(file);
        let child = command.spawn().expect("a process");
        Self { child, log: log.to_owned() }
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("log")
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until its log holds `text`; fails when the process ends before.
    pub async fn logged(&mut self, text: &str) -> String {
        eventually(&format!("`{text}` in {}", self.log.display()), async || {
            // Asked first: what it wrote before it ended must count.
            let ended = self.child.try_wait().expect("own child");
            let log = std::fs::read_to_string(&self.log).expect("log");
            let line = log.lines().rev().find(|l| l.contains(text)).map(str::to_owned);
            assert!(ended.is_none() || line.is_some(), "{ended:?}, log:\n{log}");
            line
        })
        .await
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("signal to own child");
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let log = self.log.clone();
        eventually(&format!("the end of the process of {}", log.display()), async || {
            self.child.try_wait().expect("own child")
        })
        .await
    }

    /// Asks it to end (SIGTERM) and waits; it must end well.
    pub async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended().await;
        assert!(status.success(), "{status}, log:\n{}", self.log());
    }

    /// Kills it (SIGKILL) and waits.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.ended().await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a child that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
