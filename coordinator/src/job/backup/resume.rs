//! Going on with a backup that another coordinator has begun.

use std::sync::Arc;

use tidemark_proto::hash::Hash;
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
use crate::job::Job;
use crate::repository::JobRecorder;

/// Goes on with a job whose cut another coordinator has taken. The agents keep the cut pinned; what is stored already is
/// not sent again.
pub async fn resume(context: Shared, job: Arc<Job>, left: LeftBackup) -> Result<serde_json::Value> {
    let LeftBackup { request, cut, stored, revision } = left;
    let ledger = context.ledger(&request.cluster).await?;
    if ledger.is_settled(job.id()) {
        return Err(Error::conflict("the ledger knows how this job ended"));
    }
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
    let prepared = Prepared { nodes, hosts, others, policy, parent };
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
