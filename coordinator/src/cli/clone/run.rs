//! `tidemark clone run`: a throw-away server of Redis or Valkey on this machine with the data of a time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tidemark_common::rdb::version_of_server;
use tidemark_common::record::split_redis_key;
use tidemark_common::redis::conn::{Address, Connection, Login};
use tidemark_common::redis::scratch::{find_for, not_there, version_of};
use tidemark_common::redis::tied::Tied;
use tidemark_common::run::{Entry, LongValue};
use tidemark_proto::id::JobId;
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, Timestamp, error::ResultExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::output::{Format, count};
use crate::cli::repo::direct::{Chosen, Moment, Selected};
use crate::cli::repo::files::{WRITE_BUFFER, or_interrupted};
use crate::cli::repo::moment::Opened;
use crate::cli::time;
use crate::extract::{Output, RdbFile, extract_at};
use crate::fold::{PROGRAM_VARIABLE, REDIS_ENGINE};
use crate::job::restore::libraries;

pub(crate) const RUN_HELP: &str = "\
Reads the repository itself: no coordinator and no agent is asked, and nothing is written to it. The data of the time is
loaded into a server of its own on this machine, which takes writes and keeps nothing: when the command ends (Ctrl-C), server
and data are gone. Keys that have expired by now are not there. The server holds all of it in memory; while it loads, as
much disk is needed in --dir.

Examples:
  tidemark clone run --repository file:///backup --key-file master.key --cluster orders --at -10m --port 7777
  tidemark clone run --repository s3://backups/fleet --key-file master.key --keys 'cart:*' --db 0
  CLONE_PASSWORD=… tidemark clone run --repository … --bind 0.0.0.0 --password-env CLONE_PASSWORD";

/// Longest time for the server to load its data.
const LOAD_PATIENCE: Duration = Duration::from_secs(3600);
/// Wait between two looks at the server.
const POLL: Duration = Duration::from_millis(50);
/// Time for the server to end when it is asked to.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Databases of the server at least: as many as servers have by default.
const LEAST_DATABASES: u64 = 16;
/// Longest password file, in bytes.
const MAX_PASSWORD: u64 = 64 << 10;
/// Name of the file that the server loads.
const FILE: &str = "dump.rdb";
/// Lines of the server's log that an error shows.
const LAST_WORDS: usize = 4;

/// Options of `clone run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    moment: Moment,
    #[command(flatten)]
    selected: Selected,
    /// Port of the server; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Address that it listens on
    #[arg(long, default_value = "127.0.0.1")]
    bind: IpAddr,
    /// Program of the server; otherwise redis-server or valkey-server, whichever was backed up first
    #[arg(long, env = PROGRAM_VARIABLE, default_value = "", hide_default_value = true, value_name = "PROGRAM")]
    server: String,
    /// File with a password that clients must give
    #[arg(long, value_name = "FILE", conflicts_with = "password_env")]
    password_file: Option<PathBuf>,
    /// Environment variable with a password that clients must give
    #[arg(long, value_name = "NAME")]
    password_env: Option<String>,
    /// Folder for temporary files; otherwise the system's
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// What stands.
#[derive(Debug, Serialize)]
struct Standing {
    cluster: ClusterName,
    backup: JobId,
    /// The time that the data is of, a raw timestamp.
    at: u64,
    address: String,
    server: String,
    records: u64,
    /// Whether clients must give the password.
    password: bool,
}

