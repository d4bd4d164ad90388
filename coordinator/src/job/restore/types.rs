//! Whether every value can be loaded where it goes: looked for before any node is touched.
//!
//! A server loads what older ones of its family write. Only where a target is older, or of the other family, do its
//! values' types decide, and they are known when the records are read.

use std::sync::{Arc, Mutex};

use tidemark_common::rdb::convert::type_for_server;
use tidemark_common::rdb::types::{VALKEY_FIRST, loads_all_of};
use tidemark_common::rdb::{class_of, version_of_server};
use tidemark_common::record::{REDIS, RedisMeta, split_redis_key};
use tidemark_common::run::Entry;
use tidemark_common::select::Selection;
use tidemark_proto::{Error, NodeName, Result, SlotSet};

use crate::job::inspect::RecordCheck;

/// Bytes of a key that are shown.
const SHOWN_KEY: usize = 128;

/// A server that takes a share.
#[derive(Debug, Clone)]
pub(super) struct Taker {
    pub(super) node: NodeName,
    pub(super) slots: SlotSet,
    /// Name and version, e.g. `redis 7.0.15`.
    pub(super) server: String,
}

/// The first record that has no place, and how many there are.
#[derive(Debug, Default)]
struct Misfits {
    first: Option<String>,
    count: u64,
}

/// Looks at records on their way to servers of Redis and Valkey.
#[derive(Debug)]
pub(super) struct Types {
    takers: Vec<(Taker, u16)>,
    selection: Selection,
    /// Servers that were backed up.
    sources: String,
    /// Versions of these do not say that all fits.
    in_doubt: bool,
    found: Mutex<Misfits>,
}

impl Types {
    /// `sources`: the servers that were backed up, by name and version.
    pub(super) fn new(takers: Vec<Taker>, sources: Vec<String>, selection: Selection) -> Arc<Self> {
        let known = |taker: Taker| version_of_server(&taker.server).map(|version| (taker, version));
        let takers: Vec<_> = takers.into_iter().filter_map(known).collect();
        let fits = |source: &String| {
            let writer = version_of_server(source);
            writer.is_some_and(|writer| takers.iter().all(|(_, reader)| loads_all_of(*reader, writer)))
        };
        let in_doubt = !takers.is_empty() && !sources.iter().all(fits);
        let mut sources = sources;
        sources.sort_unstable();
        sources.dedup();
        Arc::new(Self { takers, selection, sources: sources.join(", "), in_doubt, found: Mutex::default() })
    }

    /// Whether the records must be read to know.
    pub(super) fn in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// `Unsupported` where a record was seen that has no place.
    pub(super) fn verdict(&self) -> Result<()> {
        let found = self.found.lock().expect("misfits");
        let Some(first) = &found.first else { return Ok(()) };
        let more = if found.count > 1 { format!(" (and {} keys more)", found.count - 1) } else { String::new() };
        Err(Error::unsupported(format!(
            "{first}{more}; nothing was touched. Or leave such keys out (--keys '!…', --db)"
        )))
    }

    fn misfit(&self, entry: &Entry<'_>) -> Result<Option<String>> {
        let (meta, _) = entry.put.unwrap_or_default();
        if meta.first() != Some(&REDIS) || !self.selection.takes(entry)? {
            return Ok(None);
        }
        let Some((taker, version)) = self.takers.iter().find(|(taker, _)| taker.slots.contains(entry.slot)) else {
            return Ok(None);
        };
        let (meta, (db, key)) = (RedisMeta::decode(meta)?, split_redis_key(entry.key)?);
        let name = String::from_utf8_lossy(&key[..key.len().min(SHOWN_KEY)]);
        let (node, server) = (&taker.node, &taker.server);
        if type_for_server(*version, meta.family, meta.type_byte).is_none() {
            let class = class_of(meta.type_byte, meta.family).map_or("unknown", |class| class.name());
            let (type_byte, sources) = (meta.type_byte, &self.sources);
            return Ok(Some(format!(
                "key `{name}` is a {class} of RDB type {type_byte}, as {sources} stores it, and {server} of node {node} \
                 (RDB version {version}) does not load that: restore onto newer servers"
            )));
        }
        // A server with slots of its own is one of a Cluster. Whether one of Valkey from 9 on has several databases, its agent asks.
        if db != 0 && self.takers.len() > 1 && *version < VALKEY_FIRST {
            return Ok(Some(format!(
                "key `{name}` is in database {db}, and the servers of a Cluster have database 0 alone: restore onto a \
                 server of its own"
            )));
        }
        Ok(None)
    }
}

