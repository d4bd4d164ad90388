//! A server that belongs to a restore: which, how far it is, and whether it is still the server that was begun with.
//!
//! In place, clients are fenced off when the restore begins, and the data is dropped when the first part comes: by then every
//! node of the cluster has its fence. Until then the restore can be called off and the data is as it was. From then on
//! the server opens only with restored data.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tidemark_common::crash;
use tidemark_proto::id::JobId;
use tidemark_proto::{Error, ErrorKind, Incarnation, Result, SlotSet, error::ResultExt};

use super::conn::{Address, Login};
use super::fence::{Fences, replicas_of};
use super::marker::{Marker, Step};
use super::server::View;
use super::{Redis, write_incarnation};
use crate::fsutil;
use crate::restore::other_slots;

/// File in the folder of the parts: the slots that they are loaded for.
const SLOTS: &str = "slots";

pub(super) fn is_gone(job: JobId) -> Error {
    Error::conflict(format!("the restore of job {job} was committed or aborted: begin a new one"))
}

/// What is told where the data of before is gone and the new one does not stand.
pub(super) fn without_data(job: JobId) -> Error {
    Error::conflict(format!(
        "restore {job} ended after the server had been emptied: it holds no data, and clients stay out until another restore \
         in place ends well, of the safety backup for what was there before (`tidemark backup list`, then `tidemark \
         restore run ID --cluster CLUSTER --in-place`)"
    ))
}

/// A server in the hands of a restore.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) redis: Arc<Redis>,
    pub(super) job: JobId,
    /// Folder with the notes of finished parts.
    pub(super) parts: PathBuf,
    /// Counts how often the server lost its data meanwhile; held while the marker changes.
    pub(super) lives: Mutex<u64>,
}

impl Place {
    pub(super) fn new(redis: Arc<Redis>, job: JobId) -> Self {
        let parts = redis.options.dir.join("restore-parts");
        Self { redis, job, parts, lives: Mutex::new(0) }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.redis.options.dir
    }

    pub(super) fn address(&self) -> &Address {
        &self.redis.options.address
    }

    pub(super) fn fences(&self) -> Fences {
        Fences::of(&self.redis.options)
    }

    pub(super) fn parts(&self) -> &Path {
        &self.parts
    }

    /// The present life of the server: how often it lost its data meanwhile, as far as this process knows.
    pub(super) fn life(&self) -> u64 {
        *self.lives.lock().expect("lives")
    }

    pub(super) fn login(&self) -> Result<Login> {
        self.fences().login(self.address())
    }

    /// The marker of this restore; `Conflict` when it is over.
    pub(super) fn marker(&self) -> Result<Marker> {
        Marker::read(self.dir())?.filter(|m| m.job == self.job).ok_or_else(|| is_gone(self.job))
    }

    pub(super) fn step(&self, step: Step) -> Result<()> {
        Marker { job: self.job, step: Some(step) }.write(self.dir())
    }

    fn no_parts(&self, slots: &SlotSet) -> Result<()> {
        let _ = std::fs::remove_dir_all(&self.parts);
        std::fs::create_dir_all(&self.parts).or_kind(ErrorKind::Full, format_args!("{}", self.parts.display()))?;
        fsutil::replace(&self.parts.join(SLOTS), slots.to_string().as_bytes())
    }

    /// The parts that are loaded were loaded for these very slots.
    fn same_slots(&self, slots: &SlotSet) -> Result<()> {
        match std::fs::read_to_string(self.parts.join(SLOTS)) {
            Ok(begun) if begun == slots.to_string() => Ok(()),
            Ok(begun) => Err(other_slots(&begun, slots)),
            // An earlier build noted none.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::retry("note of a restore's slots").with_source(e)),
        }
    }

