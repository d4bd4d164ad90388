//! What the nodes of a backup keep beside their records, asked of each once it has uploaded them.

use tidemark_proto::stored::kept::{KeptOf, KeptThings};
use tidemark_proto::wire::control::{Keep, Kept, MAX_KEPT, NotKept};
use tidemark_proto::{ErrorKind, Result};

use super::core::Cut;
use super::driver::Driver;
use super::upload::{UPLOAD_ATTEMPTS, UPLOAD_DEADLINE, UPLOAD_RETRY_WAIT};

/// Most bytes that all nodes of a backup keep beside their records: they lie in one object.
const MAX_KEPT_OF_ALL: u32 = 128 << 20;

impl Driver {
    /// Asks a node. What it could not keep is told of in the job's events.
    pub(super) async fn keep(&self, n: usize, cut: &Cut) -> Result<()> {
        let (member, name) = (self.member(n), self.nodes[n].as_str());
        let most_bytes = (MAX_KEPT_OF_ALL / self.nodes.len().max(1) as u32).min(MAX_KEPT);
        let keep = Keep { at: cut.at, most_bytes };
        for attempt in 1.. {
            let kept: Kept = match self.ask(n, attempt, &keep, UPLOAD_DEADLINE).await {
                Ok(kept) => kept,
                Err(e) if e.kind() == ErrorKind::Unsupported => {
                    let missing = NotKept { what: "everything".into(), why: e.report() };
                    Kept { missing: vec![missing], ..Kept::default() }
                }
                Err(e) if e.kind() == ErrorKind::Retry && attempt < UPLOAD_ATTEMPTS => {
                    tracing::warn!(node = name, attempt, error = %e.report(), "asking again for what it keeps");
                    tokio::time::sleep(UPLOAD_RETRY_WAIT).await;
                    let patience = self.context.config.backup.patience();
                    self.context.fleet.wait_for(std::slice::from_ref(&member), patience).await?;
                    continue;
                }
                Err(e) => return Err(e.context("what it keeps beside its records")),
            };
            for NotKept { what, why } in &kept.missing {
                tracing::info!(node = name, %what, %why, "not kept beside the records");
                self.job.log.note("kept", name, format!("{what} of this node are not kept: {why}"));
            }
            let _ = self.kept.lock().expect("kept").insert(n, kept);
            return Ok(());
        }
        unreachable!("the last attempt returns")
    }

    /// All that they keep; `None` where no node keeps anything.
    pub(super) fn kept_things(&self) -> Option<KeptThings> {
        let kept = self.kept.lock().expect("kept");
        if kept.values().all(Kept::is_empty) {
            return None;
        }
        let of = |(n, node): (usize, &tidemark_proto::NodeName)| KeptOf {
            node: node.clone(),
            kept: kept.get(&n).cloned().unwrap_or_default(),
        };
        Some(KeptThings { job: self.id, nodes: self.nodes.iter().enumerate().map(of).collect() })
    }
}
