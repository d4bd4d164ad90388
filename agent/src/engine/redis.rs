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

mod absolute;
pub mod base;
pub mod check;
mod chunk;
pub mod dump;
mod dump_read;
mod early;
mod fence;
pub mod fold;
mod heap;
mod hold;
mod imports;
mod incarnation;
mod jobs;
mod kept;
pub mod link;
mod lives;
mod load;
mod log;
mod marker;
pub mod merge;
mod notes;
mod part;
mod place;
mod readback;
mod ready;
mod rewrite;
mod saved;
pub mod server;
mod settings;
mod settle;
mod shard;
pub mod spill;
pub mod stream;
mod sync;
mod take;
mod target;
mod through_file;
mod tuned;
mod worker;

pub use tidemark_common::redis::{conn, keys, resp, scratch};

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tidemark_common::record::REDIS_MAX_VALUE;
use tidemark_common::redis::fold::ScratchServer;
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{Description, Held, Kept, Ownership, RestoreKept, RestoredKept, Sealed};
use tidemark_proto::{Error, ErrorKind, Incarnation, Result, SlotSet, Timestamp, error::ResultExt};

use crate::engine::{EarlyBase, Engine, Loader, LogSource, Snapshot, job_of_pin, job_pin};
use conn::{Address, Connection, Login};
use fence::Fences;
use incarnation::{read_incarnation, write_incarnation};
use jobs::{Job, SharedJob, free_space};
pub use load::MAX_PAYLOAD;
use server::View;
use settle::Settling;
use shard::Shard;
use tuned::Tuning;

/// Name of the engine.
pub const ENGINE: &str = "redis";

/// Folder of the log's spool.
const LOG: &str = "spool";

/// Folder of long values on their way into the server.
const LONG: &str = "long";

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
    /// Let bases go through the server's own file, which it writes anew: it begins at once then (`repl-diskless-sync-delay`).
    pub base_through_file: bool,
    /// Let the server fork for a base at once, where the user may see to that (`repl-diskless-sync-delay`).
    pub base_at_once: bool,
    /// Let the server write bases without compressing them, where the user may see to that (`rdbcompression`).
    pub base_uncompressed: bool,
    /// Values over this many bytes are restored by commands, piece by piece; at most [`MAX_PAYLOAD`].
    pub native_over: usize,
}

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
    shard: Shard,
    tuning: Arc<Tuning>,
    log: log::RedisLog,
}

impl Redis {
    /// Makes ready; the server need not be there yet. Bases that an earlier process left are dropped.
    pub fn open(options: Options) -> Result<Arc<Self>> {
        let jobs = options.dir.join("jobs");
        for folder in [&jobs, &options.dir.join(LONG)] {
            let _ = std::fs::remove_dir_all(folder);
        }
        std::fs::create_dir_all(&jobs).or_kind(ErrorKind::Config, format_args!("{}", jobs.display()))?;
        let incarnation = Mutex::new(read_incarnation(&options)?);
        let tuning = Arc::new(Tuning::of(&options));
        let log = log::RedisLog::new(options.dir.join(LOG));
        let new = |me: &Weak<Self>| {
            let me = me.clone();
            Self {
                me,
                options,
                incarnation,
                control: Mutex::default(),
                ending: Mutex::default(),
                jobs: Mutex::default(),
                shard: Shard::default(),
                tuning,
                log,
            }
        };
        let this = Arc::new_cyclic(new);
        this.tuning.put_back_left();
        this.resume_log();
        Ok(this)
    }

    fn incarnation(&self) -> Incarnation {
        *self.incarnation.lock().expect("incarnation")
    }

    /// Runs `work` on the kept connection; one that failed is not kept.
    fn ask<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        let mut kept = self.control.lock().expect("connection");
        let open = || self.connect();
        // One that the server has closed meanwhile shows at the first question.
        let alive = kept.take().and_then(Connection::if_alive);
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

    /// What `view` says of the server, with what the agent knows.
    fn described(&self, view: &View, state: &str) -> Result<Description> {
        Ok(Description {
            engine: ENGINE.to_owned(),
            engine_version: view.info.version(),
            incarnation: self.incarnation(),
            state: state.to_owned(),
            position: view.info.position()?,
            ownership: view.ownership()?,
            clock_millis: view.clock_millis,
            records: view.info.keys(),
            bytes: view.info.dataset(),
            changes_since: false,
            data_address: String::new(),
            ledger_number: 0,
            ledger_hash: Default::default(),
        })
    }
}

impl Engine for Redis {
    fn describe(&self) -> Result<Description> {
        let restoring = self.restoring()?;
        if restoring.is_none() {
            self.open_replicas();
            self.tuning.put_back_left();
        }
        let view = self.view()?;
        self.shard.note(&view);
        let state = match (view.unready(), restoring) {
            (Some(_), _) => "loading",
            (None, Some(_)) => "restoring",
            (None, None) => "available",
        };
        self.described(&view, state)
    }

    fn identity(&self) -> Result<(Incarnation, bool)> {
        Ok((self.incarnation(), false))
    }

    fn describe_source(&self) -> Result<Description> {
        self.source()
    }

    fn prepare(
        &self,
        job: JobId,
        whole: bool,
        cancel: &(dyn Fn() -> bool + Sync),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        self.take_base(job, whole, cancel, progress)
    }

    fn prepare_early(&self, job: JobId, cancel: &(dyn Fn() -> bool + Sync)) -> Result<()> {
        self.ask_early(job, cancel)
    }

    fn early_base(&self, job: JobId) -> Result<Option<Arc<dyn EarlyBase>>> {
        let job = self.job(job)?;
        let job = job.lock().expect("job");
        Ok(job.settling.as_ref().filter(|_| job.has_base()).map(Settling::early))
    }

    fn hold(&self, job: JobId, budget: Duration) -> Result<Held> {
        self.hold_writes(job, budget)
    }

    fn seal(&self, job: JobId, at: Timestamp) -> Result<Sealed> {
        self.seal_cut(job, at)
    }

    fn release(&self, job: JobId) -> Result<(Ownership, Duration)> {
        self.release_hold(job)
    }

    fn kept(&self, job: JobId, at: Timestamp, most: usize) -> Result<Kept> {
        self.kept_of(job, at, most)
    }

    fn restore_kept(&self, job: JobId, kept: &RestoreKept) -> Result<RestoredKept> {
        self.take_kept(job, kept)
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

    fn max_value(&self) -> u64 {
        REDIS_MAX_VALUE
    }

    fn spool(&self) -> Option<PathBuf> {
        Some(self.options.dir.join(LONG))
    }

    fn log(&self) -> Option<&dyn LogSource> {
        Some(self)
    }

    fn scratch_server(&self) -> Option<ScratchServer> {
        let valkey = self.view().is_ok_and(|view| view.info.version().starts_with("valkey"));
        Some(ScratchServer { program: self.options.scratch_server.clone(), valkey })
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
