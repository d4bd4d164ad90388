//! Engines: the kinds of store. The trait is small; [`memory`] is its reference implementation, and every engine
//! passes the conformance suite in `tests/tests/conformance`.
//!
//! All methods block and are called from threads that may block. Records travel by reference through visitors, so
//! that a scan allocates nothing for each record.

mod early;
pub mod embedded;
mod log;
pub mod memory;
mod record;
pub mod redis;

pub use early::{EarlyBase, Over, OverVisitor};
pub use log::{LogReached, LogSink, LogSource, LogWanted};
pub use record::{
    ChangeRef, ChangeVisitor, LongRecord, Next, Packed, PackedVisitor, RecordRef, RecordVisitor, ScanRange, Scanned,
};

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemark_common::redis::fold::ScratchServer;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{
    CloneInfo, Description, Held, Kept, Ownership, RestoreKept, RestoredKept, Sealed,
};
use tidemark_proto::{CloneName, Error, Incarnation, Result, SlotSet, Timestamp};

/// Longest key of any engine, in bytes.
pub const MAX_KEY: usize = 64 << 10;

/// A kind of store, opened.
///
/// Contract of the cut (design: `hold`, `seal`, `release`):
/// - from `held` until `release`, or until the budget ends, no write is acknowledged or visible, and none gets a
///   timestamp before `seal`;
/// - `seal(at)` succeeds only while the position is the one that `hold` answered (however the hold ended), and then
///   every later commit gets a timestamp above `at`, and `at` is pinned under the job;
/// - the store resumes by itself at the end of the budget, also when the caller died.
pub trait Engine: Send + Sync + 'static {
    /// What the node is and how it stands. Fields that the agent itself knows (addresses, ledger) are left empty.
    fn describe(&self) -> Result<Description>;

    /// Which data this is, and whether [`Snapshot::changes`] finds what changed: what of [`Engine::describe`] is known also
    /// while the store is away.
    fn identity(&self) -> Result<(Incarnation, bool)> {
        self.describe().map(|d| (d.incarnation, d.changes_since))
    }

    /// What a backup by this node would be of: the node itself, or the primary that it can stand in for.
    fn describe_source(&self) -> Result<Description> {
        self.describe()
    }

    /// Makes the store ready for a cut of `job`, which may take long: an engine whose snapshot is costly takes its base here
    /// and keeps the log from it on, so that [`Engine::hold`] and [`Engine::seal`] only read positions. Done at once where
    /// the base of `job` stands; one that was lost is taken again, and one of another job is dropped. The base counts as
    /// the pin [`job_pin`] of its job: [`Engine::pins`] tells of it (at timestamp zero before the seal), [`Engine::unpin`]
    /// drops base and log. Such an engine answers a hold without a base with `Conflict`.
    ///
    /// `whole` says that all records will most likely be sent: an engine may then do beforehand what it can of that.
    /// `cancel` is asked at least once a second: `true` ends the call with `Cancelled`. `progress` is told the bytes of
    /// base received by this call so far.
    fn prepare(
        &self,
        job: JobId,
        whole: bool,
        cancel: &(dyn Fn() -> bool + Sync),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let _ = (job, whole, cancel, progress);
        Ok(())
    }

    /// [`Engine::prepare`] of `job` follows, but not yet: an engine whose base begins with a wait that costs nothing may let that
    /// pass meanwhile. It begins nothing that costs anything before that call. Returns when the call comes, at once where
    /// there is nothing to wait for, and with `Cancelled` when `cancel`, which is asked at least once a second, answers `true`;
    /// then nothing waits any more. An error changes nothing for the call that follows.
    fn prepare_early(&self, job: JobId, cancel: &(dyn Fn() -> bool + Sync)) -> Result<()> {
        let _ = (job, cancel);
        Ok(())
    }

    /// The base of `job`, where its records can be sent before the cut; see [`EarlyBase`].
    fn early_base(&self, job: JobId) -> Result<Option<Arc<dyn EarlyBase>>> {
        let _ = job;
        Ok(None)
    }

    /// Stops acknowledging writes for at most `budget` and answers where the store stands. A budget of zero only
    /// reads. A second hold replaces the first.
    fn hold(&self, job: JobId, budget: Duration) -> Result<Held>;

    /// The second reading; see the trait's contract. A moved position is `Conflict`.
    fn seal(&self, job: JobId, at: Timestamp) -> Result<Sealed>;

    /// Ends the hold of `job` (a hold that has ended is no error) and reads ownership again.
    fn release(&self, job: JobId) -> Result<(Ownership, Duration)>;

    /// What the store keeps beside its records, for the cut of `job` at `at`: users, libraries of functions, settings, the
    /// nodes of its own cluster. At most `most` bytes; what does not fit, or may not be read, is named as missing, which is
    /// no error. Nothing where there is nothing of the kind.
    fn kept(&self, job: JobId, at: Timestamp, most: usize) -> Result<Kept> {
        let _ = (job, at, most);
        Ok(Kept::default())
    }

    /// Takes what a backup keeps beside its records, by the steps of [`RestoreKept`]; each may be taken again.
    fn restore_kept(&self, job: JobId, kept: &RestoreKept) -> Result<RestoredKept> {
        let _ = job;
        match kept.libraries.is_empty() && kept.users.is_empty() {
            true => Ok(RestoredKept::default()),
            false => Err(Error::unsupported("this store has neither users nor libraries of functions of its own")),
        }
    }

    /// Keeps every version that a reader at `at` needs until `unpin(name)` or until `lease` has passed, also over
    /// restarts. Pinning again under a name moves and renews the pin. `TooOld` cannot be pinned: `NotFound`.
    fn pin(&self, name: &str, at: Timestamp, lease: Duration) -> Result<()>;

    /// Drops a pin; one that is not there is no error.
    fn unpin(&self, name: &str) -> Result<()>;

    /// All pins: name and timestamp.
    fn pins(&self) -> Result<Vec<(String, Timestamp)>>;

    /// Makes a writable branch of the state at `at`, durably and in a time that does not grow with the data; answers whether
    /// it was made. From then on no commit at or below `at` comes, and what a reader at `at` needs is kept until
    /// [`Engine::drop_clone`], also over restarts. The same name and time is the same clone; another time under a name that
    /// stands is `Conflict`. `NotFound` below the safe point, `Full` when too many stand. A store with clones refuses restores.
    fn create_clone(&self, name: &CloneName, at: Timestamp) -> Result<(CloneInfo, bool)> {
        let _ = (name, at);
        Err(no_clones())
    }

    /// All clones, by name, and the highest timestamp that the node has issued or seen.
    fn clones(&self) -> Result<(Vec<CloneInfo>, Timestamp)> {
        Err(no_clones())
    }

    /// Drops a clone (with `at`: only if it is of that time) with all that was written in it; answers whether there was one.
    fn drop_clone(&self, name: &CloneName, at: Option<Timestamp>) -> Result<bool> {
        let _ = (name, at);
        Err(no_clones())
    }

    /// Longest value that can be restored, in bytes: longer ones are refused before they are read.
    fn max_value(&self) -> u64 {
        crate::kv::MAX_VALUE as u64
    }

    /// Folder in which values over 1 MiB wait on their way to [`PartLoader::put_long`]; `None`: they are held in memory, and come
    /// by [`PartLoader::put`].
    fn spool(&self) -> Option<PathBuf> {
        None
    }

    /// The log of the store, where it has one.
    fn log(&self) -> Option<&dyn LogSource> {
        None
    }

    /// The server that works the log off, of stores whose log is one of commands and not of records.
    fn scratch_server(&self) -> Option<ScratchServer> {
        None
    }

    /// The restore whose staging area is open, also after a restart.
    fn restoring(&self) -> Result<Option<JobId>>;

    /// A view of the state at `at`. `NotFound` if versions of that time have been collected.
    fn snapshot(&self, at: Timestamp) -> Result<Box<dyn Snapshot>>;

    /// Opens (or reopens, for the same job) a staging area beside the present data; the store is `restoring` and
    /// refuses clients until `Loader::commit` or `Loader::abort`, also after a restart. Without `in_place` a store
    /// that holds any record refuses with `Conflict`.
    fn restore(&self, job: JobId, slots: SlotSet, in_place: bool) -> Result<Box<dyn Loader>>;

    /// [`Loader::abort`] of a restore that an earlier process of the agent began. Engines that drop present data only while
    /// they load override it: they must not begin in order to end.
    fn abort_restore(&self, job: JobId, slots: SlotSet) -> Result<()> {
        self.restore(job, slots, true)?.abort()
    }
}

