//! The agent's life: open the store, serve its clients, keep the control connection, drain.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use quinn::Endpoint;
use tidemark_common::announce::{AgentPorts, announce};
use tidemark_common::identity::{Expected, Identity};
use tidemark_common::log::LogRing;
use tidemark_common::pki::Credentials;
use tidemark_common::rate::Limiter;
use tidemark_common::telemetry::{Metrics, TelemetryListener};
use tidemark_common::tls::ALPN_CONTROL;
use tidemark_common::transport::{Dialer, Greeting, client_endpoint};
use tidemark_proto::wire::hello::Purpose;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::bulk::BulkDialer;
use crate::config::{AgentConfig, DeltaMethod, EngineConfig};
use crate::data::DataListener;
use crate::indexes::IndexStore;
use crate::kv::KvStore;
use crate::state::AgentState;
use crate::{blocking, control, store};

/// Checks that the certificate speaks for the configured node.
fn check_identity(config: &AgentConfig, credentials: &Credentials) -> Result<()> {
    match credentials.identity() {
        Identity::Agent { cluster, node } if *cluster == config.cluster && *node == config.node => Ok(()),
        other => Err(Error::config(format!(
            "tls.cert is the certificate of {other}, but the configuration is of node {} in cluster {}",
            config.node, config.cluster
        ))),
    }
}

async fn resolve(address: &str) -> Result<SocketAddr> {
    let fail = || format!("engine.listen = `{address}`");
    let mut found = tokio::net::lookup_host(address).await.or_kind(ErrorKind::Config, fail())?;
    found.next().ok_or_else(|| Error::config(format!("{} has no address", fail())))
}

/// Checks what can be checked without running: certificates, identity, addresses.
pub fn check(config: &AgentConfig) -> Result<()> {
    let credentials = Credentials::load(config.tls.clone())?;
    check_identity(config, &credentials)?;
    match &config.engine {
        EngineConfig::Redis(redis) => redis.login().map(drop),
        served => served.served().map_or(Ok(()), |(listen, _)| client_address_is_valid(listen)),
    }
}

/// Checks the configuration, and the store where it is a server of its own; answers what was found.
pub fn check_store(config: &AgentConfig) -> Result<String> {
    check(config)?;
    match &config.engine {
        EngineConfig::Redis(redis) => {
            crate::engine::redis::check::check(&store::redis_options(redis, &config.state_dir)?)?.judge()
        }
        _ => Ok("the configuration is good; the store is in the agent itself".to_owned()),
    }
}

fn client_address_is_valid(address: &str) -> Result<()> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    port.map(|_| ()).ok_or_else(|| Error::config(format!("engine.listen = `{address}`: write host:port")))
}

fn control_dialer(config: &AgentConfig, endpoint: &Endpoint, credentials: &Credentials) -> Result<Dialer> {
    let greeting = Greeting::of(credentials.identity(), Purpose::Control, crate::BUILD);
    let (addresses, expected) = (config.coordinators.clone(), Expected::Coordinator);
    Dialer::new(endpoint.clone(), credentials, ALPN_CONTROL, expected, addresses, greeting)
}

