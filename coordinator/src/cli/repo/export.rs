//! `repo export`: a backup of Redis or Valkey as files, straight from the repository.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;
use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::rdb::types::{OLDEST, REDIS_KNOWN, VALKEY_FIRST, VALKEY_KNOWN};
use tidemark_common::rdb::version_of_server;
use tidemark_common::run::{Entry, LongValue};
use tidemark_proto::id::JobId;
use tidemark_proto::slot::even_share;
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, SlotSet, error::ResultExt};
use tokio_util::sync::CancellationToken;

use super::direct::{Chosen, Moment, REDIS_ENGINE, Selected, of_point};
use super::files::{Partial, WRITE_BUFFER, or_interrupted};
use super::moment::Opened;
use crate::cli::output::{Format, count, size};
use crate::extract::{Commands, Encoding, Extracted, Laid, Lines, Output, RdbFile, Split, extract_at};
use crate::job::restore::libraries;
use crate::repository::Manifest;

pub(crate) const EXAMPLES: &str = "Examples:
  tidemark export --repository file:///backup --key-file master.key --format rdb --out dump.rdb
  tidemark export --repository file:///backup --key-file master.key --format rdb --shards 3 --out rdb/
  tidemark export --repository file:///backup --key-file master.key --format resp | redis-cli --pipe
  tidemark export --repository file:///backup --key-file master.key --at -2h --format rdb --out before.rdb

With --at the log (`tidemark pitr`) is laid over the nearest backup; where none is kept, the newest backup at or before the time is
taken. Which it is stands on standard error. A log of Redis or Valkey is worked off by redis-server or valkey-server on this machine:
install one, or name its program in TIDEMARK_SCRATCH_SERVER.

rdb   a file that a server loads at its start (`dbfilename`); with --shards one for each node of a Cluster whose slots are
      split evenly, as `redis-cli --cluster create` does. Libraries of functions are in each, from RDB version 10 on
resp  commands for `redis-cli --pipe`: keys that are there are replaced, those that have expired are left out and counted
jsonl as `tidemark repo extract` writes them; also of other stores";

/// First version of RDB with libraries of functions (Redis 7.0).
const FUNCTIONS_SINCE: u16 = 10;
/// Files of one export at most: all are open at the same time, twice, and systems allow 1024 by default.
const MOST_SHARDS: u16 = 256;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// RDB files, for a server to load.
    Rdb,
    /// Commands, for `redis-cli --pipe`.
    Resp,
    /// JSON Lines.
    Jsonl,
}

impl Kind {
    fn extension(self) -> &'static str {
        match self {
            Self::Rdb => "rdb",
            Self::Resp => "resp",
            Self::Jsonl => "jsonl",
        }
    }
}

/// Options of `repo export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The backup, as by --backup
    #[arg(value_name = "BACKUP", conflicts_with_all = ["backup", "at"])]
    named: Option<String>,
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    moment: Moment,
    #[command(flatten)]
    selected: Selected,
    /// What to write
    #[arg(long, value_enum)]
    format: Kind,
    /// File to write, never overwritten and there only when it is whole; `-` is standard output. With --shards: folder,
    /// empty or not there yet
    #[arg(long, default_value = "-", value_name = "FILE|FOLDER")]
    out: PathBuf,
    /// Write so many files, each of an even share of the slots
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_SHARDS)))]
    shards: Option<u16>,
    /// For servers of this version of RDB: 9 for Redis 5 and 6, 10 for 7.0, 11 for 7.2 and Valkey 7 and 8, 12 for Redis 7.4;
    /// otherwise that of the servers that were backed up. Values are converted where they can be
    #[arg(long, value_name = "V")]
    rdb_version: Option<u16>,
    /// How keys and values are written in JSON Lines
    #[arg(long, value_enum, default_value_t)]
    encoding: Encoding,
}

/// What was exported.
#[derive(Debug, Serialize)]
struct Report {
    cluster: ClusterName,
    backup: JobId,
    cut: u64,
    /// The time that the records are of, a raw timestamp: the cut, or a later one by the log.
    at: u64,
    format: Kind,
    /// Version of the format, of RDB files.
    #[serde(skip_serializing_if = "Option::is_none")]
    rdb_version: Option<u16>,
    /// The files, by slots.
    files: Vec<PathBuf>,
    #[serde(flatten)]
    extracted: Extracted,
    /// Keys left out because they have expired.
    expired: u64,
    /// What is not in what was written.
    warnings: Vec<String>,
}

