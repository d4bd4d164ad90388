//! Settings that a server has for the moment in which it forks for a base (`engine.base_uncompressed`, `engine.base_at_once`).
//!
//! - `rdbcompression`: servers as shipped compress every string of a base with LZF, which on text is a third of all that their child
//!   does. Blocks are compressed anyway. It is `no` meanwhile; not for a file that stays, which would be larger than its owner
//!   thinks.
//! - `repl-diskless-sync-delay`: servers as shipped wait 5 s before they fork, for other replicas that might come. It is 0 meanwhile.
//!
//! That takes an agent's user who may change settings (`+config|set`). Where it may not, or anything fails, a base is as good, and takes
//! longer. The child keeps what it was born with, and the server gets its own back at once. Where the fork would not come at
//! once, as another child is at work or another replica is being served, nothing is changed; should that begin just then, the server tells
//! who asks to wait, and has its own back as well.
//!
//! They are put back also after a crash: from before they are changed until they are back a [`note`] in the agent's folder names the
//! life of the server (`run_id`) and its own values. What somebody else has set since stays. A server that was started anew since has
//! read its own settings; only a `CONFIG REWRITE` within the moment could have written these to its file, so that is looked for.
//!
//! Source: `rdbSaveRawString`, `syncCommand` and `startBgsaveForReplication` of Redis: what answers `PSYNC` with `FULLRESYNC` has
//! forked, or forks before it reads another command.

mod note;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidemark_common::crash;
use tidemark_proto::Result;

use super::conn::{Address, Connection, Login};
use super::resp::Reply;
use super::server::Info;
use super::settings::Settings;
use super::{Options, through_file};
use note::{Changed, Life, Note};

/// File of the note.
const NOTE: &str = "base-tuning";
/// Longest wait for each answer: nothing of this is worth more.
const PATIENCE: Duration = Duration::from_secs(3);

const COMPRESSION: &str = "rdbcompression";
const DISKLESS: &str = "repl-diskless-sync";
const DELAY: &str = "repl-diskless-sync-delay";
/// What must be allowed.
pub(super) const CHANGE: [&[u8]; 4] = [b"CONFIG", b"SET", COMPRESSION.as_bytes(), b"no"];

/// Tunes the forks of one server.
#[derive(Debug)]
pub(super) struct Tuning {
    address: Address,
    login: Login,
    note: PathBuf,
    way: Way,
    /// The user may not even ask what it may: each question would stand among the server's refusals.
    silent: AtomicBool,
    /// It was told that settings are not back.
    told: AtomicBool,
    /// Held while settings are changed on purpose.
    changing: Mutex<()>,
}

/// How bases are wanted.
#[derive(Debug, Clone, Copy)]
struct Way {
    through_file: bool,
    at_once: bool,
    uncompressed: bool,
}

impl Way {
    fn of(options: &Options) -> Self {
        Self {
            through_file: options.base_through_file,
            at_once: options.base_at_once,
            uncompressed: options.base_uncompressed,
        }
    }
}

/// While it lives, the server forks as it suits bases.
pub(super) struct Tuned<'t> {
    tuning: &'t Tuning,
    connection: Connection,
    _alone: MutexGuard<'t, ()>,
}

/// What suits a base and is not so, as `setting value`; nothing where nobody may know.
pub(super) fn wanted(connection: &mut Connection, options: &Options) -> Result<Vec<String>> {
    Ok(changes(connection, Way::of(options))?.into_iter().map(|c| format!("{} {}", c.name, c.meanwhile)).collect())
}

/// What an agent has changed on a server and not put back yet, by its folder.
pub(super) fn left(dir: &Path) -> Result<Option<String>> {
    Ok(Note::read(&dir.join(NOTE))?.map(|(note, _)| note.told()))
}

fn changes(connection: &mut Connection, way: Way) -> Result<Vec<Changed>> {
    let names = [&[COMPRESSION, DISKLESS, DELAY][..], &through_file::SETTINGS].concat();
    let settings = Settings::read(connection, &names)?;
    Ok(settings.map_or_else(Vec::new, |settings| changes_of(&settings, way)))
}

fn changes_of(settings: &Settings, way: Way) -> Vec<Changed> {
    let through_file = way.through_file || !settings.is(DISKLESS, "yes");
    let compresses = settings.is(COMPRESSION, "yes") && (!through_file || through_file::goes(settings));
    let compresses = compresses && way.uncompressed;
    // A file begins at once.
    let waits = way.at_once && !through_file && settings.get(DELAY).is_some_and(|seconds| seconds != "0");
    let changed = |name: &str, meanwhile: &str| {
        let own = settings.get(name).unwrap_or_default().to_owned();
        Changed { name: name.to_owned(), own, meanwhile: meanwhile.to_owned() }
    };
    let compression = compresses.then(|| changed(COMPRESSION, "no"));
    compression.into_iter().chain(waits.then(|| changed(DELAY, "0"))).collect()
}

