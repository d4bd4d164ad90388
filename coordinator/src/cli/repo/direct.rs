//! Verbs that read a repository as it lies in its store: no coordinator, no agent, no certificate. They write nothing to
//! the store, so that credentials which may only read are enough.

use std::io::BufWriter;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tidemark_common::glob::KeyFilter;
use tidemark_common::select::Selection;
use tidemark_proto::id::JobId;
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, SlotSet, Timestamp};
use tokio_util::sync::CancellationToken;

use super::Site;
use super::files::{Partial, WRITE_BUFFER, or_interrupted};
use super::moment::Opened;
use crate::catalog;
use crate::cli::connect::only;
use crate::cli::follow;
use crate::cli::output::{Format, count, size};
use crate::cli::time::{self, TimeArg};
use crate::cli::{backup, report};
use crate::extract::{Encoding, Extracted, Lines, extract_at};
use crate::job::JobKind;
use crate::job::inspect;
use crate::job::verify::{self, VerifyRequest};
use crate::repository::{Manifest, MasterKey, Repository, Store};

/// Engine of Redis and Valkey, as manifests name it.
pub(in crate::cli) const REDIS_ENGINE: &str = "redis";

pub(in crate::cli) const EXTRACT_EXAMPLES: &str = "Examples:
  tidemark repo extract --repository file:///backup --key-file master.key --out orders.jsonl
  tidemark repo extract --repository s3://backups/fleet --key-file master.key --cluster orders --keys 'user:*' | jq .key
  tidemark repo extract --repository file:///backup --key-file master.key --at 2026-10-04T09:30:00Z --out then.jsonl

With --at the log of changes (`tidemark pitr`) is laid over the nearest backup; where none is kept, the newest backup at or before
the time is taken. Which it is stands on standard error. A log of Redis or Valkey is worked off by redis-server or valkey-server on
this machine: install one, or name its program in TIDEMARK_SCRATCH_SERVER.
Each line is an object with `slot`, `key`, `key_encoding`, `value` and `value_encoding`; an encoding is `text` or `base64`.
Of Redis and Valkey, with `db`, `type`, `expire_at` (milliseconds since 1970, if it expires) and the value taken apart: a list or
set (sorted) as an array; a hash as [field, value] pairs, with the field's time of expiry as a third; a zset as [member, score]
pairs; a stream as an object. A string within one that is written as base64 is {\"base64\": \"…\"}.";

/// A repository and a cluster in it.
#[derive(Debug, Args)]
pub(in crate::cli) struct Place {
    #[command(flatten)]
    site: Site,
    /// The cluster; not needed where the repository holds one alone
    #[arg(short = 'C', long, env = "TIDEMARK_CLUSTER")]
    cluster: Option<ClusterName>,
}

/// A backup in a repository.
#[derive(Debug, Args)]
pub(in crate::cli) struct Chosen {
    #[command(flatten)]
    place: Place,
    /// The backup: id, a unique beginning of it, or `latest`
    #[arg(long, default_value = "latest", value_name = "ID")]
    backup: String,
}

/// A time instead of a backup.
#[derive(Debug, Args)]
pub(in crate::cli) struct Moment {
    /// A time instead of a backup: the newest restore point at or before it. As 2026-10-04T09:30:00Z, -5m, -2h30m (by this
    /// machine's clock), `now`, or a raw timestamp
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "backup")]
    pub(in crate::cli) at: Option<TimeArg>,
}

/// Which records are wanted.
#[derive(Debug, Args)]
pub(in crate::cli) struct Selected {
    /// Only keys that fit this pattern (`*`, `?`, `[a-z]`); `!` in front leaves them out; may be given several times
    #[arg(long, value_name = "GLOB")]
    keys: Vec<String>,
    /// Only keys of these slots, e.g. 0-5460,10000
    #[arg(long, value_name = "RANGES")]
    slots: Option<SlotSet>,
    /// Only keys of these databases, e.g. 0,3 (Redis and Valkey)
    #[arg(long = "db", value_name = "N,…", value_delimiter = ',')]
    dbs: Vec<u64>,
}

impl Selected {
    /// What to select of the backup.
    pub(in crate::cli) fn of(&self, manifest: &Manifest) -> Result<Selection> {
        let engine = &manifest.root().engine;
        if !self.dbs.is_empty() && engine != REDIS_ENGINE {
            return Err(Error::request(format!(
                "--db: stores of engine `{engine}` have no databases; leave it out"
            )));
        }
        let slots = self.slots.clone().unwrap_or_else(SlotSet::all);
        Ok(Selection { keys: KeyFilter::new(&self.keys)?, slots, dbs: self.dbs.clone() })
    }
}

/// Options of `repo extract`.
#[derive(Debug, Args)]
pub(in crate::cli) struct Extract {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    moment: Moment,
    #[command(flatten)]
    selected: Selected,
    /// File to write, never overwritten and there only when it is whole; `-` is standard output
    #[arg(long, default_value = "-", value_name = "FILE")]
    out: PathBuf,
    /// How keys and values are written
    #[arg(long, value_enum, default_value_t)]
    encoding: Encoding,
}

