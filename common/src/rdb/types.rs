//! The numbers of types and opcodes (`rdb.h` of both servers), what each is, and which version loads which.

/// Whose format it is. Up to version 11 both are one, and files say `REDIS` whoever wrote them; from version 80 on Valkey
/// writes its own, with numbers that Redis uses for other things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Files that start with `REDIS`: all of Redis, and Valkey up to 8.
    Redis,
    /// Files that start with `VALKEY`: Valkey from 9 on.
    Valkey,
}

impl Family {
    /// The family of a format version where no magic says so, as in the payload of `DUMP`.
    pub const fn of_version(version: u16) -> Self {
        if version >= VALKEY_FIRST { Self::Valkey } else { Self::Redis }
    }
}

/// The first version of Valkey's own; those below it are of Redis.
pub const VALKEY_FIRST: u16 = 80;
/// The last version that both families share.
pub const SHARED_LAST: u16 = 11;
/// The newest version of Redis' format whose types are all known here. Newer files are read as far as their types are.
pub const REDIS_KNOWN: u16 = 13;
/// The newest version of Valkey's format whose types are all known here.
pub const VALKEY_KNOWN: u16 = 80;
/// The oldest version that is read: the first whose files end with a checksum (Redis 2.6). A wrong bit in the version of
/// a newer file must not make it one without.
pub const OLDEST: u16 = 5;

/// The version of the format that a server writes, by its name and version (`redis 7.0.15`, `valkey 8.0.1`); `None` for what
/// is neither.
pub fn version_of_server(server: &str) -> Option<u16> {
    let (name, version) = server.split_once(' ')?;
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().ok());
    let (major, minor) = (numbers.next()??, numbers.next().flatten().unwrap_or(0));
    match (name, major, minor) {
        ("valkey", 0..=8, _) => Some(SHARED_LAST),
        ("valkey", ..) => Some(VALKEY_FIRST),
        ("redis", 0..=6, _) => Some(9),
        ("redis", 7, 0 | 1) => Some(10),
        ("redis", 7, 2 | 3) => Some(SHARED_LAST),
        ("redis", 7, _) | ("redis", 8, 0..=5) => Some(12),
        ("redis", ..) => Some(REDIS_KNOWN),
        _ => None,
    }
}

/// What a value is to its users. The numbers go into the hash of its meaning and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A string.
    String = 1,
    /// A list.
    List = 2,
    /// A set.
    Set = 3,
    /// A sorted set.
    SortedSet = 4,
    /// A hash.
    Hash = 5,
    /// A stream.
    Stream = 6,
    /// A value of a module's type.
    Module = 7,
}

impl Class {
    /// The name that the command `TYPE` gives it (a module's types have names of their own).
    pub const fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::List => "list",
            Self::Set => "set",
            Self::SortedSet => "zset",
            Self::Hash => "hash",
            Self::Stream => "stream",
            Self::Module => "module",
        }
    }
}

/// Numbers before a value, by the layout of what follows.
#[allow(missing_docs, reason = "the names say it")]
pub mod number {
    pub const STRING: u8 = 0;
    pub const LIST: u8 = 1;
    pub const SET: u8 = 2;
    /// Scores in decimal.
    pub const ZSET: u8 = 3;
    pub const HASH: u8 = 4;
    /// Scores in binary.
    pub const ZSET_2: u8 = 5;
    /// Release candidates of Redis 4 only.
    pub const MODULE_PRE_GA: u8 = 6;
    pub const MODULE_2: u8 = 7;
    pub const HASH_ZIPMAP: u8 = 9;
    pub const LIST_ZIPLIST: u8 = 10;
    pub const SET_INTSET: u8 = 11;
    pub const ZSET_ZIPLIST: u8 = 12;
    pub const HASH_ZIPLIST: u8 = 13;
    pub const LIST_QUICKLIST: u8 = 14;
    pub const STREAM_LISTPACKS: u8 = 15;
    pub const HASH_LISTPACK: u8 = 16;
    pub const ZSET_LISTPACK: u8 = 17;
    pub const LIST_QUICKLIST_2: u8 = 18;
    pub const STREAM_LISTPACKS_2: u8 = 19;
    pub const SET_LISTPACK: u8 = 20;
    pub const STREAM_LISTPACKS_3: u8 = 21;
    /// Redis: release candidates of 7.4 only.
    pub const HASH_METADATA_PRE_GA: u8 = 22;
    /// Valkey: a hash with times to live of fields.
    pub const VALKEY_HASH_2: u8 = 22;
    /// Redis: release candidates of 7.4 only.
    pub const HASH_LISTPACK_EX_PRE_GA: u8 = 23;
    /// Redis: a hash with times to live of fields.
    pub const HASH_METADATA: u8 = 24;
    /// Redis: a small hash with times to live of fields.
    pub const HASH_LISTPACK_EX: u8 = 25;
    /// Redis: a stream that remembers what its producers sent, so that nothing is added twice.
    pub const STREAM_LISTPACKS_4: u8 = 26;
}

