//! `tidemark repo`: make and look after the repository.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use crate::repository::{MasterKey, Repository, Store, StoreConfig, StoreOptions};

/// Make and look after the repository.
#[derive(Debug, Args)]
pub(super) struct RepoCommand {
    #[command(subcommand)]
    verb: Verb,
}

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
}

#[derive(Debug, Args)]
struct Init {
    /// Where: file:///path, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix
    #[arg(long, env = "TIDEMARK_REPOSITORY")]
    repository: String,
    /// Option of the store's client, e.g. aws_endpoint=http://127.0.0.1:9000 (credentials: by environment)
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = parse_option)]
    options: Vec<(String, String)>,
    /// File of the master key; without one TIDEMARK_MASTER_KEY is asked
    #[arg(long)]
    key_file: Option<PathBuf>,
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
    pub(super) fn run(self) -> Result<()> {
        match self.verb {
            Verb::Init(init) => super::block_on(init.run()),
            Verb::Keygen { out } => keygen(&out),
        }
    }
}

impl Init {
    async fn run(self) -> Result<()> {
        let master = match self.insecure_no_encryption {
            true => None,
            false => Some(MasterKey::load(self.key_file.as_deref())?.ok_or_else(|| {
                Error::config(
                    "no master key: give --key-file (make one with `tidemark repo keygen --out FILE`) or set \
                     TIDEMARK_MASTER_KEY; --insecure-no-encryption does without",
                )
            })?),
        };
        let options = StoreOptions(self.options.into_iter().collect());
        let store = Store::open(&StoreConfig { url: self.repository, options })?;
        let repository = Repository::init(store, master.as_ref(), SystemClock.millis()).await?;
        let sealed = if repository.keys().encrypts() { "encrypted" } else { "NOT encrypted" };
        println!("repository {} created at {}, {sealed}", repository.id(), repository.store().url());
        Ok(())
    }
}

fn keygen(out: &Path) -> Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)
        .or_kind(ErrorKind::Conflict, format_args!("master key file {}", out.display()))?;
    let written = file.write_all(MasterKey::generate().to_text().as_bytes()).and_then(|()| file.sync_all());
    written.or_kind(ErrorKind::Full, format_args!("master key file {}", out.display()))?;
    println!("master key written to {}: keep a copy where the repository is not", out.display());
    Ok(())
}
