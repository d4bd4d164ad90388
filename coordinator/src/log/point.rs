//! Which state a time means, and what of the log leads to it from a backup.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::StreamExt;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::log::{ALL_REGIONS, Segment, SegmentChunk};
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::wire::bulk::LogPiece;
use tidemark_proto::{ClusterName, Error, Result, SlotSet, Timestamp};

use super::groups::Owners;
use super::index::{Found, SegmentInfo, Walk};
use super::leading::Leading;
use super::listing::Place;
use super::window::{Chains, Interval, Window, Windows};
use crate::repository::{BackupRecord, Ledger, Repository};

/// Footers read at once.
const PARALLEL_READS: usize = 16;
/// Chunks whose bytes lie within this of each other are read by one ranged read.
const READ_GAP: u64 = 16 << 10;

/// A restore point: a backup, and the time up to which the log is laid over it.
#[derive(Debug, Clone)]
pub struct Point {
    /// The time.
    pub at: Timestamp,
    /// The backup to begin from: the newest one at or before it.
    pub base: BackupRecord,
    /// The segments that lead to it, where it is not the backup's own cut.
    segments: Vec<Place>,
}

/// Finds the newest restore point at or before `wanted`; with `named` the log is laid over that very backup. `NotFound`, with
/// what can be restored, when there is none.
pub async fn point(
    repository: &Repository,
    ledger: &Ledger,
    wanted: Timestamp,
    named: Option<JobId>,
) -> Result<Point> {
    point_of(repository, ledger, wanted, named, false).await
}

/// As [`point`]; `inexact` takes the very time, by the nodes' clocks, to the millisecond, also where it is no consistent state.
pub async fn point_of(
    repository: &Repository,
    ledger: &Ledger,
    wanted: Timestamp,
    named: Option<JobId>,
    inexact: bool,
) -> Result<Point> {
    let (cuts, backups) = (super::operate::cuts(ledger), ledger.backups());
    // Most likely the base; of what is not behind it nothing is kept.
    let likely = backups.iter().filter(|b| named.map_or(b.backup.cut <= wanted, |named| b.backup.job == named));
    let likely = likely.map(|b| b.backup.cut).max().unwrap_or_default();
    let (windows, mut leading) = walk(repository, ledger, (likely, wanted)).await?;
    let windows = windows.restorable(&cuts);
    let own = backups.iter().map(|b| b.backup.cut).filter(|cut| *cut <= wanted).max();
    let latest = |w: &Window| match inexact {
        true => Some(undivided(&w.interval, w.interval.end.min(wanted))),
        false => w.interval.latest(wanted),
    };
    let logged = windows.iter().filter(|w| w.earliest <= wanted).filter_map(|w| Some((latest(w)?, w)));
    let best = logged.max_by_key(|(at, _)| *at).filter(|(at, _)| own.is_none_or(|own| *at > own));
    let (at, window) = match (best, own) {
        (Some((at, window)), _) => (at, Some(window)),
        (None, Some(cut)) => (cut, None),
        (None, None) => return Err(nothing(wanted, &windows, &backups)),
    };
    let fits = |b: &BackupRecord| match (named, window) {
        (Some(named), _) if b.backup.job != named => false,
        (_, Some(window)) => window.bases.iter().any(|(_, job)| *job == b.backup.job) && b.backup.cut <= at,
        (_, None) => b.backup.cut == at,
    };
    let base = backups.into_iter().filter(fits).max_by_key(|b| b.backup.cut);
    let base = base.ok_or_else(|| {
        let named = named.map(|n| n.to_string()).unwrap_or_default();
        Error::not_found(format!(
            "the log does not lead from backup {named} to the time {at}: leave the backup out"
        ))
    })?;
    let window = window.filter(|_| base.backup.cut < at);
    if window.is_some() && base.backup.cut < likely {
        leading = walk(repository, ledger, (base.backup.cut, wanted)).await?.1;
    }
    let segments = window.map(|w| leading.through(&w.interval, base.backup.cut, at));
    Ok(Point { at, base, segments: segments.unwrap_or_default() })
}