/// Whether a fork would not come at once, or not for the agent alone.
fn is_busy(info: &Info) -> bool {
    let children = ["rdb_bgsave_in_progress", "aof_rewrite_in_progress", "module_fork_in_progress"];
    // `slave0:ip=…,port=…,state=online,…`
    let mut replicas = info.with_prefix("slave").filter(|(_, value)| value.starts_with("ip="));
    children.iter().any(|child| info.text(child) == "1")
        || replicas.any(|(_, value)| !value.contains("state=online"))
}

impl Tuning {
    /// That of the server of an engine.
    pub(super) fn of(options: &Options) -> Self {
        Self {
            address: options.address.clone(),
            login: options.login.clone(),
            note: options.dir.join(NOTE),
            way: Way::of(options),
            silent: AtomicBool::default(),
            told: AtomicBool::default(),
            changing: Mutex::default(),
        }
    }

    /// Whether the user may change settings. Asked, not tried: a server notes each refusal. Those before 7.0 cannot be asked.
    pub(super) fn is_allowed(&self, connection: &mut Connection) -> Result<bool> {
        if self.silent.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let asked = [&[&b"ACL"[..], b"DRYRUN", self.login.user_name().as_bytes()][..], &CHANGE].concat();
        let answer = connection.call(&asked)?;
        // Any other error may be gone the next time.
        let never =
            matches!(&answer, Reply::Error(e) if e.starts_with("NOPERM") || e.to_lowercase().contains("unknown"));
        self.silent.store(never, Ordering::Relaxed);
        Ok(matches!(answer, Reply::Status(ok) if ok == "OK"))
    }

    /// Changes settings, if there are any to change and the user may. What fails is told, and costs no more than time.
    pub(super) fn begin(&self) -> Option<Tuned<'_>> {
        let alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // An earlier change that could not be put back is none to build on.
        match self.connect().and_then(|mut c| self.put_back(&mut c).and_then(|()| self.change(c))) {
            Ok(connection) => connection.map(|connection| Tuned { tuning: self, connection, _alone: alone }),
            Err(e) => {
                tracing::info!(error = %e.report(), "the server forks for this base as it is set");
                None
            }
        }
    }

    fn connect(&self) -> Result<Connection> {
        let connection = Connection::open(&self.address, &self.login)?;
        connection.set_timeout(PATIENCE)?;
        Ok(connection)
    }

    /// The connection by which it was done; `None` where there is nothing to change.
    fn change(&self, mut connection: Connection) -> Result<Option<Connection>> {
        if !self.is_allowed(&mut connection)? || is_busy(&Info::parse(&connection.call(&[b"INFO"])?.text("INFO")?))
        {
            return Ok(None);
        }
        let changed = changes(&mut connection, self.way)?;
        if changed.is_empty() {
            return Ok(None);
        }
        let note = Note { life: Life::read(&mut connection)?.0, changed };
        note.write(&self.note)?;
        let pairs = note.changed.iter().flat_map(|c| [c.name.as_bytes(), c.meanwhile.as_bytes()]);
        let set: Vec<&[u8]> = [&b"CONFIG"[..], b"SET"].into_iter().chain(pairs).collect();
        let _ = connection.call(&set)?.ok("CONFIG SET")?;
        tracing::debug!(settings = note.told(), "changed while the server forks");
        crash::point("agent.base-tuned");
        Ok(Some(connection))
    }

    /// Puts back what an earlier process has left, or could not put back while the server was away. What is changed on purpose
    /// stays.
    pub(super) fn put_back_left(&self) {
        use std::sync::TryLockError::{Poisoned, WouldBlock};
        let _alone = match self.changing.try_lock() {
            Ok(alone) => alone,
            Err(Poisoned(alone)) => alone.into_inner(),
            Err(WouldBlock) => return,
        };
        if self.note.exists() {
            self.tell(self.connect().and_then(|mut c| self.put_back(&mut c)));
        }
    }

    /// Tells once that settings are not back.
    fn tell(&self, put_back: Result<()>) {
        match put_back {
            Ok(()) => self.told.store(false, Ordering::Relaxed),
            Err(e) if !self.told.swap(true, Ordering::Relaxed) => {
                let (server, error) = (&self.address, e.report());
                tracing::warn!(%server, %error, "settings that were changed for a base are not back yet: it is tried again");
            }
            Err(_) => {}
        }
    }

    /// Puts back what the note says, if there is one.
    fn put_back(&self, connection: &mut Connection) -> Result<()> {
        let Some((note, age)) = Note::read(&self.note)? else { return Ok(()) };
        let (life, lasts) = Life::read(connection)?;
        if life.run_id == note.life.run_id {
            self.put_back_in_life(connection, &note, &life)?;
        } else {
            self.look_after_life(connection, &note, lasts > age)?;
        }
        Note::remove(&self.note)
    }

    fn put_back_in_life(&self, connection: &mut Connection, note: &Note, life: &Life) -> Result<()> {
        for Changed { name, own, meanwhile } in &note.changed {
            let now = Settings::read(connection, &[name])?;
            if now.is_none_or(|now| now.is(name, meanwhile)) {
                let reply = connection.call(&[b"CONFIG", b"SET", name.as_bytes(), own.as_bytes()])?;
                let _ = reply.ok(&format!("CONFIG SET {name} {own}"))?;
            }
        }
        // Its file has what was so when somebody else had it written.
        if life.rewrites > note.life.rewrites
            && let Err(e) = connection.call(&[b"CONFIG", b"REWRITE"])?.ok("CONFIG REWRITE")
        {
            let (server, settings, error) = (&self.address, note.told(), e.report());
            tracing::warn!(%server, %settings, %error, "a CONFIG REWRITE wrote these to the server's file: run it again");
        }
        Ok(())
    }

    /// Says what must be looked at, where another life of the server answers, or `other` server.
    fn look_after_life(&self, connection: &mut Connection, note: &Note, other: bool) -> Result<()> {
        let names: Vec<&str> = note.changed.iter().map(|c| c.name.as_str()).collect();
        let now = Settings::read(connection, &names)?.unwrap_or_default();
        let (server, settings) = (&self.address, note.told());
        if other {
            tracing::warn!(%server, %settings, "another server answers here: the one before may still have these settings");
        } else if note.changed.iter().any(|c| now.is(&c.name, &c.meanwhile)) {
            tracing::warn!(%server, %settings, "the server was started anew with these settings: its file may have them by mistake");
        }
        Ok(())
    }
}

