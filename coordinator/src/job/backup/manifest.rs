//! From what was received to a committed backup: check that it is whole, write pages and root, then the ledger entry.

use std::collections::HashMap;

use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::kept::KeptThings;
use tidemark_proto::stored::ledger::Backup;
use tidemark_proto::stored::manifest::{NodeEntry, PartEntry, Root, Totals};
use tidemark_proto::{ClusterName, NodeName, Result};

use super::core::Cut;
use super::entry::append_backup;
use super::prepare::record_failure;
use super::tiling;
use crate::context::Context;
use crate::ingest::{Received, ReceivedKind};
use crate::repository::{Ledger, ManifestWriter, Scope, Written};

/// What a manifest is made of.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) context: &'a Context,
    pub(super) cluster: &'a ClusterName,
    pub(super) job: JobId,
    pub(super) engine: String,
    pub(super) engine_versions: Vec<String>,
    pub(super) nodes: &'a [NodeName],
    pub(super) cut: &'a Cut,
    pub(super) started_millis: u64,
    pub(super) manual: bool,
    pub(super) parent: Hash,
    pub(super) slots_per_region: u16,
    pub(super) read_bytes: u64,
    pub(super) scope: &'a Scope,
    pub(super) kept: Option<KeptThings>,
}

/// A committed backup.
#[derive(Debug)]
pub(super) struct Committed {
    pub(super) hash: Hash,
    pub(super) root: Root,
    /// For each node: its parts with their hashes.
    pub(super) parts: HashMap<u16, Vec<(u16, Vec<u8>, Hash)>>,
}

impl Draft<'_> {
    /// Checks, writes and commits. Nothing is a backup before the ledger entry is there.
    pub(super) async fn commit(&self, mut received: Vec<Received>, ledger: &mut Ledger) -> Result<Committed> {
        received.sort_by(|a, b| place(&a.entry).cmp(&place(&b.entry)));
        let taken: Vec<_> = self.cut.nodes.iter().map(|n| n.held.ownership.slots.clone()).collect();
        let totals = self.totals(&received);
        let entries: Vec<PartEntry> = received.into_iter().map(|r| r.entry).collect();
        tiling::parts(&entries, &taken).map_err(|e| e.context("the backup is not whole"))?;
        let mut parts: HashMap<u16, Vec<_>> = HashMap::new();
        let mut writer = ManifestWriter::new(&self.context.repository, self.cluster, self.scope);
        for entry in entries {
            parts.entry(entry.node).or_default().push((entry.region, entry.lower.clone(), entry.hash()));
            writer.push(entry).await?;
        }
        if let Some(things) = &self.kept {
            writer.keep(things).await?;
        }
        let Written { hash, root, packs } = writer.finish(self.root(totals)).await?;
        tidemark_common::crash::point("backup.manifest");
        let backup = Backup { job: self.job, cut: self.cut.at, root: hash, parent: self.parent };
        let context = self.context;
        let appended = append_backup(ledger, (context.epoch, context.now_millis()), backup, &packs).await;
        if let Err(e) = appended {
            // The entry may have been put all the same. Writing the failure decides: it takes the number, or finds that
            // the backup stands. One that another coordinator made of this job has another root, and its parts other
            // places: nothing that is known here may be told of it.
            let job = (self.job, self.started_millis);
            if record_failure(context, ledger, job, self.manual, &e).await != Some(hash) {
                return Err(e);
            }
            tracing::warn!(job = %self.job, error = %e.report(), "the backup's entry stands although its write failed");
        }
        Ok(Committed { hash, root, parts })
    }

    fn totals(&self, received: &[Received]) -> Totals {
        let mut totals = Totals { read_bytes: self.read_bytes, ..Totals::default() };
        for part in received {
            totals.parts += 1;
            totals.records += part.entry.digest.count;
            totals.live_bytes += part.entry.live();
            totals.new_bytes += part.new_bytes;
            totals.stored_bytes += part.entry.runs.iter().map(|r| r.stored_bytes()).sum::<u64>();
            match part.kind {
                ReceivedKind::Full => totals.full_parts += 1,
                ReceivedKind::Delta => totals.delta_parts += 1,
                ReceivedKind::Same => totals.same_parts += 1,
            }
        }
        totals
    }

    fn root(&self, totals: Totals) -> Root {
        let nodes = node_entries(self.nodes, &self.engine_versions, self.cut);
        Root {
            repository: self.context.repository.id(),
            cluster: self.cluster.clone(),
            job: self.job,
            engine: self.engine.clone(),
            cut: self.cut.at,
            cut_attempt: self.cut.attempt,
            started_millis: self.started_millis,
            finished_millis: self.context.now_millis(),
            manual: u8::from(self.manual),
            parent: self.parent,
            slots_per_region: self.slots_per_region,
            nodes,
            pages: Vec::new(),
            totals,
        }
    }
}

/// The nodes of a cut with their evidence, as manifests and job records keep them.
pub fn node_entries(nodes: &[NodeName], engine_versions: &[String], cut: &Cut) -> Vec<NodeEntry> {
    let nodes = nodes.iter().zip(engine_versions).zip(&cut.nodes);
    nodes
        .map(|((node, version), cut)| NodeEntry {
            node: node.clone(),
            incarnation: cut.held.incarnation,
            engine_version: version.clone(),
            held: cut.held.clone(),
            sealed: cut.sealed.clone(),
            released: cut.released.ownership.clone(),
            held_micros: cut.released.held_micros,
            slots: cut.held.ownership.slots.clone(),
        })
        .collect()
}

fn place(part: &PartEntry) -> (u16, &[u8]) {
    (part.slots.ranges().first().map_or(0, |r| r.0), &part.lower)
}
