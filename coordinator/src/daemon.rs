//! The coordinator's life: open the repository, take an epoch, listen, wait, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidemark_common::clock::{Hlc, SystemClock, WallClock};
use tidemark_common::log::LogRing;
use tidemark_common::pki::Credentials;
use tidemark_common::telemetry::{Metrics, TelemetryListener};
use tidemark_common::tls::ALPN_CONTROL;
use tidemark_common::transport::server_endpoint;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::CoordinatorConfig;
use crate::context::{Context, Shared};
use crate::events;
use crate::fleet::Fleet;
use crate::history::History;
use crate::ingest::Ingest;
use crate::job::Jobs;
use crate::limits::Limits;
use crate::log::Logs;
use crate::recover;
use crate::repository::{Repository, Store};
use crate::serve::Serve;
use crate::telemetry::{Telemetry, read_ledgers};

/// Time for the last events of jobs to be written at shutdown.
const EVENTS_GRACE: Duration = Duration::from_secs(5);

/// A coordinator that listens.
#[derive(Debug)]
pub struct Running {
    /// What its parts share.
    pub context: Shared,
    /// UDP address for agents.
    pub agent_address: SocketAddr,
    /// TCP address of the API.
    pub api_address: SocketAddr,
    /// TCP address of metrics and health, if they are served.
    pub telemetry_address: Option<SocketAddr>,
    shutdown: CancellationToken,
    tasks: tokio::task::JoinSet<()>,
    events: tokio::task::JoinHandle<()>,
}

/// Looks an address up; the first that the resolver gives.
async fn resolve(address: &str, key: &str) -> Result<SocketAddr> {
    let mut found =
        tokio::net::lookup_host(address).await.or_kind(ErrorKind::Config, format_args!("{key} = `{address}`"))?;
    found.next().ok_or_else(|| Error::config(format!("{key} = `{address}` has no address")))
}

/// The addresses that `config` listens at: for agents, and of the API.
pub async fn addresses(config: &CoordinatorConfig) -> Result<(SocketAddr, SocketAddr)> {
    let (listen, api) =
        (resolve(&config.listen, "listen").await?, resolve(&config.api_listen, "api_listen").await?);
    if config.advertise.is_empty() {
        let _ = advertised(listen)?;
    }
    Ok((listen, api))
}

/// Refuses a certificate that is not a coordinator's.
pub fn check_identity(credentials: &Credentials) -> Result<()> {
    match credentials.identity() {
        identity if identity.role() == "coordinator" => Ok(()),
        other => Err(Error::config(format!("tls.cert is the certificate of {other}, not of a coordinator"))),
    }
}

