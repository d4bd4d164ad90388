//! Extracting a backup without any node: its records as JSON Lines, in the order of slot and key.
//!
//! Parts follow each other in the manifest's order, which is that of slot and key wherever the slots of a part lie side
//! by side. Where slots of several nodes interleave, their parts make a *knot* and are merged. In memory are pages of
//! the manifest, the part entries of a knot, and blocks of one part of each of its nodes.

mod knots;
mod lanes;
mod lines;

use std::io::Write;

use futures::{StreamExt, TryStreamExt};
use tidemark_common::glob::KeyFilter;
use tidemark_proto::{Error, Result};
use tokio_util::sync::CancellationToken;

use crate::repository::Manifest;

use knots::Knots;
use lanes::Knot;
pub use lines::{Encoding, Lines};

/// Knots opened before the one that is being written.
const OPEN_AHEAD: usize = 2;

/// What came out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Extracted {
    /// Records written.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Records read, those that the filter does not take included.
    pub read: u64,
}

/// Writes the records of a backup whose keys `filter` takes. Each part is compared with the manifest when it has been
/// read: at a damaged one it stops with `Damaged`, which names region and object. What was written is whole only when
/// this answers without an error.
pub async fn extract<W: Write + Send + 'static>(
    manifest: &Manifest,
    filter: KeyFilter,
    mut lines: Lines<W>,
    cancel: &CancellationToken,
) -> Result<(Extracted, Lines<W>)> {
    let (mut sum, filter) = (Extracted::default(), std::sync::Arc::new(filter));
    let knots = futures::stream::try_unfold(Knots::new(manifest), |mut knots| async move {
        Ok::<_, Error>(knots.next().await?.map(|knot| (knot, knots)))
    });
    let opened = knots.map_ok(|parts| Knot::open(manifest.clone(), parts)).try_buffered(OPEN_AHEAD);
    let mut opened = std::pin::pin!(opened);
    while let Some(knot) = opened.next().await {
        let (knot, filter, cancel) = (knot?, filter.clone(), cancel.clone());
        let write = move || knot.write(&filter, &mut lines, sum, &cancel).map(|sum| (sum, lines));
        let written = tokio::task::spawn_blocking(write).await;
        (sum, lines) = written.map_err(|e| Error::bug("extracting a part").with_source(e))??;
    }
    lines.finish()?;
    Ok((sum, lines))
}
