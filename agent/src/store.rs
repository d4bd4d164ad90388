//! The store of a node: opened from the configuration, and served to its clients where it is one of ours.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidemark_common::clock::Hlc;
use tidemark_proto::Result;

use crate::config::{EngineConfig, RedisConfig};
use crate::engine::Engine;
use crate::engine::embedded::{Embedded, Options};
use crate::engine::memory::Memory;
use crate::engine::redis::dump::{Dump, DumpOptions};
use crate::engine::redis::{self, Redis};
use crate::kv::KvStore;

/// An opened store.
pub(crate) struct Store {
    /// As backups and restores see it.
    pub(crate) engine: Arc<dyn Engine>,
    /// As its clients see it, where the agent serves them.
    pub(crate) kv: Option<Arc<dyn KvStore>>,
    /// Whether the engine finds changes by itself.
    pub(crate) changes_since: bool,
    /// Ends it in order.
    pub(crate) close: Box<dyn FnOnce() + Send>,
}

/// Opens the store; a server of others need not be there yet.
pub(crate) fn open(config: &EngineConfig, state_dir: &Path) -> Result<Store> {
    let clock = Hlc::system();
    match config {
        EngineConfig::Embedded { data_dir, slots, retention_seconds, cache_mib, .. } => {
            let mut options = Options::new(slots.clone(), clock);
            options.retention = Duration::from_secs(*retention_seconds);
            options.cache_bytes = cache_mib << 20;
            let store = Embedded::open(data_dir, options)?;
            let (engine, kv) = (store.clone(), store.clone());
            Ok(Store { engine, kv: Some(kv), changes_since: true, close: Box::new(move || store.close()) })
        }
        EngineConfig::Memory { slots, .. } => {
            let store = Arc::new(Memory::new(slots.clone(), clock));
            Ok(Store { engine: store.clone(), kv: Some(store), changes_since: false, close: Box::new(|| ()) })
        }
        EngineConfig::Rdb { files, shift_expiry } => {
            let (files, dir) = (files.clone(), state_dir.join("rdb"));
            let store = Arc::new(Dump::open(DumpOptions { files, shift_expiry: *shift_expiry, dir })?);
            Ok(Store { engine: store, kv: None, changes_since: false, close: Box::new(|| ()) })
        }
        EngineConfig::Redis(config) => {
            let store = Redis::open(redis_options(config, state_dir)?)?;
            Ok(Store { engine: store, kv: None, changes_since: false, close: Box::new(|| ()) })
        }
    }
}

/// Reads what the configuration of a Redis server names.
pub(crate) fn redis_options(config: &RedisConfig, state_dir: &Path) -> Result<redis::Options> {
    let dir = if config.dir.as_os_str().is_empty() { state_dir.join("redis") } else { config.dir.clone() };
    Ok(redis::Options {
        address: config.address.parse()?,
        login: config.login()?,
        dir,
        scratch_server: config.scratch_server.clone(),
        allow_min_replicas: config.allow_min_replicas,
        base_through_file: config.base_through_file,
        base_at_once: config.base_at_once,
        base_uncompressed: config.base_uncompressed,
        native_over: config.native_over_bytes as usize,
    })
}
