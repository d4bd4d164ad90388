//! Bases through the server's own file (`engine.base_through_file`): the server begins at once, as it does for `redis-cli --rdb`, and
//! leaves its RDB file written anew.
//!
//! Source: `syncCommand` and `startBgsaveForReplication` of Redis: a replica that does not tell of the capability `eof` waits
//! for nobody else, and its base goes through the file.

use tidemark_proto::{Error, Result};

use super::Redis;
use super::conn::Connection;

/// The settings that say what the file does to the server.
const SETTINGS: [&[u8]; 3] = [b"save", b"appendonly", b"rdb-del-sync-files"];

/// Why a base must not go through the file of this server: it is to store nothing, and would find the file at its next start; or
/// nobody may know. It says what to set.
pub(super) fn trouble(connection: &mut Connection) -> Result<Option<&'static str>> {
    let mut words = Vec::new();
    for name in SETTINGS {
        let Ok(told) = connection.call(&[b"CONFIG", b"GET", name])?.list("CONFIG GET") else {
            return Ok(Some("engine.base_through_file: the agent's user needs the right +config|get"));
        };
        for word in told {
            words.push(word.text("CONFIG GET")?);
        }
    }
    Ok(stays(&words).then_some(
        "engine.base_through_file: this server is to store nothing, and would find the file of a base at its next start: set \
         rdb-del-sync-files yes there, or leave engine.base_through_file out",
    ))
}

impl Redis {
    /// Refuses a base through the file where that would do harm.
    pub(super) fn refuse_where_file_stays(&self) -> Result<()> {
        if !self.options.base_through_file {
            return Ok(());
        }
        self.ask(trouble)?.map_or(Ok(()), |why| Err(Error::config(why)))
    }
}

/// Whether the file of a base stays with a server that has no other, by names and values of its settings.
fn stays(words: &[String]) -> bool {
    let of = |name: &str| words.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str());
    let stores = of("save").is_none_or(|points| !points.is_empty()) || of("appendonly") == Some("yes");
    !stores && of("rdb-del-sync-files") != Some("yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_where_nothing_else_is_stored() {
        let told = |save: &str, append: &str, deletes: &str| {
            let words = ["save", save, "appendonly", append, "rdb-del-sync-files", deletes];
            stays(&words.map(str::to_owned))
        };
        assert!(told("", "no", "no"));
        assert!(!told("3600 1", "no", "no") && !told("", "yes", "no") && !told("", "no", "yes"));
    }
}
