//! The object store below a repository: one URL, retries with jitter, a time-out on each request, bounded sizes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions,
};
use tidemark_proto::{Error, ErrorKind, Result};
use url::Url;

use super::cloud;
use super::folder;
use super::health::{self, Health};

/// Time for one request, its body included, unless the configuration says otherwise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for which the client library itself tries a request again that a store refused for now (it throttles, it is
/// started anew): slower, not failed. Pieces of packs have no other attempts than these.
pub(super) const THROTTLE_PATIENCE: Duration = Duration::from_secs(300);
/// Attempts of the client library within that time.
pub(super) const CLIENT_ATTEMPTS: usize = 60;
/// Reads of a range that came back short before it counts as missing.
const SHORT_READS: u32 = 3;
/// Time to connect.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts at a request before its error is reported.
pub(super) const ATTEMPTS: u32 = 6;
/// Wait before the second attempt; doubles, with full jitter.
pub(super) const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest wait between attempts.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Largest object read whole, in bytes. Packs are larger and are read by ranges.
pub(super) const MAX_WHOLE_OBJECT: u64 = 64 << 20;

/// Where a repository lies.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `file:///path`, `memory:///`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.
    pub url: String,
    /// Time for one request in seconds, its body included; 0 takes the default.
    #[serde(default)]
    pub request_timeout_seconds: u64,
    /// Options of the store's client by their names in the `object_store` crate, e.g. `aws_endpoint`, `aws_region`.
    /// Credentials are better left to the environment.
    #[serde(default)]
    pub options: StoreOptions,
}

/// Options of a store's client. They may hold credentials, so only their names are ever shown.
#[derive(Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct StoreOptions(pub BTreeMap<String, String>);

impl serde::Serialize for StoreOptions {
    /// Names alone.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.keys().map(|name| (name, "(not shown)")))
    }
}

impl std::fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// An object store with a prefix.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
    /// A `file://` store and its folder.
    folder: Option<(Arc<LocalFileSystem>, std::path::PathBuf)>,
    /// Time for one attempt, what the client library tries again included.
    patience: Duration,
    health: Arc<Health>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.url).finish()
    }
}

impl Store {
    /// Opens a store by its URL; makes the folder of a `file://` one. Errors are `Config`.
    pub fn open(config: &StoreConfig) -> Result<Self> {
        Self::open_with(config, folder::open)
    }

    /// Opens a store that is there and makes nothing. `NotFound` for a folder that is not there, else `Config`.
    pub fn open_existing(config: &StoreConfig) -> Result<Self> {
        Self::open_with(config, folder::open_existing)
    }

    fn open_with(config: &StoreConfig, open_folder: impl FnOnce(&Url) -> Result<LocalFileSystem>) -> Result<Self> {
        let url = Url::parse(&config.url).map_err(|e| {
            Error::config("repository URL: use e.g. file:///path or s3://bucket/prefix").with_source(e)
        })?;
        let shown = shown(url.clone());
        let wrong = |e: object_store::Error| Error::config(format!("repository {shown}")).with_source(e);
        let timeout = match config.request_timeout_seconds {
            0 => REQUEST_TIMEOUT,
            seconds => Duration::from_secs(seconds),
        };
        let mut folder = None;
        let (inner, path): (Arc<dyn ObjectStore>, &str) = match url.scheme() {
            "file" => {
                let local = Arc::new(open_folder(&url)?);
                folder = url.to_file_path().ok().map(|root| (local.clone(), root));
                (local, "")
            }
            "memory" => (Arc::new(object_store::memory::InMemory::new()), url.path()),
            "s3" | "s3a" => (Arc::new(cloud::s3(&url, &config.options.0, timeout).map_err(wrong)?), url.path()),
            "gs" => (Arc::new(cloud::gcs(&url, &config.options.0, timeout).map_err(wrong)?), url.path()),
            "az" | "azure" | "abfs" | "abfss" => {
                (Arc::new(cloud::azure(&url, &config.options.0, timeout).map_err(wrong)?), url.path())
            }
            other => {
                return Err(Error::config(format!(
                    "repository URL: no store `{other}`; there are file, memory, s3, gs, az"
                )));
            }
        };
        let prefix =
            Path::from_url_path(path).map_err(|e| Error::config(format!("repository {shown}")).with_source(e))?;
        let patience = timeout + THROTTLE_PATIENCE;
        Ok(Self { inner, prefix, url: shown, folder, patience, health: Arc::default() })
    }