/// The latest time up to `at` that divides no transaction: those of a log of commands lie within a millisecond each.
fn undivided(interval: &Interval, at: Timestamp) -> Timestamp {
    match interval.latest(at) == Some(at) {
        true => at,
        false => Timestamp::new(at.next().millis(), 0).prev(),
    }
}

/// Finds what can be restored, and the segments that lead from one time to another.
async fn walk(
    repository: &Repository,
    ledger: &Ledger,
    (from, wanted): (Timestamp, Timestamp),
) -> Result<(Windows, Leading)> {
    let cuts = super::operate::cuts(ledger).into_iter().map(|(cut, _)| cut);
    let (mut chains, mut leading) = (Chains::seeking(cuts, Some(wanted)), Leading::new(from, wanted));
    let mut walk = Walk::over(repository, ledger).await?;
    while let Some(found) = walk.next().await? {
        chains.take(&found);
        if let Found::Segment(segment) = &found {
            leading.take(segment);
        }
    }
    Ok((chains.windows(), leading))
}

fn nothing(wanted: Timestamp, windows: &[Window], backups: &[BackupRecord]) -> Error {
    let first = backups.iter().map(|b| b.backup.cut).chain(windows.iter().map(|w| w.earliest)).min();
    Error::not_found(match first {
        Some(first) => {
            let (wanted, first) = (crate::cli::exact(wanted), crate::cli::exact(first));
            format!(
                "nothing at or before {wanted} can be restored: the earliest is {first}; see `tidemark pitr status`"
            )
        }
        None => "the cluster has no backup and no log: `tidemark backup create` or `tidemark pitr enable`".into(),
    })
}

/// A chunk of the log that a region needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its segment, by its place among those that were read.
    pub segment: u32,
    /// Its place in the segment's footer.
    pub chunk: u32,
}

/// What of the log a restore point needs, by region of its backup.
#[derive(Debug, Default)]
pub struct LogParts {
    cluster: Option<ClusterName>,
    pub(super) slots_per_region: u16,
    pub(super) segments: Vec<Segment>,
    regions: HashMap<u16, Vec<Piece>>,
    /// Chunks of commands on several regions.
    all: Vec<Piece>,
    pub(super) owners: OnceLock<Owners>,
    /// The time after which it begins, and its last one.
    pub(super) span: (Timestamp, Timestamp),
    /// Bytes of its chunks.
    pub bytes: u64,
    /// Entries in its chunks.
    pub entries: u64,
}

/// The log between two times (after the first, up to the second), as far as it is there, whatever else is.
pub async fn between(
    repository: &Repository,
    ledger: &Ledger,
    (from, to): (Timestamp, Timestamp),
    slots_per_region: u16,
) -> Result<Arc<LogParts>> {
    let news = |s: &SegmentInfo| s.nodes.iter().any(|n| n.closed > from);
    let (mut walk, mut places) = (Walk::over(repository, ledger).await?, Vec::new());
    while let Some(found) = walk.next().await? {
        match found {
            Found::Segment(segment) if news(&segment) => places.push((segment.range, segment.size)),
            _ => {}
        }
    }
    LogParts::read_footers(repository, ledger.cluster(), places, (from, to), slots_per_region).await
}

impl Point {
    /// Whether the log is needed.
    pub fn is_logged(&self) -> bool {
        self.at > self.base.backup.cut
    }

    /// Number of the objects that lead to it.
    pub fn segments(&self) -> u64 {
        self.segments.len() as u64
    }

    /// Reads the footers of the segments, and finds the chunks of each region of so many slots.
    pub async fn log(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
        slots_per_region: u16,
    ) -> Result<Arc<LogParts>> {
        let places = self.segments.clone();
        LogParts::read_footers(repository, cluster, places, (self.base.backup.cut, self.at), slots_per_region).await
    }
}

