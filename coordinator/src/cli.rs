//! The command line: `serve` runs a coordinator; `pki`, `repo init|keygen|backups|show|verify|extract|export`, `export`,
//! `check-config` and `completions` work without one; everything else is a client of a coordinator's API.

mod backup;
mod check_config;
mod clone;
mod confirm;
mod connect;
mod demo;
mod diagnose;
mod events;
mod follow;
mod import;
mod jobs;
mod kept;
mod kv;
mod limits;
mod output;
mod pitr;
mod pki;
mod query;
mod repo;
mod report;
mod restore;
mod serve;
mod status;
mod time;

use std::fmt::Write as _;

use clap::{CommandFactory, Parser, Subcommand};
use tidemark_proto::{Error, ErrorKind, Result};

pub(crate) use output::{count, micros, size};
pub(crate) use time::exact;

/// Backup and restore of sharded data stores.
#[derive(Debug, Parser)]
#[command(name = "tidemark", version, propagate_version = true, after_help = after_help(), max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    global: connect::GlobalArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// See it work on this machine: back up under load, lose everything, restore into another shape, prove it
    Demo(demo::DemoCommand),
    /// Show the coordinator, its clusters and its running jobs
    Status(status::StatusCommand),
    /// List clusters, show their nodes
    #[command(subcommand)]
    Cluster(status::ClusterCommand),
    /// Take, list, show, delete and cancel backups
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Plan and run restores
    #[command(subcommand)]
    Restore(restore::RestoreCommand),
    /// Make, list and drop clones: writable branches of a cluster on its own nodes
    #[command(subcommand)]
    Clone(clone::CloneCommand),
    /// Read a backup back and check every block, seal and digest
    Verify(backup::VerifyCommand),
    /// Keep the log of a cluster, so that any second can be restored; show what can be
    #[command(subcommand)]
    Pitr(pitr::PitrCommand),
    /// Look into the past without a restore: a key, a prefix, what changed, every version
    Query(query::QueryArgs),
    /// Write a backup of Redis or Valkey as RDB files, commands or JSON Lines, straight from the repository (`repo export`)
    #[command(after_help = repo::export::EXAMPLES)]
    Export(Box<repo::export::Export>),
    /// Take RDB files into the repository as a backup
    Import(import::ImportCommand),
    /// List, show and cancel jobs
    #[command(subcommand)]
    Job(jobs::JobCommand),
    /// Show what happened: phases, retries and ends of jobs, entries of ledgers
    Events(events::EventsCommand),
    /// Show and change limits of rates
    #[command(subcommand)]
    Limits(limits::LimitsCommand),
    /// Write an archive for the report of a fault, without secrets
    Diagnose(diagnose::DiagnoseCommand),
    /// Make and look after the repository
    Repo(repo::RepoCommand),
    /// Read and write keys of a store that Tidemark serves, make load on it, check it
    Kv(Box<kv::KvArgs>),
    /// Make the fleet's authority, issue certificates and show them
    Pki(pki::PkiCommand),
    /// Run a coordinator
    Serve(serve::ServeCommand),
    /// Check the configuration of a coordinator: its file, certificate, addresses and repository
    CheckConfig(check_config::CheckConfigCommand),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let global = self.global;
        match self.verb {
            Verb::Serve(command) => command.run(),
            Verb::Pki(command) => command.run(global.output),
            Verb::Completions { shell } => completions(shell),
            verb => block_on(client_verb(verb, &global)),
        }
    }
}

async fn client_verb(verb: Verb, global: &connect::GlobalArgs) -> Result<()> {
    match verb {
        Verb::Demo(command) => command.run(global.output).await,
        Verb::Status(command) => command.run(global).await,
        Verb::Cluster(command) => command.run(global).await,
        Verb::Backup(command) => command.run(global).await,
        Verb::Restore(command) => command.run(global).await,
        Verb::Clone(command) => command.run(global).await,
        Verb::Verify(command) => command.run(global).await,
        Verb::Pitr(command) => command.run(global).await,
        Verb::Query(command) => command.run(global).await,
        Verb::Export(command) => command.run(global.output).await,
        Verb::Import(command) => command.run(global).await,
        Verb::Job(command) => command.run(global).await,
        Verb::Events(command) => command.run(global).await,
        Verb::Limits(command) => command.run(global).await,
        Verb::Diagnose(command) => command.run(global).await,
        Verb::Repo(command) => command.run(global).await,
        Verb::Kv(command) => command.run(global).await,
        Verb::CheckConfig(command) => command.run(global.output).await,
        Verb::Serve(_) | Verb::Pki(_) | Verb::Completions { .. } => Err(Error::bug("not a verb of a client")),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tidemark", &mut script);
    output::say(&String::from_utf8_lossy(&script))
}

/// Runs a future on a runtime of its own.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| Error::bug("async runtime").with_source(e))?;
    runtime.block_on(work)
}