    /// The URL, without user, password and query.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it is gone with this process (`memory://`).
    pub fn is_of_this_process(&self) -> bool {
        self.url.starts_with("memory:")
    }

    fn path(&self, key: &str) -> Path {
        self.prefix.parts().chain(Path::from(key).parts()).collect()
    }

    fn key(&self, path: &Path) -> String {
        path.prefix_match(&self.prefix)
            .map(|parts| parts.map(|p| p.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
            .unwrap_or_else(|| path.to_string())
    }

    async fn retry<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        key: &str,
        mut op: impl FnMut() -> F,
    ) -> Result<T> {
        let (mut wait, first) = (BACKOFF_FIRST, std::time::Instant::now());
        for attempt in 1.. {
            let began = std::time::Instant::now();
            let result = match tokio::time::timeout(self.patience, op()).await {
                Ok(done) => done.map_err(|e| error_of(key, e)),
                Err(_) => Err(health::timed_out(key, self.patience)),
            };
            let last = attempt == ATTEMPTS || first.elapsed() >= THROTTLE_PATIENCE;
            self.health.note(&result, began.elapsed(), last);
            match result {
                Err(e) if e.kind() == ErrorKind::Retry && !last => {
                    tracing::warn!(key, attempt, error = %e.report(), "object store: trying again");
                    tokio::time::sleep(wait.mul_f64(rand::random::<f64>())).await;
                    wait = (wait * 2).min(BACKOFF_MAX);
                }
                other => return other,
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Whether an object is there: one attempt within `limit`. For those who want to know whether the store answers.
    pub async fn is_there(&self, key: &str, limit: Duration) -> Result<bool> {
        let path = self.path(key);
        match tokio::time::timeout(limit, self.inner.head(&path)).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(object_store::Error::NotFound { .. })) => Ok(false),
            Ok(Err(e)) => Err(error_of(key, e)),
            Err(_) => Err(Error::retry(format!("{key}: no answer within {} ms", limit.as_millis()))),
        }
    }

    /// How requests went.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Writes an object. For names that nobody else writes.
    pub async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let path = self.path(key);
        let _ = self.retry(key, || self.inner.put(&path, body.clone().into())).await?;
        Ok(())
    }

    /// Writes an object unless there is one: then `Conflict`. A put that timed out and yet won is recognised by its
    /// bytes, so callers put something random into them.
    pub async fn create(&self, key: &str, body: Bytes) -> Result<()> {
        let path = self.path(key);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.retry(key, || self.inner.put_opts(&path, body.clone().into(), options.clone())).await {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::Conflict => match self.get(key).await {
                Ok(present) if present == body => Ok(()),
                Ok(_) => Err(e),
                Err(read) => Err(read.context(format!("{key} exists but cannot be read"))),
            },
            Err(e) => Err(e),
        }
    }

    /// Reads a whole small object.
    pub async fn get(&self, key: &str) -> Result<Bytes> {
        let path = self.path(key);
        self.retry(key, || async {
            let got = self.inner.get(&path).await?;
            if got.meta.size > MAX_WHOLE_OBJECT {
                return Err(too_large(&path, got.meta.size));
            }
            got.bytes().await
        })
        .await
    }

    /// Reads `len` bytes from `offset` of an object; fewer are `Damaged`.
    pub async fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Bytes> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let path = self.path(key);
        let range = Some(GetRange::Bounded(offset..offset + len));
        let mut short = 0;
        for _ in 0..SHORT_READS {
            let bytes = self.retry(key, || self.try_range(&path, range.clone(), offset)).await?;
            if bytes.len() as u64 == len {
                return Ok(bytes);
            }
            // An answer may have been cut on its way; an object that was cut short stays so.
            short = bytes.len();
        }
        Err(Error::damaged(format!("{key}: {short} bytes at {offset} where {len} should be")))
    }

    async fn try_range(&self, path: &Path, range: Option<GetRange>, offset: u64) -> object_store::Result<Bytes> {
        match self.inner.get_opts(path, GetOptions { range, ..GetOptions::default() }).await {
            Ok(got) => got.bytes().await,
            // Stores say in many ways that an object ends before the range; trying again will not lengthen it.
            Err(e) => match self.inner.head(path).await {
                Ok(about) if about.size <= offset => Ok(Bytes::new()),
                _ => Err(e),
            },
        }
    }

