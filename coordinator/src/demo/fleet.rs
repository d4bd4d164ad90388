//! A coordinator and its agents as child processes.

use std::path::Path;
use std::time::Duration;

use quinn::Endpoint;
use tidemark_common::announce::{AgentPorts, CoordinatorPorts};
use tidemark_common::transport::client_endpoint;
use tidemark_proto::{Error, ErrorKind, Result};
use tokio::time::{Instant, sleep};

use super::CLUSTER;
use super::place::Place;
use super::summary::Kept;
use crate::api::ClusterDetail;
use crate::client::ApiClient;
use crate::kv::{Router, routes};
use crate::process::{Process, own_binary};

/// The nodes that are backed up.
pub(super) const AGENTS_BEFORE: [&str; 3] = ["a1", "a2", "a3"];
/// The nodes that take the restore.
pub(super) const AGENTS_AFTER: [&str; 5] = ["b1", "b2", "b3", "b4", "b5"];

/// Time for all agents to be connected.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between two looks at who is connected.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The processes, and how to reach them. Agents are killed before the coordinator.
#[derive(Debug)]
pub(super) struct Fleet {
    agents: Vec<Process>,
    coordinator: Process,
    client: ApiClient,
    endpoint: Endpoint,
    credentials: tidemark_common::pki::Credentials,
}

impl Fleet {
    /// Starts a coordinator and agents of these names, which share all slots evenly; waits until all are connected.
    pub(super) async fn start(place: &Place, agent_binary: &Path, names: &[&str]) -> Result<Self> {
        let (coordinator, ports): (_, CoordinatorPorts) = Process::start(
            "the coordinator",
            &own_binary()?,
            &["serve"],
            &place.coordinator_file(),
            place.log_file("coordinator"),
        )
        .await?;
        let client = ApiClient::new(&format!("https://{}", ports.api), place.operator())?;
        let mut fleet = Self {
            agents: Vec::new(),
            coordinator,
            client,
            endpoint: client_endpoint()?,
            credentials: place.operator().clone(),
        };
        for (i, name) in (0..).zip(names) {
            let config = place.agent_file(name, i, names.len() as u16, &ports.agents.to_string())?;
            let told = format!("agent {name}");
            let started = Process::start(&told, agent_binary, &[], &config, place.log_file(name)).await?;
            let (agent, _): (_, AgentPorts) = started;
            fleet.agents.push(agent);
        }
        let _ = fleet.connected(names.len()).await?;
        Ok(fleet)
    }

    /// Client of the coordinator.
    pub(super) fn client(&self) -> &ApiClient {
        &self.client
    }

    /// Clients of the nodes.
    pub(super) async fn router(&self) -> Result<Router> {
        let cluster = self.client.cluster(&CLUSTER.parse()?).await?;
        Router::new(&self.endpoint, &self.credentials, crate::BUILD, routes(&cluster)?)
    }

    async fn connected(&mut self, wanted: usize) -> Result<ClusterDetail> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            self.coordinator.check()?;
            self.agents.iter_mut().try_for_each(Process::check)?;
            match self.client.cluster(&CLUSTER.parse()?).await {
                Ok(c) if c.nodes.iter().filter(|n| n.connected && !n.slots.is_empty()).count() == wanted => {
                    return Ok(c);
                }
                Ok(_) => {}
                // Nobody is connected yet.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            if Instant::now() >= deadline {
                return Err(Error::retry(format!(
                    "not all agents were connected within {} s: is the machine very busy?",
                    CONNECT_TIMEOUT.as_secs()
                )));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// `kill -9`, all of them.
    pub(super) fn kill(&mut self) {
        self.agents.iter_mut().for_each(Process::kill);
        self.coordinator.kill();
    }

    /// Lets everything run on.
    pub(super) fn leave_running(self, place: Place) -> Result<Kept> {
        let folder = place.root().to_owned();
        let cli_config = place.keep(self.client.url())?;
        let processes = self.agents.into_iter().chain([self.coordinator]).filter_map(Process::leave_running);
        Ok(Kept { folder, cli_config, processes: processes.collect() })
    }
}