/// Numbers where a type could stand, that say something else.
#[allow(missing_docs, reason = "the names say it")]
pub(super) mod opcode {
    /// Valkey from 9 on: a slot being imported.
    pub(crate) const SLOT_IMPORT: u8 = 243;
    pub(crate) const SLOT_INFO: u8 = 244;
    pub(crate) const FUNCTION2: u8 = 245;
    pub(crate) const FUNCTION_PRE_GA: u8 = 246;
    pub(crate) const MODULE_AUX: u8 = 247;
    pub(crate) const IDLE: u8 = 248;
    pub(crate) const FREQ: u8 = 249;
    pub(crate) const AUX: u8 = 250;
    pub(crate) const RESIZEDB: u8 = 251;
    pub(crate) const EXPIRETIME_MS: u8 = 252;
    pub(crate) const EXPIRETIME: u8 = 253;
    pub(crate) const SELECTDB: u8 = 254;
    pub(crate) const EOF: u8 = 255;
    /// All numbers from here on are opcodes or may become some; types grow from below.
    pub(crate) const FIRST: u8 = 200;
}

/// Class of the values of a type; `None` where this build cannot read them.
pub const fn class_of(type_byte: u8, family: Family) -> Option<Class> {
    use number as n;
    Some(match (type_byte, family) {
        (n::STRING, _) => Class::String,
        (n::LIST | n::LIST_ZIPLIST | n::LIST_QUICKLIST | n::LIST_QUICKLIST_2, _) => Class::List,
        (n::SET | n::SET_INTSET | n::SET_LISTPACK, _) => Class::Set,
        (n::ZSET | n::ZSET_2 | n::ZSET_ZIPLIST | n::ZSET_LISTPACK, _) => Class::SortedSet,
        (n::HASH | n::HASH_ZIPMAP | n::HASH_ZIPLIST | n::HASH_LISTPACK, _) => Class::Hash,
        (n::STREAM_LISTPACKS | n::STREAM_LISTPACKS_2 | n::STREAM_LISTPACKS_3, _) => Class::Stream,
        (n::MODULE_2, _) => Class::Module,
        (n::VALKEY_HASH_2, Family::Valkey) => Class::Hash,
        (n::HASH_METADATA_PRE_GA..=n::HASH_LISTPACK_EX, Family::Redis) => Class::Hash,
        (n::STREAM_LISTPACKS_4, Family::Redis) => Class::Stream,
        _ => return None,
    })
}

/// The first version of the format with this type; `None` if no released server of the family has it.
const fn since(type_byte: u8, family: Family) -> Option<u16> {
    use number as n;
    Some(match (type_byte, family) {
        (n::STRING..=n::HASH, _) => 1,
        (n::HASH_ZIPMAP..=n::SET_INTSET, _) => 2,
        (n::ZSET_ZIPLIST | n::HASH_ZIPLIST, _) => 4,
        (n::LIST_QUICKLIST, _) => 7,
        (n::ZSET_2 | n::MODULE_2, _) => 8,
        (n::STREAM_LISTPACKS, _) => 9,
        (n::HASH_LISTPACK..=n::STREAM_LISTPACKS_2, _) => 10,
        (n::SET_LISTPACK | n::STREAM_LISTPACKS_3, _) => 11,
        (n::VALKEY_HASH_2, Family::Valkey) => 80,
        (n::HASH_METADATA_PRE_GA..=n::HASH_LISTPACK_EX, Family::Redis) => 12,
        (n::STREAM_LISTPACKS_4, Family::Redis) => 13,
        _ => return None,
    })
}

/// Whether a server whose own format has this version loads values of this type. (That it has the module of a
/// module's value is not known here.)
pub const fn loads(version: u16, family: Family, type_byte: u8) -> bool {
    match since(type_byte, family) {
        Some(first) => version >= first,
        None => false,
    }
}

/// Whether a server whose own format has version `reader` loads all that one of version `writer` writes.
pub const fn loads_all_of(reader: u16, writer: u16) -> bool {
    reader >= writer && (writer <= SHARED_LAST || (reader >= VALKEY_FIRST) == (writer >= VALKEY_FIRST))
}

/// The highest type that a server of this version loads.
pub const fn highest_type_of(version: u16, family: Family) -> u8 {
    let mut highest = number::STREAM_LISTPACKS_4;
    while highest > 0 && !loads(version, family, highest) {
        highest -= 1;
    }
    highest
}

#[cfg(test)]
mod tests {
    use super::{loads_all_of, version_of_server};

    #[test]
    fn newer_servers_of_a_family_load_what_older_ones_write() {
        for (reader, writer, all) in
            [(11, 10, true), (10, 11, false), (12, 12, true), (80, 11, true), (80, 12, false), (12, 80, false)]
        {
            assert_eq!(loads_all_of(reader, writer), all, "{reader} of {writer}");
        }
    }

    #[test]
    fn versions_of_servers() {
        for (server, version) in [
            ("redis 6.2.16", Some(9)),
            ("redis 7.0.15", Some(10)),
            ("redis 7.2.4", Some(11)),
            ("redis 7.4.1", Some(12)),
            ("redis 8.4.0", Some(12)),
            ("redis 8.6.3", Some(13)),
            ("redis 9.0.0", Some(13)),
            ("valkey 8.0.1", Some(11)),
            ("valkey 9.0.0-rc1", Some(80)),
            ("redis ", None),
            ("embedded 1", None),
            ("1.0", None),
        ] {
            assert_eq!(version_of_server(server), version, "{server}");
        }
    }
}
