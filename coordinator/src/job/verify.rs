//! Verification: reads blocks back, opens every seal, and compares the records of each part with the manifest.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use rand::RngExt;
use tidemark_common::run::{Merge, RunReader};
use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::stored::run::SEAL_BLOCK;
use tidemark_proto::wire::control::Progress;
use tidemark_proto::{ClusterName, Error, ErrorKind, NodeName, Result};
use tokio::sync::mpsc;

use super::Job;
use super::restore::{find_backup, read_parts};
use crate::blocks::{RunBlocks, sealer};
use crate::context::Shared;
use crate::repository::{Ledger, Repository, read_root};

/// Longest value that is checked; no engine writes longer ones.
const MAX_VALUE: usize = 512 << 20;
/// Blocks between the reads and the thread that opens them.
const BLOCKS_AHEAD: usize = 16;
/// Damaged parts that an error lists.
const SHOWN: usize = 20;
/// Parts checked at once.
const PARALLEL_PARTS: usize = 2;

/// A verification as it is asked for.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// The cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// The backup, by id, a unique beginning of it, or `latest`.
    pub backup: String,
    /// Share of the parts to check, in percent (0 < sample <= 100); parts are drawn at random.
    #[serde(default = "all")]
    pub sample: f64,
}

fn all() -> f64 {
    100.0
}

/// Runs a verification; what is damaged is listed in the error.
pub async fn run(context: Shared, job: Arc<Job>, request: VerifyRequest) -> Result<serde_json::Value> {
    if !(request.sample > 0.0 && request.sample <= 100.0) {
        return Err(Error::request("sample: more than 0 and at most 100 percent"));
    }
    job.phase("reading the manifest");
    let ledger = Ledger::load(&context.repository, &request.cluster).await?;
    let record = find_backup(&ledger, &request.backup)?;
    let root = read_root(&context.repository, &request.cluster, &record.backup.root).await?;
    let mut parts = read_parts(&context, &request.cluster, &root).await?;
    let total = parts.len();
    draw(&mut parts, request.sample);
    let checked = parts.len();
    job.phase("reading back");
    job.update(|i| {
        i.progress.total_parts = checked as u64;
        i.progress.total_bytes = parts.iter().map(|p| p.live_bytes).sum();
    });
    let (damage, read) = tokio::select! {
        checked = check_parts(&context.repository, &request.cluster, parts, &job) => checked?,
        () = job.cancel.cancelled() => return Err(Error::cancelled("the verification was cancelled")),
    };
    whole(&damage, checked).map_err(|e| e.context(format_args!("backup {}", root.job)))?;
    Ok(serde_json::json!({
        "backup": root.job, "parts": total, "checked_parts": checked, "records": read.records, "bytes": read.bytes,
    }))
}

/// Reads parts whole and checks them, telling `job` how far it is; answers what is damaged, and what was read.
pub async fn check_parts(
    repository: &Repository,
    cluster: &ClusterName,
    parts: Vec<PartEntry>,
    job: &Arc<Job>,
) -> Result<(Vec<String>, Progress)> {
    let counts = Counts { job: job.clone(), sum: std::sync::Mutex::default() };
    let damage = check_all(repository, cluster, parts, &counts).await?;
    let read = counts.sum.lock().expect("counts").clone();
    Ok((damage, read))
}

/// An error that lists what is damaged, if anything is.
pub fn whole(damage: &[String], checked: usize) -> Result<()> {
    if damage.is_empty() {
        return Ok(());
    }
    let shown = damage.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    Err(Error::damaged(format!("{} of {checked} parts are damaged: {shown}", damage.len())))
}

/// Keeps about `percent` of the parts, at least one.
fn draw(parts: &mut Vec<PartEntry>, percent: f64) {
    let keep = ((parts.len() as f64 * percent / 100.0).ceil() as usize).max(1);
    let mut rng = rand::rng();
    while parts.len() > keep {
        let gone = rng.random_range(0..parts.len());
        drop(parts.swap_remove(gone));
    }
}

struct Counts {
    job: Arc<Job>,
    sum: std::sync::Mutex<Progress>,
}

