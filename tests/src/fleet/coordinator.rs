//! The coordinator's process, on a repository that the command line made.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidemark_common::pki::PkiPaths;

use super::process::{Process, binary};

/// What is different from the usual.
#[derive(Debug, Clone, Default)]
pub struct CoordinatorSpec {
    /// The repository is not encrypted.
    pub plain: bool,
    /// Lines for the end of the configuration: whole sections.
    pub sections: String,
    /// Environment of the process.
    pub env: Vec<(String, String)>,
    /// Lines of the section of the repository.
    pub repository: String,
    /// URL of the repository; empty takes a folder of the fleet.
    pub url: String,
    /// Options of the store's client.
    pub options: Vec<(String, String)>,
}

impl CoordinatorSpec {
    fn url(&self, dir: &Path) -> String {
        if self.url.is_empty() { format!("file://{}", repository_dir(dir).display()) } else { self.url.clone() }
    }
}

/// A running coordinator.
#[derive(Debug)]
pub struct Coordinator {
    /// Its process.
    pub process: Process,
    /// UDP address for agents.
    pub agent_address: SocketAddr,
    /// TCP address of the API.
    pub api_address: SocketAddr,
    /// TCP address of metrics and health.
    pub telemetry: SocketAddr,
    spec: CoordinatorSpec,
    tls: PkiPaths,
}

/// The repository in a fleet's folder.
pub(super) fn repository_dir(dir: &Path) -> PathBuf {
    dir.join("repository")
}

fn tidemark(args: &[&str], env: &[(String, String)]) {
    let env = env.iter().map(|(name, value)| (name, value));
    let done = Command::new(binary("tidemark")).args(args).envs(env).output().expect("tidemark");
    assert!(done.status.success(), "tidemark {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn init_repository(dir: &Path, spec: &CoordinatorSpec) {
    let (url, key) = (spec.url(dir), dir.join("master.key"));
    let options: Vec<String> =
        spec.options.iter().map(|(name, value)| format!("--option={name}={value}")).collect();
    let mut args = vec!["repo", "init", "--repository", &url];
    args.extend(options.iter().map(String::as_str));
    if spec.plain {
        args.push("--insecure-no-encryption");
        return tidemark(&args, &spec.env);
    }
    let key = key.to_str().expect("UTF-8");
    tidemark(&["repo", "keygen", "--out", key], &[]);
    args.extend(["--key-file", key]);
    tidemark(&args, &spec.env);
}

/// The address after `field` in a line of the log.
pub(super) fn address(line: &str, field: &str) -> SocketAddr {
    let line: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
    line["fields"][field].as_str().and_then(|a| a.parse().ok()).expect("an address")
}

impl Coordinator {
    pub(super) async fn start(dir: &Path, spec: CoordinatorSpec, tls: PkiPaths) -> Self {
        init_repository(dir, &spec);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::run(dir, spec, tls, any, any).await
    }

    /// Another coordinator on the repository that is there.
    pub(super) async fn on_repository(dir: &Path, tls: PkiPaths) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let log = dir.join("coordinator.log");
        if log.exists() {
            std::fs::rename(&log, dir.join("coordinator.before.log")).expect("log");
        }
        Self::run(dir, CoordinatorSpec::default(), tls, any, any).await
    }

    /// Ends in order and runs again on the same ports, which agents know.
    pub(super) async fn restart(mut self, dir: &Path) -> Self {
        self.process.stop().await;
        let ended = dir.join("coordinator.before.log");
        std::fs::rename(dir.join("coordinator.log"), ended).expect("log");
        let (agents, api) = (self.agent_address, self.api_address);
        Self::run(dir, self.spec.clone(), self.tls.clone(), agents, api).await
    }

    /// Runs again after the process has died, without the environment that it had.
    pub(super) async fn revive(mut self, dir: &Path) -> Self {
        let _ = self.process.ended().await;
        self.spec.env.clear();
        let died = dir.join("coordinator.before.log");
        std::fs::rename(dir.join("coordinator.log"), died).expect("log");
        let (agents, api) = (self.agent_address, self.api_address);
        Self::run(dir, self.spec.clone(), self.tls.clone(), agents, api).await
    }

    /// Another one on the same repository, with ports of its own.
    pub(super) async fn second(&self, dir: &Path) -> Self {
        let own = dir.join("second");
        std::fs::create_dir(&own).expect("folder");
        let link = |name: &str| std::os::unix::fs::symlink(dir.join(name), own.join(name)).expect("link");
        link("repository");
        link("master.key");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::run(&own, self.spec.clone(), self.tls.clone(), any, any).await
    }

    /// Its API, as operator of `fleet`.
    pub fn api(&self, fleet: &super::Fleet) -> super::Api {
        super::Api::new(self.api_address, fleet.operator())
    }

    async fn run(dir: &Path, spec: CoordinatorSpec, tls: PkiPaths, listen: SocketAddr, api: SocketAddr) -> Self {
        let key = if spec.plain { String::new() } else { format!("key_file = {:?}", dir.join("master.key")) };
        let options: String = spec.options.iter().map(|(name, value)| format!("{name} = {value:?}\n")).collect();
        let options = if options.is_empty() { options } else { format!("[repository.options]\n{options}") };
        let text = format!(
            "name = \"c1\"\nlisten = \"{listen}\"\napi_listen = \"{api}\"\n\
             [tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n\
             [repository]\nurl = {:?}\n{key}\n{}\n{options}\n\
             [telemetry]\nlisten = \"127.0.0.1:0\"\n\
             [log]\nformat = \"json\"\nfilter = \"info,tidemark_coordinator=debug\"\n{}\n",
            tls.ca,
            tls.cert,
            tls.key,
            spec.url(dir),
            spec.repository,
            spec.sections,
        );
        let config = dir.join("coordinator.toml");
        std::fs::write(&config, text).expect("configuration");
        let args = ["serve", "--config", config.to_str().expect("UTF-8")];
        let mut process = Process::start("tidemark", &args, &spec.env, &dir.join("coordinator.log"));
        let line = process.logged("coordinator is up").await;
        let (agent_address, api_address) = (address(&line, "agent_address"), address(&line, "api_address"));
        let telemetry = address(&process.logged("telemetry is served").await, "address");
        Self { process, agent_address, api_address, telemetry, spec, tls }
    }
}
