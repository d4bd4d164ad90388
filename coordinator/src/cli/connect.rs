//! How the command line reaches a coordinator: options, environment, or one file.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use tidemark_common::pki::{Credentials, PkiPaths};
use tidemark_proto::{ClusterName, Error, Result};

use super::output::Format;
use crate::client::ApiClient;

/// The file in the user's configuration folder.
const DEFAULT_FILE: &str = "tidemark/cli.toml";
const HEADING: &str = "Connection";

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct GlobalArgs {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub(crate) output: Format,
    /// The coordinator's API, e.g. https://127.0.0.1:7401
    #[arg(long, id = "conn_url", value_name = "URL", env = "TIDEMARK_COORDINATOR", global = true, help_heading = HEADING)]
    coordinator: Option<String>,
    /// Certificate of the fleet's authority
    #[arg(long, id = "conn_ca", value_name = "FILE", env = "TIDEMARK_CA", global = true, help_heading = HEADING)]
    ca: Option<PathBuf>,
    /// Your operator certificate
    #[arg(long, id = "conn_cert", value_name = "FILE", env = "TIDEMARK_CERT", global = true, help_heading = HEADING)]
    cert: Option<PathBuf>,
    /// Private key of the certificate
    #[arg(long, id = "conn_key", value_name = "FILE", env = "TIDEMARK_KEY", global = true, help_heading = HEADING)]
    key: Option<PathBuf>,
    /// File with these four settings [default: ~/.config/tidemark/cli.toml]
    #[arg(long, id = "conn_file", value_name = "FILE", env = "TIDEMARK_CLI_CONFIG", global = true, help_heading = HEADING)]
    cli_config: Option<PathBuf>,
}

/// The file: paths are relative to its folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct CliConfig {
    coordinator: Option<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl CliConfig {
    fn load(path: &Path) -> Result<Self> {
        let config: Self = tidemark_common::config::load(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let whole = |p: PathBuf| folder.join(p);
        Ok(Self {
            ca: config.ca.map(whole),
            cert: config.cert.map(whole),
            key: config.key.map(whole),
            coordinator: config.coordinator,
        })
    }
}

/// `$XDG_CONFIG_HOME` or `~/.config`.
fn config_home() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))
}

impl GlobalArgs {
    /// The options, and what they leave open from the file.
    fn settings(&self) -> Result<CliConfig> {
        let file = match &self.cli_config {
            Some(path) => CliConfig::load(path)?,
            None => match config_home().map(|h| h.join(DEFAULT_FILE)).filter(|p| p.exists()) {
                Some(path) => CliConfig::load(&path)?,
                None => CliConfig::default(),
            },
        };
        Ok(CliConfig {
            coordinator: self.coordinator.clone().or(file.coordinator),
            ca: self.ca.clone().or(file.ca),
            cert: self.cert.clone().or(file.cert),
            key: self.key.clone().or(file.key),
        })
    }

    /// Your certificates.
    pub(crate) fn credentials(&self) -> Result<Credentials> {
        let settings = self.settings()?;
        let ca = needed(settings.ca, "the authority's certificate", "ca", "TIDEMARK_CA", "pki/ca.crt")?;
        let cert = needed(settings.cert, "your certificate", "cert", "TIDEMARK_CERT", "pki/operator-operator.crt")?;
        let key = needed(settings.key, "your private key", "key", "TIDEMARK_KEY", "pki/operator-operator.key")?;
        Credentials::load(PkiPaths { ca, cert, key })
    }

    /// A client of the coordinator.
    pub(crate) fn client(&self) -> Result<ApiClient> {
        let url = self.settings()?.coordinator;
        let url = needed(url, "the coordinator", "coordinator", "TIDEMARK_COORDINATOR", "https://127.0.0.1:7401")?;
        ApiClient::new(&url, &self.credentials()?)
    }
}

fn needed<T>(given: Option<T>, what: &str, option: &str, env: &str, example: &str) -> Result<T> {
    given.ok_or_else(|| {
        Error::config(format!(
            "{what} is not named: give --{option} {example}, set {env}, or write `{option} = \"{example}\"` to \
             ~/.config/{DEFAULT_FILE} (certificates: `tidemark pki issue operator`)"
        ))
    })
}

/// The cluster that a command is about.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ClusterArg {
    /// The cluster; not needed where the coordinator knows one alone
    #[arg(short = 'C', long, env = "TIDEMARK_CLUSTER")]
    pub(crate) cluster: Option<ClusterName>,
}

impl ClusterArg {
    /// The named cluster, or the only one.
    pub(crate) async fn resolve(&self, client: &ApiClient) -> Result<ClusterName> {
        match &self.cluster {
            Some(cluster) => Ok(cluster.clone()),
            None => only(client.clusters().await?.into_iter().map(|c| c.cluster).collect()),
        }
    }
}

/// The only cluster among those that are there; an error that names them where there are several.
pub(crate) fn only(mut clusters: Vec<String>) -> Result<ClusterName> {
    match clusters.len() {
        1 => ClusterName::new(clusters.remove(0)),
        0 => Err(Error::not_found(
            "no cluster is connected or has backups: start the agents, or name one with --cluster",
        )),
        _ => Err(Error::request(format!("which cluster? Name it with --cluster: {}", clusters.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use tidemark_proto::ErrorKind;

    use super::*;

    #[test]
    fn options_come_before_the_file_whose_paths_are_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cli.toml");
        std::fs::write(&path, "coordinator = \"https://c:1\"\nca = \"pki/ca.crt\"\ncert = \"/x/me.crt\"\n")
            .unwrap();
        let args =
            GlobalArgs { cli_config: Some(path), coordinator: Some("https://d:2".into()), ..GlobalArgs::default() };
        let settings = args.settings().unwrap();
        assert_eq!(settings.coordinator.as_deref(), Some("https://d:2"));
        assert_eq!(settings.ca, Some(dir.path().join("pki/ca.crt")));
        assert_eq!(settings.cert, Some("/x/me.crt".into()));
        let e = args.credentials().unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Config);
        assert!(e.message().contains("--key") && e.message().contains("TIDEMARK_KEY"), "{e}");
    }

    #[test]
    fn a_file_with_unknown_keys_or_that_is_not_there_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cli.toml");
        let args = GlobalArgs { cli_config: Some(path.clone()), ..GlobalArgs::default() };
        assert_eq!(args.settings().unwrap_err().kind(), ErrorKind::Config);
        std::fs::write(&path, "coordinater = \"https://c:1\"\n").unwrap();
        assert!(args.settings().unwrap_err().message().contains("coordinater"));
    }

    #[test]
    fn one_cluster_needs_no_name() {
        assert_eq!(only(vec!["orders".into()]).unwrap().as_str(), "orders");
        assert_eq!(only(vec![]).unwrap_err().kind(), ErrorKind::NotFound);
        let e = only(vec!["a".into(), "b".into()]).unwrap_err();
        assert!(e.kind() == ErrorKind::Request && e.message().contains("a, b"), "{e}");
    }
}
