//! The repository: everything that must outlive the machines of Tidemark, in one object store.
//!
//! Of the store it asks create-if-absent for small objects and ranged reads, nothing else. Writing order is the rule
//! that keeps it whole: packs, then the job record that lists them, then pages, then the root, and the ledger entry
//! last. A crash before the ledger entry leaves objects that nothing names: garbage, never damage.

mod cloud;
mod drawn;
mod events;
mod folder;
mod health;
mod keyring;
mod ledger;
mod limits;
mod manifest;
mod object;
mod pack;
mod pages;
mod probe;
mod record;
mod segment;
mod store;

use std::sync::Arc;

use tidemark_proto::frame;
use tidemark_proto::id::RepositoryId;
use tidemark_proto::stored::envelope::{self, ObjectKind};
use tidemark_proto::stored::{paths, repository as v1};
use tidemark_proto::{ClusterName, Error, ErrorKind, Result};

pub use drawn::{Names, Scope};
pub use events::{EventRecorder, StoredEvents, event_objects, event_objects_older, read_events};
pub use health::Health;
pub use keyring::{Keyring, MasterKey};
pub use ledger::{BackupRecord, Condemned, Ledger, Recorded};
pub use limits::{LimitsRecord, read_limits, write_limits};
pub use manifest::{
    ManifestWriter, Written, decode_kept, decode_page, decode_root, decode_root_with_kept, read_kept, read_page,
    read_root, read_root_with_kept,
};
pub use pack::{PackKind, PackSet};
pub use pages::{Manifest, PageRead};
pub use record::{JobRecorder, Record, read_job, read_job_record};
pub use segment::{BatchKey, BuiltSegment, ReadSegment};
pub(crate) use store::shown_url;
pub use store::{Store, StoreConfig, StoreOptions};

/// An open repository.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    id: RepositoryId,
    keys: Keyring,
    created_millis: u64,
    drawn: drawn::Drawn,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

impl Repository {
    /// Creates a repository in an empty store. Without a master key it is not encrypted.
    pub async fn init(store: Store, master: Option<&MasterKey>, now_millis: u64) -> Result<Self> {
        probe::probe(&store).await?;
        let id = RepositoryId(rand::random());
        let (keys, wrapped) = match master {
            Some(master) => {
                let (keys, wrapped) = Keyring::create(id, master)?;
                (keys, Some(wrapped))
            }
            None => (Keyring::plain(id), None),
        };
        if let Some(wrapped) = wrapped {
            let body = envelope::wrap(ObjectKind::Key, v1::VERSION, 0, &frame::to_archive(&wrapped));
            // Another repository's key may stand at number 1 if two inits race: then the description decides.
            let number = store.list(paths::KEYS).await?.len() as u64 + 1;
            store.create(&paths::key(number), body.into()).await?;
        }
        let description = v1::Description { id, created_millis: now_millis, encrypted: u8::from(master.is_some()) };
        let body = envelope::wrap(ObjectKind::Repository, v1::VERSION, 0, &frame::to_archive(&description));
        store.create(paths::REPOSITORY, body.into()).await.map_err(|e| match e.kind() {
            ErrorKind::Conflict => Error::conflict(format!("{} holds a repository already", store.url())),
            _ => e,
        })?;
        Ok(Self {
            inner: Arc::new(Inner { store, id, keys, created_millis: now_millis, drawn: Default::default() }),
        })
    }

