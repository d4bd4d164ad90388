//! A folder as a store.

mod upload;

use std::path::Path;

use object_store::MultipartUpload;
use object_store::local::LocalFileSystem;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};
use url::Url;

/// The store of a `file://` URL; the folder is made where it is missing.
pub(super) fn open(url: &Url) -> Result<LocalFileSystem> {
    let path = folder_of(url)?;
    std::fs::create_dir_all(&path)
        .map_err(|e| Error::config(format!("repository folder {}", path.display())).with_source(e))?;
    open_existing(url)
}

/// As [`open`], where the folder must be there.
pub(super) fn open_existing(url: &Url) -> Result<LocalFileSystem> {
    let path = folder_of(url)?;
    if !path.is_dir() {
        return Err(Error::not_found(format!("there is no folder {}", path.display())));
    }
    let store = LocalFileSystem::new_with_prefix(&path)
        .map_err(|e| Error::config(format!("repository folder {}", path.display())).with_source(e))?;
    Ok(store.with_fsync(true))
}

/// Begins an object of a folder that is written in pieces, past the page cache where that is possible.
pub(super) fn multipart(
    store: &LocalFileSystem,
    key: &object_store::path::Path,
) -> object_store::Result<Box<dyn MultipartUpload>> {
    let upload = upload::Upload::begin(store.path_to_filesystem(key)?)?;
    Ok(Box::new(upload))
}

fn folder_of(url: &Url) -> Result<std::path::PathBuf> {
    url.to_file_path().map_err(|()| Error::config("repository URL: file:// needs an absolute path: file:///path"))
}

/// Removes files that are no objects yet: `name#number` beside the object that they were to become.
pub(super) fn delete_staged(root: &Path, wanted: impl Fn(&str) -> bool) -> Result<u64> {
    let (mut gone, mut todo) = (0, vec![root.to_owned()]);
    while let Some(dir) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let name = path.strip_prefix(root).map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
            let staged = name.rsplit_once('#').is_some_and(|(_, n)| n.bytes().all(|b| b.is_ascii_digit()));
            if staged && wanted(&name) {
                std::fs::remove_file(&path).or_kind(ErrorKind::Retry, format_args!("remove {}", path.display()))?;
                gone += 1;
            }
        }
    }
    Ok(gone)
}