    /// Takes the server for `slots`, or goes on with it. New keys of these go to it, by `view`.
    pub(super) fn take(&self, view: &View, slots: &SlotSet, in_place: bool) -> Result<()> {
        let begun = Marker::read(self.dir())?;
        if begun
            .as_ref()
            .is_some_and(|m| m.job == self.job && !matches!(m.step, Some(Step::Committed | Step::CalledOff)))
        {
            self.same_slots(slots)?;
        }
        match begun.as_ref().map(|m| (m.job, &m.step)) {
            Some((job, Some(Step::Committed))) if job == self.job => {
                let _ = self.complete()?;
                Err(is_gone(job))
            }
            Some((job, Some(Step::CalledOff))) if job == self.job => Err(without_data(job)),
            Some((job, None)) if job == self.job => Ok(()),
            Some((job, Some(_))) if job == self.job => self.fence(),
            // Its data is gone: there is nothing to call off.
            Some((_, Some(Step::CalledOff))) if in_place => {
                self.no_parts(slots)?;
                self.step(Step::Emptying)?;
                self.fence()
            }
            Some((job, Some(Step::CalledOff))) => Err(without_data(job)),
            Some((job, _)) => {
                Err(Error::conflict(format!("restore {job} is under way on this server: end it first")))
            }
            None if in_place => {
                self.no_parts(slots)?;
                self.step(Step::Fenced)?;
                // Nothing has happened to the data: where clients cannot be kept off they are let in again.
                self.fence().inspect_err(|_| {
                    if let Err(e) = self.open_again() {
                        tracing::error!(error = %e.report(), "clients of the server are not all let in again");
                    }
                })
            }
            None if view.info.keys() > 0 => Err(Error::conflict(format!(
                "the server holds {} keys: restore onto an empty one, or in place",
                view.info.keys()
            ))),
            None => {
                self.no_parts(slots)?;
                Marker { job: self.job, step: None }.write(self.dir())
            }
        }
    }

    /// Keeps clients off the server and all its replicas.
    pub(super) fn fence(&self) -> Result<()> {
        let fences = self.fences();
        let (mut todo, mut seen) = (vec![self.address().clone()], BTreeSet::new());
        while let Some(address) = todo.pop() {
            if seen.insert(address.clone()) {
                todo.extend(replicas_of(&fences.raise(&address)?)?);
            }
        }
        self.redis.drop_connection();
        Ok(())
    }

    /// The restored data is the server's data: clients are let in.
    pub(super) fn commit(&self) -> Result<Incarnation> {
        match self.marker()?.step {
            None => {
                let incarnation = self.renew()?;
                self.end()?;
                return Ok(incarnation);
            }
            Some(Step::Committed) => {}
            Some(_) => {
                let _ = self.stand()?;
                self.step(Step::Committed)?;
                crash::point("agent.committed");
            }
        }
        self.complete()
    }

    fn renew(&self) -> Result<Incarnation> {
        let incarnation = write_incarnation(&self.redis.options)?;
        *self.redis.incarnation.lock().expect("incarnation") = incarnation;
        Ok(incarnation)
    }

    /// What is left to do for a restore that stands.
    pub(super) fn complete(&self) -> Result<Incarnation> {
        let _ending = self.redis.ending.lock().expect("ending");
        if Marker::read(self.dir())?.is_none_or(|m| m.job != self.job) {
            // Somebody else was faster.
            return Ok(self.redis.incarnation());
        }
        let incarnation = self.renew()?;
        self.open_again()?;
        Ok(incarnation)
    }

    /// Takes the fences down, the server's own above all, and ends the restore.
    fn open_again(&self) -> Result<()> {
        let fences = self.fences();
        fences.lower(self.address())?;
        self.redis.drop_connection();
        lower_left(&fences)?;
        self.end()
    }

    /// Calls the restore off: the data is as it was, or an error says that it is gone.
    pub(super) fn abort(&self) -> Result<()> {
        let _lives = self.lives.lock().expect("lives");
        match self.marker()?.step {
            None => {
                let _ = self.redis.ask(|c| c.call(&[b"FLUSHALL"]))?.ok("emptying the server again")?;
                self.redis.unload_libraries()?;
                self.end()
            }
            Some(Step::Fenced) => self.open_again(),
            Some(Step::Committed) => self.complete().map(drop),
            Some(Step::Emptying | Step::Loading(_) | Step::CalledOff) => {
                self.step(Step::CalledOff)?;
                // Half a backup is of no use to anybody; the next restore empties the server as well.
                let emptied = self.redis.ask(|c| c.call(&[b"FLUSHALL", b"ASYNC"]));
                if let Err(e) = emptied.and_then(|reply| reply.ok("emptying the server")) {
                    tracing::warn!(error = %e.report(), "half a backup stays on the fenced server");
                }
                Err(without_data(self.job))
            }
        }
    }

    fn end(&self) -> Result<()> {
        let removed = std::fs::remove_file(self.dir().join(super::marker::MARKER));
        removed.or_kind(ErrorKind::Retry, "note of a restore")?;
        let _ = std::fs::remove_dir_all(&self.parts);
        Ok(())
    }
}

/// Takes down what fences are left. A replica that is away is opened later, and keeps nobody else closed.
pub(super) fn lower_left(fences: &Fences) -> Result<()> {
    for saved in fences.servers()? {
        if let Err(e) = fences.lower(&saved.address) {
            tracing::warn!(error = %e.report(), "clients of this replica stay out until it answers again");
        }
    }
    Ok(())
}
