//! What a daemon tells of itself: metrics in the text format of Prometheus, and whether it lives and is ready, on a plain
//! HTTP port of its own (`/metrics`, `/healthz`, `/readyz`). Nothing there can change anything, and nothing is secret.
//!
//! Names, labels and help stand in one file of each package (`metric_names.rs`); labels have few values, never ids of
//! jobs or parts. Histograms have fixed buckets, and what they gather is folded in every [`UPKEEP_EVERY`], so that their
//! memory stays flat whether somebody reads them or not.

mod metric;
mod process;
mod server;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use metric::{FRACTIONS_OF_A_SECOND, Metric, MetricKind, SECONDS};

use crate::metric_names;

/// Samples of histograms are folded into their buckets this often.
pub const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The `[telemetry]` section.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// TCP address of `/metrics`, `/healthz` and `/readyz` (plain HTTP; port 0 takes a free one). Empty: none.
    pub listen: String,
}

impl TelemetryConfig {
    /// Refuses what is no address (`Config`), without asking a resolver.
    pub fn check(&self) -> Result<()> {
        let port = self.listen.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        if self.listen.is_empty() || port.is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
            return Ok(());
        }
        let listen = &self.listen;
        Err(Error::config(format!("telemetry.listen = `{listen}`: write host:port, or nothing for no port")))
    }
}

/// An answer that takes its time.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A daemon that is looked at.
pub trait Observed: Send + Sync + 'static {
    /// Sets the gauges whose value is only known when somebody asks. Called before every look at the metrics.
    fn observe(&self);

    /// Whether it can do its work; the error says in plain words why not.
    fn ready(&self) -> Pending<'_, std::result::Result<(), String>>;
}

/// The metrics of this process.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Starts counting for the process: what was counted before is lost. `names` are the tables of the packages beside
    /// [`metric_names::ALL`]. A second call is an error (`Bug`).
    pub fn install(program: &'static str, version: &'static str, names: &[Metric]) -> Result<Self> {
        let mut builder = PrometheusBuilder::new();
        let all = || metric_names::ALL.iter().chain(names);
        for metric in all() {
            if let MetricKind::Histogram(buckets) = metric.kind {
                let matcher = metrics_exporter_prometheus::Matcher::Full(metric.name.into());
                builder = builder.set_buckets_for_metric(matcher, buckets).or_kind(ErrorKind::Bug, metric.name)?;
            }
        }
        let handle = builder.build_recorder();
        let metrics = Self(handle.handle());
        metrics::set_global_recorder(handle).map_err(|_| Error::bug("metrics were started before"))?;
        all().for_each(Metric::describe);
        metrics::gauge!(metric_names::BUILD_INFO, "program" => program, "version" => version).set(1.0);
        process::started();
        Ok(metrics)
    }

    /// All metrics in the text format of Prometheus, with the gauges that `observed` sets.
    pub fn render(&self, observed: &dyn Observed) -> String {
        process::observe();
        observed.observe();
        self.0.render()
    }

    /// Folds samples in until `shutdown`.
    pub async fn keep_up(self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(UPKEEP_EVERY) => self.0.run_upkeep(),
            }
        }
    }
}

/// The port, opened.
#[derive(Debug)]
pub struct TelemetryListener {
    listener: TcpListener,
    /// Where it listens.
    pub address: SocketAddr,
}

impl TelemetryListener {
    /// Opens the configured port; `None` when there is none.
    pub async fn bind(config: &TelemetryConfig) -> Result<Option<Self>> {
        if config.listen.is_empty() {
            return Ok(None);
        }
        let key =
            || format!("telemetry.listen = `{}`: write host:port of this host, with a free port", config.listen);
        let listener = TcpListener::bind(&config.listen).await.or_kind(ErrorKind::Config, key())?;
        let address = listener.local_addr().or_kind(ErrorKind::Bug, "local address")?;
        tracing::info!(%address, "telemetry is served");
        Ok(Some(Self { listener, address }))
    }

    /// Answers until `shutdown`.
    pub async fn run(self, metrics: Metrics, observed: Arc<dyn Observed>, shutdown: CancellationToken) {
        server::run(self.listener, metrics, observed, shutdown).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port_or_nothing() {
        let check = |listen: &str| TelemetryConfig { listen: listen.into() }.check();
        for good in ["", "127.0.0.1:9469", "[::1]:0", "localhost:1"] {
            check(good).unwrap();
        }
        for wrong in ["9469", ":9469", "host", "host:", "host:99999"] {
            assert_eq!(check(wrong).unwrap_err().kind(), ErrorKind::Config, "{wrong}");
        }
    }
}
