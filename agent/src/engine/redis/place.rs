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
use tidemark_proto::{Error, ErrorKind, Incarnation, Result, error::ResultExt};

use super::conn::{Address, Login};
use super::fence::{Fences, replicas_of};
use super::server::{PRIMARY, View};
use super::{Redis, write_incarnation};
use crate::fsutil;

/// File that says that a restore is under way, and which.
const MARKER: &str = "restore";
/// Word in it for a restore in place.
const IN_PLACE: &str = "in-place";
/// File in the folder of the parts: those that a restart of the server took away.
const LOST: &str = "lost";

/// How far a restore in place is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Fenced, or about to be; the data is as it was.
    Fenced,
    /// The data is being dropped.
    Emptying,
    /// Parts are loaded into this life of the server's process.
    Loading(String),
    /// Over, without data: another restore may take the server.
    CalledOff,
    /// Restored: clients are let in again, whatever happens.
    Committed,
}

/// What the marker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) job: JobId,
    /// `None`: onto an empty server.
    pub(super) step: Option<Step>,
}

impl Marker {
    fn parse(text: &str) -> Result<Self> {
        let bad = || Error::damaged("the note of a restore is not understood");
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let (job, step) = match words[..] {
            [job] => (job, None),
            [job, IN_PLACE, "fenced"] => (job, Some(Step::Fenced)),
            [job, IN_PLACE, "emptying"] => (job, Some(Step::Emptying)),
            [job, IN_PLACE, "loading", run_id] => (job, Some(Step::Loading(run_id.to_owned()))),
            [job, IN_PLACE, "called-off"] => (job, Some(Step::CalledOff)),
            [job, IN_PLACE, "committed"] => (job, Some(Step::Committed)),
            _ => return Err(bad()),
        };
        Ok(Self { job: job.parse().map_err(|_| bad())?, step })
    }

    fn text(&self) -> String {
        let step = match &self.step {
            None => return self.job.to_string(),
            Some(Step::Fenced) => "fenced",
            Some(Step::Emptying) => "emptying",
            Some(Step::Loading(run_id)) => &format!("loading {run_id}"),
            Some(Step::CalledOff) => "called-off",
            Some(Step::Committed) => "committed",
        };
        format!("{} {IN_PLACE} {step}", self.job)
    }

    /// That of the restore that is under way on the server with this folder.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>> {
        match std::fs::read_to_string(dir.join(MARKER)) {
            Ok(text) => Self::parse(&text).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::retry("note of a restore").with_source(e)),
        }
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        fsutil::replace(&dir.join(MARKER), self.text().as_bytes())
    }
}

fn is_gone(job: JobId) -> Error {
    Error::conflict(format!("the restore of job {job} was committed or aborted: begin a new one"))
}

/// What is told where the data of before is gone and the new one does not stand.
fn without_data(job: JobId) -> Error {
    Error::conflict(format!(
        "restore {job} ended after the server had been emptied: it holds no data, and clients stay out until another restore \
         in place ends well, of the safety backup for what was there before (`tidemark backup list`, then `tidemark \
         restore run ID --cluster CLUSTER --in-place`)"
    ))
}

/// A server in the hands of a restore.
#[derive(Debug)]
pub(super) struct Place {
    redis: Arc<Redis>,
    job: JobId,
    /// Folder with the notes of finished parts.
    parts: PathBuf,
    /// Counts how often the server lost its data meanwhile; held while the marker changes.
    lives: Mutex<u64>,
}

impl Place {
    pub(super) fn new(redis: Arc<Redis>, job: JobId) -> Self {
        let parts = redis.options.dir.join("restore-parts");
        Self { redis, job, parts, lives: Mutex::new(0) }
    }

    fn dir(&self) -> &Path {
        &self.redis.options.dir
    }

    fn address(&self) -> &Address {
        &self.redis.options.address
    }

    fn fences(&self) -> Fences {
        Fences::of(&self.redis.options)
    }

    pub(super) fn parts(&self) -> &Path {
        &self.parts
    }

    pub(super) fn login(&self) -> Result<Login> {
        self.fences().login(self.address())
    }

    /// The marker of this restore; `Conflict` when it is over.
    pub(super) fn marker(&self) -> Result<Marker> {
        Marker::read(self.dir())?.filter(|m| m.job == self.job).ok_or_else(|| is_gone(self.job))
    }

    fn step(&self, step: Step) -> Result<()> {
        Marker { job: self.job, step: Some(step) }.write(self.dir())
    }

    fn no_parts(&self) -> Result<()> {
        let _ = std::fs::remove_dir_all(&self.parts);
        std::fs::create_dir_all(&self.parts).or_kind(ErrorKind::Full, format_args!("{}", self.parts.display()))
    }