impl LogParts {
    async fn read_footers(
        repository: &Repository,
        cluster: &ClusterName,
        places: Vec<Place>,
        (from, to): (Timestamp, Timestamp),
        slots_per_region: u16,
    ) -> Result<Arc<Self>> {
        let mut log =
            Self { cluster: Some(cluster.clone()), slots_per_region, span: (from, to), ..Self::default() };
        let reads = places.into_iter().map(|(range, size)| repository.read_segment(cluster, range, size));
        let mut reads = futures::stream::iter(reads).buffered(PARALLEL_READS);
        while let Some(read) = reads.next().await {
            log.take(read?.segment, from, to);
        }
        Ok(Arc::new(log))
    }

    #[cfg(test)]
    pub(super) fn of_segments(segments: Vec<Segment>, slots_per_region: u16) -> Self {
        Self::until(segments, slots_per_region, Timestamp::MAX)
    }

    #[cfg(test)]
    pub(super) fn until(segments: Vec<Segment>, slots_per_region: u16, at: Timestamp) -> Self {
        let mut log = Self { slots_per_region, span: (Timestamp::ZERO, at), ..Self::default() };
        segments.into_iter().for_each(|segment| log.take(segment, Timestamp::ZERO, at));
        log
    }

    fn take(&mut self, mut segment: Segment, from: Timestamp, at: Timestamp) {
        segment.chunks.retain(|c| c.last > from && c.first <= at);
        let (each, theirs) = (u32::from(self.slots_per_region.max(1)), u32::from(segment.slots_per_region.max(1)));
        let place = self.segments.len() as u32;
        for (i, chunk) in segment.chunks.iter().enumerate() {
            let (first, piece) = (u32::from(chunk.region) * theirs, Piece { segment: place, chunk: i as u32 });
            match chunk.region {
                ALL_REGIONS => self.all.push(piece),
                _ => {
                    for region in first / each..=(first + theirs - 1) / each {
                        self.regions.entry(region as u16).or_default().push(piece);
                    }
                }
            }
            self.bytes += u64::from(chunk.len);
            self.entries += u64::from(chunk.entries);
        }
        self.segments.push(segment);
    }

    /// Bytes of the chunks that a part needs, raw.
    pub fn raw_bytes_of(&self, part: &PartEntry) -> u64 {
        self.pieces(part.region).iter().map(|p| u64::from(self.chunk(*p).1.raw_len)).sum()
    }

    /// The chunks of a region, in the order of their segments.
    pub fn pieces(&self, region: u16) -> &[Piece] {
        self.regions.get(&region).map_or(&[], Vec::as_slice)
    }

