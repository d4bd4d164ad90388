//! Logging: tracing to standard error, as text for people or JSON lines for machines. The last lines are kept in memory,
//! for `tidemark diagnose`.

mod ring;

use serde::{Deserialize, Serialize};
use tidemark_proto::{Error, Result};
use tracing_subscriber::EnvFilter;

pub use ring::{LogRing, MAX_BYTES, MAX_LINE};

/// Environment variable that overrides the configured filter.
pub const LOG_ENV: &str = "TIDEMARK_LOG";

/// Filter when none is configured: the store below the embedded engine is chatty at `info`.
pub const DEFAULT_FILTER: &str = "info,fjall=warn,lsm_tree=warn";

/// The `[log]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Filter in the syntax of tracing-subscriber, e.g. `info,tidemark_agent=debug`.
    pub filter: String,
    /// Form of the lines.
    pub format: LogFormat,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, with the spans that it was written in.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: DEFAULT_FILTER.into(), format: LogFormat::Text }
    }
}

/// Starts logging for the process; answers the lines that are kept. A second call is an error (`Bug`).
pub fn init(config: &LogConfig) -> Result<LogRing> {
    let text = std::env::var(LOG_ENV).unwrap_or_else(|_| config.filter.clone());
    let filter =
        EnvFilter::try_new(&text).map_err(|e| Error::config(format!("log filter `{text}`")).with_source(e))?;
    let ring = LogRing::default();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(ring.clone());
    match config.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|e| Error::bug("logging was started before").with_source(e))?;
    Ok(ring)
}