impl Run {
    /// Runs until it is ended from outside.
    pub(super) async fn run(self, output: Format) -> Result<()> {
        let password = self.password()?;
        if !self.bind.is_loopback() && password.is_none() {
            return Err(Error::request(format!(
                "--bind {}: others could read the data; give a password (--password-file or --password-env)",
                self.bind
            )));
        }
        let (mut term, mut int) = (until(SignalKind::terminate())?, until(SignalKind::interrupt())?);
        let dir = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new().prefix("tidemark-clone-").tempdir_in(&dir);
        let folder = folder.or_kind(ErrorKind::Full, format_args!("a temporary folder in {}", dir.display()))?;
        // Before the data is there: it is gone also where this process is killed meanwhile.
        let tied = Tied::to(folder.path())?;
        let standing = tokio::select! {
            made = self.make(folder.path(), tied, password.as_deref()) => made,
            _ = term.recv() => Err(Error::cancelled("the clone was ended before it stood")),
            _ = int.recv() => Err(Error::cancelled("the clone was ended before it stood")),
        };
        let (standing, mut server) = standing?;
        // All of it is in memory.
        let _ = std::fs::remove_file(folder.path().join(FILE));
        output.print(&standing, said)?;
        let _ = std::io::stdout().flush();
        loop {
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                () = tokio::time::sleep(POLL) => server.lives()?,
            }
        }
        eprintln!("the clone and its data are gone");
        Ok(())
    }

    /// Writes the data and starts a server on it.
    async fn make(&self, folder: &Path, tied: Tied, password: Option<&str>) -> Result<(Standing, Server)> {
        let opened = Opened::new(&self.chosen, self.moment.at).await?;
        let (manifest, job) = (&opened.manifest, opened.backup.job);
        let root = manifest.root();
        if root.engine != REDIS_ENGINE {
            return Err(Error::request(format!(
                "backup {job} is of engine `{}`: `clone run` is for Redis and Valkey; see `tidemark clone create`",
                root.engine
            )));
        }
        let valkey = root.nodes.iter().any(|n| n.engine_version.starts_with("valkey"));
        let program = find_for(&self.server, valkey).ok_or_else(|| not_there(&self.server))?;
        let server = version_of(&program)?;
        let version = version_of_server(&server)
            .ok_or_else(|| Error::config(format!("the version of `{program}` is not understood: {server}")))?;
        let selection = self.selected.of(manifest)?;
        let file = folder.join(FILE);
        let laid = opened.laid_by(Some(&file), Some(program.clone())).await?;
        let (mut functions, warnings) = libraries(manifest).await?;
        let cancel = CancellationToken::new();
        let _stop = cancel.clone().drop_guard();
        if let Some(laid) = &laid
            && let Some(later) = laid.functions(&cancel).await?
        {
            functions = later;
        }
        warnings.iter().for_each(|w| eprintln!("warning: {w}"));
        let out = File::create_new(&file).or_kind(ErrorKind::Full, format_args!("{}", file.display()))?;
        let out: Box<dyn Write + Send> = Box::new(BufWriter::with_capacity(WRITE_BUFFER, out));
        let written = Counting { rdb: RdbFile::begin(out, version, &job.to_string(), &functions)?, databases: 0 };
        let work = extract_at(manifest, laid, selection, written, &cancel);
        let (extracted, written) = or_interrupted(work, &cancel).await?;
        let databases = written.databases.max(LEAST_DATABASES);
        drop(written);
        let port = if self.port == 0 { free_port(self.bind)? } else { self.port };
        let mut child = Server::start(tied, &program, folder, (self.bind, port), (password, databases))?;
        child.loaded((self.bind, port), password).await?;
        let standing = Standing {
            cluster: opened.cluster.clone(),
            backup: job,
            at: opened.time(),
            address: std::net::SocketAddr::new(self.bind, port).to_string(),
            server,
            records: extracted.records,
            password: password.is_some(),
        };
        Ok((standing, child))
    }

    fn password(&self) -> Result<Option<String>> {
        let read = match (&self.password_file, &self.password_env) {
            (Some(path), _) => {
                let told = || format!("--password-file {}", path.display());
                let len = std::fs::metadata(path).or_kind(ErrorKind::Config, told())?.len();
                if len > MAX_PASSWORD {
                    return Err(Error::config(format!("{}: over {MAX_PASSWORD} bytes", told())));
                }
                std::fs::read_to_string(path).or_kind(ErrorKind::Config, told())?
            }
            (None, Some(name)) => std::env::var(name)
                .map_err(|_| Error::config(format!("--password-env: there is no variable {name}")))?,
            (None, None) => return Ok(None),
        };
        let password = read.trim_end_matches(['\r', '\n']).to_owned();
        let plain = |c: char| !c.is_control() && c != '"' && c != '\\';
        match !password.is_empty() && password.chars().all(plain) {
            true => Ok(Some(password)),
            false => {
                Err(Error::config("the password is empty, or has a quote, backslash or control character in it"))
            }
        }
    }
}

fn until(kind: SignalKind) -> Result<Signal> {
    signal(kind).or_kind(ErrorKind::Bug, "signal handler")
}

