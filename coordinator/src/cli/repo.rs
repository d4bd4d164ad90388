//! `tidemark repo`: make and look after the repository; read from it without a coordinator.

pub(super) mod direct;
pub(crate) mod export;
pub(super) mod files;
pub(super) mod moment;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::{ClusterName, Error, ErrorKind, Result, error::ResultExt};

use super::connect::GlobalArgs;
use super::follow::WaitArgs;
use super::output::{Format, fields};
use super::{backup, time};
use crate::api::RepositoryInfo;
use crate::job::collect::CollectRequest;
use crate::repository::{MasterKey, Repository, Store, StoreConfig, StoreOptions};

/// Make and look after the repository.
#[derive(Debug, Args)]
pub(crate) struct RepoCommand {
    #[command(subcommand)]
    verb: Verb,
}

const GC_HELP: &str = "\
What goes is condemned first, by an entry in the cluster's ledger: no later backup may name it. Then it is deleted. A pack
goes as a whole, once nothing in it is needed; what is dead in packs that stay is told as `dead`.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a repository in an empty store
    Init(Init),
    /// Make a master key: whoever loses it loses every backup, so keep copies apart from the repository
    Keygen {
        /// File to write; never overwritten
        #[arg(long)]
        out: PathBuf,
    },
    /// Show the repository of the coordinator
    Info,
    /// Delete what no backup needs any more: of deleted backups, of jobs that died. Safe beside backups and restores
    #[command(after_help = GC_HELP)]
    Gc {
        /// Only this cluster
        #[arg(long, short, env = "TIDEMARK_CLUSTER")]
        cluster: Option<ClusterName>,
        /// Print what would go and touch nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Check that everything the ledgers name is there and whole (`tidemark verify` reads the data itself)
    Check {
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List backups, straight from the repository: no coordinator is asked, nothing is written
    Backups(direct::Place),
    /// Show a backup, straight from the repository
    Show(direct::Chosen),
    /// Read every block of a backup and check it, straight from the repository
    Verify(direct::Chosen),
    /// Write the records of a backup, or of a time, as JSON Lines, straight from the repository
    #[command(after_help = direct::EXTRACT_EXAMPLES)]
    Extract(Box<direct::Extract>),
    /// Write a backup of Redis or Valkey as files that servers load, straight from the repository
    #[command(after_help = export::EXAMPLES)]
    Export(export::Export),
}

/// Where a repository is.
#[derive(Debug, Args)]
struct Site {
    /// Where: file:///path, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix
    #[arg(long, env = "TIDEMARK_REPOSITORY")]
    repository: String,
    /// Option of the store's client, e.g. aws_endpoint=http://127.0.0.1:9000 (credentials: by environment)
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = parse_option)]
    options: Vec<(String, String)>,
    /// File of the master key; without one TIDEMARK_MASTER_KEY is asked
    #[arg(long)]
    key_file: Option<PathBuf>,
}

impl Site {
    fn store(&self) -> StoreConfig {
        let options = StoreOptions(self.options.iter().cloned().collect());
        StoreConfig { url: self.repository.clone(), options, ..StoreConfig::default() }
    }
}

#[derive(Debug, Args)]
struct Init {
    #[command(flatten)]
    site: Site,
    /// Do not encrypt: whoever reads the store reads the data
    #[arg(long, conflicts_with = "key_file")]
    insecure_no_encryption: bool,
}

fn parse_option(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl RepoCommand {
    /// Runs the command.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        match self.verb {
            Verb::Init(init) => init.run(global.output).await,
            Verb::Keygen { out } => keygen(&out, global.output),
            Verb::Info => global.output.print(&global.client()?.repository().await?, info),
            Verb::Gc { cluster, dry_run, wait } => {
                let client = global.client()?;
                let jobs = client.collect(&CollectRequest { cluster, dry_run }).await?;
                backup::end_all(&client, jobs, wait, global.output).await
            }
            Verb::Check { wait } => {
                let client = global.client()?;
                let jobs = client.check_repository().await?;
                backup::end_all(&client, jobs, wait, global.output).await
            }
            Verb::Backups(place) => place.backups(global.output).await,
            Verb::Show(chosen) => chosen.show(global.output).await,
            Verb::Verify(chosen) => chosen.verify(global.output).await,
            Verb::Extract(extract) => extract.run(global.output).await,
            Verb::Export(export) => export.run(global.output).await,
        }
    }
}

fn info(r: &RepositoryInfo) -> String {
    let clusters = if r.clusters.is_empty() { "none yet".into() } else { r.clusters.join(", ") };
    let sealed = if r.encrypted { format!("yes, data key {}", r.key_id) } else { "NO".into() };
    fields(&[
        ("repository", r.url.clone()),
        ("id", r.id.clone()),
        ("created", time::seconds(r.created_millis)),
        ("encrypted", sealed),
        ("clusters", clusters),
    ])
}

/// What `init` made.
#[derive(Debug, Serialize)]
struct Created {
    id: String,
    url: String,
    encrypted: bool,
}

impl Init {
    async fn run(self, output: Format) -> Result<()> {
        let master = match self.insecure_no_encryption {
            true => None,
            false => Some(MasterKey::load(self.site.key_file.as_deref())?.ok_or_else(|| {
                Error::config(
                    "no master key: give --key-file (make one with `tidemark repo keygen --out FILE`) or set \
                     TIDEMARK_MASTER_KEY; --insecure-no-encryption does without",
                )
            })?),
        };
        let store = Store::open(&self.site.store())?;
        let repository = Repository::init(store, master.as_ref(), SystemClock.millis()).await?;
        let created = Created {
            id: repository.id().to_string(),
            url: repository.store().url().into(),
            encrypted: repository.keys().encrypts(),
        };
        output.print(&created, |c| {
            let sealed = if c.encrypted { "encrypted" } else { "NOT encrypted" };
            format!("repository {} created at {}, {sealed}", c.id, c.url)
        })
    }
}

fn keygen(out: &Path, output: Format) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(out).map_err(|e| {
        match e.kind() {
            std::io::ErrorKind::AlreadyExists => Error::conflict(format!(
                "{}: is there already and is never overwritten: backups may need it; choose another --out",
                out.display()
            )),
            _ => Error::config(format!("master key file {} cannot be written", out.display())).with_source(e),
        }
    })?;
    let written = file.write_all(MasterKey::generate().to_text().as_bytes()).and_then(|()| file.sync_all());
    written.or_kind(ErrorKind::Full, format_args!("master key file {}", out.display()))?;
    output.print(&serde_json::json!({ "key_file": out }), |_| {
        format!("master key written to {}: keep a copy where the repository is not", out.display())
    })
}
