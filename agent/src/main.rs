//! The agent's command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidemark_agent::config::AgentConfig;
use tidemark_agent::daemon;
use tidemark_proto::{Error, Result};

/// The agent of Tidemark: runs beside a storage node.
#[derive(Debug, Parser)]
#[command(name = "tidemark-agent", version)]
struct Cli {
    /// Configuration file
    #[arg(short, long, global = true, env = "TIDEMARK_AGENT_CONFIG", default_value = "/etc/tidemark/agent.toml")]
    config: PathBuf,
    /// Print one line of JSON with the ports to standard output once they are open
    #[arg(long)]
    announce: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Clone, Subcommand)]
enum Verb {
    /// Run the agent (what it does without a verb)
    Run,
    /// Check the configuration and say what is wrong with it
    CheckConfig,
    /// Check the configuration, and whether the store can be backed up as it is: rights, settings, room on disk
    Check,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("tidemark-agent: {}", e.report());
            ExitCode::from(e.kind().exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let config = AgentConfig::load(&cli.config)?;
    match cli.verb {
        Some(Verb::CheckConfig) => {
            daemon::check(&config)?;
            println!("{}: good", cli.config.display());
            Ok(())
        }
        Some(Verb::Check) => {
            println!("{}", daemon::check_store(&config)?);
            Ok(())
        }
        Some(Verb::Run) | None => {
            let log = tidemark_common::log::init(&config.log)?;
            let runtime = tokio::runtime::Runtime::new().map_err(|e| Error::bug("async runtime").with_source(e))?;
            let done = runtime.block_on(daemon::run(config, log, cli.announce));
            // Blocking work that still runs was told to stop; a process that ends must not wait for it.
            runtime.shutdown_background();
            done
        }
    }
}
