//! Settings that a server has for the moment in which it forks for a base (`engine.base_tuning`).
//!
//! - `rdbcompression`: servers as shipped compress every string of a base with LZF, which on text is a third of all that their child
//!   does. Blocks are compressed once more, and the better the less was done before. It is `no` meanwhile; not for a file that
//!   stays, which would be larger than its owner thinks.
//! - `repl-diskless-sync-delay`: servers as shipped wait 5 s before they fork, for other replicas that might come. It is 0 meanwhile.
//!
//! That takes an agent's user who may change settings (`+config|set`). Where it may not, or anything fails, a base is as good, and takes
//! longer. The child keeps what it was born with, and the server gets its own back at once.
//!
//! They are put back whatever happens: from before they are changed until they are back a note in the agent's folder names the
//! life of the server (`run_id`) and its own values. A server that was started anew since has read its own settings, and is left as it
//! is; so is a setting that somebody else has changed since.
//!
//! Source: `rdbSaveRawString`, `syncCommand` and `startBgsaveForReplication` of Redis: what answers `PSYNC` with `FULLRESYNC` forks
//! before it reads another command.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, TryLockError};

use tidemark_common::crash;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::conn::{Address, Connection, Login};
use super::resp::Reply;
use super::server::Info;
use super::settings::Settings;
use super::{Options, through_file};
use crate::fsutil;

/// File of the note: `1 <run_id>`, then lines of a setting, its own value and the one it has meanwhile.
const NOTE: &str = "base-tuning";
const NOTE_VERSION: &str = "1";

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
    through_file: bool,
    /// Held while settings are changed on purpose.
    changing: Mutex<()>,
}

/// While it lives, the server forks as it suits bases.
pub(super) struct Tuned<'t> {
    tuning: &'t Tuning,
    connection: Option<Connection>,
    _alone: MutexGuard<'t, ()>,
}

/// A setting that is another one meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Changed {
    name: String,
    own: String,
    meanwhile: String,
}

/// What was changed, and in which life of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    run_id: String,
    changed: Vec<Changed>,
}

/// Whether the user may change settings. Asked, not tried: a server notes each refusal. Those before 7.0 cannot be asked.
pub(super) fn is_allowed(connection: &mut Connection, login: &Login) -> Result<bool> {
    let asked = [&[&b"ACL"[..], b"DRYRUN", login.user_name().as_bytes()][..], &CHANGE].concat();
    Ok(matches!(connection.call(&asked)?, Reply::Status(ok) if ok == "OK"))
}

/// What suits a base and is not so; nothing where nobody may know.
pub(super) fn wanted(connection: &mut Connection, through_file: bool) -> Result<Vec<String>> {
    Ok(changes(connection, through_file)?.into_iter().map(|c| format!("{} {}", c.name, c.meanwhile)).collect())
}

fn changes(connection: &mut Connection, through_file: bool) -> Result<Vec<Changed>> {
    let names = [&[COMPRESSION, DISKLESS, DELAY][..], &through_file::SETTINGS].concat();
    let settings = Settings::read(connection, &names)?;
    Ok(settings.map_or_else(Vec::new, |settings| changes_of(&settings, through_file)))
}

fn changes_of(settings: &Settings, through_file: bool) -> Vec<Changed> {
    let through_file = through_file || !settings.is(DISKLESS, "yes");
    let compresses = settings.is(COMPRESSION, "yes") && (!through_file || through_file::goes(settings));
    // A file begins at once.
    let waits = !through_file && settings.get(DELAY).is_some_and(|seconds| seconds != "0");
    let changed = |name: &str, meanwhile: &str| {
        let own = settings.get(name).unwrap_or_default().to_owned();
        Changed { name: name.to_owned(), own, meanwhile: meanwhile.to_owned() }
    };
    let compression = compresses.then(|| changed(COMPRESSION, "no"));
    compression.into_iter().chain(waits.then(|| changed(DELAY, "0"))).collect()
}

impl Tuning {
    /// That of the server of an engine.
    pub(super) fn of(options: &Options) -> Self {
        Self {
            address: options.address.clone(),
            login: options.login.clone(),
            note: options.dir.join(NOTE),
            through_file: options.base_through_file,
            changing: Mutex::default(),
        }
    }