impl Counts {
    fn add(&self, records: u64, bytes: u64) {
        let mut sum = self.sum.lock().expect("counts");
        sum.records += records;
        sum.bytes += bytes;
        sum.parts += 1;
        let name = NodeName::new("repository").expect("a valid name");
        self.job.progress_of(&name, sum.clone());
    }
}

async fn check_all(
    repository: &Repository,
    cluster: &ClusterName,
    parts: Vec<PartEntry>,
    counts: &Counts,
) -> Result<Vec<String>> {
    let mut checks = futures::stream::iter(parts)
        .map(|part| {
            let (repository, cluster) = (repository.clone(), cluster.clone());
            async move {
                let (region, place) = (part.region, part.clone());
                match check_part(&repository, &cluster, part).await {
                    Err(e) if e.kind() == ErrorKind::Damaged => {
                        (region, Err(locate(&repository, &cluster, &place, e).await))
                    }
                    checked => (region, checked),
                }
            }
            .boxed()
        })
        .buffer_unordered(PARALLEL_PARTS);
    let mut damage = Vec::new();
    while let Some((region, result)) = checks.next().await {
        match result {
            Ok((records, bytes)) => counts.add(records, bytes),
            Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                damage.push(format!("region {region}: {}", e.report()));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(damage)
}

/// Reads a part whole; answers its records and their bytes.
async fn check_part(repository: &Repository, cluster: &ClusterName, part: PartEntry) -> Result<(u64, u64)> {
    let (mut readers, mut pumps) = (Vec::new(), Vec::new());
    for run in &part.runs {
        let blocks = RunBlocks::open(repository, cluster, &part, run).await?;
        let (send, receive) = mpsc::channel::<Bytes>(BLOCKS_AHEAD);
        let numbers = std::iter::once(0..run.blocks).collect();
        readers.push(RunReader::new(
            sealer(repository, cluster, &part, run)?,
            numbers,
            source(receive),
            MAX_VALUE,
        )?);
        pumps.push(async move {
            for span in blocks.spans(0..blocks.index.blocks.len() as u32) {
                let mut read = VecDeque::from(blocks.read(span).await?);
                while let Some(block) = read.pop_front() {
                    if send.send(block).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Ok::<(), Error>(())
        });
    }
    let expected = part.digest;
    let check = tokio::task::spawn_blocking(move || digest(Merge::new(readers)));
    let (checked, pumped) = tokio::join!(check, futures::future::try_join_all(pumps));
    let _ = pumped?;
    let (digest, bytes) = checked.map_err(|e| Error::bug("checking a part").with_source(e))??;
    if digest != expected {
        return Err(Error::damaged(format!(
            "holds {} records where the manifest has {}, or other content",
            digest.count, expected.count
        )));
    }
    Ok((digest.count, bytes))
}

/// Finds the block that does not open, so that the error names its pack; the merge of a part only knows that one does not.
async fn locate(repository: &Repository, cluster: &ClusterName, part: &PartEntry, error: Error) -> Error {
    for run in &part.runs {
        // A run whose index does not open names its pack itself.
        let Ok(blocks) = RunBlocks::open(repository, cluster, part, run).await else { return error };
        let Ok(sealer) = sealer(repository, cluster, part, run) else { return error };
        for span in blocks.spans(0..run.blocks) {
            let Ok(read) = blocks.read(span.clone()).await else { return error };
            for (number, block) in span.zip(read) {
                if sealer.open(SEAL_BLOCK, number, &mut block.to_vec()).is_err() {
                    return error.context(blocks.place(number));
                }
            }
        }
    }
    error
}

fn source(mut blocks: mpsc::Receiver<Bytes>) -> impl FnMut() -> Result<Option<Vec<u8>>> {
    move || Ok(blocks.blocking_recv().map(Vec::from))
}

fn digest<S: tidemark_common::run::BlockSource>(mut merge: Merge<S>) -> Result<(SetDigest, u64)> {
    let (mut digest, mut bytes) = (SetDigest::default(), 0);
    while merge.advance()? {
        let entry = merge.current();
        let (meta, value) = entry.put.unwrap_or_default();
        digest.add(tidemark_common::run::record_hash(entry.key, meta, value));
        bytes += (entry.key.len() + meta.len() + value.len()) as u64;
    }
    Ok((digest, bytes))
}