    /// The chunks of commands on several regions, or on none, in the order of their segments.
    pub fn everywhere(&self) -> &[Piece] {
        &self.all
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Raw bytes of all chunks.
    pub fn raw_bytes(&self) -> u64 {
        self.segments.iter().flat_map(|s| &s.chunks).map(|c| u64::from(c.raw_len)).sum()
    }

    /// The chunks of a region in stretches of at most `bytes` (one chunk may pass it).
    pub fn spans(&self, region: u16, bytes: u64) -> Vec<&[Piece]> {
        self.spans_of(self.pieces(region), bytes)
    }

    /// Chunks in stretches of at most `bytes` (one chunk may pass it).
    pub fn spans_of<'p>(&self, pieces: &'p [Piece], bytes: u64) -> Vec<&'p [Piece]> {
        let (mut out, mut first, mut sum) = (Vec::new(), 0, 0);
        for (i, piece) in pieces.iter().enumerate() {
            let len = u64::from(self.chunk(*piece).1.len);
            if i > first && sum + len > bytes {
                out.push(&pieces[first..i]);
                (first, sum) = (i, 0);
            }
            sum += len;
        }
        if first < pieces.len() {
            out.push(&pieces[first..]);
        }
        out
    }

    /// What opens a piece, for a node that it is assigned to.
    pub fn opener(&self, repository: &Repository, piece: Piece) -> Result<LogPiece> {
        let cluster = self.cluster.as_ref().ok_or_else(|| Error::bug("a log of no cluster"))?;
        let (segment, chunk) = self.chunk(piece);
        let node = segment.nodes.get(usize::from(chunk.node));
        let node = node.ok_or_else(|| Error::damaged("log segment: a chunk of a node that is not in it"))?;
        Ok(LogPiece {
            run_tag: repository.batch_tag(cluster, &node.node, &node.salt),
            key: repository.keys().subkey(node.key_id, &node.salt)?,
            encrypt: u8::from(node.key_id != 0),
            number: chunk.number,
        })
    }

    /// The regions with news.
    pub fn regions(&self) -> impl Iterator<Item = u16> + '_ {
        self.regions.keys().copied()
    }

    /// A piece's segment and chunk.
    pub fn chunk(&self, piece: Piece) -> (&Segment, &SegmentChunk) {
        let segment = &self.segments[piece.segment as usize];
        (segment, &segment.chunks[piece.chunk as usize])
    }

    /// Reads the sealed bytes of pieces that lie in one segment, by few ranged reads.
    pub async fn read(&self, repository: &Repository, pieces: &[Piece]) -> Result<Vec<Bytes>> {
        let cluster = self.cluster.as_ref().ok_or_else(|| Error::bug("a log of no cluster"))?;
        let mut out = Vec::with_capacity(pieces.len());
        let mut i = 0;
        while i < pieces.len() {
            let (segment, first) = self.chunk(pieces[i]);
            let mut end = i + 1;
            let mut to = first.offset + u64::from(first.len);
            while end < pieces.len() && pieces[end].segment == pieces[i].segment {
                let next = self.chunk(pieces[end]).1;
                if next.offset < to || next.offset - to > READ_GAP {
                    break;
                }
                (to, end) = (next.offset + u64::from(next.len), end + 1);
            }
            let path = segment.range().path(cluster);
            let bytes = repository.store().get_range(&path, first.offset, to - first.offset).await?;
            for piece in &pieces[i..end] {
                let chunk = self.chunk(*piece).1;
                let at = (chunk.offset - first.offset) as usize;
                out.push(bytes.slice(at..at + chunk.len as usize));
            }
            i = end;
        }
        Ok(out)
    }

    /// Opens a piece: its raw entries.
    pub fn open(&self, repository: &Repository, piece: Piece, sealed: &Bytes) -> Result<Vec<u8>> {
        let cluster = self.cluster.as_ref().ok_or_else(|| Error::bug("a log of no cluster"))?;
        let (segment, chunk) = self.chunk(piece);
        repository.open_segment_chunk(cluster, segment, chunk, sealed.to_vec())
    }

    /// Reads and opens every chunk: `Damaged` names segment and region of one that does not hold.
    pub async fn check(&self, repository: &Repository, slots: &SlotSet) -> Result<()> {
        let each = self.slots_per_region.max(1);
        for pieces in self.all.chunks(PARALLEL_READS) {
            for (piece, sealed) in pieces.iter().zip(self.read(repository, pieces).await?) {
                let _ = self.open(repository, *piece, &sealed)?;
            }
        }
        for (region, pieces) in &self.regions {
            let first = u32::from(*region) * u32::from(each);
            let last = (first + u32::from(each) - 1).min(u32::from(tidemark_proto::slot::SLOT_COUNT - 1));
            if slots.intersect(&SlotSet::range(first as u16, last as u16)).is_empty() {
                continue;
            }
            for pieces in pieces.chunks(PARALLEL_READS) {
                for (piece, sealed) in pieces.iter().zip(self.read(repository, pieces).await?) {
                    let _ = self.open(repository, *piece, &sealed)?;
                }
            }
        }
        Ok(())
    }
}