    /// Opens a repository. `Config` when the master key is missing or does not fit.
    pub async fn open(store: Store, master: Option<&MasterKey>) -> Result<Self> {
        let bytes = store.get(paths::REPOSITORY).await.map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::not_found(format!(
                "there is no repository at {}: create one with `tidemark repo init`",
                store.url()
            )),
            _ => e,
        })?;
        let description = Self::describe(&bytes)?;
        let keys = if description.encrypted == 0 {
            Keyring::plain(description.id)
        } else {
            let master = master.ok_or_else(|| {
                Error::config(
                    "the repository is encrypted: give its master key with key_file or TIDEMARK_MASTER_KEY",
                )
            })?;
            Self::unwrap_keys(&store, description.id, master).await?
        };
        let (id, created_millis) = (description.id, description.created_millis);
        Ok(Self { inner: Arc::new(Inner { store, id, keys, created_millis, drawn: Default::default() }) })
    }

    fn describe(bytes: &[u8]) -> Result<v1::Description> {
        let opened = envelope::unwrap(ObjectKind::Repository, v1::VERSION, bytes);
        let description = opened.and_then(|o| frame::from_archive(o.body));
        description.map_err(|e| e.context(paths::REPOSITORY))
    }

    async fn unwrap_keys(store: &Store, id: RepositoryId, master: &MasterKey) -> Result<Keyring> {
        Keyring::open(id, master, &Self::wrapped_keys(store, id).await?)
    }

    async fn wrapped_keys(store: &Store, id: RepositoryId) -> Result<Vec<v1::WrappedKey>> {
        let (mut own, mut foreign) = (Vec::new(), None);
        for (path, _) in store.list(paths::KEYS).await? {
            let bytes = store.get(&path).await?;
            let opened = envelope::unwrap(ObjectKind::Key, v1::VERSION, &bytes).map_err(|e| e.context(&path))?;
            let key = frame::from_archive::<v1::WrappedKey>(opened.body).map_err(|e| e.context(&path))?;
            // Two inits that raced may have left one of another id: no harm while there is one of ours.
            match key.repository == id {
                true => own.push(key),
                false => foreign = Some(path),
            }
        }
        match (own.is_empty(), foreign) {
            (false, _) => Ok(own),
            (true, Some(path)) => Err(Error::damaged(format!("{path}: is a key of another repository"))),
            (true, None) => {
                Err(Error::damaged(format!("{}/: the keys of this encrypted repository are missing", paths::KEYS)))
            }
        }
    }

    /// Reads the description again: it must be the one that this repository was opened with.
    pub async fn check_description(&self) -> Result<()> {
        let description = Self::describe(&self.store().get(paths::REPOSITORY).await?)?;
        if description.id == self.inner.id && (description.encrypted != 0) == self.keys().encrypts() {
            return Ok(());
        }
        Err(Error::damaged(format!("{}: describes another repository, {}", paths::REPOSITORY, description.id)))
    }

    /// Reads the wrapped keys again: all open their envelopes, are of this repository, and hold the present key.
    pub async fn check_keys(&self) -> Result<()> {
        if !self.keys().encrypts() {
            return Ok(());
        }
        let wrapped = Self::wrapped_keys(self.store(), self.inner.id).await?;
        if wrapped.iter().any(|key| key.key_id == self.keys().current()) {
            return Ok(());
        }
        Err(Error::damaged(format!("{}/: the data key {} is missing", paths::KEYS, self.keys().current())))
    }

    /// Reads an epoch.
    pub async fn check_epoch(&self, path: &str) -> Result<()> {
        let bytes = self.store().get(path).await?;
        let opened = envelope::unwrap(ObjectKind::Epoch, v1::VERSION, &bytes).map_err(|e| e.context(path))?;
        frame::from_archive::<v1::Epoch>(opened.body).map(drop).map_err(|e| e.context(path))
    }

    /// Checks that the store honours create-if-absent; see [`probe`].
    pub async fn probe(&self) -> Result<()> {
        probe::probe(&self.inner.store).await
    }

    /// Its id.
    pub fn id(&self) -> RepositoryId {
        self.inner.id
    }

    /// When it was made, milliseconds since 1970.
    pub fn created_millis(&self) -> u64 {
        self.inner.created_millis
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The data keys.
    pub fn keys(&self) -> &Keyring {
        &self.inner.keys
    }

    /// A scope for what a new job writes: collection leaves its names alone until it is dropped.
    pub fn draw(&self) -> Arc<Scope> {
        self.inner.drawn.open()
    }

    /// What the running jobs of this process write and build on.
    pub fn drawn(&self) -> Names {
        self.inner.drawn.names()
    }

    /// Wins the next epoch for the coordinator `name`.
    pub async fn take_epoch(&self, name: &str, now_millis: u64) -> Result<u64> {
        let record = v1::Epoch { coordinator: name.to_owned(), put_id: rand::random(), at_millis: now_millis };
        let body = envelope::wrap(ObjectKind::Epoch, v1::VERSION, 0, &frame::to_archive(&record));
        loop {
            let next = self.highest_epoch().await? + 1;
            match self.store().create(&paths::epoch(next), body.clone().into()).await {
                Ok(()) => return Ok(next),
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                Err(e) => return Err(e.context("taking an epoch")),
            }
        }
    }

    /// The highest epoch that any coordinator has taken.
    pub async fn highest_epoch(&self) -> Result<u64> {
        let taken = self.store().list(paths::EPOCHS).await?;
        Ok(taken.iter().filter_map(|(p, _)| paths::number(p)).max().unwrap_or(0))
    }

    /// Names of all clusters that have a ledger.
    pub async fn protected_clusters(&self) -> Result<Vec<ClusterName>> {
        let mut protected = Vec::new();
        for cluster in self.clusters().await? {
            if !self.store().list(&paths::ledger_dir(&cluster)).await?.is_empty() {
                protected.push(cluster);
            }
        }
        Ok(protected)
    }

    /// Names of all clusters of which anything is kept: a ledger, or the events of restores to them.
    pub async fn clusters(&self) -> Result<Vec<ClusterName>> {
        let folders = self.store().folders(paths::CLUSTERS).await?;
        Ok(folders.into_iter().filter_map(|f| ClusterName::new(f).ok()).collect())
    }
}

#[cfg(test)]
mod tests;
