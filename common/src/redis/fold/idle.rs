//! Scratch servers that have worked a log off and wait for the next.
//!
//! A server whose link ends comes back at once, and a new base takes the place of all that it held, functions included. Redis before
//! 7 comes back only with the next second: then a new server is there sooner.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tempfile::TempDir;
use tidemark_proto::Result;

use super::{ScratchServer, folder};
use crate::redis::scratch::{FEW_DATABASES, Scratch};

/// From this version of the RDB format on (Redis 7.0) a server comes back at once.
const COMES_BACK: u16 = 10;

/// Servers that wait. With the last user of this they end.
#[derive(Debug, Default)]
pub struct Idle {
    waiting: Mutex<Vec<Started>>,
    /// One that is being started ahead.
    ahead: Mutex<Option<JoinHandle<Result<Started>>>>,
}

/// A server in a folder, of which nothing is left once it is dropped.
#[derive(Debug)]
pub(super) struct Started {
    server: ScratchServer,
    databases: u32,
    // Ended before its folder goes.
    pub(super) scratch: Scratch,
    _folder: TempDir,
}

impl Started {
    pub(super) fn new(server: &ScratchServer, databases: u32, dir: &Path) -> Result<Self> {
        let folder = folder(dir)?;
        let scratch = Scratch::start(&server.program, server.valkey, folder.path(), databases)?;
        Ok(Self { server: server.clone(), databases, scratch, _folder: folder })
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Idle {
    /// Starts a server of [`FEW_DATABASES`] that somebody will take soon, while he does other things.
    pub(super) fn start_ahead(&self, server: &ScratchServer, dir: &Path) {
        let (server, dir) = (server.clone(), dir.to_owned());
        let start = move || Started::new(&server, FEW_DATABASES, &dir);
        // Without a thread he starts one himself.
        *locked(&self.ahead) = std::thread::Builder::new().name("redis-scratch".into()).spawn(start).ok();
    }

    /// One that waits and has so many databases, or a new one, whose folder lies in `dir`.
    pub(super) fn take(&self, server: &ScratchServer, databases: u32, dir: &Path) -> Result<Started> {
        let ahead = locked(&self.ahead).take();
        if let Some(Ok(started)) = ahead.and_then(|thread| thread.join().ok()) {
            locked(&self.waiting).push(started);
        }
        let mut waiting = locked(&self.waiting);
        let fits = |started: &Started| started.server == *server && started.databases == databases;
        if let Some(place) = waiting.iter().position(fits) {
            return Ok(waiting.swap_remove(place));
        }
        drop(waiting);
        Started::new(server, databases, dir)
    }

    /// Lets one wait that has done all that it was told to; `version` is that of the RDB format it loads.
    pub(super) fn give(&self, started: Started, version: u16) {
        if version >= COMES_BACK {
            locked(&self.waiting).push(started);
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        locked(&self.waiting).len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
