//! Files that direct verbs write.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};
use tokio_util::sync::CancellationToken;

/// Bytes gathered before they are written.
pub(in crate::cli) const WRITE_BUFFER: usize = 256 << 10;

/// Waits for the work; Ctrl-C ends it in order, so that nothing half written is left.
pub(in crate::cli) async fn or_interrupted<T>(
    work: impl Future<Output = Result<T>>,
    cancel: &CancellationToken,
) -> Result<T> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            Ok(()) = tokio::signal::ctrl_c(), if !cancel.is_cancelled() => cancel.cancel(),
        }
    }
}

/// A file that takes its name when it is whole, and is gone when it never is.
pub(in crate::cli) struct Partial {
    file: File,
    path: PathBuf,
    wanted: PathBuf,
    whole: bool,
}

impl Partial {
    /// Begins a file. `Conflict` when something of that name is there.
    pub(in crate::cli) fn create(wanted: &Path) -> Result<Self> {
        if wanted.exists() {
            return Err(Error::conflict(format!("{} is there already: choose another --out", wanted.display())));
        }
        let name = wanted.file_name().ok_or_else(|| Error::request("--out: name a file, or `-`"))?;
        let mut partial = name.to_os_string();
        partial.push(format!(".{:08x}.partial", rand::random::<u32>()));
        let path = wanted.with_file_name(partial);
        // What is extracted is as confidential as the store itself.
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.or_kind(ErrorKind::Config, format_args!("{} cannot be written", wanted.display()))?;
        Ok(Self { file, path, wanted: wanted.to_owned(), whole: false })
    }

    /// To write with.
    pub(in crate::cli) fn file(&self) -> Result<File> {
        self.file.try_clone().or_kind(ErrorKind::Full, self.wanted.display())
    }

    /// The name that it takes.
    pub(in crate::cli) fn wanted(&self) -> &Path {
        &self.wanted
    }

    /// It is whole: it takes its name.
    pub(in crate::cli) fn complete(mut self) -> Result<()> {
        let written = self.file.flush().and_then(|()| self.file.sync_all());
        let named = written.and_then(|()| std::fs::rename(&self.path, &self.wanted));
        named.or_kind(ErrorKind::Full, self.wanted.display())?;
        self.whole = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.whole {
            // It may be gone already; there is nothing more to do about it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
