//! Going on with a backup that another coordinator has begun.

use std::collections::HashSet;
use std::sync::Arc;

use tidemark_proto::hash::Hash;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::job::BackupCut;
use tidemark_proto::stored::ledger::Policy;
use tidemark_proto::stored::manifest::{NodeEntry, PartEntry};
use tidemark_proto::wire::control::Released;
use tidemark_proto::{Error, NodeName, Result};

use super::BackupRequest;
use super::core::{Core, Cut, NodeCut};
use super::driver::Driver;
use super::parents::Parent;
use super::prepare::Prepared;
use crate::context::Shared;
use crate::fleet::Member;
use crate::job::Job;
use crate::repository::{JobRecorder, Ledger};

/// Goes on with a job whose cut another coordinator has taken. The agents keep the cut pinned; what is stored already is
/// not sent again.
pub async fn resume(context: Shared, job: Arc<Job>, left: LeftBackup) -> Result<serde_json::Value> {
    let LeftBackup { request, cut, stored, revision } = left;
    let ledger = context.ledger(&request.cluster).await?;
    if ledger.is_settled(job.id()) {
        return Err(Error::conflict("the ledger knows how this job ended"));
    }
    let nodes: Vec<&NodeName> = cut.nodes.iter().map(|n| &n.node).collect();
    // Nothing is entered either: when the history is whole again, the next coordinator goes on with the job.
    whole_history(&context, &ledger, &nodes).await?;
    let parent = match cut.parent {
        Hash::ZERO => None,
        hash => Some(Parent::read(&context.repository, &request.cluster, hash).await?),
    };
    let nodes: Vec<NodeName> = cut.nodes.iter().map(|n| n.node.clone()).collect();
    let names = nodes.iter().map(NodeName::to_string).collect();
    let held = cut_of(&cut);
    let policy = Policy { engine: cut.engine, slots_per_region: cut.slots_per_region, nodes: names };
    let recorder = JobRecorder::new(&context.repository, &request.cluster, job.id(), context.epoch, revision);
    let (hosts, others) = (vec![String::new(); nodes.len()], Vec::new());
    let prepared = Prepared { nodes, hosts, others, stand_ins: HashSet::new(), policy, parent };
    let driver = Driver::new(context, job, request, prepared, ledger, recorder, stored);
    driver.to_its_end(|settings| Core::resumed(settings, held)).await
}

/// The cut that a job record tells of, with its evidence.
pub fn cut_of(record: &BackupCut) -> Cut {
    let evidence = |n: &NodeEntry| NodeCut {
        held: n.held.clone(),
        sealed: n.sealed.clone(),
        released: Released { ownership: n.released.clone(), held_micros: n.held_micros },
    };
    Cut { at: record.cut, attempt: record.attempt, nodes: record.nodes.iter().map(evidence).collect() }
}

/// Fails when the ledger is not the one that the nodes know. A ledger that lost its end no longer tells that a job made its
/// backup: to go on with it would write the lost entries over, and nobody would notice that they are missing.
async fn whole_history(context: &Shared, ledger: &Ledger, nodes: &[&NodeName]) -> Result<()> {
    let cluster = ledger.cluster();
    let member = |node: &&NodeName| Member { cluster: cluster.clone(), node: (*node).clone() };
    let members: Vec<Member> = nodes.iter().map(member).collect();
    context.fleet.wait_for(&members, context.config.backup.patience()).await?;
    for member in &members {
        let told = context.fleet.describe(member, context.head(JobId::default(), 0)).await?;
        let by = format!("node {}", member.node);
        context.history.see(cluster, told.ledger_number, told.ledger_hash, by);
    }
    context.history.check(cluster, ledger)
}

/// What another coordinator left of a backup job.
#[derive(Debug)]
pub struct LeftBackup {
    /// What was asked for.
    pub request: BackupRequest,
    /// Its cut.
    pub cut: BackupCut,
    /// Parts that it stored.
    pub stored: Vec<PartEntry>,
    /// Last revision of its record.
    pub revision: u64,
}
