//! Child processes that end with their handle.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

/// Time for a daemon to open its ports.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a daemon to end, and between two looks.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_LOOK: Duration = Duration::from_millis(20);
/// Longest announcement, in bytes.
const MAX_LINE: u64 = 4096;
/// Lines of its log that are shown when a daemon does not start.
const SHOWN_LINES: usize = 5;
const AGENT: &str = "tidemark-agent";

/// A running daemon; killed and waited for when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Option<Child>,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts a daemon and waits until it has told its ports. It is no member of this process's group: Ctrl-C is for us
    /// alone, and a fleet that is kept must outlive the terminal's job.
    pub(crate) async fn start<T: DeserializeOwned>(
        name: &str,
        binary: &Path,
        arguments: &[&str],
        config: &Path,
        log: PathBuf,
    ) -> Result<(Self, T)> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log);
        let file = file.or_kind(ErrorKind::Full, format_args!("{}: cannot be written", log.display()))?;
        let mut child = Command::new(binary)
            .args(arguments)
            .arg("--config")
            .arg(config)
            .arg("--announce")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .process_group(0)
            .spawn()
            .or_kind(ErrorKind::Config, format_args!("{} cannot be started", binary.display()))?;
        let stdout = child.stdout.take();
        let process = Self { child: Some(child), name: name.to_owned(), log };
        let line = tokio::task::spawn_blocking(move || first_line(stdout));
        let line = tokio::time::timeout(START_TIMEOUT, line).await;
        let ports = line.ok().and_then(|l| l.ok()).and_then(|l| serde_json::from_str(&l).ok());
        match ports {
            Some(ports) => Ok((process, ports)),
            None => Err(Error::config(format!("{name} did not start; its log ends:\n{}", process.log_tail()))),
        }
    }

    /// An error if the daemon has ended by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => {
                Err(Error::bug(format!("{} ended ({status}); its log ends:\n{}", self.name, self.log_tail())))
            }
            _ => Ok(()),
        }
    }

    /// Ends it in order, so that its peers know; `kill -9` when that takes too long.
    pub(crate) async fn stop(mut self) {
        let id = self.child.as_ref().and_then(|c| i32::try_from(c.id()).ok());
        if let Some(id) = id {
            // It may have ended before.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM);
        }
        let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
        while tokio::time::Instant::now() < deadline {
            match self.child.as_mut().map(Child::try_wait) {
                Some(Ok(None)) => tokio::time::sleep(STOP_LOOK).await,
                _ => return,
            }
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended before; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Lets it run on after this process; answers its id.
    pub(crate) fn leave_running(mut self) -> Option<u32> {
        self.child.take().map(|c| c.id())
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn first_line(stdout: Option<ChildStdout>) -> String {
    let mut line = String::new();
    if let Some(stdout) = stdout {
        // What was read says it all: a whole line, or that the daemon has ended.
        let _ = BufReader::new(stdout.take(MAX_LINE)).read_line(&mut line);
    }
    line
}

/// This program.
pub(crate) fn own_binary() -> Result<PathBuf> {
    std::env::current_exe().or_kind(ErrorKind::Config, "the path of this program is not known")
}

/// The agent beside this program.
pub(crate) fn agent_binary() -> Result<PathBuf> {
    let path = own_binary()?.with_file_name(AGENT);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::config(format!(
        "{} is not there: this command starts an agent, put `{AGENT}` beside `tidemark` (`cargo build --release` makes both)",
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, dir: &Path) -> Result<(Process, serde_json::Value)> {
        Process::start("sh", Path::new("/bin/sh"), &["-c", script], Path::new("x"), dir.join("sh.log")).await
    }

    #[tokio::test]
    async fn a_daemon_tells_its_ports_and_ends_with_its_handle() {
        let dir = tempfile::tempdir().unwrap();
        let (mut process, ports) =
            shell("echo '{\"api\":1}'; exec cat /dev/zero >/dev/null", dir.path()).await.unwrap();
        assert_eq!(ports["api"], 1);
        process.check().unwrap();
        let id = process.child.as_ref().unwrap().id();
        drop(process);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[tokio::test]
    async fn one_that_does_not_start_is_told_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let failed = shell("echo 'no such key' >&2; exit 3", dir.path()).await.unwrap_err();
        assert!(failed.message().contains("no such key"), "{failed}");
    }
}
