//! The agent's life: open the store, serve its clients, keep the control connection, drain.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::Endpoint;
use tidemark_common::announce::{AgentPorts, announce};
use tidemark_common::clock::Hlc;
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
use crate::engine::Engine;
use crate::engine::embedded::{Embedded, Options};
use crate::engine::memory::Memory;
use crate::indexes::IndexStore;
use crate::kv::KvStore;
use crate::state::AgentState;
use crate::{blocking, control};

/// A store of ours, as both sides need it.
struct Store {
    engine: Arc<dyn Engine>,
    kv: Arc<dyn KvStore>,
    close: Box<dyn FnOnce() + Send>,
}

fn open_store(config: &EngineConfig) -> Result<Store> {
    let clock = Hlc::system();
    match config {
        EngineConfig::Embedded { data_dir, slots, retention_seconds, cache_mib, .. } => {
            let mut options = Options::new(slots.clone(), clock);
            options.retention = Duration::from_secs(*retention_seconds);
            options.cache_bytes = cache_mib << 20;
            let store = Embedded::open(data_dir, options)?;
            let (engine, kv) = (store.clone(), store.clone());
            Ok(Store { engine, kv, close: Box::new(move || store.close()) })
        }
        EngineConfig::Memory { slots, .. } => {
            let store = Arc::new(Memory::new(slots.clone(), clock));
            Ok(Store { engine: store.clone(), kv: store, close: Box::new(|| ()) })
        }
    }
}

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
    client_address_is_valid(config.engine.common().1)
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
    let (_, listen, advertise) = config.engine.common();
    let (listen, advertise) = (resolve(listen).await?, advertise.to_owned());
    let state = AgentState::open(&config.state_dir)?;
    let engine_config = config.engine.clone();
    let store = blocking(move || open_store(&engine_config)).await?;
    let description = store.engine.describe()?;
    let wants_indexes = !description.changes_since || config.delta == DeltaMethod::KeyIndex;
    let indexes = if wants_indexes { Some(IndexStore::open(&config.state_dir)?) } else { None };
    let telemetry = TelemetryListener::bind(&config.telemetry).await?;
    let listener = {
        let (kv, budget) = (store.kv.clone(), config.memory.requests_bytes());
        DataListener::bind_within(listen, &credentials, kv, crate::BUILD, budget)?
    };
    let data_address = if advertise.is_empty() { listener.local_address()?.to_string() } else { advertise };
    let gate = listener.gate();
    if description.state == "restoring" {
        gate.shut(RESTORING);
    }
    let endpoint = client_endpoint()?;
    let shutdown = CancellationToken::new();
    let dialer = control_dialer(&config, &endpoint, &credentials)?;
    tracing::info!(cluster = %config.cluster, node = %config.node, %data_address, records = description.records, "agent is up");
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
        limiter,
        limited: Default::default(),
        connected: Default::default(),
        metrics: metrics.clone(),
        log,
        shutdown: shutdown.clone(),
    });
    let data = tokio::spawn(listener.run(shutdown.clone()));
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
