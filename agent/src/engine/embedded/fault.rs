//! Errors of the storage library and the file system in Tidemark's kinds.

use std::io::ErrorKind as Io;

use tidemark_proto::{Error, ErrorKind};

/// Says what went wrong while doing `what` (a clause like "commit a group").
pub(super) fn fjall(what: &str) -> impl Fn(fjall::Error) -> Error + '_ {
    move |e| {
        let (kind, todo) = match &e {
            fjall::Error::Io(io) | fjall::Error::Storage(fjall::LsmError::Io(io)) => advice(io),
            fjall::Error::Locked => (ErrorKind::Conflict, "another process has the store open: stop it first"),
            fjall::Error::Poisoned => {
                (ErrorKind::Retry, "an earlier write to disk failed: check the disk, then restart the agent")
            }
            fjall::Error::KeyspaceDeleted => (ErrorKind::Bug, "report this"),
            fjall::Error::InvalidVersion(_) => {
                (ErrorKind::Unsupported, "the data was written by another version of the storage library")
            }
            _ => (ErrorKind::Damaged, "the files are damaged: restore this node from a backup"),
        };
        Error::new(kind, format!("cannot {what}: {todo}")).with_source(e)
    }
}

/// The same for the file system.
pub(super) fn io(what: String) -> impl Fn(std::io::Error) -> Error {
    move |e| {
        let (kind, todo) = advice(&e);
        Error::new(kind, format!("cannot {what}: {todo}")).with_source(e)
    }
}

fn advice(e: &std::io::Error) -> (ErrorKind, &'static str) {
    match e.kind() {
        Io::StorageFull | Io::QuotaExceeded => (ErrorKind::Full, "the disk is full: free some space"),
        Io::PermissionDenied | Io::ReadOnlyFilesystem => {
            (ErrorKind::Config, "the agent's user must own the directory, with the right to write")
        }
        Io::NotFound => (ErrorKind::Damaged, "a file is missing: restore this node from a backup"),
        Io::InvalidData | Io::UnexpectedEof => {
            (ErrorKind::Damaged, "the files are damaged: restore this node from a backup")
        }
        _ => (ErrorKind::Retry, "check the disk, then try again"),
    }
}
