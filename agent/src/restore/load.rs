//! Loading the parts of a row: while one is applied, the next one is fetched.

use std::sync::Arc;

use futures::future::BoxFuture;
use tidemark_common::overlay::Overlay;
use tidemark_common::run::{Merge, RunReader};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::wire::control::{LoadedPart, RestorePart};
use tidemark_proto::{Error, Result, SlotSet};
use tracing::Instrument;

use super::feed::record_of;
use super::log::{self, Over, PartLog};
use super::row::Row;
use super::{LoadJob, fetch};
use crate::blocking;
use crate::engine::{LongRecord, record_hash};
use crate::telemetry::{self, PartKind};

/// A part whose log has come and whose runs are open.
struct Opened {
    log: PartLog,
    readers: Vec<RunReader<fetch::Blocks>>,
    pumps: Vec<BoxFuture<'static, Result<()>>>,
}

/// Fetches the log of a part and opens its runs.
async fn open_part(job: &Arc<LoadJob>, part: &RestorePart) -> Result<Opened> {
    let open = async {
        let connection = job.agent.bulk.connection(&job.session.serve, &job.cancel).await?;
        let log = match job.logs.get(&part.number) {
            Some(wanted) => log::fetch(job, &connection, part.number, wanted.clone()).await?,
            None => PartLog::Records(Overlay::empty()),
        };
        let (mut readers, mut pumps) = (Vec::new(), Vec::new());
        let quota = fetch::quota(job.at_once, part.runs.len(), job.agent.limiter.rate());
        for run in &part.runs {
            let fetched = fetch::open(job, &connection, part, run, quota).await?;
            readers.push(fetched.reader);
            pumps.push(fetched.pump);
        }
        Ok(Opened { log, readers, pumps })
    };
    open.await.map_err(|e: Error| e.context(format_args!("part {}", part.number)))
}

/// Loads parts one after the other, the next one opened meanwhile. They stand when the last of them does.
pub(super) async fn load_row(job: &Arc<LoadJob>, parts: &[RestorePart], attempt: u32) -> Result<Vec<LoadedPart>> {
    let (mut row, mut loaded) = (None, Vec::with_capacity(parts.len()));
    let mut opened = None;
    for (place, part) in parts.iter().enumerate() {
        let next = parts.get(place + 1);
        let this = match opened.take() {
            Some(opened) => opened,
            None => open_part(job, part).await?,
        };
        let span = tracing::info_span!("part", part = part.number, attempt);
        let one = load_part(job.clone(), part, this, row.take(), next.map(|next| next.number)).instrument(span);
        let ahead = async {
            match next {
                Some(next) => open_part(job, next).await.map(Some),
                None => Ok(None),
            }
        };
        let (one, ahead) = tokio::join!(telemetry::part(PartKind::Load, one), ahead);
        let (one, rest) = one.map_err(|e| e.context(format_args!("part {}", part.number)))?;
        loaded.push(one);
        (row, opened) = (rest, ahead?);
    }
    Ok(loaded)
}

/// Loads a part, the next of `row`, which is handed on where part `next` comes behind it.
async fn load_part(
    job: Arc<LoadJob>,
    part: &RestorePart,
    Opened { log, readers, pumps }: Opened,
    row: Option<Row>,
    next: Option<u32>,
) -> Result<(LoadedPart, Option<Row>)> {
    let (number, slots) = (part.number, part.slots.clone());
    let loading = match &row {
        Some(_) => None,
        None => Some(job.session.loading.clone().read_owned().await),
    };
    let apply = blocking(move || {
        let mut row = match (row, loading) {
            (None, Some(loading)) => Row::begin(&job, number, loading)?,
            (Some(row), _) => row,
            (None, None) => return Err(Error::bug("a row of parts that nobody has begun")),
        };
        let source = apply(&mut row, &slots, Merge::new(readers), log)?;
        let (loaded, row) = row.end(source, next)?;
        Ok((LoadedPart { number, source, loaded }, row))
    });
    // The error of a stream says more than the merge's, which only saw its blocks end.
    let (applied, pumped) = tokio::join!(apply, futures::future::try_join_all(pumps));
    let _ = pumped?;
    let (loaded, row) = applied?;
    tracing::debug!(records = loaded.loaded.count, "part loaded");
    Ok((loaded, row))
}

/// Merges the runs, lays the log over them and feeds the loader, on a blocking thread; answers the digest of the runs.
fn apply(
    Row { feed, .. }: &mut Row,
    slots: &SlotSet,
    mut merge: Merge<fetch::Blocks>,
    log: PartLog,
) -> Result<SetDigest> {
    let mut source = SetDigest::default();
    let mut over = Over::new(log)?;
    while merge.advance()? {
        feed.tick()?;
        let entry = merge.current();
        if !slots.contains(entry.slot) {
            continue;
        }
        let record = record_of(&entry)?;
        let (slot, key, meta) = (record.slot, record.key, record.meta);
        let long = merge.long().map(|value| LongRecord { slot, key, meta, value });
        let hash = long.as_ref().map_or_else(|| Ok(record_hash(record)), LongRecord::hash)?;
        source.add(hash);
        if over.takes(feed, entry, merge.long())? {
            continue;
        }
        match long {
            None => feed.give(entry, Some(hash))?,
            Some(long) => feed.give_long(&entry, long, hash)?,
        }
    }
    over.rest(feed, slots)?;
    Ok(source)
}
