//! The files around the incarnations of a store.
//!
//! ```text
//! LOCK                 held while a process has the store open
//! CURRENT              names the live incarnation and its slots
//! RESTORE              while restoring: job, staged incarnation, its slots
//! data/<incarnation>/  one database for each incarnation
//! ```
//! `CURRENT` is the switch of a restore: it is replaced by an atomic rename, after the staged data is durable.
//!
//! | a crash ... | leaves |
//! |---|---|
//! | before `RESTORE` is there | the old data, open; a staged directory is removed at the next open |
//! | while loading | the old data, `restoring`; finished parts stay |
//! | before the rename of `CURRENT` | the same |
//! | after it | the new data; `RESTORE` and the old directory are removed at the next open |
//! | in an abort, after `RESTORE` is gone | the old data, open; the staged directory is removed at the next open |

use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::{Error, Incarnation, Result, SlotSet};

use super::fault;

const LOCK: &str = "LOCK";
const CURRENT: &str = "CURRENT";
const RESTORE: &str = "RESTORE";
const DATA: &str = "data";
/// First line of both files; a change of the form gets a new number.
const MAGIC: &str = "tidemark-embedded 1";
/// Longest such file, in bytes: a slot set of 8192 single slots stays far below.
const MAX_FILE: u64 = 256 << 10;

/// What `CURRENT` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Current {
    pub(super) incarnation: Incarnation,
    pub(super) slots: SlotSet,
}

/// What `RESTORE` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Restoring {
    pub(super) job: JobId,
    pub(super) staged: Incarnation,
    pub(super) slots: SlotSet,
}

/// A store's directory, locked.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    _lock: File,
}

impl Layout {
    /// Makes the directory if needed and locks it against other processes.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let doing = || format!("open the store in {}", root.display());
        fs::create_dir_all(root.join(DATA)).map_err(fault::io(doing()))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join(LOCK))
            .map_err(fault::io(doing()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root: root.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::conflict(format!(
                "{} is open in another process: stop that agent, or give this one its own directory",
                root.display()
            ))),
            Err(TryLockError::Error(e)) => Err(fault::io(doing())(e)),
        }
    }

    /// The live incarnation, `None` in a new directory.
    pub(super) fn current(&self) -> Result<Option<Current>> {
        let Some(lines) = self.read(CURRENT)? else { return self.none_was_there().map(|()| None) };
        let current = Current {
            incarnation: field(&lines, CURRENT, "incarnation")?,
            slots: field(&lines, CURRENT, "slots")?,
        };
        if !self.data(current.incarnation).is_dir() {
            return Err(Error::damaged(format!(
                "{} is missing, but {CURRENT} names it: bring the directory back, or empty {} and restore from a backup",
                self.data(current.incarnation).display(),
                self.root.display()
            )));
        }
        Ok(Some(current))
    }

    /// Without `CURRENT`, only empty directories may lie about: what a crash in the very first open leaves.
    fn none_was_there(&self) -> Result<()> {
        for dir in self.data_dirs()? {
            if fs::remove_dir(&dir).is_err() {
                return Err(Error::damaged(format!(
                    "{} holds data, but {CURRENT} is missing: bring that file back, or move the directory away",
                    dir.display()
                )));
            }
        }
        Ok(())
    }

    /// Makes `current` the live incarnation, durably. Its directory is made if it is not there.
    pub(super) fn set_current(&self, current: &Current) -> Result<()> {
        let dir = self.data(current.incarnation);
        fs::create_dir_all(&dir).map_err(fault::io(format!("make {}", dir.display())))?;
        sync_dir(&self.root.join(DATA))?;
        self.write(CURRENT, &[("incarnation", &current.incarnation), ("slots", &current.slots)])
    }

    /// The restore under way, if any.
    pub(super) fn restoring(&self) -> Result<Option<Restoring>> {
        let Some(lines) = self.read(RESTORE)? else { return Ok(None) };
        Ok(Some(Restoring {
            job: field(&lines, RESTORE, "job")?,
            staged: field(&lines, RESTORE, "staged")?,
            slots: field(&lines, RESTORE, "slots")?,
        }))
    }

    /// Notes a restore, durably.
    pub(super) fn set_restoring(&self, r: &Restoring) -> Result<()> {
        self.write(RESTORE, &[("job", &r.job), ("staged", &r.staged), ("slots", &r.slots)])
    }

    /// Forgets the restore, durably.
    pub(super) fn clear_restoring(&self) -> Result<()> {
        match fs::remove_file(self.root.join(RESTORE)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(fault::io(format!("remove {RESTORE} in {}", self.root.display()))(e))
            }
            _ => sync_dir(&self.root),
        }
    }

    /// Directory of an incarnation.
    pub(super) fn data(&self, incarnation: Incarnation) -> PathBuf {
        self.root.join(DATA).join(incarnation.to_string())
    }

    /// Removes the directories of all incarnations but those in `keep`.
    pub(super) fn clean(&self, keep: &[Incarnation]) -> Result<()> {
        let keep: Vec<_> = keep.iter().map(|i| self.data(*i)).collect();
        for dir in self.data_dirs()?.into_iter().filter(|d| !keep.contains(d)) {
            fs::remove_dir_all(&dir).map_err(fault::io(format!("remove {}", dir.display())))?;
        }
        Ok(())
    }

    fn data_dirs(&self) -> Result<Vec<PathBuf>> {
        let data = self.root.join(DATA);
        let all = fs::read_dir(&data).and_then(|d| d.map(|e| e.map(|e| e.path())).collect());
        all.map_err(fault::io(format!("list {}", data.display())))
    }

    fn write(&self, name: &str, fields: &[(&str, &dyn std::fmt::Display)]) -> Result<()> {
        let mut text = format!("{MAGIC}\n");
        for (field, value) in fields {
            text.push_str(&format!("{field} {value}\n"));
        }
        text.push_str(&format!("check {}\n", Hash::of(text.as_bytes())));
        let (temp, path) = (self.root.join(format!("{name}.new")), self.root.join(name));
        let put = || -> std::io::Result<()> {
            let mut file = File::create(&temp)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temp, &path)
        };
        put().map_err(fault::io(format!("write {}", path.display())))?;
        sync_dir(&self.root)
    }

    /// The checked lines of a file.
    fn read(&self, name: &str) -> Result<Option<String>> {
        let path = self.root.join(name);
        let damaged = || Error::damaged(format!("{} is damaged: bring it back from a copy", path.display()));
        match fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Ok(m) if m.len() > MAX_FILE => return Err(damaged()),
            _ => {}
        }
        let text = fs::read_to_string(&path).map_err(fault::io(format!("read {}", path.display())))?;
        let (body, check) = text.rsplit_once("check ").ok_or_else(damaged)?;
        if Hash::parse(check.trim_end()) != Some(Hash::of(body.as_bytes())) {
            return Err(damaged());
        }
        if body.lines().next() != Some(MAGIC) {
            return Err(Error::unsupported(format!(
                "{} is of another version: use the build that wrote it",
                path.display()
            )));
        }
        Ok(Some(body.to_owned()))
    }
}

