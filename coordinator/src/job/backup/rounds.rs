//! Rounds of a backup before its cut: bases, and beginning again with other nodes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tidemark_proto::stored::ledger::Policy;
use tidemark_proto::wire::control::{Description, Done, Prepare, PrepareEarly, Prepared, Settle};
use tidemark_proto::{Error, NodeName, Result, Timestamp};

use super::core::{Core, Used};
use super::driver::{CUT_DEADLINE, Driver};
use super::members::{Preference, gather_whole};
use super::parents::Parent;
use super::prepare::team_names;
use crate::fleet::Member;

/// Time without a word while a node takes its base: a server that first writes a file sends nothing until it is whole. A
/// node that dies is noticed by its connection.
pub const BASE_DEADLINE: Duration = Duration::from_secs(1800);

impl Driver {
    /// What a node is, or what the primary is for which it stands in.
    pub(super) async fn describe(&self, n: usize) -> Result<Description> {
        let (fleet, member, head) = (&self.context.fleet, self.member(n), self.context.head(self.id, 0));
        match self.stand_ins.contains(&self.nodes[n]) {
            true => fleet.describe_source(&member, head).await,
            false => fleet.describe(&member, head).await,
        }
    }

    /// Lets a node take its base.
    pub(super) async fn prepare(&self, n: usize) -> Result<()> {
        let (member, head) = (self.member(n), self.context.head(self.id, 0));
        let report = |p| self.job.progress_of(&member.node, p);
        let done: Prepared = self.context.fleet.command(&member, head, &Prepare {}, BASE_DEADLINE, report).await?;
        if done.bytes > 0 {
            let told = format!("took its base: {} MiB", done.bytes.div_ceil(1 << 20));
            self.job.log.note("base", self.nodes[n].as_str(), told);
        }
        Ok(())
    }

    /// Tells a node that it takes its base next, until it does. Older agents do not know that word.
    pub(super) async fn prepare_early(&self, n: usize) {
        let (member, head) = (self.member(n), self.context.head(self.id, 0));
        let told = self.context.fleet.command::<_, Done>(&member, head, &PrepareEarly {}, BASE_DEADLINE, |_| ());
        if let Err(e) = told.await {
            tracing::debug!(error = %e.report(), "a node does not wait early for its base");
        }
    }

    /// The next round: the nodes as they are now, and the core that goes on with them. Nodes that are not among them any
    /// more drop what they keep for the job. Every task of the round before has ended.
    pub(super) async fn next_round(self: Arc<Self>, used: Used) -> Result<(Arc<Self>, Core), (Arc<Self>, Error)> {
        let (cluster, patience) = (self.request.cluster.clone(), self.context.config.backup.patience());
        self.job.phase("asking who takes part now");
        let preference = Preference {
            before: self.nodes.clone(),
            parent: self.parent.as_ref().map(Parent::nodes).unwrap_or_default(),
            replicas: self.context.config.backup.prefer_replicas,
        };
        let team = match gather_whole(&self.context, &self.job, &cluster, &preference, patience).await {
            Ok(team) if team.engine == self.policy.engine => team,
            Ok(team) => {
                let error = format!("cluster {cluster} was {} and is now {}", self.policy.engine, team.engine);
                return Err((self, Error::conflict(error)));
            }
            Err(e) => return Err((self, e)),
        };
        let stays: HashSet<&NodeName> = team.nodes.iter().collect();
        let gone: Vec<NodeName> = self.nodes.iter().filter(|n| !stays.contains(n)).cloned().collect();
        self.drop_bases(&gone).await;
        self.job.reset_progress();
        let mut driver = match Arc::try_unwrap(self) {
            Ok(driver) => driver,
            Err(shared) => return Err((shared, Error::bug("a task of the last round still runs"))),
        };
        driver.policy = Policy { nodes: team_names(&team), ..driver.policy };
        (driver.nodes, driver.hosts, driver.others) = (team.nodes, team.hosts, team.others);
        driver.stand_ins = team.stand_ins;
        let mut settings = driver.settings(&*driver.ledger.lock().await);
        settings.used = used;
        Ok((Arc::new(driver), Core::new(settings)))
    }

    /// One that cannot be reached is told when it connects after the job.
    async fn drop_bases(&self, nodes: &[NodeName]) {
        let (ledger_number, ledger_hash) = self.ledger.lock().await.tail();
        let settle = Settle { committed: 0, at: Timestamp::ZERO, ledger_number, ledger_hash, parts: Vec::new() };
        let tell = |node: &NodeName| {
            let member = Member { cluster: self.request.cluster.clone(), node: node.clone() };
            let settle = &settle;
            async move {
                let head = self.context.head(self.id, 0);
                let told = self.context.fleet.command::<_, Done>(&member, head, settle, CUT_DEADLINE, |_| ()).await;
                if let Err(e) = told {
                    tracing::warn!(error = %e.report(), "a node keeps its base until the backup has ended");
                }
            }
        };
        let _ = futures::future::join_all(nodes.iter().map(tell)).await;
    }
}
