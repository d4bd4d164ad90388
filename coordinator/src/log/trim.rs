//! Segments that nobody needs any more, and segments that cannot be read.

use std::collections::BTreeMap;

use futures::StreamExt;
use tidemark_proto::stored::ledger::{Body, Trim, Void};
use tidemark_proto::{ClusterName, Error, NodeName, Result, Timestamp};

use super::index::{Found, Walk};
use super::listing::Listing;
use super::window::Chains;
use crate::context::Shared;
use crate::job::inspect::is_damage;
use crate::repository::{Ledger, Repository};

/// Segments read at once by a check: each is whole in memory.
const PARALLEL_CHECKS: usize = 2;

/// What of a log can go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trimmable {
    /// The first segment that stays.
    pub below: u64,
    /// Objects that can go: key and bytes.
    pub objects: Vec<(String, u64)>,
}

/// Which segments no backup that stands or is held at `now_millis` leads to any more.
pub async fn trimmable(repository: &Repository, ledger: &Ledger, now_millis: u64) -> Result<Trimmable> {
    let held = ledger.held(now_millis);
    let standing = ledger.backups().into_iter().map(|b| b.backup.cut);
    let read = ledger.all_backups().filter(|b| held.contains(&b.job)).map(|b| b.cut);
    let from = match standing.chain(read).min() {
        Some(from) => Some(from),
        // Without a backup only the log that goes on is of use: the next backup begins from it.
        None => open_end(repository, ledger).await?,
    };
    let below = match from {
        Some(from) => first_needed(repository, ledger, from).await?.max(ledger.trimmed()),
        None => ledger.trimmed(),
    };
    // A reader may have planned with segments that were merged since.
    let superseded = held.is_empty();
    let listing = Listing::read(repository, ledger.cluster()).await?;
    Ok(Trimmable { below, objects: listing.needless(ledger.cluster(), below, superseded) })
}

/// Where the log ends that goes on.
async fn open_end(repository: &Repository, ledger: &Ledger) -> Result<Option<Timestamp>> {
    let (mut walk, mut chains) = (Walk::over(repository, ledger).await?, Chains::default());
    while let Some(found) = walk.next().await? {
        chains.take(&found);
    }
    Ok(chains.open().map(|open| open.end))
}

/// The first segment that a restore from a backup at `from` needs: of each node the last one that closes no later than the
/// backup stays as well, because its chain is seen to begin there.
async fn first_needed(repository: &Repository, ledger: &Ledger, from: Timestamp) -> Result<u64> {
    let (mut last, mut first): (BTreeMap<NodeName, u64>, Option<u64>) = (BTreeMap::new(), None);
    let mut walk = Walk::over(repository, ledger).await?;
    while let Some(found) = walk.next().await? {
        let Found::Segment(segment) = found else { continue };
        let number = segment.range.first;
        let _ = first.get_or_insert(number);
        for node in segment.nodes.into_iter().filter(|n| n.closed <= from) {
            let _ = last.insert(node.node, number);
        }
    }
    Ok(last.into_values().min().or(first).unwrap_or(1))
}

/// Enters that the segments below are not needed. To be called before any is deleted.
pub async fn enter_trim(context: &Shared, ledger: &mut Ledger, below: u64) -> Result<()> {
    if below > ledger.trimmed() {
        let body = Body::Trim(Trim { below });
        let written = ledger.append(context.epoch, context.now_millis(), &body, |_| Ok(())).await;
        let _ = written.inspect_err(|e| context.note(e))?;
    }
    Ok(())
}

/// Reads every segment whole: number and fault of those that do not hold, missing ones included.
pub async fn check_segments(repository: &Repository, cluster: &ClusterName) -> Result<Vec<(u64, String)>> {
    let ledger = match Ledger::load(repository, cluster).await {
        Ok(ledger) => ledger,
        // The check of the ledger itself tells.
        Err(e) if is_damage(&e) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let walk = Walk::over(repository, &ledger).await?;
    let all = futures::stream::try_unfold(walk, |mut walk| async move {
        Ok::<_, Error>(walk.next().await?.map(|found| (found, walk)))
    });
    let reads = all.map(|found| async move {
        let (range, size) = match found? {
            Found::Lost { number, why } => return Ok(Some((number, why))),
            Found::Segment(segment) => (segment.range, segment.size),
        };
        let read = async {
            let bytes = repository.store().get_range(&range.path(cluster), 0, size).await?;
            repository.check_segment(cluster, range, &bytes).map(drop)
        };
        match read.await {
            Err(e) if is_damage(&e) => Ok(Some((range.last, e.report()))),
            other => other.map(|()| None),
        }
    });
    let (mut reads, mut lost) = (std::pin::pin!(reads.buffered(PARALLEL_CHECKS)), Vec::new());
    while let Some(read) = reads.next().await {
        lost.extend(read?);
    }
    lost.sort_unstable();
    Ok(lost)
}

/// Enters that segments are lost: windows end before them, for everybody from now on. The log that goes on begins anew behind
/// them, with a backup of its own.
pub async fn give_up(context: &Shared, cluster: &ClusterName, lost: &[(u64, String)]) -> Result<()> {
    let mut ledger = Ledger::load(&context.repository, cluster).await?;
    let known = ledger.void_segments();
    let fresh: Vec<_> = lost.iter().filter(|(number, _)| !known.contains_key(number)).collect();
    if fresh.is_empty() {
        return Ok(());
    }
    ledger = context.ledger(cluster).await?;
    for (number, why) in fresh {
        let body = Body::Void(Void { segment: *number, reason: why.clone() });
        let written = ledger.append(context.epoch, context.now_millis(), &body, |_| Ok(())).await;
        let _ = written.inspect_err(|e| context.note(e))?;
        tracing::error!(%cluster, segment = number, %why, "a segment of the log is lost: the window ends before it");
    }
    match ledger.log_policy() {
        Some(_) => context.logs.apply(context, cluster, &context.shutdown).await,
        None => Err(Error::bug("segments of a log that was never kept")),
    }
}