    /// Takes the server, or goes on with it. It owns its slots, by `view`.
    pub(super) fn take(&self, view: &View, in_place: bool) -> Result<()> {
        let begun = Marker::read(self.dir())?;
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
                self.no_parts()?;
                self.step(Step::Emptying)?;
                self.fence()
            }
            Some((job, Some(Step::CalledOff))) => Err(without_data(job)),
            Some((job, _)) => {
                Err(Error::conflict(format!("restore {job} is under way on this server: end it first")))
            }
            None if in_place => {
                self.no_parts()?;
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
                self.no_parts()?;
                Marker { job: self.job, step: None }.write(self.dir())
            }
        }
    }

    /// Keeps clients off the server and all its replicas.
    fn fence(&self) -> Result<()> {
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

    /// The server is still the one that was begun with, and fenced; the data of before is dropped where that is due. Answers
    /// its life, for [`Place::same_life`]. A server that was started anew is fenced and emptied again, which is `Conflict`.
    pub(super) fn stand(&self) -> Result<u64> {
        let mut lives = self.lives.lock().expect("lives");
        let Some(step) = self.marker()?.step else { return Ok(0) };
        let view = self.redis.view()?;
        if let Some(why) = view.unready() {
            return Err(Error::retry(why));
        }
        if view.info.role() != PRIMARY {
            return Err(Error::conflict("the server became a replica in the middle of its restore"));
        }
        let now = view.info.text("run_id");
        let fences = self.fences();
        let fenced = fences.saved(self.address())?.is_some_and(|saved| saved.up && saved.run_id == now);
        let unknown = replicas_of(&view)?.into_iter().any(|r| !fences.saved(&r).is_ok_and(|saved| saved.is_some()));
        if !fenced || unknown {
            self.fence()?;
        }
        match step {
            Step::Fenced => self.empty(now, true)?,
            Step::Emptying => self.empty(now, false)?,
            Step::Loading(begun) if begun == now => {}
            Step::Loading(_) => {
                *lives += 1;
                self.note_lost()?;
                self.step(Step::Emptying)?;
                self.empty(now, false)?;
                return Err(Error::conflict(
                    "the server was started anew in the middle of its restore: it was fenced and emptied again, and what was \
                     loaded is loaded anew",
                ));
            }
            Step::CalledOff => return Err(without_data(self.job)),
            Step::Committed => return Err(is_gone(self.job)),
        }
        Ok(*lives)
    }

    /// `write` is done only if the server has lost nothing since `life`.
    pub(super) fn same_life(&self, life: u64, write: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.stand()? == life {
            let lives = self.lives.lock().expect("lives");
            if *lives == life {
                return write();
            }
        }
        Err(Error::conflict("the server was started anew while the part was being loaded"))
    }

    /// Drops all data. `first`: it is still there, so that a refusal changes nothing.
    fn empty(&self, run_id: &str, first: bool) -> Result<()> {
        self.step(Step::Emptying)?;
        crash::point("agent.emptying");
        let reply = self.redis.ask(|c| c.call(&[b"FLUSHALL", b"ASYNC"]))?;
        if let Err(e) = reply.ok("emptying the server") {
            if first {
                self.step(Step::Fenced)?;
            }
            return Err(e);
        }
        crash::point("agent.emptied");
        self.step(Step::Loading(run_id.to_owned()))
    }

    /// Drops the notes of finished parts, and remembers which there were.
    fn note_lost(&self) -> Result<()> {
        let mut lost = self.lost()?;
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.parts).or_kind(ErrorKind::Retry, "folder of the restore")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(Ok(number)) = name.strip_prefix("part-").map(str::parse::<u32>) {
                let _ = lost.insert(number);
                files.push(entry.path());
            }
        }
        let text: Vec<String> = lost.iter().map(u32::to_string).collect();
        fsutil::replace(&self.parts.join(LOST), text.join(" ").as_bytes())?;
        for file in files {
            std::fs::remove_file(file).or_kind(ErrorKind::Retry, "note of a loaded part")?;
        }
        Ok(())
    }

    fn lost(&self) -> Result<BTreeSet<u32>> {
        match std::fs::read_to_string(self.parts.join(LOST)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            text => {
                let text = text.or_kind(ErrorKind::Retry, "note of lost parts")?;
                Ok(text.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect())
            }
        }
    }

    /// Before everything is read back: the replicas are fenced as well, and no part that was loaded is missing.
    pub(super) fn is_whole(&self, finished: &BTreeSet<u32>) -> Result<()> {
        let _ = self.stand()?;
        if self.marker()?.step.is_none() {
            return Ok(());
        }
        self.watch_replicas();
        let lost = self.lost()?;
        let missing: Vec<String> = lost.difference(finished).map(u32::to_string).collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.step(Step::CalledOff)?;
        let told = "the server was started anew in the middle of its restore, when these parts had been loaded";
        Err(without_data(self.job).context(format_args!("{told}: {}", missing.join(", "))))
    }

    /// Fences those again that were started anew. One that is away is fenced, or as its own file says, when it comes back.
    fn watch_replicas(&self) {
        let fences = self.fences();
        let again = || -> Result<()> {
            for saved in fences.servers()?.iter().filter(|saved| saved.address != *self.address()) {
                let run_id = fences.connect(&saved.address).and_then(|mut c| View::read(&mut c));
                match run_id.map(|view| view.info.text("run_id") == saved.run_id) {
                    Ok(true) => {}
                    Ok(false) => drop(fences.raise(&saved.address)?),
                    Err(e) => tracing::warn!(error = %e.report(), "replica {} is away", saved.address),
                }
            }
            Ok(())
        };
        if let Err(e) = again() {
            tracing::warn!(error = %e.report(), "a replica is not fenced");
        }
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
        let removed = std::fs::remove_file(self.dir().join(MARKER));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_read_again() {
        let job = JobId::default();
        let steps = [
            None,
            Some(Step::Fenced),
            Some(Step::Emptying),
            Some(Step::Loading("0af".into())),
            Some(Step::CalledOff),
            Some(Step::Committed),
        ];
        for step in steps {
            let marker = Marker { job, step };
            assert_eq!(Marker::parse(&marker.text()).unwrap(), marker);
        }
        for bad in ["", "nobody", &format!("{job} in-place"), &format!("{job} in-place loading")] {
            assert!(Marker::parse(bad).is_err(), "{bad}");
        }
    }
}
