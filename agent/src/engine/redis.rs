//! Redis and Valkey: the agent joins its server as a replica, takes the base, keeps the command stream up to the cut, and makes
//! of both the state at the cut. Nothing is needed but a user with the rights of a replica.
//!
//! ```text
//! prepare   PSYNC -> base, sorted on disk; stream -> file
//! hold      CLIENT PAUSE and the offset, in one write
//! seal      the offset again: nothing but PING and REPLCONF GETACK may lie between
//! release   CLIENT UNPAUSE, where the pause is ours
//! snapshot  what the stream up to the cut names goes through a scratch server; the rest is as the base has it
//! ```

pub mod base;
pub mod check;
pub mod conn;
mod fence;
pub mod fold;
pub mod keys;
pub mod link;
mod lives;
mod load;
mod marker;
pub mod merge;
mod place;
mod readback;
pub mod resp;
mod saved;
pub mod scratch;
pub mod server;
pub mod spill;
pub mod stream;
mod sync;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{Description, Held, Ownership, Position, Sealed};
use tidemark_proto::{Error, ErrorKind, Incarnation, Result, SlotSet, Timestamp, error::ResultExt};

use crate::engine::{Engine, Loader, Snapshot, job_of_pin, job_pin};
use conn::{Address, Connection, Login};
use fence::Fences;
use fold::Fold;
use link::Link;
use merge::State;
use server::{PRIMARY, View, view_requests};

/// Name of the engine.
pub const ENGINE: &str = "redis";
/// Time for the stream to come to an offset that the server told.
const STREAM_PATIENCE: Duration = Duration::from_secs(2);
/// The same once nobody waits for it with writes held.
const CUT_PATIENCE: Duration = Duration::from_secs(30);
/// Time for a server to answer in a hold, beside the budget.
const HOLD_PATIENCE: Duration = Duration::from_secs(2);

/// What the engine works with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub address: Address,
    /// How to log in.
    pub login: Login,
    /// Folder for bases and logs of running jobs; emptied at the start.
    pub dir: PathBuf,
    /// Program of the scratch server; empty for one that is looked for.
    pub scratch_server: String,
    /// Take the base also where the server counts replicas before it accepts writes (`min-replicas-to-write`).
    pub allow_min_replicas: bool,
}

/// What one backup works with here.
#[derive(Debug)]
struct Job {
    dir: PathBuf,
    link: Option<Link>,
    hold: Option<HoldState>,
    cut: Option<(Timestamp, Position)>,
    state: Option<Arc<State>>,
}

#[derive(Debug, Clone)]
struct HoldState {
    position: Position,
    ownership: Ownership,
    since: Instant,
    budget: Duration,
    paused: bool,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.link = None;
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

type SharedJob = Arc<Mutex<Job>>;

/// A server of Redis or Valkey.
#[derive(Debug)]
pub struct Redis {
    me: Weak<Self>,
    options: Options,
    incarnation: Mutex<Incarnation>,
    control: Mutex<Option<Connection>>,
    /// Held while a restore that stands is brought to its end: whoever looks at the store does that.
    ending: Mutex<()>,
    jobs: Mutex<HashMap<JobId, SharedJob>>,
}

impl Redis {
    /// Makes ready; the server need not be there yet. Bases that an earlier process left are dropped.
    pub fn open(options: Options) -> Result<Arc<Self>> {
        let jobs = options.dir.join("jobs");
        let _ = std::fs::remove_dir_all(&jobs);
        std::fs::create_dir_all(&jobs).or_kind(ErrorKind::Config, format_args!("{}", jobs.display()))?;
        let incarnation = Mutex::new(read_incarnation(&options)?);
        let new = |me: &Weak<Self>| {
            let me = me.clone();
            Self {
                me,
                options,
                incarnation,
                control: Mutex::default(),
                ending: Mutex::default(),
                jobs: Mutex::default(),
            }
        };
        Ok(Arc::new_cyclic(new))
    }

    fn incarnation(&self) -> Incarnation {
        *self.incarnation.lock().expect("incarnation")
    }

