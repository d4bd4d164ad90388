//! RDB files as a store that can only be backed up: how old dumps come into a repository (`tidemark import`).
//!
//! The files together are one data set: those of one server, or one of each shard of a Cluster. They are sorted on disk when
//! the base is taken, as the base of a server is. They never change, so that a cut needs no hold.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::rdb::{self, Trailer};
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{Description, Held, Kept, NotKept, Ownership, Position, Sealed, Setting};
use tidemark_proto::{Error, ErrorKind, Incarnation, Result, SlotSet, Timestamp, error::ResultExt};

use super::base::BaseSink;
use super::dump_read::{DumpSnapshot, FileSink, Head, Watched};
use super::jobs::free_space;
use super::merge::State;
use super::server::PRIMARY;
use super::spill::{Sorted, Spill};
use crate::engine::{Engine, Loader, Snapshot, job_of_pin, job_pin};

/// What the store works with.
#[derive(Debug, Clone)]
pub struct DumpOptions {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Times to live count from now on instead of from when a file was written.
    pub shift_expiry: bool,
    /// Folder for sorted records.
    pub dir: PathBuf,
}

/// Files of RDB.
#[derive(Debug)]
pub struct Dump {
    options: DumpOptions,
    version: String,
    incarnation: Incarnation,
    jobs: Mutex<Option<DumpJob>>,
}

#[derive(Debug)]
struct DumpJob {
    job: JobId,
    records: Arc<Sorted>,
    /// Libraries of functions that the files hold.
    libraries: Vec<Vec<u8>>,
    /// What each file says of itself.
    told: Vec<Setting>,
    at: Timestamp,
    dir: PathBuf,
}

impl Drop for DumpJob {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).or_kind(ErrorKind::Config, format_args!("{}", path.display()))
}

impl Dump {
    /// Looks at the files' heads. `Config` where one is not there or is no RDB file.
    pub fn open(options: DumpOptions) -> Result<Self> {
        if options.files.is_empty() {
            return Err(Error::config("engine.files: name at least one RDB file"));
        }
        let mut version = String::new();
        for path in &options.files {
            let mut head = Head::default();
            let read = rdb::read(&mut open(path)?, &mut head);
            match read {
                Err(e) if !head.seen => return Err(e.context(path.display())),
                // The head was all that was wanted.
                _ => version = head.version,
            }
        }
        let _ = std::fs::remove_dir_all(&options.dir);
        std::fs::create_dir_all(&options.dir)
            .or_kind(ErrorKind::Full, format_args!("{}", options.dir.display()))?;
        let incarnation = Incarnation::from_u128(rand::random());
        Ok(Self { options, version, incarnation, jobs: Mutex::default() })
    }

    fn bytes(&self) -> Result<u64> {
        let len = |path: &PathBuf| {
            let meta = std::fs::metadata(path).or_kind(ErrorKind::Config, format_args!("{}", path.display()));
            meta.map(|m| m.len())
        };
        self.options.files.iter().map(len).sum()
    }

    fn ownership() -> Ownership {
        Ownership { role: PRIMARY.to_owned(), slots: SlotSet::all(), moving: SlotSet::EMPTY, config_epoch: 0 }
    }

    fn position(&self) -> Position {
        Position { history: self.incarnation.to_string(), offset: 0 }
    }

    fn sort(&self, job: JobId, cancel: &dyn Fn() -> bool, progress: &dyn Fn(u64)) -> Result<DumpJob> {
        let dir = self.options.dir.join(job.to_string());
        let (wanted, free) = (self.bytes()?, free_space(&self.options.dir)?);
        if free < wanted {
            let dir = self.options.dir.display();
            return Err(Error::new(
                ErrorKind::Full,
                format!("the files are sorted in {dir}, which may take {wanted} bytes, and {free} are free there"),
            ));
        }
        let mut inner = BaseSink::new(Spill::new(&dir)?);
        let (mut trailer, mut done, mut told) = (None, 0, Vec::new());
        for path in &self.options.files {
            let shift = self.options.shift_expiry.then_some(0);
            let mut sink = FileSink { inner, shift, written: 0, by: String::new() };
            let mut reader = Watched { file: open(path)?, done: &mut done, cancel, progress };
            let read = rdb::read(&mut reader, &mut sink);
            trailer = Some(read.map_err(|e| match cancel() {
                true => Error::cancelled("the import was cancelled"),
                false => e.context(path.display()),
            })?);
            told.push(sink.told(path));
            inner = sink.inner;
        }
        let trailer: Trailer = trailer.ok_or_else(|| Error::bug("no file"))?;
        let (records, gathered) = inner.finish(&trailer)?;
        let mut libraries = gathered.functions;
        // Each shard has them all.
        libraries.sort();
        libraries.dedup();
        Ok(DumpJob { job, records: Arc::new(records), libraries, told, at: Timestamp::ZERO, dir })
    }
}

