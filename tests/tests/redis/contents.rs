//! What a server holds, by the file that it writes itself.

use std::collections::BTreeMap;
use std::path::Path;

use tidemark_common::rdb::{self, RdbSink, RecordHead, ValueSummary};
use tidemark_common::record::redis_key;
use tidemark_proto::Result;
use tidemark_tests::redis::{Cluster, Server};

/// Records by database and key: expiry and meaning.
pub(crate) type Contents = BTreeMap<Vec<u8>, (Option<i64>, u128)>;

#[derive(Default)]
struct Collect {
    found: Contents,
    at: (Vec<u8>, Option<i64>),
}

impl RdbSink for Collect {
    fn begin(&mut self, head: &RecordHead<'_>) -> Result<()> {
        redis_key(head.db, head.key, &mut self.at.0);
        self.at.1 = head.expire_at_millis;
        Ok(())
    }

    fn value(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, summary: ValueSummary) -> Result<()> {
        let before = self.found.insert(self.at.0.clone(), (self.at.1, summary.meaning));
        assert!(before.is_none(), "a key stands twice in a file");
        Ok(())
    }
}

/// What the server holds.
pub(crate) fn held_by(server: &Server) -> Contents {
    let mut sink = Collect::default();
    let _ = rdb::read(&mut &server.save()[..], &mut sink).expect("file of the server");
    sink.found
}

/// What the nodes of a Cluster hold together; no key is on two of them.
pub(crate) fn held_by_all(cluster: &Cluster) -> Contents {
    let mut all = Contents::new();
    for (_, server) in &cluster.nodes {
        for (key, value) in held_by(server) {
            let before = all.insert(key, value);
            assert!(before.is_none(), "a key is on two nodes");
        }
    }
    all
}

/// Compares, and names keys that are not as they should be.
pub(crate) fn compare(what: &str, given: &Contents, wanted: &Contents) {
    let key = |k: &Vec<u8>| String::from_utf8_lossy(k).into_owned();
    let missing: Vec<_> = wanted.keys().filter(|k| !given.contains_key(*k)).map(key).take(5).collect();
    let extra: Vec<_> = given.keys().filter(|k| !wanted.contains_key(*k)).map(key).take(5).collect();
    let other: Vec<_> = given.iter().filter(|(k, v)| wanted.get(*k).is_some_and(|w| w != *v)).collect();
    assert!(
        missing.is_empty() && extra.is_empty() && other.is_empty(),
        "{what}: {} given, {} wanted; missing {missing:?}, extra {extra:?}, other {:?}",
        given.len(),
        wanted.len(),
        other.iter().map(|(k, _)| key(k)).take(5).collect::<Vec<_>>()
    );
}

/// No file below `dir` holds any of these words; answers how many there are.
pub(crate) fn holds_none(dir: &Path, words: &[&str]) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(dir).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            files += holds_none(&path, words);
            continue;
        }
        let bytes = std::fs::read(&path).expect("file");
        for word in words {
            let found = bytes.windows(word.len()).any(|w| w == word.as_bytes());
            assert!(!found, "{} holds `{word}`", path.display());
        }
        files += 1;
    }
    files
}
