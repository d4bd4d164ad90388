//! What a command is about, in terms of keys of records.

use tidemark_proto::{Error, Result, SlotSet, slot_of};

use super::keys::{Commands, Touches};
use crate::record::{redis_key, split_redis_key};

/// What a command is about, in terms of keys of records.
#[derive(Debug, PartialEq, Eq)]
pub enum About {
    /// These keys.
    Keys(Vec<Vec<u8>>),
    /// All keys of a database (`None`: of all) in the slots of its node.
    Emptied(Option<u64>),
    /// All keys in these slots of its node, in all databases: they are deleted.
    Slots(SlotSet),
    /// Keys that stand nowhere in it.
    Everything,
    /// The functions.
    Functions,
    /// Nothing that is stored.
    Nothing,
}

/// What a command of database `db` is about; its words begin with its name.
pub fn about(commands: &Commands, db: u64, words: &[Vec<u8>]) -> Result<About> {
    let args: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    let record = |db: u64, name: &[u8]| {
        let mut key = Vec::new();
        redis_key(db, name, &mut key);
        key
    };
    let number = |word: Option<&&[u8]>| {
        let number = word.and_then(|w| std::str::from_utf8(w).ok()).and_then(|w| w.parse::<u64>().ok());
        number.ok_or_else(|| Error::damaged(format!("a log holds `{}` without a database", name_of(words))))
    };
    if args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"move")) {
        let name = args.get(1).copied().unwrap_or_default();
        return Ok(About::Keys(vec![record(db, name), record(number(args.get(2))?, name)]));
    }
    if args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"copy")) && args.len() > 2 {
        let word = args.iter().skip(3).position(|a| a.eq_ignore_ascii_case(b"db"));
        let to = word.map_or(Ok(db), |at| number(args.get(at + 4)))?;
        return Ok(About::Keys(vec![record(db, args[1]), record(to, args[2])]));
    }
    Ok(match commands.touches(&args)? {
        Touches::Keys(keys) => About::Keys(keys.into_iter().map(|name| record(db, name)).collect()),
        Touches::Database => About::Emptied(Some(db)),
        Touches::Everything => About::Emptied(None),
        Touches::Unknown => About::Everything,
        Touches::Functions => About::Functions,
        Touches::Slots(slots) => About::Slots(slots),
        Touches::Nothing | Touches::Select(_) | Touches::Moving => About::Nothing,
    })
}

pub(super) fn name_of(words: &[Vec<u8>]) -> String {
    words.first().map(|w| String::from_utf8_lossy(w).to_ascii_uppercase()).unwrap_or_default()
}

pub(super) fn slot_of_key(key: &[u8]) -> Result<u16> {
    split_redis_key(key).map(|(_, name)| slot_of(name))
}

/// Words of each of its keys in a command that does to each key what it would do alone; 0 for other commands.
pub(super) fn words_of_each_key(words: &[Vec<u8>]) -> usize {
    match name_of(words).as_str() {
        "DEL" | "UNLINK" | "TOUCH" => 1,
        "MSET" => 2,
        _ => 0,
    }
}

/// Whether a command can only be followed with all its keys at hand.
pub fn ties_keys(words: &[Vec<u8>]) -> bool {
    words_of_each_key(words) == 0
}
