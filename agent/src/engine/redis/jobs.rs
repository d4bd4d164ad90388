//! Jobs of backups on one server: base and log, and what becomes of them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::Position;
use tidemark_proto::{Error, ErrorKind, Result, Timestamp};

use super::Redis;
use super::absolute::sends_relative;
use super::fold::Fold;
use super::hold::HoldState;
use super::kept::Around;
use super::link::{BaseWay, Link};
use super::merge::State;
use super::ready::Ready;
use super::server::{PRIMARY, View};
use super::settle::Settling;

/// Time for the stream to come to the cut once nobody waits for it with writes held.
const CUT_PATIENCE: Duration = Duration::from_secs(30);

/// Name of the file of what is made ready of the base.
const READY: &str = "ready";

/// What one backup works with here.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) dir: PathBuf,
    pub(super) link: Option<Link>,
    /// Makes the base ready, until its state at the cut is asked for.
    pub(super) settling: Option<Settling>,
    /// What it came to.
    pub(super) ready: Option<Arc<Ready>>,
    pub(super) hold: Option<HoldState>,
    pub(super) cut: Option<(Timestamp, Position)>,
    pub(super) state: Option<Arc<State>>,
    /// Libraries of functions in that state.
    pub(super) libraries: Vec<Vec<u8>>,
    /// What was read beside, after the cut.
    pub(super) around: Option<Around>,
    /// Whether the base is Valkey's.
    pub(super) valkey: bool,
}

impl Drop for Job {
    fn drop(&mut self) {
        (self.settling, self.link) = (None, None);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Job {
    fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            link: None,
            settling: None,
            ready: None,
            hold: None,
            cut: None,
            state: None,
            libraries: Vec::new(),
            around: None,
            valkey: false,
        }
    }

    /// Drops the base and all that was made of it.
    fn drop_base(&mut self) {
        (self.settling, self.ready, self.link) = (None, None, None);
    }

    /// Whether base and log stand.
    pub(super) fn has_base(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.base_if_whole().is_some())
    }
}

pub(super) type SharedJob = Arc<Mutex<Job>>;

impl Redis {
    pub(super) fn job(&self, job: JobId) -> Result<SharedJob> {
        let jobs = self.jobs.lock().expect("jobs");
        jobs.get(&job).cloned().ok_or_else(|| Error::conflict("no base was taken for this job: begin it again"))
    }

    pub(super) fn job_or_new(&self, job: JobId) -> SharedJob {
        let dir = self.options.dir.join("jobs").join(job.to_string());
        let new = || Arc::new(Mutex::new(Job::new(dir)));
        let mut jobs = self.jobs.lock().expect("jobs");
        // A cluster has one backup at a time: what another one left here is of no use any more.
        jobs.retain(|other, _| *other == job);
        jobs.entry(job).or_insert_with(new).clone()
    }

    /// The server as it is, where a base may be taken from it.
    pub(super) fn admit(&self) -> Result<View> {
        let view = self.view()?;
        if let Some(why) = view.unready() {
            return Err(Error::retry(why));
        }
        self.refuse_where_counted(&view)?;
        self.refuse_where_file_stays()?;
        let wanted = view.info.number("used_memory").unwrap_or(0);
        let free = free_space(&self.options.dir)?;
        if free < wanted {
            return Err(Error::new(
                ErrorKind::Full,
                format!(
                    "the base of this server may take {wanted} bytes in {}, where {free} are free: make room, or name \
                     another engine.dir",
                    self.options.dir.display()
                ),
            ));
        }
        self.shard.note(&view);
        Ok(view)
    }

    /// A link for a job. With `early`, how long the server waits before it forks, it asks for the base, which may not begin yet.
    pub(super) fn link(&self, this: &mut Job, view: &View, early: Option<Duration>) -> Result<Link> {
        let version = view.info.version();
        this.valkey = version.starts_with("valkey");
        Link::start(
            (self.options.address.clone(), self.options.login.clone()),
            self.shard.servers.clone(),
            &this.dir.join("link"),
            sends_relative(&version),
            BaseWay { through_file: self.options.base_through_file, tuning: Some(self.tuning.clone()) },
            early,
        )
    }

    /// Refuses to join a server that would take the agent for one of the replicas that it needs.
    pub(super) fn refuse_where_counted(&self, view: &View) -> Result<()> {
        // A replica counts nobody.
        let counts = view.info.role() == PRIMARY && view.info.has("min_slaves_good_slaves");
        match counts && !self.options.allow_min_replicas {
            false => Ok(()),
            true => Err(Error::config(
                "the server counts its replicas before it accepts writes (min-replicas-to-write), and would count the \
                 agent: set engine.allow_min_replicas = true to join it all the same",
            )),
        }
    }

    /// Takes the base of a job, unless it stands.
    pub(super) fn take_base(
        &self,
        job: JobId,
        whole: bool,
        cancel: &(dyn Fn() -> bool + Sync),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let shared = self.job_or_new(job);
        let mut this = shared.lock().expect("job");
        if this.has_base() {
            return Ok(());
        }
        let waiting = this.link.take();
        this.drop_base();
        let view = self.admit()?;
        let link = match waiting.filter(Link::begin) {
            Some(link) => link,
            None => self.link(&mut this, &view, None)?,
        };
        let base = link.base(&cancel, &progress).map_err(|e| e.context("taking the base"))?;
        this.link = Some(link);
        if whole {
            let path = this.dir.join(READY);
            let _ = std::fs::remove_file(&path);
            this.settling = Some(Settling::start(base.records.clone(), path)?);
        }
        Ok(())
    }

    /// The state at the cut of a job; made once. The link has ended then.
    pub(super) fn state_of(&self, job: &mut MutexGuard<'_, Job>) -> Result<Arc<State>> {
        if let Some(state) = &job.state {
            return Ok(state.clone());
        }
        let (at, position) = job.cut.clone().ok_or_else(|| Error::bug("a state without a cut"))?;
        // Its thread is waited for when the job is dropped.
        if let Some(ready) = job.settling.as_mut().and_then(Settling::end) {
            job.ready = Some(Arc::new(ready));
        }
        let (valkey, ready) = (job.valkey, job.ready.clone());
        let dir = job.dir.join("fold");
        let link = job.link.as_mut().ok_or_else(|| Error::bug("a cut without a link"))?;
        let up_to = link.up_to(&position, CUT_PATIENCE)?;
        // It leaves by itself, at its next look: what it still keeps lies behind the cut.
        link.shared().stop();
        let fold = Fold {
            at,
            base: &up_to.base,
            ready,
            log: (&up_to.log, up_to.bytes),
            relative: up_to.arrivals.as_ref().map(|arrivals| (up_to.base.position.offset, arrivals)),
            moved: up_to.moved,
            program: &self.options.scratch_server,
            valkey,
            dir: &dir,
        };
        let (state, gathered) = fold.run()?;
        job.libraries = gathered.functions;
        let state = Arc::new(state);
        job.state = Some(state.clone());
        Ok(state)
    }
}

/// Bytes that are free for the agent where `dir` is.
pub(super) fn free_space(dir: &Path) -> Result<u64> {
    // The folder may not be there yet.
    let there = dir.ancestors().find(|d| d.exists()).unwrap_or(dir);
    let space = nix::sys::statvfs::statvfs(there);
    let space = space.map_err(|e| Error::config(format!("{}", dir.display())).with_source(e))?;
    Ok(space.blocks_available().saturating_mul(space.fragment_size()))
}