/// Starts everything that `config` names. Wrong configuration fails before any port is bound.
pub async fn start(config: CoordinatorConfig, metrics: Metrics, log: LogRing) -> Result<Running> {
    let (listen, api_listen) = addresses(&config).await?;
    let credentials = Credentials::load(config.tls.clone())?;
    check_identity(&credentials)?;
    let store = Store::open(&config.repository.store())?;
    let master = config.repository.master_key()?;
    if store.is_of_this_process() {
        // Nobody else could have made it: `memory://` lives and dies with this coordinator.
        let _ = Repository::init(store.clone(), master.as_ref(), SystemClock.millis()).await?;
    }
    let repository = Repository::open(store, master.as_ref()).await?;
    repository.probe().await?;
    let clock = Hlc::system();
    let epoch = repository.take_epoch(&config.name, clock.wall_millis()).await?;
    let endpoint = server_endpoint(listen, &credentials, ALPN_CONTROL)?;
    let agent_address = endpoint.local_addr().or_kind(ErrorKind::Bug, "local address")?;
    let api = TcpListener::bind(api_listen).await.or_kind(
        ErrorKind::Config,
        format_args!("TCP port {api_listen} cannot be opened: choose a free address"),
    )?;
    let api_address = api.local_addr().or_kind(ErrorKind::Bug, "local address")?;
    let telemetry = TelemetryListener::bind(&config.telemetry).await?;
    let telemetry_address = telemetry.as_ref().map(|t| t.address);
    let limits = Arc::new(Limits::load(config.limits.clone(), &repository).await?);
    let (events, event_writer) = events::channel();
    let bulk_address =
        if config.advertise.is_empty() { advertised(agent_address)? } else { config.advertise.clone() };
    let shutdown = CancellationToken::new();
    let context: Shared = Arc::new(Context {
        logs: Default::default(),
        shutdown: shutdown.clone(),
        ingest: Ingest::new(repository.clone(), config.memory.ingest_mib << 20, limits.clone()),
        serve: Serve::new(repository.clone(), config.memory.serve_mib << 20, limits.clone()),
        started_millis: clock.wall_millis(),
        fenced: Default::default(),
        fleet: Fleet::default(),
        history: History::default(),
        jobs: Jobs::new(events),
        limits,
        clones: Default::default(),
        metrics: metrics.clone(),
        log,
        config,
        repository,
        epoch,
        clock,
        bulk_address,
    });
    // Before any agent connects: a node that holds something of a job must find the job here.
    let left = recover::take_over(&context).await?;
    recover::go_on(&context, left);
    let mut tasks = tokio::task::JoinSet::new();
    let observed = Arc::new(Telemetry::new(context.clone()));
    let _ = tasks.spawn(metrics.clone().keep_up(shutdown.clone()));
    let _ = tasks.spawn(read_ledgers(context.clone(), shutdown.clone()));
    let _ = tasks.spawn(Logs::begin_all(context.clone(), shutdown.clone()));
    if let Some(port) = telemetry {
        let _ = tasks.spawn(port.run(metrics, observed.clone(), shutdown.clone()));
    }
    let writer = event_writer.run(context.repository.clone(), epoch, shutdown.clone());
    let events = tokio::spawn(writer);
    let _ = tasks.spawn(crate::listener::run(context.clone(), endpoint, shutdown.clone()));
    let _ = tasks.spawn(crate::api::run(context.clone(), api, credentials, shutdown.clone()));
    tracing::info!(%agent_address, %api_address, epoch, repository = context.repository.store().url(), "coordinator is up");
    Ok(Running { context, agent_address, api_address, telemetry_address, shutdown, tasks, events })
}

/// An address that agents can dial: a wildcard is only good on one host, so it must be spelled out elsewhere.
fn advertised(address: SocketAddr) -> Result<String> {
    if address.ip().is_unspecified() {
        return Err(Error::config(
            "listen is a wildcard: say with `advertise` at which address agents reach this host",
        ));
    }
    Ok(address.to_string())
}

impl Running {
    /// Waits for SIGTERM or SIGINT, then stops taking work, lets running jobs end within the grace time, and stops.
    pub async fn until_signal(self) -> Result<()> {
        let mut term = signal(SignalKind::terminate()).or_kind(ErrorKind::Bug, "signal handler")?;
        let mut int = signal(SignalKind::interrupt()).or_kind(ErrorKind::Bug, "signal handler")?;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let name = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "shutting down");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.stop().await;
        Ok(())
    }

    /// Drains and stops.
    pub async fn stop(mut self) {
        let jobs = &self.context.jobs;
        jobs.refuse_new();
        let grace = self.context.config.shutdown_grace();
        if tokio::time::timeout(grace, jobs.all_ended()).await.is_err() {
            tracing::warn!("jobs still run after {} s: cancelling them", grace.as_secs());
            jobs.cancel_all();
            let _ = tokio::time::timeout(grace, jobs.all_ended()).await;
        }
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
        if tokio::time::timeout(EVENTS_GRACE, self.events).await.is_err() {
            tracing::warn!("the last events of jobs could not be written in time");
        }
        tracing::info!("coordinator has stopped");
    }
}