type Out = Box<dyn Write + Send>;

impl Export {
    /// Exports the backup.
    pub(crate) async fn run(mut self, output: Format) -> Result<()> {
        self.named.take().into_iter().for_each(|id| self.chosen.choose(id));
        let opened = Opened::new(&self.chosen, self.moment.at).await?;
        let (manifest, backup) = (&opened.manifest, &opened.backup);
        let selection = self.selected.of(manifest)?;
        let rdb_version = self.version(manifest)?;
        let standard = self.out.as_os_str() == "-" && self.shards.is_none();
        let (slots, partials) = self.files(standard)?;
        let laid = opened.laid(partials.first().map(Partial::wanted)).await?;
        let (libraries, warnings) = self.libraries(manifest, laid.as_deref(), rdb_version).await?;
        let mut shares = Vec::new();
        for (i, slots) in slots.into_iter().enumerate() {
            let out: Out = match partials.get(i) {
                Some(partial) => Box::new(partial.file()?),
                None => Box::new(std::io::stdout()),
            };
            shares.push((slots, self.output(out, rdb_version, &backup.job.to_string(), &libraries)?));
        }
        let cancel = CancellationToken::new();
        let counted = Counting { split: Split::new(shares), expired: 0 };
        let (extracted, counted) =
            match or_interrupted(extract_at(manifest, laid, selection, counted, &cancel), &cancel).await {
                // Who reads lines has what it wants (`| head`). What loads a file or commands needs all of it.
                Err(e) if standard && self.format == Kind::Jsonl && ended(&e) && !cancel.is_cancelled() => {
                    return Ok(());
                }
                done => done?,
            };
        let expired = counted.expired;
        drop(counted);
        let files = partials.iter().map(|p| p.wanted().to_owned()).collect();
        partials.into_iter().try_for_each(Partial::complete)?;
        let format = self.format;
        let rdb_version = (format == Kind::Rdb).then_some(rdb_version);
        let (backup, cut, at, cluster) = (backup.job, backup.cut.0, opened.time(), opened.cluster.clone());
        let report = Report { cluster, backup, cut, at, format, rdb_version, files, extracted, expired, warnings };
        if standard {
            eprintln!("{}", said(&report));
            return Ok(());
        }
        output.print(&report, said)
    }

    /// The version of RDB files. `Request` where it, or the format as a whole, does not fit the backup.
    fn version(&self, manifest: &Manifest) -> Result<u16> {
        let root = manifest.root();
        if self.rdb_version.is_some() && self.format != Kind::Rdb {
            return Err(Error::request("--rdb-version goes with --format rdb alone"));
        }
        if self.format == Kind::Jsonl {
            return Ok(0);
        }
        if root.engine != REDIS_ENGINE {
            return Err(Error::request(format!(
                "backup {} is of engine `{}`, and servers of Redis load nothing of that: use --format jsonl",
                root.job, root.engine
            )));
        }
        match self.rdb_version {
            Some(v) if (OLDEST..=REDIS_KNOWN).contains(&v) || (VALKEY_FIRST..=VALKEY_KNOWN).contains(&v) => Ok(v),
            Some(v) => Err(Error::request(format!(
                "--rdb-version {v}: {OLDEST} to {REDIS_KNOWN}, or {VALKEY_FIRST} to {VALKEY_KNOWN} for Valkey from 9 on"
            ))),
            // The newest of all nodes: nothing of theirs is newer.
            None => {
                let known = root.nodes.iter().filter_map(|node| version_of_server(&node.engine_version)).max();
                known.ok_or_else(|| {
                    Error::request("the backup does not say of which servers it is: give --rdb-version")
                })
            }
        }
    }

