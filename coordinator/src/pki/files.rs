//! Writing files whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind as Io, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

/// Mode of every file.
const FILE_MODE: u32 = 0o600;
/// Mode of folders made here.
const DIR_MODE: u32 = 0o700;

/// Makes a folder and those above it.
pub(super) fn make_dir(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(dir)
        .or_kind(ErrorKind::Config, format!("{}: folder cannot be made", dir.display()))
}

/// Refuses to go on where a file stands in the way.
pub(super) fn must_not_exist(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(_) => Err(exists(path)),
        Err(_) => Ok(()),
    }
}

fn exists(path: &Path) -> Error {
    Error::conflict(format!("{}: exists already; --force replaces it", path.display()))
}

/// Writes a file through a temporary one beside it, durably. An existing one is replaced with `force` alone.
pub(super) fn write(path: &Path, content: &[u8], force: bool) -> Result<()> {
    let (dir, name) = match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) => (dir, name.to_string_lossy()),
        _ => return Err(Error::request(format!("{}: is not a file name", path.display()))),
    };
    let temporary = dir.join(format!(".{name}.{:016x}", rand::random::<u64>()));
    let written = write_new(&temporary, content).and_then(|()| place(&temporary, path, force));
    let _ = fs::remove_file(&temporary);
    written.map_err(|e| match e.kind() {
        Io::AlreadyExists => exists(path),
        Io::StorageFull | Io::QuotaExceeded => {
            Error::full(format!("{}: no room to write it", path.display())).with_source(e)
        }
        _ => Error::config(format!("{}: cannot be written", path.display())).with_source(e),
    })?;
    File::open(dir)
        .and_then(|d| d.sync_all())
        .or_kind(ErrorKind::Config, format!("{}: folder cannot be synced", dir.display()))
}

fn write_new(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn place(from: &Path, to: &Path, force: bool) -> std::io::Result<()> {
    // A link, unlike a rename, fails when the name is taken: no gap between looking and writing.
    if force { fs::rename(from, to) } else { fs::hard_link(from, to) }
}
