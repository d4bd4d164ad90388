//! The command line: `serve` runs a coordinator, `pki` and `repo init|keygen` work on files, everything else is a client
//! of a coordinator's API.

pub mod kv;
mod output;
pub mod pki;
mod repo;
mod serve;

use clap::{Parser, Subcommand};
use tidemark_proto::{Error, Result};

pub use output::{Format, table};

/// Backup and restore of sharded data stores.
#[derive(Debug, Parser)]
#[command(name = "tidemark", version)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a coordinator
    Serve(serve::ServeCommand),
    /// Make and look after the repository
    Repo(repo::RepoCommand),
    /// Make the fleet's authority, issue certificates and show them
    Pki(pki::PkiCommand),
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.verb {
            Verb::Serve(command) => command.run(),
            Verb::Repo(command) => command.run(),
            Verb::Pki(command) => command.run(),
        }
    }
}

/// Runs a future on a runtime of its own.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| Error::bug("async runtime").with_source(e))?;
    runtime.block_on(work)
}