    /// Runs `work` on the kept connection; one that failed is not kept.
    fn ask<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        let mut kept = self.control.lock().expect("connection");
        let open = || self.connect();
        // One that the server has closed meanwhile shows at the first question.
        let alive = kept.take().filter_map_alive();
        let mut connection = alive.map_or_else(open, Ok)?;
        let done = work(&mut connection)?;
        *kept = Some(connection);
        Ok(done)
    }

    /// A new connection, fenced or not.
    fn connect(&self) -> Result<Connection> {
        Fences::of(&self.options).connect(&self.options.address)
    }

    /// The next question goes by a new connection: users have changed.
    fn drop_connection(&self) {
        *self.control.lock().expect("connection") = None;
    }

    fn this(&self) -> Result<Arc<Self>> {
        self.me.upgrade().ok_or_else(|| Error::bug("an engine that is gone"))
    }

    /// Opens replicas that were away when their restore ended.
    fn open_replicas(&self) {
        let fences = Fences::of(&self.options);
        if let Err(e) = place::lower_left(&fences) {
            tracing::warn!(error = %e.report(), "what is kept of fenced replicas cannot be read");
        }
    }

    fn view(&self) -> Result<View> {
        self.ask(View::read)
    }

    fn job(&self, job: JobId) -> Result<SharedJob> {
        let jobs = self.jobs.lock().expect("jobs");
        jobs.get(&job).cloned().ok_or_else(|| Error::conflict("no base was taken for this job: begin it again"))
    }

    fn job_or_new(&self, job: JobId) -> SharedJob {
        let dir = self.options.dir.join("jobs").join(job.to_string());
        let new = || Arc::new(Mutex::new(Job { dir, link: None, hold: None, cut: None, state: None }));
        self.jobs.lock().expect("jobs").entry(job).or_insert_with(new).clone()
    }

    /// Whether a base may be taken from the server as it is.
    fn admit(&self, view: &View) -> Result<()> {
        if let Some(why) = view.unready() {
            return Err(Error::retry(why));
        }
        if view.info.role() != PRIMARY {
            return Err(Error::conflict("the server is a replica: the base is taken from its primary"));
        }
        if view.info.has("min_slaves_good_slaves") && !self.options.allow_min_replicas {
            return Err(Error::config(
                "the server counts its replicas before it accepts writes (min-replicas-to-write), and would count the \
                 agent: set engine.allow_min_replicas = true to take the base all the same",
            ));
        }
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
        Ok(())
    }
}

/// Bytes that are free for the agent where `dir` is.
fn free_space(dir: &Path) -> Result<u64> {
    // The folder may not be there yet.
    let there = dir.ancestors().find(|d| d.exists()).unwrap_or(dir);
    let space = nix::sys::statvfs::statvfs(there);
    let space = space.map_err(|e| Error::config(format!("{}", dir.display())).with_source(e))?;
    Ok(space.blocks_available().saturating_mul(space.fragment_size()))
}

trait Alive {
    fn filter_map_alive(self) -> Option<Connection>;
}

impl Alive for Option<Connection> {
    fn filter_map_alive(self) -> Option<Connection> {
        self.and_then(|mut c| c.call(&[b"PING"]).is_ok_and(|r| r.ok("PING").is_ok()).then_some(c))
    }
}

fn incarnation_path(options: &Options) -> PathBuf {
    options.dir.join("incarnation")
}

fn read_incarnation(options: &Options) -> Result<Incarnation> {
    let path = incarnation_path(options);
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|e: Error| e.context(path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => write_incarnation(options),
        Err(e) => Err(Error::config(format!("{}", path.display())).with_source(e)),
    }
}

/// Gives the data a new id.
fn write_incarnation(options: &Options) -> Result<Incarnation> {
    let incarnation = Incarnation::from_u128(rand::random());
    crate::fsutil::replace(&incarnation_path(options), incarnation.to_string().as_bytes())?;
    Ok(incarnation)
}

