//! The command line of Tidemark.

use std::process::ExitCode;

use clap::Parser;
use tidemark_coordinator::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("tidemark: {}", e.report());
            ExitCode::from(e.kind().exit_code())
        }
    }
}
