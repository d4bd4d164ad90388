//! An agent's process.

use std::net::SocketAddr;
use std::path::Path;

use tidemark_common::clock::SystemClock;
use tidemark_common::pki::PkiPaths;
use tidemark_coordinator::pki::Authority;
use tidemark_proto::SlotSet;

use super::process::Process;

/// The kind of store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineKind {
    /// On disk.
    Embedded,
    /// In memory.
    Memory,
    /// The server of Redis or Valkey at this address.
    Redis(String),
}

/// An agent to start.
#[derive(Debug, Clone)]
pub struct AgentSpec {
    /// Its cluster.
    pub cluster: String,
    /// Its node.
    pub node: String,
    /// Its slots.
    pub slots: SlotSet,
    /// Its store.
    pub engine: EngineKind,
    /// How deltas are found: `auto`, `key-index`, `full`.
    pub delta: String,
    /// A full run is closed at about this many bytes; 0 takes the default.
    pub part_bytes: u64,
    /// Folder of the store's data, if another than in the fleet's folder.
    pub data_dir: Option<std::path::PathBuf>,
    /// Folder of the agent's state, if another than in the fleet's folder.
    pub state_dir: Option<std::path::PathBuf>,
    /// Lines for the end of the configuration: whole sections.
    pub sections: String,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Certificates, if others than those of its names.
    pub tls: Option<PkiPaths>,
}

impl AgentSpec {
    /// An embedded store that finds deltas by itself.
    pub fn new(cluster: &str, node: &str, slots: SlotSet) -> Self {
        Self {
            cluster: cluster.into(),
            node: node.into(),
            slots,
            engine: EngineKind::Embedded,
            delta: "auto".into(),
            part_bytes: 0,
            data_dir: None,
            state_dir: None,
            sections: String::new(),
            env: Vec::new(),
            tls: None,
        }
    }
}

/// A started agent.
#[derive(Debug)]
pub struct AgentProcess {
    /// Its process.
    pub process: Process,
    /// What it was started with.
    pub spec: AgentSpec,
}

impl AgentProcess {
    /// The TCP address of its metrics and health.
    pub async fn telemetry(&mut self) -> SocketAddr {
        let line = self.process.logged("telemetry is served").await;
        super::coordinator::address(&line, "address")
    }

    pub(super) fn start(dir: &Path, authority: &Authority, coordinator: SocketAddr, spec: AgentSpec) -> Self {
        let name = format!("{}-{}", spec.cluster, spec.node);
        let uri = format!("tidemark://agent/{}/{}", spec.cluster, spec.node);
        let tls = spec.tls.clone();
        let tls = tls.unwrap_or_else(|| super::issue(authority, &uri, &dir.join("pki"), 30, SystemClock.time()));
        let part_bytes =
            if spec.part_bytes > 0 { format!("part_bytes = {}", spec.part_bytes) } else { String::new() };
        let served = format!("slots = \"{}\"\nlisten = \"127.0.0.1:0\"", spec.slots);
        let engine = match &spec.engine {
            EngineKind::Embedded => {
                format!(
                    "kind = \"embedded\"\ndata_dir = {:?}\n{served}",
                    spec.data_dir.clone().unwrap_or_else(|| dir.join(format!("{name}.data")))
                )
            }
            EngineKind::Memory => format!("kind = \"memory\"\n{served}"),
            EngineKind::Redis(address) => format!("kind = \"redis\"\naddress = \"{address}\""),
        };
        let text = format!(
            "cluster = \"{}\"\nnode = \"{}\"\ncoordinators = [\"{coordinator}\"]\nstate_dir = {:?}\ndelta = \"{}\"\n\
             {part_bytes}\n\
             [tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n\
             [engine]\n{engine}\n\
             [log]\nformat = \"json\"\nfilter = \"info,fjall=warn,lsm_tree=warn,tidemark_agent=debug\"\n\
             [telemetry]\nlisten = \"127.0.0.1:0\"\n{}\n",
            spec.cluster,
            spec.node,
            spec.state_dir.clone().unwrap_or_else(|| dir.join(format!("{name}.state"))),
            spec.delta,
            tls.ca,
            tls.cert,
            tls.key,
            spec.sections,
        );
        let config = dir.join(format!("{name}.toml"));
        std::fs::write(&config, text).expect("configuration");
        let args = ["--config", config.to_str().expect("UTF-8")];
        let process = Process::start("tidemark-agent", &args, &spec.env, &dir.join(format!("{name}.log")));
        Self { process, spec }
    }
}
