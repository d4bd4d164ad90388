//! `tidemark demo`.

use std::path::PathBuf;

use clap::Args;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};
use tokio::signal::unix::{SignalKind, signal};

use super::output::{Format, say};
use crate::demo::{self, DemoOptions, Summary};

/// Options of `tidemark demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoCommand {
    /// Leave the fleet running, and say how to play with it
    #[arg(long)]
    keep: bool,
    /// Folder to work in: not there yet, or empty [default: a new one in the temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Records to begin with
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    records: u64,
}

impl DemoCommand {
    /// Runs it; a proof that fails is an error.
    pub(crate) async fn run(self, output: Format) -> Result<()> {
        let options = DemoOptions { records: self.records, dir: self.dir, keep: self.keep };
        let tell = |line: &str| match output {
            // The demo does not end because nobody reads along.
            Format::Text => drop(say(line)),
            Format::Json => eprintln!("{line}"),
        };
        let mut term = signal(SignalKind::terminate()).or_kind(ErrorKind::Bug, "signal handler")?;
        let mut int = signal(SignalKind::interrupt()).or_kind(ErrorKind::Bug, "signal handler")?;
        // Dropping the future ends all processes and removes the folder.
        let summary = tokio::select! {
            summary = Box::pin(demo::run(&options, tell)) => summary?,
            _ = term.recv() => return Err(ended()),
            _ = int.recv() => return Err(ended()),
        };
        output.print(&summary, Summary::text)?;
        if summary.proof.holds() {
            return Ok(());
        }
        Err(Error::damaged("the proof failed: the restored fleet is not what was backed up; please report this"))
    }
}

fn ended() -> Error {
    Error::cancelled("the demo was ended; all of it has been cleaned up")
}
