//! Extracting a backup without any node: its records in the order of slot and key, as JSON Lines, or as what Redis and
//! Valkey load.
//!
//! Parts follow each other in the manifest's order, which is that of slot and key wherever the slots of a part lie side
//! by side. Where slots of several nodes interleave, their parts make a *knot* and are merged. In memory are pages of
//! the manifest, the part entries of a knot, and blocks of one part of each of its nodes; values over 1 MiB go through a file:
//! outputs take them apart as they write. Of a time between two backups the log is laid over each part (`laid.rs`).

mod json;
mod knots;
mod laid;
mod lanes;
mod lines;
mod rdb;
mod resp;
mod sorted;
mod split;
#[cfg(test)]
mod tests;
mod values;

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use tidemark_common::run::{Entry, LongValue};
use tidemark_common::select::Selection;
use tidemark_proto::{Error, ErrorKind, Result};
use tokio_util::sync::CancellationToken;

use crate::repository::Manifest;

use knots::Knots;
pub use laid::Laid;
pub(crate) use laid::PartOver;
use lanes::{Knot, Source};
pub use lines::{Encoding, Lines};
pub use rdb::RdbFile;
pub use resp::Commands;
pub use split::Split;

/// Knots opened before the one that is being written.
const OPEN_AHEAD: usize = 2;

/// What came out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Extracted {
    /// Records written.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Records read, those that the selection does not take included.
    pub read: u64,
}

/// Takes records, in the order of slot and key. It blocks, and is dropped unfinished when the extraction fails.
pub trait Output: Send {
    /// Takes a record, whose value is `long` where that is given; `false` if it has no place in what is written (see the output for what that is).
    fn write(&mut self, entry: &Entry<'_>, long: Option<&LongValue>) -> Result<bool>;

    /// There are no more: writes the end and hands on what is buffered.
    fn finish(&mut self) -> Result<()>;
}

/// Writes the records of a backup that are selected. Each part is compared with the manifest when it has been read: at a
/// damaged one it stops with `Damaged`, which names region and object. What was written is whole only when this answers
/// without an error.
pub async fn extract<O: Output + 'static>(
    manifest: &Manifest,
    selection: Selection,
    output: O,
    cancel: &CancellationToken,
) -> Result<(Extracted, O)> {
    extract_at(manifest, None, selection, output, cancel).await
}

/// The same, with the log laid over the backup. A damaged chunk of it ends the extraction as a damaged part does.
pub async fn extract_at<O: Output + 'static>(
    manifest: &Manifest,
    laid: Option<Arc<Laid>>,
    selection: Selection,
    mut output: O,
    cancel: &CancellationToken,
) -> Result<(Extracted, O)> {
    let (mut sum, selection) = (Extracted::default(), Arc::new(selection));
    let source = Arc::new(Source { manifest: manifest.clone(), laid, cancel: cancel.clone() });
    let knots = Knots::new(manifest, selection.slots.clone());
    let knots = futures::stream::try_unfold(knots, |mut knots| async move {
        Ok::<_, Error>(knots.next().await?.map(|knot| (knot, knots)))
    });
    let opened = knots.map_ok(|parts| Knot::open(source.clone(), parts)).try_buffered(OPEN_AHEAD);
    let mut opened = std::pin::pin!(opened);
    while let Some(knot) = opened.next().await {
        let (knot, selection) = (knot?, selection.clone());
        let write = move || knot.write(&selection, &mut output, sum).map(|sum| (sum, output));
        (sum, output) = in_thread(write).await?;
    }
    let output = in_thread(move || output.finish().map(|()| output)).await?;
    Ok((sum, output))
}

async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::bug("extracting a part").with_source(e))?
}

/// The error for what cannot be written.
fn unwritten(e: std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::BrokenPipe => Error::cancelled("nobody reads the output any more"),
        _ => Error::new(ErrorKind::Full, "the records cannot be written").with_source(e),
    }
}

/// A key as errors show it.
fn shown(key: &[u8]) -> String {
    const MOST: usize = 128;
    let text = String::from_utf8_lossy(&key[..key.len().min(MOST)]).into_owned();
    if key.len() > MOST { text + "…" } else { text }
}
