//! Small helpers for files that must survive a crash.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tidemark_proto::{ErrorKind, Result, error::ResultExt};

/// Longest write to a big file, in bytes. For longer ones the kernel takes long stretches of memory for its cache, which on a
/// machine that does not have them at hand took five times as long.
const STRIP: usize = 64 << 10;

/// Writes `bytes` at `at`, in strips.
pub fn write_strips(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    let mut at = at;
    for strip in bytes.chunks(STRIP) {
        file.write_all_at(strip, at)?;
        at += strip.len() as u64;
    }
    Ok(())
}

/// Replaces the file at `path` by `bytes`: written beside, synced, renamed, folder synced.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("new");
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().or_kind(ErrorKind::Full, format_args!("writing {}", path.display()))
}