fn meaning(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Request => "the command or request is wrong: change its words",
        ErrorKind::NotFound => "what was named does not exist",
        ErrorKind::Conflict => "it does not fit the present state (busy, exists already, not empty)",
        ErrorKind::Cancelled => "ended on request",
        ErrorKind::Incomplete => "restored what is healthy (--salvage): the regions listed are missing",
        ErrorKind::Config => "the configuration is wrong",
        ErrorKind::Damaged => "data is damaged, or a check found faults",
        ErrorKind::Unsupported => "this build or store cannot do it",
        ErrorKind::Bug => "a defect of Tidemark: please report it",
        ErrorKind::Full => "no room or budget left",
        ErrorKind::Retry => "passing trouble: try again later",
        ErrorKind::Fenced => "another coordinator has taken over",
        ErrorKind::Denied => "not allowed: certificate missing, ended, of another fleet or role",
    }
}

fn after_help() -> String {
    let mut out = "\
Begin here:
  tidemark demo                                      see it work, nothing to set up
  tidemark pki init                                  the fleet's authority
  tidemark repo keygen --out master.key              the key that all backups need
  tidemark repo init --repository file:///backup --key-file master.key
  tidemark serve --config coordinator.toml           a coordinator; agents run beside the nodes
  tidemark backup create --cluster orders
  tidemark restore run latest --cluster orders --target orders-copy

Exit codes:
   0  done
"
    .to_owned();
    let mut kinds = ErrorKind::ALL;
    kinds.sort_by_key(|k| k.exit_code());
    for kind in kinds {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  {:>2}  {} ({kind})", kind.exit_code(), meaning(kind));
    }
    out.truncate(out.trim_end().len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_exit_code_is_in_the_help() {
        let help = Cli::command().render_long_help().to_string();
        for kind in ErrorKind::ALL {
            assert!(help.contains(&format!("({kind})")), "{kind}");
        }
    }

    #[test]
    fn verbs_take_what_their_help_says() {
        for line in [
            "status -o json",
            "--coordinator https://c:1 --ca a --cert b --key c backup create --cluster orders --full --no-wait",
            "backup delete 3f -y --cluster orders --key k",
            "backup cancel",
            "restore run latest --cluster orders --target t --in-place --keys a* --keys !b -y --dry-run",
            "restore status 3f --wait",
            "verify latest --cluster orders --sample 5%",
            "events --cluster orders --job 3f -n 50 -o json",
            "pitr enable --cluster orders --interval-ms 500",
            "pitr status -o json",
            "query get key --at -5m --cluster orders",
            "query -C orders --db 3 scan user: --limit 5",
            "query diff -o json --from -10m --to -5m --keys a*",
            "query history key",
            "limits show",
            "limits set --fleet 50MB --per-agent none",
            "diagnose --out d.tar.gz --key k",
            "repo info",
            "repo check --no-wait",
            "repo backups --repository file:///b --option aws_region=x -C orders -o json",
            "repo verify --repository file:///b --key-file k --backup 3f",
            "repo extract --repository file:///b --keys a* --keys !b --out - --encoding base64",
            "repo export latest --repository file:///b --format rdb --shards 3 --out d --db 0 --slots 0-99,7 --rdb-version 10",
            "clone create trial --cluster orders --at -5m -o json",
            "clone ls -C orders",
            "clone drop trial -y --key k",
            "kv scan --clone trial --cluster orders",
            "kv --clone trial get a",
            "kv --cluster orders put key value",
            "kv get key --at -5m --cluster orders",
            "kv scan --at 2026-10-04T09:30:00Z",
            "kv load --key k.pem --records 5",
            "check-config coordinator.toml --offline",
            "completions bash",
            "pki show -o json",
        ] {
            let words = std::iter::once("tidemark").chain(line.split(' '));
            assert!(
                Cli::try_parse_from(words.clone()).is_ok(),
                "{line}: {}",
                Cli::try_parse_from(words).unwrap_err()
            );
        }
        for line in [
            "backup",
            "restore run",
            "verify x --sample 0",
            "kv get key --at -5x",
            "kv put key",
            "clone create",
            "clone create Trial",
            "clone drop",
            "limits set",
            "events -n 0",
        ] {
            let words = std::iter::once("tidemark").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