/// Runs the agent until SIGTERM or SIGINT. Wrong configuration fails before any port is bound. With `tell_ports` they
/// are announced on standard output.
pub async fn run(config: AgentConfig, log: LogRing, tell_ports: bool) -> Result<()> {
    let metrics = Metrics::install("tidemark-agent", env!("CARGO_PKG_VERSION"), crate::metric_names::ALL)?;
    let credentials = Credentials::load(config.tls.clone())?;
    check_identity(&config, &credentials)?;
    let listen = match config.engine.served() {
        Some((listen, _)) => Some(resolve(listen).await?),
        None => None,
    };
    let state = AgentState::open(&config.state_dir)?;
    let (engine_config, state_dir) = (config.engine.clone(), config.state_dir.clone());
    let store = blocking(move || store::open(&engine_config, &state_dir)).await?;
    let wants_indexes = !store.changes_since || config.delta == DeltaMethod::KeyIndex;
    let indexes = if wants_indexes { Some(IndexStore::open(&config.state_dir)?) } else { None };
    let telemetry = TelemetryListener::bind(&config.telemetry).await?;
    let listener = match (listen, &store.kv) {
        (Some(listen), Some(kv)) => Some(bind(listen, &config, &credentials, kv.clone())?),
        _ => None,
    };
    let data_address = data_address(&config, listener.as_ref())?;
    let gate = listener.as_ref().map(DataListener::gate).unwrap_or_default();
    if store.engine.restoring()?.is_some() {
        gate.shut(RESTORING);
    }
    let endpoint = client_endpoint()?;
    let shutdown = CancellationToken::new();
    let dialer = control_dialer(&config, &endpoint, &credentials)?;
    tracing::info!(cluster = %config.cluster, node = %config.node, %data_address, "agent is up");
    let ports = AgentPorts { data: data_address.clone(), telemetry: telemetry.as_ref().map(|t| t.address) };
    let limiter = Limiter::new(config.limits.bytes_per_second);
    let agent = Arc::new(Agent {
        config,
        engine: store.engine.clone(),
        indexes,
        state,
        bulk: BulkDialer::new(endpoint.clone(), credentials),
        data_address,
        gate,
        restores: Mutex::default(),
        early: Default::default(),
        log_stream: Default::default(),
        limiter,
        limited: Default::default(),
        connected: Default::default(),
        metrics: metrics.clone(),
        log,
        shutdown: shutdown.clone(),
    });
    let data = tokio::spawn(serve(listener, shutdown.clone()));
    tell(&agent, metrics, telemetry);
    let control = tokio::spawn(control::run(agent, dialer));
    if tell_ports {
        announce(&ports)?;
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let name = wait_for_signal().await?;
    tracing::info!(signal = name, "shutting down");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    shutdown.cancel();
    let (data, control) = tokio::join!(data, control);
    data.or_kind(ErrorKind::Bug, "data listener")?;
    control.or_kind(ErrorKind::Bug, "control connection")??;
    endpoint.wait_idle().await;
    let close = store.close;
    blocking(move || {
        close();
        Ok(())
    })
    .await?;
    tracing::info!("agent has stopped");
    Ok(())
}

fn bind(
    listen: SocketAddr,
    config: &AgentConfig,
    credentials: &Credentials,
    kv: Arc<dyn KvStore>,
) -> Result<DataListener> {
    DataListener::bind_within(listen, credentials, kv, crate::BUILD, config.memory.requests_bytes())
}

/// Where clients of the store reach it.
fn data_address(config: &AgentConfig, listener: Option<&DataListener>) -> Result<String> {
    match (&config.engine, listener) {
        (EngineConfig::Redis(redis), _) => Ok(redis.address.clone()),
        (served, Some(listener)) => match served.served() {
            Some((_, advertise)) if !advertise.is_empty() => Ok(advertise.to_owned()),
            _ => Ok(listener.local_address()?.to_string()),
        },
        (_, None) => Ok(String::new()),
    }
}

async fn serve(listener: Option<DataListener>, shutdown: CancellationToken) {
    match listener {
        Some(listener) => listener.run(shutdown).await,
        None => shutdown.cancelled().await,
    }
}

/// Keeps the metrics up, and answers at their port, until the agent shuts down.
fn tell(agent: &Arc<Agent>, metrics: Metrics, port: Option<TelemetryListener>) {
    drop(tokio::spawn(metrics.clone().keep_up(agent.shutdown.clone())));
    if let Some(port) = port {
        drop(tokio::spawn(port.run(metrics, agent.clone(), agent.shutdown.clone())));
    }
}

/// What clients of the store are told during a restore.
pub(crate) const RESTORING: &str = "the node is being restored: come back when it is available";

async fn wait_for_signal() -> Result<&'static str> {
    let mut term = signal(SignalKind::terminate()).or_kind(ErrorKind::Bug, "signal handler")?;
    let mut int = signal(SignalKind::interrupt()).or_kind(ErrorKind::Bug, "signal handler")?;
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    })
}
