//! A server that does not outlive the process that started it, however that dies.
//!
//! A shell is started in the server's folder and turns into the server when it is told which. Beside it another one waits at the
//! end of a pipe that this process alone holds: where that closes without a word, it ends the server and takes the folder away.
//! The kernel's own signal on the death of a parent is of no use here: it comes when the thread that started the child ends.

use std::ffi::OsStr;
use std::io::{PipeWriter, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

/// The shell, which is there on every system.
const SHELL: &str = "/bin/sh";
/// What it does. The folder is where it works: one that was made anew under the name is not touched. What the server says before
/// it has its own log stands in that.
const SCRIPT: &str = r#"
exec 3<&2 2>/dev/null
(
    trap '' HUP INT TERM
    IFS= read -r word <&3
    [ "$word" = over ] && exit
    kill -9 "$$"
    rm -rf ./* ./.[!.]*
    rmdir "$1"
) </dev/null &
exec 3<&-
IFS= read -r program && exec "$program" - 2>>log
"#;

/// A folder and the server in it, which go with this process at the latest.
#[derive(Debug)]
pub struct Tied {
    child: Child,
    holds: Option<PipeWriter>,
}

impl Tied {
    /// From here on `folder` is taken away if this process dies.
    pub fn to(folder: &Path) -> Result<Self> {
        let (watched, holds) = std::io::pipe().or_kind(ErrorKind::Retry, "a pipe")?;
        // In a group of its own: Ctrl-C reaches this process alone.
        let child = Command::new(SHELL)
            .args([OsStr::new("-c"), OsStr::new(SCRIPT), OsStr::new("tidemark-server"), folder.as_os_str()])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(watched)
            .process_group(0)
            .spawn();
        Ok(Self { child: child.or_kind(ErrorKind::Config, format_args!("starting {SHELL}"))?, holds: Some(holds) })
    }

    /// Starts `program` on this configuration, by standard input: what it holds is seen by nobody else.
    pub fn start(&mut self, program: &str, config: &str) -> Result<()> {
        let told = || format!("starting `{program}`");
        let found = find(program).ok_or_else(|| Error::config(format!("{}: it is not there", told())))?;
        let mut input = self.child.stdin.take().ok_or_else(|| Error::bug("a server that was started before"))?;
        let words = [found.as_os_str().as_encoded_bytes(), b"\n", config.as_bytes()].concat();
        input.write_all(&words).or_kind(ErrorKind::Config, told())
    }

    /// Id of the server's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().or_kind(ErrorKind::Bug, "a server of ours")
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Only now: the folder is the caller's.
        if let Some(mut holds) = self.holds.take() {
            let _ = holds.write_all(b"over\n");
        }
    }
}

/// Where a program is, as a shell finds it; `None` where there is none of that name.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return std::path::absolute(program).ok().filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn eventually(what: &str, mut look: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !look() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// A folder with files of all kinds, and a process in it that would never end.
    fn standing() -> (PathBuf, Tied) {
        let folder = tempfile::tempdir().unwrap().keep();
        let mut tied = Tied::to(&folder).unwrap();
        std::fs::create_dir(folder.join("of it")).unwrap();
        ["a b", ".hidden", "of it/c"].iter().for_each(|name| std::fs::write(folder.join(name), "x").unwrap());
        // Takes `-` as what to read, which is what it is told and then nothing.
        tied.start("sh", "echo 'what it says' >&2\ntouch here\nexec tail -f /dev/null\n").unwrap();
        eventually("it runs", || folder.join("here").exists());
        (folder, tied)
    }

    #[test]
    fn it_goes_with_the_process_that_started_it() {
        let (folder, mut tied) = standing();
        assert_eq!(std::fs::read_to_string(folder.join("log")).unwrap(), "what it says\n");
        assert_eq!(tied.ended().unwrap(), None);
        // As where the process is killed: nothing is run, the kernel closes what it held.
        drop(tied.holds.take());
        eventually("the server is gone", || tied.ended().unwrap().is_some());
        eventually("the folder is gone", || !folder.exists());
    }

    #[test]
    fn one_that_ends_in_order_leaves_the_folder_to_its_owner() {
        let (folder, tied) = standing();
        let id = tied.id();
        drop(tied);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
        let group = nix::unistd::Pid::from_raw(i32::try_from(id).unwrap());
        let others = || nix::sys::signal::killpg(group, None).is_ok();
        eventually("nobody waits for it any more", || !others());
        assert!(folder.join("of it/c").exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_not_there_is_not_started() {
        let folder = tempfile::tempdir().unwrap();
        let e = Tied::to(folder.path()).unwrap().start("/nowhere/server", "").unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Config);
        assert_eq!((find("no such program"), find("/")), (None, None));
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
    }
}
