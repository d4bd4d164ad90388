//! Segments that nobody needs any more, and segments that cannot be read.

use std::collections::BTreeMap;

use futures::StreamExt;
use tidemark_proto::stored::ledger::{Body, Trim, Void};
use tidemark_proto::{ClusterName, Error, NodeName, Result, Timestamp};

use super::index::{Found, LogIndex};
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
    let index = LogIndex::load(repository, ledger).await?;
    let held = ledger.held(now_millis);
    let standing = ledger.backups().into_iter().map(|b| b.backup.cut);
    let read = ledger.all_backups().filter(|b| held.contains(&b.job)).map(|b| b.cut);
    // Without a backup only the log that goes on is of use: the next backup begins from it.
    let from = standing.chain(read).min().or_else(|| Chains::of(&index).open().map(|open| open.end));
    let below = from.map_or(ledger.trimmed(), |from| first_needed(&index, from)).max(ledger.trimmed());
    // A reader may have planned with segments that were merged since.
    let superseded = held.is_empty();
    let listing = Listing::read(repository, ledger.cluster()).await?;
    Ok(Trimmable { below, objects: listing.needless(ledger.cluster(), below, superseded) })
}

/// The first segment that a restore from a backup at `from` needs: of each node the last one that closes no later than the
/// backup stays as well, because its chain is seen to begin there.
fn first_needed(index: &LogIndex, from: Timestamp) -> u64 {
    let mut last: BTreeMap<&NodeName, u64> = BTreeMap::new();
    for segment in index.segments() {
        for node in segment.nodes.iter().filter(|n| n.closed <= from) {
            let _ = last.insert(&node.node, segment.range.first);
        }
    }
    let first = index.segments().next().map_or(1, |s| s.range.first);
    last.into_values().min().unwrap_or(first)
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
    let index = LogIndex::load(repository, &ledger).await?;
    let mut lost: Vec<(u64, String)> = Vec::new();
    let mut whole = Vec::new();
    for found in index.entries() {
        match found {
            Found::Lost { number, why } => lost.push((*number, why.clone())),
            Found::Segment(segment) => whole.push((segment.range, segment.size)),
        }
    }
    let reads = whole.into_iter().map(|(range, size)| async move {
        let read = async {
            let bytes = repository.store().get_range(&range.path(cluster), 0, size).await?;
            repository.check_segment(cluster, range, &bytes).map(drop)
        };
        (range.last, read.await)
    });
    let mut reads = futures::stream::iter(reads).buffered(PARALLEL_CHECKS);
    while let Some((number, read)) = reads.next().await {
        match read {
            Err(e) if is_damage(&e) => lost.push((number, e.report())),
            other => other?,
        }
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
