//! Looking at one part, and finding the object that is to blame.

use std::sync::Arc;

use tidemark_common::run::{BlockSource, Merge};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::manifest::{Extent, PartEntry};
use tidemark_proto::stored::paths;
use tidemark_proto::stored::run::SEAL_BLOCK;
use tidemark_proto::{Error, Result};

use super::{Depth, Found, Item, Packs, RecordCheck, is_damage};
use crate::blocks::{RunBlocks, sealer};
use crate::part::{self, LongValues};
use crate::repository::Manifest;

/// What sees the records beside.
type Check<'a> = Option<&'a Arc<dyn RecordCheck>>;

/// Looks at an item; an error that is no damage ends the inspection.
pub(super) async fn look(
    manifest: &Manifest,
    packs: &Packs,
    depth: Depth,
    check: Check<'_>,
    item: Item,
) -> (Item, Result<Found>) {
    let Item::Part(_, part) = &item else { return (item, Ok(Found::Good { records: 0, bytes: 0 })) };
    let found = look_at(manifest, packs, depth, check, part).await;
    (item, found)
}

async fn look_at(
    manifest: &Manifest,
    packs: &Packs,
    depth: Depth,
    check: Check<'_>,
    part: &PartEntry,
) -> Result<Found> {
    for extent in part.runs.iter().flat_map(|r| r.extents.iter().chain([&r.index])) {
        if let Err(wrong) = packs.holds(extent) {
            let object = paths::pack(manifest.cluster(), &extent.pack);
            return Ok(Found::Bad { error: Error::damaged(format!("{object} {wrong}")), object });
        }
    }
    let checked = match depth {
        Depth::Objects => Ok((0, 0)),
        Depth::Indexes => indexes(manifest, part).await,
        Depth::Blocks => records(manifest, part, check).await,
    };
    match checked {
        Ok((records, bytes)) => Ok(Found::Good { records, bytes }),
        Err(error) if is_damage(&error) => {
            let object = blame(manifest, part).await;
            Ok(Found::Bad { object, error })
        }
        Err(error) => Err(error),
    }
}

async fn indexes(manifest: &Manifest, part: &PartEntry) -> Result<(u64, u64)> {
    for run in &part.runs {
        let _ = RunBlocks::open(manifest.repository(), manifest.cluster(), part, run).await?;
    }
    Ok((0, 0))
}

/// Reads a part whole; answers its records and their bytes.
async fn records(manifest: &Manifest, part: &PartEntry, check: Check<'_>) -> Result<(u64, u64)> {
    let opened = part::open(manifest.repository(), manifest.cluster(), part, LongValues::Hashed).await?;
    let (merge, check) = (opened.merge, check.cloned());
    let (checked, ()) =
        tokio::join!(tokio::task::spawn_blocking(move || digest(merge, check.as_deref())), opened.pump);
    let (digest, bytes) = checked.map_err(|e| Error::bug("checking a part").with_source(e))??;
    part::compare(part, digest)?;
    Ok((digest.count, bytes))
}

/// The object that is to blame for a damaged part; the merge of its runs only knows that something is.
async fn blame(manifest: &Manifest, part: &PartEntry) -> String {
    let (repository, cluster) = (manifest.repository(), manifest.cluster());
    let pack = |extent: &Extent| paths::pack(cluster, &extent.pack);
    for run in &part.runs {
        let Ok(blocks) = RunBlocks::open(repository, cluster, part, run).await else { return pack(&run.index) };
        let Ok(sealer) = sealer(repository, cluster, part, run) else { return pack(&run.index) };
        for span in blocks.spans(0..run.blocks) {
            let Ok(read) = blocks.read(span.clone()).await else { return blocks.place(span.start) };
            for (number, block) in span.zip(read) {
                if sealer.open(SEAL_BLOCK, number, &mut block.to_vec()).is_err() {
                    return blocks.place(number);
                }
            }
        }
    }
    // Every seal holds: the runs are whole and are not what the manifest says of them.
    paths::root(cluster, manifest.hash())
}

fn digest<S: BlockSource>(mut merge: Merge<S>, check: Option<&dyn RecordCheck>) -> Result<(SetDigest, u64)> {
    let (mut digest, mut bytes) = (SetDigest::default(), 0);
    while merge.advance()? {
        let entry = merge.current();
        check.map_or(Ok(()), |check| check.see(&entry))?;
        let (meta, value) = entry.put.unwrap_or_default();
        let whole = || (tidemark_common::run::record_hash(entry.key, meta, value), value.len() as u64);
        let (hash, len) = merge.hashed().unwrap_or_else(whole);
        digest.add(hash);
        bytes += (entry.key.len() + meta.len()) as u64 + len;
    }
    Ok((digest, bytes))
}