impl Engine for Dump {
    fn describe(&self) -> Result<Description> {
        Ok(Description {
            engine: super::ENGINE.to_owned(),
            engine_version: self.version.clone(),
            incarnation: self.incarnation,
            state: "available".to_owned(),
            position: self.position(),
            ownership: Self::ownership(),
            clock_millis: SystemClock.millis(),
            records: 0,
            bytes: self.bytes()?,
            changes_since: false,
            data_address: String::new(),
            ledger_number: 0,
            ledger_hash: Default::default(),
        })
    }

    fn prepare(
        &self,
        job: JobId,
        _: bool,
        cancel: &(dyn Fn() -> bool + Sync),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let mut jobs = self.jobs.lock().expect("jobs");
        if jobs.as_ref().is_some_and(|j| j.job == job) {
            return Ok(());
        }
        *jobs = None;
        *jobs = Some(self.sort(job, cancel, progress)?);
        Ok(())
    }

    fn hold(&self, job: JobId, _: Duration) -> Result<Held> {
        if self.jobs.lock().expect("jobs").as_ref().is_none_or(|j| j.job != job) {
            return Err(Error::conflict("the files are not sorted for this job: begin it again"));
        }
        Ok(Held {
            position: self.position(),
            max_timestamp: Timestamp::ZERO,
            ownership: Self::ownership(),
            incarnation: self.incarnation,
            clock_millis: SystemClock.millis(),
        })
    }

    fn seal(&self, job: JobId, at: Timestamp) -> Result<Sealed> {
        match self.jobs.lock().expect("jobs").as_mut().filter(|j| j.job == job) {
            Some(kept) => kept.at = at,
            None => return Err(Error::conflict("a seal without a hold")),
        }
        Ok(Sealed { position: self.position() })
    }

    fn release(&self, _: JobId) -> Result<(Ownership, Duration)> {
        Ok((Self::ownership(), Duration::ZERO))
    }

    fn kept(&self, job: JobId, _: Timestamp, most: usize) -> Result<Kept> {
        let jobs = self.jobs.lock().expect("jobs");
        let kept = jobs.as_ref().filter(|j| j.job == job);
        let kept = kept.ok_or_else(|| Error::conflict("the files are not sorted for this job"))?;
        let mut told = Kept { read_millis: SystemClock.millis(), settings: kept.told.clone(), ..Kept::default() };
        match kept.libraries.iter().map(Vec::len).sum::<usize>() <= most / 2 {
            true => told.libraries.clone_from(&kept.libraries),
            false => {
                let why = format!("they take more than {} bytes", most / 2);
                told.missing.push(NotKept { what: "functions".to_owned(), why });
            }
        }
        Ok(told)
    }

    fn pin(&self, name: &str, _: Timestamp, _: Duration) -> Result<()> {
        Err(Error::unsupported(format!("pin {name}: files keep no old versions")))
    }

    fn unpin(&self, name: &str) -> Result<()> {
        let mut jobs = self.jobs.lock().expect("jobs");
        if jobs.as_ref().is_some_and(|j| Some(j.job) == job_of_pin(name)) {
            *jobs = None;
        }
        Ok(())
    }

    fn pins(&self) -> Result<Vec<(String, Timestamp)>> {
        Ok(self.jobs.lock().expect("jobs").iter().map(|j| (job_pin(j.job), j.at)).collect())
    }

    fn restoring(&self) -> Result<Option<JobId>> {
        Ok(None)
    }

    fn snapshot(&self, at: Timestamp) -> Result<Box<dyn Snapshot>> {
        let jobs = self.jobs.lock().expect("jobs");
        let kept = jobs.as_ref().filter(|j| j.at == at);
        let kept = kept.ok_or_else(|| Error::not_found(format!("no cut was taken here at {at}")))?;
        Ok(Box::new(DumpSnapshot(Arc::new(State::of(at, kept.records.clone())))))
    }

    fn restore(&self, _: JobId, _: SlotSet, _: bool) -> Result<Box<dyn Loader>> {
        Err(Error::unsupported("this node only reads files: restore onto servers"))
    }
}
