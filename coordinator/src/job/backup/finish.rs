//! The end of a backup: the commit, and what the nodes are told.

use std::collections::HashMap;

use tidemark_common::crash;
use tidemark_proto::stored::ledger::Body;
use tidemark_proto::wire::control::{Done, Settle};
use tidemark_proto::{Error, NodeName, Result, Timestamp};

use super::core::Cut;
use super::driver::{CUT_DEADLINE, Driver};
use super::manifest::Draft;
use crate::fleet::Member;
use crate::telemetry;

impl Driver {
    pub(super) fn engine_versions(&self) -> Vec<String> {
        let known: HashMap<_, _> = self.context.fleet.members(Some(&self.request.cluster)).into_iter().collect();
        let version = |name: &NodeName| {
            let member = Member { cluster: self.request.cluster.clone(), node: name.clone() };
            known
                .get(&member)
                .and_then(|c| c.description.as_ref())
                .map(|d| d.engine_version.clone())
                .unwrap_or_default()
        };
        self.nodes.iter().map(version).collect()
    }

    pub(super) async fn commit(&self, cut: &Cut) -> Result<()> {
        let ingest = self.ingest.get().ok_or_else(|| Error::bug("committing before the cut"))?;
        let mut ledger = self.ledger.lock().await;
        if ledger.policy().is_none_or(|p| *p != self.policy) {
            let body = Body::Policy(self.policy.clone());
            let _ = ledger.append(self.context.epoch, self.context.now_millis(), &body, |_| Ok(())).await?;
        }
        let draft = Draft {
            context: &self.context,
            cluster: &self.request.cluster,
            job: self.id,
            engine: self.policy.engine.clone(),
            engine_versions: self.engine_versions(),
            nodes: &self.nodes,
            cut,
            started_millis: self.job.info().started_millis,
            manual: self.request.manual,
            parent: self.parent_hash(),
            slots_per_region: self.policy.slots_per_region,
            read_bytes: self.read_bytes.load(std::sync::atomic::Ordering::Relaxed),
            scope: ingest.scope(),
            kept: self.kept_things(),
        };
        crash::point("backup.stored");
        let committed = draft.commit(ingest.take_received(), &mut ledger).await?;
        crash::point("backup.committed");
        telemetry::note_ledger(&self.request.cluster, &ledger);
        let _ = self.committed.set(committed);
        Ok(())
    }

    /// Tells every node how the job ended. One that is away drops its pins by their lease.
    pub(super) async fn settle(&self, committed: bool, cut: Option<&Cut>) {
        let (ledger_number, ledger_hash) = self.ledger.lock().await.tail();
        self.context.history.see(&self.request.cluster, ledger_number, ledger_hash, "this coordinator");
        let settle = |n: usize| {
            let parts = self.committed.get().and_then(|c| c.parts.get(&(n as u16)).cloned()).unwrap_or_default();
            let at = cut.map_or(Timestamp::ZERO, |c| c.at);
            let settle = Settle { committed: u8::from(committed), at, ledger_number, ledger_hash, parts };
            async move {
                if let Err(e) = self.ask::<_, Done>(n, 0, &settle, CUT_DEADLINE).await {
                    tracing::warn!(error = %e.report(), "a node was not told how the backup ended");
                }
            }
        };
        let _ = futures::future::join_all((0..self.nodes.len()).map(settle)).await;
    }

    pub(super) fn summary(&self) -> serde_json::Value {
        let Some(done) = self.committed.get() else { return serde_json::Value::Null };
        crate::catalog::backup_value(&done.root, &done.hash, self.kept_things().as_ref())
    }
}
