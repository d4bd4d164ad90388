//! Bases through the server's own file (`engine.base_through_file`): the server begins at once, as it does for `redis-cli --rdb`, and
//! leaves its RDB file written anew.
//!
//! Source: `syncCommand` and `startBgsaveForReplication` of Redis: a replica that does not tell of the capability `eof` waits
//! for nobody else, and its base goes through the file.

use tidemark_proto::{Error, Result};

use super::Redis;
use super::conn::Connection;
use super::settings::Settings;

/// The settings that say what the file does to the server.
pub(super) const SETTINGS: [&str; 3] = ["save", "appendonly", "rdb-del-sync-files"];

/// Why a base must not go through the file of this server: it is to store nothing, and would find the file at its next start; or
/// nobody may know. It says what to set.
pub(super) fn trouble(connection: &mut Connection) -> Result<Option<&'static str>> {
    let Some(settings) = Settings::read(connection, &SETTINGS)? else {
        return Ok(Some("engine.base_through_file: the agent's user needs the right +config|get"));
    };
    Ok(stays(&settings).then_some(
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

/// Whether the file of a base stays with a server that has no other.
fn stays(settings: &Settings) -> bool {
    !stores(settings) && !settings.is("rdb-del-sync-files", "yes")
}

/// Whether the server removes the file of a base once it was sent.
pub(super) fn goes(settings: &Settings) -> bool {
    !stores(settings) && settings.is("rdb-del-sync-files", "yes")
}

/// Whether the server stores its data by itself, or nobody may know.
fn stores(settings: &Settings) -> bool {
    settings.get("save").is_none_or(|points| !points.is_empty()) || settings.is("appendonly", "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_where_nothing_else_is_stored() {
        let told = |save: &str, append: &str, deletes: &str| {
            let settings = Settings::of(&format!("save {save} appendonly {append} rdb-del-sync-files {deletes}"));
            (stays(&settings), goes(&settings))
        };
        assert_eq!(told("_", "no", "no"), (true, false));
        assert_eq!(told("_", "no", "yes"), (false, true));
        for (save, append) in [("3600_1", "no"), ("_", "yes")] {
            for deletes in ["no", "yes"] {
                assert_eq!(told(save, append, deletes), (false, false), "{save} {append} {deletes}");
            }
        }
    }
}
