//! What lies there, what of it is garbage, and its deletion.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use tidemark_proto::hash::Hash;
use tidemark_proto::id::{JobId, PackId};
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, Result};

use super::live::Live;
use crate::job::Job;
use crate::repository::{Names, Repository, Store};

/// Deletions at once.
const PARALLEL_DELETES: usize = 16;

/// Objects of a cluster with their sizes in bytes. What has another name than objects of ours is left alone.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) packs: BTreeMap<PackId, u64>,
    pub(super) roots: BTreeMap<Hash, u64>,
    /// Job records by job: key and size.
    pub(super) jobs: BTreeMap<JobId, Vec<(String, u64)>>,
}

impl Listing {
    pub(super) async fn read(repository: &Repository, cluster: &ClusterName) -> Result<Self> {
        let store = repository.store();
        let mut listing = Self::default();
        for (path, size) in store.list(&paths::packs_dir(cluster)).await? {
            listing.packs.extend(paths::pack_id(&path).map(|id| (id, size)));
        }
        for (path, size) in store.list(&paths::roots_dir(cluster)).await? {
            listing.roots.extend(paths::root_of(&path).map(|hash| (hash, size)));
        }
        for (path, size) in store.list(&paths::jobs_dir(cluster)).await? {
            if let Some(job) = paths::job_of(&path) {
                listing.jobs.entry(job).or_default().push((path, size));
            }
        }
        Ok(listing)
    }

    /// What is not needed and not being written.
    pub(super) fn garbage(&self, live: &Live, drawn: &Names) -> Garbage {
        let pack = |id: &PackId| !live.packs.contains_key(id) && !drawn.packs.contains(id);
        let root = |hash: &Hash| !live.roots.contains(hash) && !drawn.roots.contains(hash);
        let record = |job: &JobId| !live.open_jobs.contains(job);
        Garbage {
            packs: self.packs.iter().filter(|(id, _)| pack(id)).map(|(id, size)| (*id, *size)).collect(),
            roots: self.roots.iter().filter(|(h, _)| root(h)).map(|(h, size)| (*h, *size)).collect(),
            records: self.jobs.iter().filter(|(j, _)| record(j)).flat_map(|(_, r)| r.clone()).collect(),
            events: Vec::new(),
            segments: Vec::new(),
        }
    }
}

/// What goes.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    pub(super) packs: BTreeMap<PackId, u64>,
    pub(super) roots: BTreeMap<Hash, u64>,
    /// Records of jobs that the ledger knows the end of. Hints: no entry names them, so none is condemned.
    pub(super) records: Vec<(String, u64)>,
    /// Events of jobs that are kept no longer.
    pub(super) events: Vec<String>,
    /// Log segments, by key.
    pub(super) segments: Vec<String>,
}

impl Garbage {
    /// Number of objects.
    pub(super) fn objects(&self) -> u64 {
        (self.packs.len() + self.roots.len() + self.records.len() + self.events.len() + self.segments.len()) as u64
    }

    /// Deletes all of it, packs last: a root whose packs are gone would look like damage. Answers how many unfinished
    /// files of dead writers went too.
    pub(super) async fn delete(
        &self,
        store: &Store,
        cluster: &ClusterName,
        drawn: &Names,
        job: &Job,
    ) -> Result<u64> {
        let records = self.records.iter().map(|(path, _)| path.clone()).chain(self.events.clone());
        let roots = self.roots.keys().map(|hash| paths::root(cluster, hash));
        let packs = self.packs.keys().map(|id| paths::pack(cluster, id));
        delete_all(store, records.chain(roots).chain(self.segments.clone()).collect(), job).await?;
        delete_all(store, packs.collect(), job).await?;
        store.delete_staged(|name| {
            let path = name.rsplit_once('#').map_or(name, |(path, _)| path);
            path.starts_with(&paths::packs_dir(cluster))
                && paths::pack_id(path).is_some_and(|id| !drawn.packs.contains(&id))
        })
    }
}

async fn delete_all(store: &Store, keys: Vec<String>, job: &Job) -> Result<()> {
    futures::stream::iter(keys)
        .map(|key| async move { store.delete(&key).await.map(|()| job.update(|i| i.progress.parts += 1)) })
        .buffer_unordered(PARALLEL_DELETES)
        .try_collect()
        .await
}