impl Engine for Redis {
    fn describe(&self) -> Result<Description> {
        let restoring = self.restoring()?;
        if restoring.is_none() {
            self.open_replicas();
        }
        let view = self.view()?;
        let state = match (view.unready(), restoring) {
            (Some(_), _) => "loading",
            (None, Some(_)) => "restoring",
            (None, None) => "available",
        };
        Ok(Description {
            engine: ENGINE.to_owned(),
            engine_version: view.info.version(),
            incarnation: self.incarnation(),
            state: state.to_owned(),
            position: view.info.position()?,
            ownership: view.ownership()?,
            clock_millis: view.clock_millis,
            records: view.info.keys(),
            bytes: view.info.number("used_memory_dataset").unwrap_or(0),
            changes_since: false,
            data_address: String::new(),
            ledger_number: 0,
            ledger_hash: Default::default(),
        })
    }

    fn prepare(
        &self,
        job: JobId,
        cancel: &(dyn Fn() -> bool + Sync),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        // A cluster has one backup at a time: what another one left here is of no use any more.
        self.jobs.lock().expect("jobs").retain(|other, _| *other == job);
        let shared = self.job_or_new(job);
        let mut this = shared.lock().expect("job");
        if this.link.as_ref().is_some_and(|link| link.base_if_whole().is_some()) {
            return Ok(());
        }
        this.link = None;
        self.admit(&self.view()?)?;
        let link = Link::start(self.options.address.clone(), self.options.login.clone(), &this.dir.join("link"))?;
        let _ = link.base(&cancel, &progress).map_err(|e| e.context("taking the base"))?;
        this.link = Some(link);
        Ok(())
    }

    fn hold(&self, job: JobId, budget: Duration) -> Result<Held> {
        let shared = self.job(job)?;
        let mut this = shared.lock().expect("job");
        if this.link.as_ref().is_none_or(|link| link.base_if_whole().is_none()) {
            return Err(Error::conflict("the base of this backup was lost: it must be taken again"));
        }
        (this.hold, this.cut, this.state) = (None, None, None);
        let paused = !budget.is_zero();
        let (view, since) = self.ask(|connection| pause(connection, budget))?;
        let (position, ownership) = (view.info.position()?, view.ownership()?);
        this.hold =
            Some(HoldState { position: position.clone(), ownership: ownership.clone(), since, budget, paused });
        if view.info.role() != PRIMARY {
            return Err(Error::conflict("the server is a replica by now"));
        }
        Ok(Held {
            position,
            max_timestamp: Timestamp::ZERO,
            ownership,
            incarnation: self.incarnation(),
            clock_millis: view.clock_millis,
        })
    }

    fn seal(&self, job: JobId, at: Timestamp) -> Result<Sealed> {
        let shared = self.job(job)?;
        let mut this = shared.lock().expect("job");
        let hold = this.hold.clone().ok_or_else(|| Error::conflict("a seal without a hold"))?;
        let view = self.view()?;
        let now = view.info.position()?;
        if now.history != hold.position.history || view.ownership()? != hold.ownership {
            return Err(Error::conflict("the server's history, role or slots changed in the hold"));
        }
        let link = this.link.as_ref().ok_or_else(|| Error::conflict("the base was lost"))?;
        if now.offset != hold.position.offset && !link.was_idle(&hold.position, &now, STREAM_PATIENCE)? {
            return Err(Error::conflict("the server moved on since it was held"));
        }
        this.cut = Some((at, hold.position.clone()));
        Ok(Sealed { position: hold.position })
    }

    fn release(&self, job: JobId) -> Result<(Ownership, Duration)> {
        let shared = self.job(job)?;
        let mut this = shared.lock().expect("job");
        let hold = this.hold.clone().ok_or_else(|| Error::conflict("a release without a hold"))?;
        // A pause that has ended by itself may be somebody else's by now.
        let ours = hold.paused && hold.since.elapsed() < hold.budget;
        if ours {
            let _ = self.ask(|c| c.call(&[b"CLIENT", b"UNPAUSE"]))?.ok("CLIENT UNPAUSE")?;
        }
        let held = if hold.paused { hold.since.elapsed().min(hold.budget) } else { Duration::ZERO };
        if let Some(hold) = &mut this.hold {
            hold.paused = false;
        }
        Ok((self.view()?.ownership()?, held))
    }

    fn pin(&self, name: &str, _: Timestamp, _: Duration) -> Result<()> {
        Err(Error::unsupported(format!("pin {name}: a Redis server keeps no old versions")))
    }