/// The state of a store at one timestamp. Cheap to clone views of; many threads may scan at once.
pub trait Snapshot: Send + Sync {
    /// The timestamp.
    fn at(&self) -> Timestamp;

    /// Visits every live record of `range` once, ascending by (slot, key).
    fn scan(&self, range: &ScanRange, visit: &mut RecordVisitor<'_>) -> Result<()>;

    /// As [`Self::scan`], but no long value is held in memory where the engine has it in a file, and neighbouring records that stand
    /// packed, and lie in `range` with all between them, are visited together.
    fn scan_packed(&self, range: &ScanRange, visit: &mut PackedVisitor<'_>) -> Result<()> {
        self.scan(range, &mut |record| match visit(Scanned::Record(record))? {
            Next::Go => Ok(ControlFlow::Continue(())),
            Next::Stop => Ok(ControlFlow::Break(())),
            Next::Open => Err(Error::bug("a single record is not packed")),
        })
    }

    /// Visits every key of `range` whose record differs between `since` and this snapshot, once, ascending by
    /// (slot, key). A key that was written but holds the same meta and value again is not visited.
    /// `NotFound` when `since` is below the safe point (TooOld), `Unsupported` when the engine keeps no changes.
    fn changes(&self, since: Timestamp, range: &ScanRange, visit: &mut ChangeVisitor<'_>) -> Result<()>;

    /// The [`EarlyBase::id`] of the base that this state was made of; 0 for none.
    fn base(&self) -> u64 {
        0
    }

    /// Visits every key of `range` that was written since that base, once, ascending by (slot, key), whether it differs or not.
    /// `Unsupported` where that is not known of each key.
    fn over(&self, range: &ScanRange, visit: &mut OverVisitor<'_>) -> Result<()> {
        let _ = (range, visit);
        Err(Error::unsupported("this state was not made of a base"))
    }
}

/// A staging area of a restore. Survives a restart: a part that was finished stays, one that was not is gone.
pub trait Loader: Send + Sync {
    /// Parts that are loaded whole: number, digest from the source, digest loaded.
    fn loaded(&self) -> Result<Vec<(u32, SetDigest, SetDigest)>>;

    /// Records of these parts that were given to [`PartLoader::put`] and not loaded, because they had expired.
    fn expired(&self) -> Result<u64> {
        Ok(0)
    }

    /// Begins part `number`, emptying what an unfinished attempt at it may have left. Parts load in parallel, hold
    /// disjoint keys, and get their records ascending by (slot, key).
    /// A part that is loaded already, or is being loaded by another caller, is `Conflict`.
    fn part(&self, number: u32) -> Result<Box<dyn PartLoader>>;

    /// Whether [`PartLoader::then`] is there, and parts that come by ascending keys cost the store less.
    fn in_rows(&self) -> bool {
        false
    }

    /// Count and digest of everything staged, read back from the store.
    fn verify(&self) -> Result<SetDigest>;

    /// Makes the staged data the store's data under a new incarnation, durably, all or nothing, with every record
    /// at timestamp `at`; drops the old data; opens the store. `Conflict` while a part is being loaded.
    fn commit(&self, at: Timestamp) -> Result<Incarnation>;

    /// Drops the staged data and opens the store as it was. `Conflict` where the old data could not be kept beside and is gone:
    /// the store stays closed then, until another restore in place.
    fn abort(&self) -> Result<()>;
}

/// One part being loaded.
pub trait PartLoader: Send {
    /// The next record. `hash` is its [`record_hash`], which the caller has for the digest of the source already; that
    /// what is stored has it shows when `Loader::verify` reads back.
    fn put(&mut self, record: RecordRef<'_>, hash: u128) -> Result<()>;

    /// As [`Self::put`], for engines with a [`Engine::spool`].
    fn put_long(&mut self, record: LongRecord<'_>, hash: u128) -> Result<()> {
        let _ = hash;
        Err(Error::bug(format!(
            "a value of {} bytes in a file, for an engine that wants it in memory",
            record.value.len()
        )))
    }

    /// Ends the part with the digest of its source, answers the digest of what was put, and goes on with part `number`, whose
    /// keys all lie behind those of this one. All parts of such a row become durable together, by [`Self::finish`] of the last;
    /// without it none of them is loaded. A part that is loaded already, or is being loaded, is `Conflict`. Only where
    /// [`Loader::in_rows`] says so.
    fn then(&mut self, source: SetDigest, number: u32) -> Result<SetDigest> {
        let _ = source;
        Err(Error::bug(format!("part {number} in a row, for an engine that takes parts one by one")))
    }

    /// Makes the part durable with the digest of its source (for `Loader::loaded`); answers the digest of what was put.
    fn finish(self: Box<Self>, source: SetDigest) -> Result<SetDigest>;
}

/// What engines without clones answer.
fn no_clones() -> Error {
    Error::unsupported(
        "this store has no clones: restore a backup onto other nodes (`tidemark restore run --target`) and work there",
    )
}

/// Name of the pin that `Engine::seal` sets for a job.
pub fn job_pin(job: JobId) -> String {
    format!("job:{job}")
}

/// The job that set a pin of this name; `None` for other pins.
pub fn job_of_pin(name: &str) -> Option<JobId> {
    name.strip_prefix("job:")?.parse().ok()
}

/// The hash of a record's meaning; see [`tidemark_common::run::record_hash`].
pub fn record_hash(record: RecordRef<'_>) -> u128 {
    tidemark_common::run::record_hash(record.key, record.meta, record.value)
}
