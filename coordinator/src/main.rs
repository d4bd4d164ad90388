//! The command line of Tidemark.

use std::process::ExitCode;

use clap::Parser;
use tidemark_coordinator::cli::pki::PkiCommand;

/// Backup and restore of sharded data stores.
#[derive(Debug, Parser)]
#[command(name = "tidemark", version)]
enum Cli {
    /// Make the fleet's authority, issue certificates and show them
    Pki(PkiCommand),
}

fn main() -> ExitCode {
    let Cli::Pki(command) = Cli::parse();
    match command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("tidemark: {}", e.report());
            ExitCode::from(e.kind().exit_code())
        }
    }
}
