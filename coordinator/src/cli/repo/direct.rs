//! Verbs that read a repository as it lies in its store: no coordinator, no agent, no certificate. They write nothing to
//! the store, so that credentials which may only read are enough.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use tidemark_common::glob::KeyFilter;
use tidemark_proto::id::JobId;
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, error::ResultExt};
use tokio_util::sync::CancellationToken;

use super::Site;
use crate::catalog;
use crate::cli::connect::only;
use crate::cli::follow;
use crate::cli::output::{Format, count, size};
use crate::cli::{backup, report};
use crate::extract::{Encoding, Extracted, Lines, extract};
use crate::job::JobKind;
use crate::job::inspect;
use crate::job::restore::{find_backup, open_manifest};
use crate::job::verify::{self, VerifyRequest};
use crate::repository::{MasterKey, Repository, Store};

pub(super) const EXTRACT_EXAMPLES: &str = "Examples:
  tidemark repo extract --repository file:///backup --key-file master.key --out orders.jsonl
  tidemark repo extract --repository s3://backups/fleet --key-file master.key --cluster orders --keys 'user:*' | jq .key

Each line is an object with `slot`, `key`, `key_encoding`, `value` and `value_encoding`; an encoding is `text` or `base64`.";

/// Bytes gathered before they are written.
const WRITE_BUFFER: usize = 256 << 10;

/// A repository and a cluster in it.
#[derive(Debug, Args)]
pub(super) struct Place {
    #[command(flatten)]
    site: Site,
    /// The cluster; not needed where the repository holds one alone
    #[arg(short = 'C', long, env = "TIDEMARK_CLUSTER")]
    cluster: Option<ClusterName>,
}

/// A backup in a repository.
#[derive(Debug, Args)]
pub(super) struct Chosen {
    #[command(flatten)]
    place: Place,
    /// The backup: id, a unique beginning of it, or `latest`
    #[arg(long, default_value = "latest", value_name = "ID")]
    backup: String,
}

/// Options of `repo extract`.
#[derive(Debug, Args)]
pub(super) struct Extract {
    #[command(flatten)]
    chosen: Chosen,
    /// Only keys that fit this pattern (`*`, `?`, `[a-z]`); `!` in front leaves them out; may be given several times
    #[arg(long, value_name = "GLOB")]
    keys: Vec<String>,
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
    pub(super) async fn backups(&self, output: Format) -> Result<()> {
        let (repository, cluster) = self.open().await?;
        let items = catalog::recorded(&repository, &cluster).await?;
        output.print(&items, |items| backup::list(&cluster, items))
    }
}

impl Chosen {
    /// Shows the backup.
    pub(super) async fn show(&self, output: Format) -> Result<()> {
        let (repository, cluster) = self.place.open().await?;
        output.print(&catalog::show(&repository, &cluster, &self.backup).await?, report::backup)
    }

    /// Verifies the backup: the same work, words and exit code as `tidemark verify`.
    pub(super) async fn verify(&self, output: Format) -> Result<()> {
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
    out: PathBuf,
    #[serde(flatten)]
    extracted: Extracted,
}

impl Extract {
    /// Extracts the records.
    pub(super) async fn run(self, output: Format) -> Result<()> {
        let filter = KeyFilter::new(&self.keys)?;
        let (repository, cluster) = self.chosen.place.open().await?;
        let record = find_backup(&catalog::known(&repository, &cluster).await?, &self.chosen.backup)?;
        let manifest = open_manifest(&repository, &cluster, &record.backup).await?;
        let cancel = CancellationToken::new();
        let (backup, cut, out) = (record.backup.job, record.backup.cut.0, self.out.clone());
        if self.out.as_os_str() == "-" {
            let stdout = BufWriter::with_capacity(WRITE_BUFFER, std::io::stdout());
            let work = extract(&manifest, filter, Lines::new(stdout, self.encoding), &cancel);
            return match or_interrupted(work, &cancel).await {
                Ok((extracted, _)) => {
                    eprintln!("{}", said(&Report { cluster, backup, cut, out, extracted }));
                    Ok(())
                }
                // Who reads has what it wants (`| head`): no error, unless it was Ctrl-C.
                Err(e) if e.kind() == ErrorKind::Cancelled && !cancel.is_cancelled() => Ok(()),
                Err(e) => Err(e),
            };
        }
        let partial = Partial::create(&self.out)?;
        let file =
            BufWriter::with_capacity(WRITE_BUFFER, partial.file.try_clone().or_kind(ErrorKind::Full, "file")?);
        let work = extract(&manifest, filter, Lines::new(file, self.encoding), &cancel);
        let (extracted, lines) = or_interrupted(work, &cancel).await?;
        drop(lines);
        partial.complete()?;
        output.print(&Report { cluster, backup, cut, out, extracted }, said)
    }
}

/// Waits for the work; Ctrl-C ends it in order, so that nothing half written is left.
async fn or_interrupted<T>(work: impl Future<Output = Result<T>>, cancel: &CancellationToken) -> Result<T> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            Ok(()) = tokio::signal::ctrl_c(), if !cancel.is_cancelled() => cancel.cancel(),
        }
    }
}

fn said(r: &Report) -> String {
    let e = &r.extracted;
    let some = if e.read == e.records { String::new() } else { format!(" of {}", count(e.read)) };
    format!(
        "{}{some} records, {}, of backup {} of cluster {} written to {}",
        count(e.records),
        size(e.bytes),
        r.backup,
        r.cluster,
        if r.out.as_os_str() == "-" { "standard output".into() } else { r.out.display().to_string() }
    )
}

/// A file that takes its name when it is whole, and is gone when it never is.
struct Partial {
    file: File,
    path: PathBuf,
    wanted: PathBuf,
    whole: bool,
}

impl Partial {
    fn create(wanted: &Path) -> Result<Self> {
        if wanted.exists() {
            return Err(Error::conflict(format!("{} is there already: choose another --out", wanted.display())));
        }
        let name = wanted.file_name().ok_or_else(|| Error::request("--out: name a file, or `-`"))?;
        let mut partial = name.to_os_string();
        partial.push(format!(".{:08x}.partial", rand::random::<u32>()));
        let path = wanted.with_file_name(partial);
        // What is extracted is as confidential as the store itself.
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.or_kind(ErrorKind::Config, format_args!("{} cannot be written", wanted.display()))?;
        Ok(Self { file, path, wanted: wanted.to_owned(), whole: false })
    }

    fn complete(mut self) -> Result<()> {
        let written = self.file.flush().and_then(|()| self.file.sync_all());
        let named = written.and_then(|()| std::fs::rename(&self.path, &self.wanted));
        named.or_kind(ErrorKind::Full, self.wanted.display())?;
        self.whole = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.whole {
            // It may be gone already; there is nothing more to do about it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