impl RecordCheck for Types {
    fn see(&self, entry: &Entry<'_>) -> Result<()> {
        if let Some(misfit) = self.misfit(entry)? {
            let mut found = self.found.lock().expect("misfits");
            found.count += 1;
            // The same one in every run, however many parts are read at once.
            if found.first.as_ref().is_none_or(|first| misfit < *first) {
                found.first = Some(misfit);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidemark_common::rdb::Family;
    use tidemark_common::record::redis_key;

    use super::*;

    fn types(servers: &[&str], sources: &[&str], selection: Selection) -> Arc<Types> {
        let taker = |(i, server): (usize, &&str)| Taker {
            node: NodeName::new(format!("n{i}")).unwrap(),
            slots: tidemark_proto::slot::even_share(i as u16, servers.len() as u16),
            server: (*server).to_owned(),
        };
        let takers = servers.iter().enumerate().map(taker).collect();
        Types::new(takers, sources.iter().map(|s| (*s).to_owned()).collect(), selection)
    }

    fn see(types: &Types, slot: u16, db: u64, type_byte: u8, family: Family) -> Result<()> {
        let mut meta = Vec::new();
        let (expire_at_millis, idle_seconds, frequency) = (None, None, None);
        RedisMeta { type_byte, family, meaning: 1, expire_at_millis, idle_seconds, frequency }.encode(&mut meta);
        let mut key = Vec::new();
        redis_key(db, b"h:1", &mut key);
        types.see(&Entry { slot, key: &key, put: Some((&meta, b"")) })
    }

    #[test]
    fn doubt_is_about_older_servers_and_the_other_family() {
        let doubt = |servers: &[&str], sources: &[&str]| types(servers, sources, Selection::default()).in_doubt();
        assert!(!doubt(&["redis 7.0.15"], &["redis 7.0.2", "redis 6.2.1"]));
        assert!(!doubt(&["valkey 8.0.1"], &["redis 7.2.4"]) && !doubt(&["valkey 9.0.0"], &["redis 7.2.4"]));
        assert!(doubt(&["redis 7.2.4", "redis 7.0.15"], &["valkey 8.0.1"]));
        assert!(doubt(&["valkey 9.0.0"], &["redis 7.4.0"]) && doubt(&["redis 7.4.0"], &["what 1"]));
        assert!(!doubt(&[], &["redis 7.4.0"]), "no server of Redis");
    }

    #[test]
    fn what_has_no_place_is_named_with_both_versions() {
        let types = types(&["redis 7.2.4", "valkey 8.0.1"], &["redis 7.4.1"], Selection::default());
        see(&types, 9000, 0, 20, Family::Redis).unwrap();
        types.verdict().unwrap();
        see(&types, 9000, 0, 25, Family::Redis).unwrap();
        see(&types, 1, 0, 24, Family::Redis).unwrap();
        let told = types.verdict().unwrap_err();
        for word in ["`h:1`", "hash of RDB type 24", "redis 7.4.1", "redis 7.2.4 of node n0", "1 keys more"] {
            assert!(told.message().contains(word), "{word}: {told}");
        }
    }

    #[test]
    fn what_is_not_wanted_does_not_count() {
        let selection = Selection { dbs: vec![0], ..Selection::default() };
        let types = types(&["redis 7.0.1", "redis 7.0.1"], &["redis 7.4.1"], selection);
        see(&types, 1, 3, 24, Family::Redis).unwrap();
        types.verdict().unwrap();
        let all = super::tests::types(&["redis 7.0.1", "redis 7.0.1"], &["redis 7.0.1"], Selection::default());
        see(&all, 1, 3, 0, Family::Redis).unwrap();
        assert!(all.verdict().unwrap_err().message().contains("database 3"));
    }
}