fn free_port(bind: IpAddr) -> Result<u16> {
    let listener = TcpListener::bind((bind, 0)).or_kind(ErrorKind::Config, format_args!("--bind {bind}"))?;
    Ok(listener.local_addr().or_kind(ErrorKind::Bug, "a port")?.port())
}

/// Counts the databases that are written.
struct Counting {
    rdb: RdbFile<Box<dyn Write + Send>>,
    databases: u64,
}

impl Output for Counting {
    fn write(&mut self, entry: &Entry<'_>, long: Option<&LongValue>) -> Result<bool> {
        let written = self.rdb.write(entry, long)?;
        if written {
            self.databases = self.databases.max(split_redis_key(entry.key)?.0 + 1);
        }
        Ok(written)
    }

    fn finish(&mut self) -> Result<()> {
        self.rdb.finish()
    }
}

/// The server, which ends with this value.
#[derive(Debug)]
struct Server {
    child: Tied,
    log: PathBuf,
}

fn config(folder: &Path, (bind, port): (IpAddr, u16), (password, databases): (Option<&str>, u64)) -> String {
    let folder = folder.display();
    let password = password.map_or("protected-mode yes\n".into(), |p| format!("requirepass \"{p}\"\n"));
    format!(
        "bind {bind}\nport {port}\ndir \"{folder}\"\ndbfilename {FILE}\nsave \"\"\nappendonly no\ndaemonize no\n\
         logfile \"{folder}/log\"\ndatabases {databases}\nmaxmemory 0\n{password}"
    )
}

impl Server {
    fn start(
        mut child: Tied,
        program: &str,
        folder: &Path,
        at: (IpAddr, u16),
        how: (Option<&str>, u64),
    ) -> Result<Self> {
        child.start(program, &config(folder, at, how))?;
        Ok(Self { child, log: folder.join("log") })
    }

    /// Waits until it has loaded its data.
    async fn loaded(&mut self, (bind, port): (IpAddr, u16), password: Option<&str>) -> Result<()> {
        let address = Address::Tcp(std::net::SocketAddr::new(bind, port).to_string());
        let login = Login { password: password.unwrap_or_default().to_owned(), ..Login::default() };
        let deadline = Instant::now() + LOAD_PATIENCE;
        loop {
            self.lives()?;
            let (address, login) = (address.clone(), login.clone());
            let asked = tokio::task::spawn_blocking(move || {
                Connection::open(&address, &login)?.call(&[b"PING"])?.ok("PING").map(drop)
            });
            match asked.await.map_err(|e| Error::bug("asking the clone").with_source(e))? {
                Ok(()) => return self.lives(),
                Err(e) if Instant::now() >= deadline => return Err(e.context("the clone does not load its data")),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// `Config`, with its last words, when it has ended.
    fn lives(&mut self) -> Result<()> {
        let Some(status) = self.child.ended()? else { return Ok(()) };
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().filter(|l| !l.trim().is_empty()).collect();
        let words = lines[lines.len().saturating_sub(LAST_WORDS)..].join(" | ");
        Err(Error::config(format!("the clone's server ended ({status}): {words}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id())
            && matches!(self.child.ended(), Ok(None))
        {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
            let deadline = Instant::now() + END_PATIENCE;
            while Instant::now() < deadline && matches!(self.child.ended(), Ok(None)) {
                std::thread::park_timeout(POLL);
            }
        }
    }
}

fn said(s: &Standing) -> String {
    let (host, port) = s.address.rsplit_once(':').unwrap_or((&s.address, ""));
    let password = if s.password { " --askpass" } else { "" };
    format!(
        "a clone of cluster {} as of {} stands ({} records, {}, backup {})\nconnect: redis-cli -h {} -p {port}{password}\n\
         it keeps nothing: Ctrl-C ends it, and all that is written in it is gone",
        s.cluster,
        time::exact(Timestamp(s.at)),
        count(s.records),
        s.server,
        s.backup,
        host.trim_matches(['[', ']'])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_password_only_this_machine_gets_in() {
        let config = |password| config(Path::new("/x y"), ("::1".parse().unwrap(), 7), (password, 20));
        let open = config(None);
        assert!(open.contains("bind ::1\nport 7\ndir \"/x y\"\n") && open.contains("protected-mode yes"), "{open}");
        assert!(!open.contains("requirepass") && open.contains("databases 20"));
        assert!(config(Some("a b")).contains("requirepass \"a b\"\n"));
    }
}
