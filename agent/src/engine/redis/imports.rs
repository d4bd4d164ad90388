//! Slots that come to a node of a Cluster as a whole (atomic slot migration).
//!
//! Valkey from 9 on and Redis from 8.4 on can send all keys of a slot first and hand it over then. Until then the old owner has all
//! of it and sends nobody away; on the new one lie keys that do not count yet, and `CLUSTER NODES` tells nothing of them. Source:
//! `cluster_migrateslots.c` of Valkey 9.1, `cluster_asm.c` of Redis 8.6, tried on both.

use tidemark_proto::slot::SLOT_COUNT;
use tidemark_proto::{Error, ErrorKind, Result, SlotSet};

use super::resp::Reply;
use super::server::Info;

/// What a migration is called that has ended, in the words of both.
const ENDED: [&str; 6] = ["success", "completed", "failed", "cancelled", "canceled", "none"];

/// What is asked for the migrations of a node; `None` where its server has none.
pub(super) fn request(info: &Info) -> Option<&'static [&'static [u8]]> {
    match (info.is_cluster(), info.has("valkey_version")) {
        (true, true) if info.release() >= (9, 0) => Some(&[b"CLUSTER", b"GETSLOTMIGRATIONS"]),
        (true, false) if info.release() >= (8, 4) => Some(&[b"CLUSTER", b"MIGRATION", b"STATUS", b"ALL"]),
        _ => None,
    }
}

/// The right to ask that, as a rule names it.
pub(super) fn right(info: &Info) -> Option<&'static [u8]> {
    request(info).map(|words| {
        if words.contains(&&b"MIGRATION"[..]) { &b"+cluster|migration"[..] } else { b"+cluster|getslotmigrations" }
    })
}

/// The slots that come to the node, by the answer to [`request`]. `Denied` says what to grant.
pub(super) fn importing(reply: Reply) -> Result<SlotSet> {
    let what = "the migrations of slots";
    let migrations = match reply {
        Reply::Error(e) if e.starts_with("NOPERM") => {
            return Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "{what} cannot be seen, and without them not which keys count: `ACL SETUSER` the agent's user \
                     +cluster|getslotmigrations (Valkey) or +cluster|migration (Redis); the server says `{e}`"
                ),
            ));
        }
        // A build without them.
        Reply::Error(e) if e.contains("nknown") => return Ok(SlotSet::EMPTY),
        reply => reply.list(what)?,
    };
    let mut all = SlotSet::EMPTY;
    for migration in migrations {
        let (mut import, mut ended, mut slots) = (false, false, SlotSet::EMPTY);
        let mut fields = migration.list(what)?.into_iter();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            match name.text(what)?.as_str() {
                "operation" => import = value.text(what)?.eq_ignore_ascii_case("import"),
                "state" => ended = ENDED.contains(&value.text(what)?.to_ascii_lowercase().as_str()),
                "slots" | "slot_ranges" => slots = ranges(&value.text(what)?)?,
                _ => {}
            }
        }
        if import && !ended {
            all = all.union(&slots);
        }
    }
    Ok(all)
}

/// `0-99 200-200`.
fn ranges(text: &str) -> Result<SlotSet> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n < SLOT_COUNT);
    let range = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        let (first, last) = (number(first)?, number(last)?);
        (first <= last).then_some((first, last))
    };
    let ranges: Option<Vec<_>> = text.split_whitespace().map(range).collect();
    let bad = || Error::unsupported(format!("a migration of slots is not understood: `{text}`"));
    ranges.map(SlotSet::from_ranges).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(fields: &[(&str, &str)]) -> Reply {
        let both = fields.iter().flat_map(|(name, value)| [*name, *value]);
        Reply::Array(both.map(|text| Reply::Bulk(text.into())).collect())
    }

    #[test]
    fn slots_of_migrations_that_go_on() {
        let valkey = |operation, slots, state| {
            migration(&[("name", "a1"), ("operation", operation), ("slot_ranges", slots), ("state", state)])
        };
        let redis = |operation, slots, state| {
            migration(&[
                ("id", "a1"),
                ("slots", slots),
                ("operation", operation),
                ("state", state),
                ("retries", "0"),
            ])
        };
        let found = importing(Reply::Array(vec![
            valkey("IMPORT", "0-99 200-200", "receiving-snapshot"),
            valkey("IMPORT", "300-301", "success"),
            valkey("EXPORT", "400-401", "snapshotting"),
            redis("import", "500-501", "wait-stream-eof"),
            redis("import", "600-601", "completed"),
            redis("migrate", "700-701", "send-stream"),
        ]));
        assert_eq!(found.unwrap().to_string(), "0-99,200,500-501");
        assert_eq!(importing(Reply::Array(vec![])).unwrap(), SlotSet::EMPTY);
        let unknown = Reply::Error("ERR unknown subcommand 'MIGRATION'. Try CLUSTER HELP.".into());
        assert_eq!(importing(unknown).unwrap(), SlotSet::EMPTY);
        let denied = importing(Reply::Error("NOPERM User agent has no permissions".into())).unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::Denied);
        for slots in ["9-8", "16384", "a"] {
            assert!(importing(Reply::Array(vec![redis("import", slots, "takeover")])).is_err(), "{slots}");
        }
    }

    #[test]
    fn servers_that_have_such_migrations() {
        let asks = |lines: &str| request(&Info::parse(lines)).is_some();
        let (cluster, valkey) = ("redis_mode:cluster\n", "redis_version:7.2.4\nvalkey_version:");
        for (versions, has) in [
            (format!("{valkey}9.0.0"), true),
            (format!("{valkey}8.1.1"), false),
            ("redis_version:8.4.0".into(), true),
            ("redis_version:8.2.3".into(), false),
            ("redis_version:7.0.15".into(), false),
        ] {
            assert_eq!(asks(&format!("{cluster}{versions}")), has, "{versions}");
            assert!(!asks(&format!("redis_mode:standalone\n{versions}")));
        }
    }
}
