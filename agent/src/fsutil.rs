//! Small helpers for files that must survive a crash.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use tidemark_proto::{ErrorKind, Result, error::ResultExt};

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
