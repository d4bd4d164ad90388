//! The log between a backup and a time, laid over each part while it is extracted.
//!
//! The log of a part is read whole and sorted before the part's runs are opened; what does not fit into the memory for
//! it goes to files without a name. The part without the log is what is compared with the manifest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tidemark_common::overlay::{LogSorter, Overlay, Wanted};
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::{Error, Result, Timestamp};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::in_thread;
use crate::blocks::READ_SPAN;
use crate::log::{LogParts, Piece, Point};
use crate::repository::{Manifest, Repository};

/// Memory for sorting of all parts that are open together, in bytes.
const SORT_MEMORY: usize = 96 << 20;
/// Spans of the log between the reads and the thread that opens their chunks.
const SPANS_AHEAD: usize = 1;

/// What is laid over a backup.
#[derive(Debug)]
pub struct Laid {
    log: Arc<LogParts>,
    after: Timestamp,
    at: Timestamp,
    dir: PathBuf,
}

impl Laid {
    /// The log that leads from the manifest of a restore point's backup to its time: reads the footers of its segments.
    /// What does not fit into memory goes to files without a name in `dir`.
    pub async fn new(manifest: &Manifest, point: &Point, dir: &Path) -> Result<Self> {
        let slots_per_region = manifest.root().slots_per_region;
        let log = point.log(manifest.repository(), manifest.cluster(), slots_per_region).await?;
        Ok(Self { log, after: point.base.backup.cut, at: point.at, dir: dir.to_owned() })
    }

    /// Stored bytes of the log's chunks, those of slots that nobody wants included.
    pub fn bytes(&self) -> u64 {
        self.log.bytes
    }

    /// The newest entry of each key of a part; `open` parts are held at once. `Damaged` names segment and region.
    pub(super) async fn over(
        &self,
        repository: &Repository,
        part: &PartEntry,
        open: usize,
        cancel: &CancellationToken,
    ) -> Result<Overlay> {
        if self.log.pieces(part.region).is_empty() {
            return Ok(Overlay::empty());
        }
        let wanted = Wanted {
            after: self.after,
            at: self.at,
            slots: part.slots.clone(),
            lower: part.lower.clone(),
            upper: part.upper.clone(),
        };
        let mut sorter = LogSorter::new(wanted, SORT_MEMORY / open.max(1), &self.dir);
        let (send, mut spans) = mpsc::channel::<Vec<(Piece, Bytes)>>(SPANS_AHEAD);
        let (log, opener) = (self.log.clone(), repository.clone());
        let sort = in_thread(move || {
            while let Some(span) = spans.blocking_recv() {
                for (piece, sealed) in span {
                    sorter.push_chunk(&log.open(&opener, piece, &sealed)?)?;
                }
            }
            sorter.finish()
        });
        let read = async move {
            for pieces in self.log.spans(part.region, READ_SPAN) {
                if cancel.is_cancelled() {
                    return Err(Error::cancelled("the extraction was ended"));
                }
                let sealed = self.log.read(repository, pieces).await?;
                // Nobody takes it where a chunk did not open: that error is the one to tell.
                if send.send(pieces.iter().copied().zip(sealed).collect()).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let (sorted, read) = tokio::join!(sort, read);
        read?;
        sorted
    }
}