    /// Size of an object in bytes.
    pub async fn size(&self, key: &str) -> Result<u64> {
        let path = self.path(key);
        Ok(self.retry(key, || self.inner.head(&path)).await?.size)
    }

    /// All objects below a folder, ascending by key: key and size in bytes.
    pub async fn list(&self, folder: &str) -> Result<Vec<(String, u64)>> {
        let path = self.path(folder);
        let found = self.retry(folder, || self.inner.list(Some(&path)).try_collect::<Vec<_>>()).await?;
        let mut out: Vec<_> = found.into_iter().map(|m| (self.key(&m.location), m.size)).collect();
        out.sort_unstable();
        Ok(out)
    }

    /// Everything below a folder that `pick` makes something of, from key and size in bytes; in no order. Only what
    /// it makes is kept.
    pub async fn list_as<T>(&self, folder: &str, pick: impl Fn(&str, u64) -> Option<T>) -> Result<Vec<T>> {
        let (path, pick) = (self.path(folder), &pick);
        let picked = |m: object_store::ObjectMeta| async move { Ok(pick(&self.key(&m.location), m.size)) };
        self.retry(folder, || self.inner.list(Some(&path)).try_filter_map(picked).try_collect()).await
    }

    /// All objects below a folder, in no order: key and time of the last change, milliseconds since 1970 by the store's
    /// clock.
    pub async fn list_times(&self, folder: &str) -> Result<Vec<(String, u64)>> {
        let path = self.path(folder);
        let found = self.retry(folder, || self.inner.list(Some(&path)).try_collect::<Vec<_>>()).await?;
        let millis = |m: &object_store::ObjectMeta| u64::try_from(m.last_modified.timestamp_millis()).unwrap_or(0);
        Ok(found.into_iter().map(|m| (self.key(&m.location), millis(&m))).collect())
    }

    /// Names of the folders directly in a folder.
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.path(folder);
        let found = self.retry(folder, || self.inner.list_with_delimiter(Some(&path))).await?;
        Ok(found.common_prefixes.iter().filter_map(|p| p.filename().map(str::to_owned)).collect())
    }

    /// Removes an object; one that is not there is no error.
    pub async fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key);
        match self.retry(key, || self.inner.delete(&path)).await {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Removes files that a dead writer left unfinished in a folder and whose name `wanted` takes; answers how many. Other
    /// stores keep unfinished uploads where we cannot list them: give the bucket a rule that ends incomplete multipart
    /// uploads after some days.
    pub fn delete_staged(&self, wanted: impl Fn(&str) -> bool) -> Result<u64> {
        self.folder.as_ref().map_or(Ok(0), |(_, root)| folder::delete_staged(root, wanted))
    }

    /// Whether it is a folder of this machine (`file://`).
    pub fn is_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// Begins an object that is written in several pieces of at least 5 MiB (but the last); those of a folder may have any size.
    pub async fn multipart(&self, key: &str) -> Result<Box<dyn MultipartUpload>> {
        let path = self.path(key);
        self.retry(key, || async {
            match &self.folder {
                Some((local, _)) => folder::multipart(local, &path),
                None => self.inner.put_multipart_opts(&path, PutMultipartOptions::default()).await,
            }
        })
        .await
    }
}

/// A repository's URL as it may be shown: without user, password and query. What is no URL is not shown at all.
pub(crate) fn shown_url(url: &str) -> String {
    Url::parse(url).map_or_else(|_| "(not a URL)".into(), shown)
}

fn shown(mut shown: Url) -> String {
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown.into()
}

fn too_large(path: &Path, size: u64) -> object_store::Error {
    object_store::Error::NotSupported {
        source: format!("{path} has {size} bytes, more than an object of its kind may").into(),
    }
}

/// Turns an error of the object store into ours.
pub(super) fn error_of(key: &str, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let kind = match &error {
        E::NotFound { .. } => ErrorKind::NotFound,
        E::AlreadyExists { .. } | E::Precondition { .. } => ErrorKind::Conflict,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => ErrorKind::Denied,
        E::NotSupported { .. } | E::NotImplemented { .. } => ErrorKind::Unsupported,
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => ErrorKind::Config,
        _ if is_out_of_room(&error) => ErrorKind::Full,
        _ => ErrorKind::Retry,
    };
    Error::new(kind, format!("object store: {key}")).with_source(error)
}

fn is_out_of_room(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        }
        next = e.source();
    }
    false
}