    fn unpin(&self, name: &str) -> Result<()> {
        if let Some(job) = job_of_pin(name) {
            drop(self.jobs.lock().expect("jobs").remove(&job));
        }
        Ok(())
    }

    fn pins(&self) -> Result<Vec<(String, Timestamp)>> {
        let jobs: Vec<JobId> = self.jobs.lock().expect("jobs").keys().copied().collect();
        Ok(jobs.into_iter().map(|job| (job_pin(job), Timestamp::ZERO)).collect())
    }

    fn max_value(&self) -> usize {
        load::MAX_PAYLOAD
    }

    fn restoring(&self) -> Result<Option<JobId>> {
        load::under_way(self.this()?)
    }

    fn snapshot(&self, at: Timestamp) -> Result<Box<dyn Snapshot>> {
        let jobs: Vec<SharedJob> = self.jobs.lock().expect("jobs").values().cloned().collect();
        let of_cut = |job: &MutexGuard<'_, Job>| job.cut.as_ref().is_some_and(|(cut, _)| *cut == at);
        for shared in jobs {
            let mut this = shared.lock().expect("job");
            if of_cut(&this) {
                return Ok(Box::new(self.state_of(&mut this)?));
            }
        }
        Err(Error::not_found(format!("no cut was taken here at {at}: the agent was started anew since")))
    }

    fn restore(&self, job: JobId, slots: SlotSet, in_place: bool) -> Result<Box<dyn Loader>> {
        load::begin(self.this()?, job, slots, in_place)
    }

    fn abort_restore(&self, job: JobId, _: SlotSet) -> Result<()> {
        load::abort(self.this()?, job)
    }
}

impl Redis {
    /// The state at the cut of a job; made once. The link has ended then.
    fn state_of(&self, job: &mut MutexGuard<'_, Job>) -> Result<Arc<State>> {
        if let Some(state) = &job.state {
            return Ok(state.clone());
        }
        let (at, position) = job.cut.clone().ok_or_else(|| Error::bug("a state without a cut"))?;
        let valkey = self.view()?.info.version().starts_with("valkey");
        let dir = job.dir.join("fold");
        let link = job.link.as_mut().ok_or_else(|| Error::bug("a cut without a link"))?;
        let up_to = link.up_to(&position, CUT_PATIENCE)?;
        link.stop();
        let fold = Fold {
            at,
            base: &up_to.base,
            log: (&up_to.log, up_to.bytes),
            moved: up_to.moved,
            program: &self.options.scratch_server,
            valkey,
            dir: &dir,
        };
        let (state, _) = fold.run()?;
        let state = Arc::new(state);
        job.state = Some(state.clone());
        Ok(state)
    }
}

/// Stops writes and reads where the server stands, in one write to it. When it does not answer in time the pause is taken
/// back on the same connection: it may take effect later otherwise, when nobody knows of it any more.
fn pause(connection: &mut Connection, budget: Duration) -> Result<(View, Instant)> {
    let millis = (budget.as_millis().max(1)).to_string();
    let pause: [&[u8]; 4] = [b"CLIENT", b"PAUSE", millis.as_bytes(), b"WRITE"];
    let cluster = View::read(connection)?.info.is_cluster();
    let mut requests: Vec<&[&[u8]]> = if budget.is_zero() { Vec::new() } else { vec![&pause] };
    requests.extend(view_requests(cluster));
    connection.set_timeout(budget + HOLD_PATIENCE)?;
    let since = Instant::now();
    let replies = match connection.pipeline(&requests) {
        Ok(replies) => replies,
        Err(e) => {
            let _ = connection.send(b"*2\r\n$6\r\nCLIENT\r\n$7\r\nUNPAUSE\r\n");
            while connection.reply().is_ok() {}
            return Err(e.context("the server does not stop its writes in time"));
        }
    };
    connection.set_timeout(conn::ANSWER_TIMEOUT)?;
    let mut replies = replies.into_iter();
    if !budget.is_zero() {
        let paused = replies.next().map_or_else(|| Err(Error::bug("no reply")), |r| r.ok("CLIENT PAUSE"));
        let _ = paused?;
    }
    Ok((View::of(replies)?, since))
}