fn field<T: std::str::FromStr<Err = Error>>(body: &str, file: &str, name: &str) -> Result<T> {
    let line = body.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|v| v.parse().ok())
        .ok_or_else(|| Error::damaged(format!("{file} has no valid line `{name}`: bring it back from a copy")))
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(fault::io(format!("sync {}", dir.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_back_and_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        assert_eq!(layout.current().unwrap(), None);
        let current = Current { incarnation: Incarnation::from_u128(7), slots: "0-5,9,100-16383".parse().unwrap() };
        layout.set_current(&current).unwrap();
        assert_eq!(layout.current().unwrap(), Some(current.clone()));
        let r = Restoring { job: JobId::from_u128(1), staged: Incarnation::from_u128(2), slots: SlotSet::EMPTY };
        layout.set_restoring(&r).unwrap();
        assert_eq!(layout.restoring().unwrap(), Some(r));
        layout.clear_restoring().unwrap();
        layout.clear_restoring().unwrap();
        assert_eq!(layout.restoring().unwrap(), None);

        let path = dir.path().join(CURRENT);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("0-5", "0-6")).unwrap();
        assert_eq!(layout.current().unwrap_err().kind(), tidemark_proto::ErrorKind::Damaged);
        fs::remove_file(&path).unwrap();
        fs::write(layout.data(current.incarnation).join("x"), "x").unwrap();
        assert_eq!(layout.current().unwrap_err().kind(), tidemark_proto::ErrorKind::Damaged);
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Layout::open(dir.path()).unwrap();
        let err = Layout::open(dir.path()).unwrap_err();
        assert_eq!(err.kind(), tidemark_proto::ErrorKind::Conflict);
        assert!(err.message().contains("another process"), "{err}");
    }
}