    /// Changes settings, if there are any to change and the user may. What fails is told, and costs no more than time.
    pub(super) fn begin(&self) -> Option<Tuned<'_>> {
        let alone = self.changing.lock().expect("no panic while held");
        // An earlier change that could not be put back is none to build on.
        match self.put_back(None).and_then(|()| self.change()) {
            Ok(connection) => connection.map(|c| Tuned { tuning: self, connection: Some(c), _alone: alone }),
            Err(e) => {
                tracing::info!(error = %e.report(), "the server forks for this base as it is set");
                self.put_back_or_tell(None);
                None
            }
        }
    }

    /// The connection by which it was done; `None` where there is nothing to change.
    fn change(&self) -> Result<Option<Connection>> {
        let mut connection = Connection::open(&self.address, &self.login)?;
        if !is_allowed(&mut connection, &self.login)? {
            return Ok(None);
        }
        let changed = changes(&mut connection, self.through_file)?;
        if changed.is_empty() {
            return Ok(None);
        }
        let note = Note { run_id: run_id(&mut connection)?, changed };
        fsutil::replace(&self.note, note.text().as_bytes())?;
        let pairs = note.changed.iter().flat_map(|c| [c.name.as_bytes(), c.meanwhile.as_bytes()]);
        let _ = connection
            .call(&[&b"CONFIG"[..], b"SET"].into_iter().chain(pairs).collect::<Vec<_>>())?
            .ok("CONFIG SET")?;
        tracing::debug!(settings = ?note.changed, "changed while the server forks");
        crash::point("agent.base-tuned");
        Ok(Some(connection))
    }

    /// Puts back what an earlier process has left, or could not put back while the server was away.
    pub(super) fn put_back_left(&self) {
        match self.changing.try_lock() {
            Ok(_alone) => self.put_back_or_tell(None),
            // They are changed on purpose.
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Poisoned(_)) => {
                tracing::warn!("a thread panicked with settings of the server changed")
            }
        }
    }

    fn put_back_or_tell(&self, connection: Option<Connection>) {
        if let Err(e) = self.put_back(connection) {
            let (server, error) = (&self.address, e.report());
            tracing::warn!(%server, %error, "settings that were changed for a base are not back yet: it is tried again");
        }
    }

    /// Puts back what the note says, if there is one.
    fn put_back(&self, connection: Option<Connection>) -> Result<()> {
        let note = match std::fs::read_to_string(&self.note) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            text => Note::parse(&text.or_kind(ErrorKind::Retry, format_args!("{}", self.note.display()))?)?,
        };
        let alive = connection.and_then(Connection::if_alive);
        let mut connection = alive.map_or_else(|| Connection::open(&self.address, &self.login), Ok)?;
        if run_id(&mut connection)? == note.run_id {
            for Changed { name, own, meanwhile } in &note.changed {
                let now = Settings::read(&mut connection, &[name])?;
                if now.is_none_or(|now| now.is(name, meanwhile)) {
                    let reply = connection.call(&[b"CONFIG", b"SET", name.as_bytes(), own.as_bytes()])?;
                    let _ = reply.ok(&format!("CONFIG SET {name} {own}"))?;
                }
            }
        }
        std::fs::remove_file(&self.note).or_kind(ErrorKind::Full, format_args!("{}", self.note.display()))
    }
}

impl Drop for Tuned<'_> {
    fn drop(&mut self) {
        self.tuning.put_back_or_tell(self.connection.take());
    }
}

impl Note {
    fn text(&self) -> String {
        let lines = self.changed.iter().map(|c| format!("\n{} {} {}", c.name, c.own, c.meanwhile));
        format!("{NOTE_VERSION} {}", self.run_id) + &lines.collect::<String>()
    }

    fn parse(text: &str) -> Result<Self> {
        let bad = || Error::damaged("the note of changed settings is not understood");
        let mut lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let first = lines.next();
        let Some([NOTE_VERSION, run_id]) = first.as_deref() else { return Err(bad()) };
        let changed = lines.map(|words| match words[..] {
            [name, own, meanwhile] => {
                Ok(Changed { name: name.to_owned(), own: own.to_owned(), meanwhile: meanwhile.to_owned() })
            }
            _ => Err(bad()),
        });
        Ok(Self { run_id: (*run_id).to_owned(), changed: changed.collect::<Result<_>>()? })
    }
}

fn run_id(connection: &mut Connection) -> Result<String> {
    let info = Info::parse(&connection.call(&[b"INFO", b"server"])?.text("INFO")?);
    Ok(info.text("run_id").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str, through_file: bool) -> String {
        let changes = changes_of(&Settings::of(text), through_file);
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
    }

    #[test]
    fn notes_are_read_again() {
        let changed = |name: &str| Changed { name: name.to_owned(), own: "5".into(), meanwhile: "0".into() };
        let note = Note { run_id: "0af".into(), changed: vec![changed("a"), changed("b")] };
        assert_eq!(Note::parse(&note.text()).unwrap(), note);
        for bad in ["", "1", "2 0af", "1 0af\na 5", "1 0af\na 5 0 1"] {
            assert!(Note::parse(bad).is_err(), "{bad}");
        }
    }
}