impl Drop for Tuned<'_> {
    fn drop(&mut self) {
        let put_back = self.tuning.put_back(&mut self.connection);
        self.tuning.tell(put_back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str, through_file: bool) -> String {
        told_of(text, Way { through_file, at_once: true, uncompressed: true })
    }

    fn told_of(text: &str, way: Way) -> String {
        let changes = changes_of(&Settings::of(text), way);
        changes.iter().map(|c| format!("{}:{}>{} ", c.name, c.own, c.meanwhile)).collect()
    }

    #[test]
    fn only_what_is_otherwise_is_changed_and_no_file_that_stays() {
        const SHIPPED: &str = "rdbcompression yes repl-diskless-sync yes repl-diskless-sync-delay 5 save 3600 appendonly no \
                               rdb-del-sync-files no";
        const BOTH: &str = "rdbcompression:yes>no repl-diskless-sync-delay:5>0 ";
        assert_eq!(told(SHIPPED, false), BOTH);
        assert_eq!(told(SHIPPED, true), "");
        assert_eq!(told(&SHIPPED.replace("sync yes", "sync no"), false), "");
        let goes = SHIPPED.replace("3600", "_").replace("files no", "files yes");
        assert_eq!(told(&goes, false), BOTH);
        assert_eq!(told(&goes, true), "rdbcompression:yes>no ");
        assert_eq!(told("rdbcompression no repl-diskless-sync yes repl-diskless-sync-delay 0", false), "");
        assert_eq!(told("", false), "");
        let only = |at_once| told_of(SHIPPED, Way { through_file: false, at_once, uncompressed: !at_once });
        assert_eq!([only(true), only(false)].concat(), "repl-diskless-sync-delay:5>0 rdbcompression:yes>no ");
    }

    #[test]
    fn a_server_is_busy_with_a_child_or_a_replica_that_it_serves() {
        let busy = |text: &str| is_busy(&Info::parse(text));
        assert!(!busy(
            "rdb_bgsave_in_progress:0\nslave_read_only:1\nslave0:ip=a,port=1,state=online,offset=1,lag=0"
        ));
        assert!(busy("aof_rewrite_in_progress:1"));
        assert!(busy("slave0:ip=a,port=1,state=online,offset=1\nslave1:ip=a,port=2,state=wait_bgsave,offset=0"));
    }
}