impl Place {
    async fn open(&self) -> Result<(Repository, ClusterName)> {
        let master = MasterKey::load(self.site.key_file.as_deref())?;
        let repository = Repository::open(Store::open_existing(&self.site.store())?, master.as_ref()).await?;
        let cluster = match &self.cluster {
            Some(cluster) => cluster.clone(),
            None => only(repository.protected_clusters().await?.iter().map(ToString::to_string).collect())?,
        };
        Ok((repository, cluster))
    }

    /// Lists the backups.
    pub(in crate::cli) async fn backups(&self, output: Format) -> Result<()> {
        let (repository, cluster) = self.open().await?;
        let items = catalog::recorded(&repository, &cluster).await?;
        output.print(&items, |items| backup::list(&cluster, items))
    }
}

impl Chosen {
    /// Takes another backup.
    pub(in crate::cli) fn choose(&mut self, backup: String) {
        self.backup = backup;
    }

    /// What it is called.
    pub(in crate::cli) fn name(&self) -> &str {
        &self.backup
    }

    /// Opens its repository; with its cluster.
    pub(in crate::cli) async fn repository(&self) -> Result<(Repository, ClusterName)> {
        self.place.open().await
    }

    /// Shows the backup.
    pub(in crate::cli) async fn show(&self, output: Format) -> Result<()> {
        let (repository, cluster) = self.place.open().await?;
        output.print(&catalog::show(&repository, &cluster, &self.backup).await?, report::backup)
    }

    /// Verifies the backup: the same work, words and exit code as `tidemark verify`.
    pub(in crate::cli) async fn verify(&self, output: Format) -> Result<()> {
        let (repository, cluster) = self.place.open().await?;
        let _ = catalog::known(&repository, &cluster).await?;
        let request = VerifyRequest { cluster: cluster.clone(), backup: self.backup.clone(), sample: inspect::ALL };
        let work = |job| verify::run(repository, job, request);
        follow::outcome(&follow::run_here(JobKind::Verify, &cluster, output, work).await?, output)
    }
}

/// What was extracted.
#[derive(Debug, Serialize)]
struct Report {
    cluster: ClusterName,
    backup: JobId,
    cut: u64,
    /// The time that the records are of, a raw timestamp: the cut, or a later one by the log.
    at: u64,
    out: PathBuf,
    #[serde(flatten)]
    extracted: Extracted,
}

impl Extract {
    /// Extracts the records.
    pub(in crate::cli) async fn run(self, output: Format) -> Result<()> {
        let opened = Opened::new(&self.chosen, self.moment.at).await?;
        let selection = self.selected.of(&opened.manifest)?;
        let cancel = CancellationToken::new();
        let report = |extracted| Report {
            cluster: opened.cluster.clone(),
            backup: opened.backup.job,
            cut: opened.backup.cut.0,
            at: opened.time(),
            out: self.out.clone(),
            extracted,
        };
        if self.out.as_os_str() == "-" {
            let laid = opened.laid(None).await?;
            let stdout = BufWriter::with_capacity(WRITE_BUFFER, std::io::stdout());
            let lines = Lines::new(stdout, self.encoding);
            let work = extract_at(&opened.manifest, laid, selection, lines, &cancel);
            return match or_interrupted(work, &cancel).await {
                Ok((extracted, _)) => {
                    eprintln!("{}", said(&report(extracted)));
                    Ok(())
                }
                // Who reads has what it wants (`| head`): no error, unless it was Ctrl-C.
                Err(e) if e.kind() == ErrorKind::Cancelled && !cancel.is_cancelled() => Ok(()),
                Err(e) => Err(e),
            };
        }
        let partial = Partial::create(&self.out)?;
        let laid = opened.laid(Some(&self.out)).await?;
        let file = BufWriter::with_capacity(WRITE_BUFFER, partial.file()?);
        let work = extract_at(&opened.manifest, laid, selection, Lines::new(file, self.encoding), &cancel);
        let (extracted, lines) = or_interrupted(work, &cancel).await?;
        drop(lines);
        partial.complete()?;
        output.print(&report(extracted), said)
    }
}

/// The restore point of what was written, in words.
pub(in crate::cli) fn of_point(backup: JobId, cut: u64, at: u64) -> String {
    match at == cut {
        true => format!("of backup {backup}"),
        false => format!("of {}, by backup {backup} and the log,", time::exact(Timestamp(at))),
    }
}

fn said(r: &Report) -> String {
    let e = &r.extracted;
    let some = if e.read == e.records { String::new() } else { format!(" of {}", count(e.read)) };
    format!(
        "{}{some} records, {}, {} of cluster {} written to {}",
        count(e.records),
        size(e.bytes),
        of_point(r.backup, r.cut, r.at),
        r.cluster,
        if r.out.as_os_str() == "-" { "standard output".into() } else { r.out.display().to_string() }
    )
}
