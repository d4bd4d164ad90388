//! A node that connects may hold what only the end of a job takes away: pins, waiting indexes, a staging area. Where that
//! job does not run here, the repository says how it ended, and the node is told.

use std::time::Duration;

use tidemark_proto::id::JobId;
use tidemark_proto::stored::manifest::Root;
use tidemark_proto::wire::control::{Done, Settle};
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result, Timestamp};

use crate::context::{Context, Shared};
use crate::fleet::Member;
use crate::job::restore;
use crate::recover::is_newest;
use crate::repository::{Ledger, Record, read_job, read_page, read_root};

/// Time for a node to drop what a job left.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

/// Looks after every connected node of a cluster: a job has ended, and may have left some of them behind.
pub async fn after_job(context: Shared, cluster: ClusterName) {
    for (member, _) in context.fleet.members(Some(&cluster)) {
        on_connect(context.clone(), member).await;
    }
}

/// Ends on `member` every job that does not run any more.
pub async fn on_connect(context: Shared, member: Member) {
    let open = match restore::open_jobs(&context, &member).await {
        Ok(open) => open,
        // An agent of an older build keeps its leases.
        Err(e) if e.kind() == ErrorKind::Unsupported => return,
        Err(e) => return tracing::debug!(%member, error = %e.report(), "open jobs of the node are not known"),
    };
    for job in open.backups.into_iter().filter(|job| !context.jobs.is_running(job)) {
        match end_backup(&context, &member, job).await {
            Ok(()) => tracing::info!(%member, %job, "the node was told how a backup ended"),
            Err(e) => {
                tracing::warn!(%member, %job, error = %e.report(), "a backup's pin stays until its lease ends")
            }
        }
    }
    for job in open.restores.into_iter().filter(|job| !context.jobs.is_running(job)) {
        match end_restore(&context, &member, job).await {
            Ok(told) => tracing::info!(%member, %job, "{told}"),
            Err(e) => tracing::error!(%member, %job, error = %e.report(), "the node stays `restoring`"),
        }
    }
}

async fn end_backup(context: &Context, member: &Member, job: JobId) -> Result<()> {
    let ledger = Ledger::load(&context.repository, &member.cluster).await?;
    // A node that is told of a newer entry forgets the one that is missing.
    context.history.check(&member.cluster, &ledger)?;
    let (ledger_number, ledger_hash) = ledger.tail();
    // Only the newest backup is what the next delta builds on.
    let backup = ledger.backups().pop().filter(|_| is_newest(&ledger, job));
    let mut settle = Settle { committed: 0, at: Timestamp::ZERO, ledger_number, ledger_hash, parts: Vec::new() };
    if let Some(record) = backup {
        let root = read_root(&context.repository, &member.cluster, &record.backup.root).await?;
        // One that was prepared and took no part in the end keeps nothing.
        let took_part = root.nodes.iter().any(|n| n.node == member.node);
        (settle.committed, settle.at) = (u8::from(took_part), root.cut);
        settle.parts = parts_of(context, &member.cluster, &root, &member.node).await?;
    }
    let _: Done = context.fleet.command(member, context.head(job, 0), &settle, SETTLE_DEADLINE, |_| ()).await?;
    Ok(())
}

type PartHashes = Vec<(u16, Vec<u8>, tidemark_proto::hash::Hash)>;

async fn parts_of(context: &Context, cluster: &ClusterName, root: &Root, node: &NodeName) -> Result<PartHashes> {
    let number = root.nodes.iter().position(|n| n.node == *node);
    let mut own = Vec::new();
    for page in root.pages.iter().filter(|_| number.is_some()) {
        let parts = read_page(&context.repository, cluster, page).await?.parts;
        let of_node = parts.iter().filter(|p| Some(usize::from(p.node)) == number);
        own.extend(of_node.map(|p| (p.region, p.lower.clone(), p.hash())));
    }
    Ok(own)
}

/// A restore whose switch was noted goes forward; any other is called off.
async fn end_restore(context: &Context, member: &Member, job: JobId) -> Result<&'static str> {
    let (records, _) = read_job(&context.repository, &member.cluster, &job).await?;
    let switching = records.into_iter().find_map(|r| match r {
        Record::RestoreSwitching(s) => Some(s),
        _ => None,
    });
    let target =
        switching.as_ref().and_then(|s| s.targets.iter().find(|t| t.node == member.node).map(|t| (s.at, t)));
    match target {
        Some((at, target)) => {
            let _ = restore::switch_node(context, &member.cluster, job, at, target).await?;
            Ok("the node has switched to the restored data")
        }
        None => {
            let nodes = std::slice::from_ref(&member.node);
            match restore::abort_all(context, &member.cluster, job, nodes).await.pop() {
                Some(stuck) => Err(Error::conflict(stuck)),
                None => Ok("a restore that does not run any more was called off: the node is as it was"),
            }
        }
    }
}