    /// The shares of slots, and the file of each unless it goes to standard output.
    fn files(&self, standard: bool) -> Result<(Vec<SlotSet>, Vec<Partial>)> {
        if standard {
            return Ok((vec![SlotSet::all()], Vec::new()));
        }
        let Some(shards) = self.shards else {
            return Ok((vec![SlotSet::all()], vec![Partial::create(&self.out)?]));
        };
        if self.out.as_os_str() == "-" {
            return Err(Error::request("--shards writes several files: give a folder by --out"));
        }
        empty_folder(&self.out)?;
        let name = |i: u16| self.out.join(format!("shard-{}-of-{shards}.{}", i + 1, self.format.extension()));
        let partials = (0..shards).map(|i| Partial::create(&name(i))).collect::<Result<_>>()?;
        Ok(((0..shards).map(|i| even_share(i, shards)).collect(), partials))
    }

    /// Libraries of functions for what is written, and what is missing of them.
    async fn libraries(
        &self,
        manifest: &Manifest,
        laid: Option<&Laid>,
        rdb_version: u16,
    ) -> Result<(Vec<Vec<u8>>, Vec<String>)> {
        if self.format == Kind::Jsonl {
            return Ok(Default::default());
        }
        let (mut libraries, mut warnings) = libraries(manifest).await?;
        if let Some(laid) = laid
            && let Some(later) = laid.functions(&CancellationToken::new()).await?
        {
            libraries = later;
        }
        if self.format == Kind::Rdb && rdb_version < FUNCTIONS_SINCE && !libraries.is_empty() {
            let told = format!("servers of RDB version {rdb_version} have no libraries of functions: left out");
            warnings.push(told);
            return Ok((Vec::new(), warnings));
        }
        Ok((libraries, warnings))
    }

    fn output(&self, out: Out, rdb_version: u16, backup: &str, libraries: &[Vec<u8>]) -> Result<Box<dyn Output>> {
        Ok(match self.format {
            // It gathers what it writes.
            Kind::Rdb => Box::new(RdbFile::begin(out, rdb_version, backup, libraries)?),
            Kind::Resp => {
                let mut commands = Commands::new(buffered(out), SystemClock.millis() as i64);
                commands.load(libraries)?;
                Box::new(commands)
            }
            Kind::Jsonl => Box::new(Lines::new(buffered(out), self.encoding)),
        })
    }
}

fn buffered(out: Out) -> BufWriter<Out> {
    BufWriter::with_capacity(WRITE_BUFFER, out)
}

fn ended(e: &Error) -> bool {
    e.kind() == ErrorKind::Cancelled
}

/// Makes the folder where it is not there. `Conflict` when something is in it.
fn empty_folder(path: &Path) -> Result<()> {
    let cannot = || format!("folder {}", path.display());
    match std::fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::conflict(format!(
            "folder {} is not empty: choose another --out, or empty it",
            path.display()
        ))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path).or_kind(ErrorKind::Config, cannot())
        }
        Err(e) => Err(e).or_kind(ErrorKind::Config, cannot()),
    }
}

/// Counts records that have no place in what is written: of all outputs here, those that have expired.
struct Counting {
    split: Split,
    expired: u64,
}

impl Output for Counting {
    fn write(&mut self, entry: &Entry<'_>, long: Option<&LongValue>) -> Result<bool> {
        let written = self.split.write(entry, long)?;
        self.expired += u64::from(!written);
        Ok(written)
    }

    fn finish(&mut self) -> Result<()> {
        self.split.finish()
    }
}

fn said(r: &Report) -> String {
    let e = &r.extracted;
    let some = if e.read == e.records { String::new() } else { format!(" of {}", count(e.read)) };
    let expired = if r.expired == 0 { String::new() } else { format!("; {} expired, left out", count(r.expired)) };
    let out = match &r.files[..] {
        [] => "standard output".into(),
        [file] => file.display().to_string(),
        files => format!("{} files in {}", files.len(), files[0].parent().unwrap_or(Path::new("")).display()),
    };
    let warnings: String = r.warnings.iter().map(|w| format!("\nwarning: {w}")).collect();
    format!(
        "{}{some} records, {}, {} of cluster {} written to {out}{expired}{warnings}",
        count(e.records),
        size(e.bytes),
        of_point(r.backup, r.cut, r.at),
        r.cluster
    )
}
