//! Outputs, on values made by hand; real servers are in the tier `redis`.

use serde_json::{Value, json};
use tidemark_common::rdb::{Family, types::number as n};
use tidemark_common::record::{RedisMeta, redis_key};
use tidemark_common::run::Entry;
use tidemark_common::select::Selection;
use tidemark_proto::{ErrorKind, Result, SlotSet};

use super::{Commands, Encoding, Lines, Output, RdbFile, Split, sorted};

fn text(bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 64);
    [&[bytes.len() as u8], bytes].concat()
}

fn texts(texts: &[&[u8]]) -> Vec<u8> {
    texts.iter().fold(vec![texts.len() as u8], |all, t| [all, text(t)].concat())
}

/// A module's value: its id, a string, the end.
fn module() -> Vec<u8> {
    [&[0x81, 0, 0, 0, 0, 0, 0, 4, 1, 5][..], &text(b"x"), &[0]].concat()
}

fn meta_of(type_byte: u8, family: Family, expire_at_millis: Option<i64>) -> Vec<u8> {
    let (meaning, idle_seconds, frequency) = (0, None, None);
    let mut out = Vec::new();
    RedisMeta { type_byte, family, meaning, expire_at_millis, idle_seconds, frequency }.encode(&mut out);
    out
}

fn give(output: &mut impl Output, slot: u16, db: u64, meta: &[u8], raw: &[u8]) -> Result<bool> {
    let mut key = Vec::new();
    redis_key(db, b"k", &mut key);
    output.write(&Entry { slot, key: &key, put: Some((meta, raw)) }, None)
}

fn line(encoding: Encoding, type_byte: u8, expire: Option<i64>, raw: &[u8]) -> Result<Value> {
    let mut lines = Lines::new(Vec::new(), encoding);
    assert!(give(&mut lines, 7, 3, &meta_of(type_byte, Family::Redis, expire), raw)?);
    let text = String::from_utf8(lines.into_inner()).unwrap();
    assert!(text.ends_with('\n') && text.lines().count() == 1, "{text}");
    Ok(serde_json::from_str(&text).unwrap())
}

#[test]
fn values_in_lines() {
    let raw = texts(&[b"a", b"\xff", "\u{e4}\"".as_bytes(), b""]);
    let list = line(Encoding::Auto, n::LIST, Some(5), &raw).unwrap();
    let wanted = json!({"slot": 7, "db": 3, "key_encoding": "text", "key": "k", "type": "list", "expire_at": 5,
        "value": ["a", {"base64": "/w=="}, "ä\"", ""]});
    assert_eq!(list, wanted);
    let value = |encoding, type_byte, raw: &[u8]| line(encoding, type_byte, None, raw).unwrap();
    let set = value(Encoding::Auto, n::SET, &texts(&[b"b", b"\xff", b"a"]));
    assert_eq!((&set["value"], &set["expire_at"]), (&json!(["a", "b", {"base64": "/w=="}]), &Value::Null));
    let all = value(Encoding::Base64, n::LIST, &texts(&[b"a"]));
    assert_eq!((&all["key"], &all["value"]), (&json!("aw=="), &json!([{"base64": "YQ=="}])));
    let string = value(Encoding::Auto, n::STRING, &text(b"\xff"));
    assert_eq!((&string["value_encoding"], &string["value"]), (&json!("base64"), &json!("/w==")));
    let scores = [1.5, f64::INFINITY, f64::NEG_INFINITY, 1e300];
    let zset = scores.iter().fold(vec![4], |all, s| [all, text(b"m"), s.to_le_bytes().to_vec()].concat());
    let zset = &value(Encoding::Auto, n::ZSET_2, &zset)["value"];
    assert_eq!(*zset, json!([["m", 1.5], ["m", "inf"], ["m", "-inf"], ["m", 1e300]]));
    // Times of fields count from the first one.
    let hash =
        [&1000_i64.to_le_bytes()[..], &[2, 1], &text(b"f"), &text(b"v"), &[0], &text(b"g"), &text(b"")].concat();
    assert_eq!(value(Encoding::Auto, n::HASH_METADATA, &hash)["value"], json!([["f", "v", 1000], ["g", ""]]));
    let odd = value(Encoding::Auto, n::MODULE_2, &module());
    assert_eq!((&odd["type"], &odd["value_encoding"]), (&json!("module"), &json!("base64")));
    assert_eq!(odd["value"], data_encoding::BASE64.encode(&module()));
    for (type_byte, raw) in
        [(n::SET, texts(&[b"\xff"])), (n::LIST, texts(&[b"a", b"\xff"])), (n::MODULE_2, module())]
    {
        let e = line(Encoding::Text, type_byte, None, &raw).unwrap_err();
        assert!(e.kind() == ErrorKind::Request && e.message().contains("`k`"), "{e}");
    }
    assert_eq!(line(Encoding::Text, n::SET, None, &texts(&[b"a"])).unwrap()["value"], json!(["a"]));
    assert_eq!(line(Encoding::Auto, n::LIST, None, b"\x02\x01a").unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn members_are_sorted_in_any_room() {
    let members: Vec<Vec<u8>> = (0..60_u8).map(|i| vec![i.wrapping_mul(37), i]).collect();
    let raw = texts(&members.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let mut wanted = members;
    wanted.sort();
    for room in [0, 1, 200, 1000, sorted::ROOM] {
        let mut found = Vec::new();
        let put = |m: &[u8]| {
            found.push(m.to_vec());
            Ok(())
        };
        sorted::members(n::SET, Family::Redis, &raw[..], room, put).unwrap();
        assert_eq!(found, wanted, "room of {room}");
    }
}

fn commands(type_byte: u8, expire: Option<i64>, raw: &[u8]) -> Result<(bool, String)> {
    let mut out = Vec::new();
    let mut commands = Commands::new(&mut out, 100);
    let written = give(&mut commands, 0, 0, &meta_of(type_byte, Family::Redis, expire), raw)?;
    commands.finish()?;
    Ok((written, String::from_utf8(out).unwrap()))
}

#[test]
fn keys_as_commands() {
    let words = |(_, text): (bool, String)| {
        let plain = |line: &&str| !line.starts_with('*') && !line.starts_with('$');
        text.lines().filter(plain).collect::<Vec<_>>().join(" ")
    };
    let set = commands(n::STRING, Some(101), &text(b"v")).unwrap();
    assert!(set.0 && set.1.ends_with("*3\r\n$9\r\nPEXPIREAT\r\n$1\r\nk\r\n$3\r\n101\r\n"), "{}", set.1);
    assert_eq!(words(set), "SELECT 0 SET k v PEXPIREAT k 101");
    assert_eq!(commands(n::STRING, Some(100), &text(b"v")).unwrap(), (false, String::new()));
    let hash =
        [&1000_i64.to_le_bytes()[..], &[2, 1], &text(b"f"), &text(b"v"), &[0], &text(b"g"), &text(b"w")].concat();
    let hash = words(commands(n::HASH_METADATA, None, &hash).unwrap());
    assert_eq!(hash, "SELECT 0 DEL k HSET k f v g w HPEXPIREAT k 1000 FIELDS 1 f");
    let zset = [vec![1], text(b"m"), f64::NEG_INFINITY.to_le_bytes().to_vec()].concat();
    assert_eq!(words(commands(n::ZSET_2, None, &zset).unwrap()), "SELECT 0 DEL k ZADD k -inf m");
    let e = commands(n::MODULE_2, None, &module()).unwrap_err();
    assert!(e.kind() == ErrorKind::Unsupported && e.message().contains("`k`"), "{e}");
}

#[test]
fn files_hold_what_their_version_has() {
    let give = |version, family, type_byte| {
        let mut file = RdbFile::begin(Vec::new(), version, "b", &[]).unwrap();
        give(&mut file, 0, 0, &meta_of(type_byte, family, None), &texts(&[]))
    };
    assert!(give(10, Family::Redis, n::LIST).unwrap());
    // The same number says something else in the other family.
    for (version, family, type_byte) in [
        (9, Family::Redis, n::LIST_QUICKLIST_2),
        (12, Family::Valkey, n::VALKEY_HASH_2),
        (80, Family::Redis, n::HASH_METADATA_PRE_GA),
    ] {
        let e = give(version, family, type_byte).unwrap_err();
        let told = ["`k`".to_owned(), format!("type {type_byte}"), format!("version {version}")];
        assert!(e.kind() == ErrorKind::Unsupported && told.iter().all(|t| e.message().contains(t)), "{e}");
    }
}

#[test]
fn selections_and_shares() {
    let meta = meta_of(n::STRING, Family::Redis, None);
    let mut key = Vec::new();
    redis_key(3, b"user:1", &mut key);
    let of_redis = Entry { slot: 5, key: &key, put: Some((&meta, b"")) };
    let other = Entry { slot: 5, key: b"user:1", put: Some((b"", b"")) };
    let keys = |glob: &str| tidemark_common::glob::KeyFilter::new(&[glob]).unwrap();
    let all = Selection::default();
    for (selection, redis, embedded) in [
        (all.clone(), true, true),
        (Selection { keys: keys("user:?"), ..all.clone() }, true, true),
        (Selection { keys: keys("!user*"), ..all.clone() }, false, false),
        (Selection { dbs: vec![3], ..all.clone() }, true, false),
        (Selection { dbs: vec![0], ..all.clone() }, false, false),
        (Selection { slots: SlotSet::range(6, 9), ..all }, false, false),
    ] {
        assert_eq!(selection.takes(&of_redis).unwrap(), redis, "{selection:?}");
        assert_eq!(selection.takes(&other).unwrap(), embedded, "{selection:?}");
    }
    let expired = Commands::new(Vec::new(), i64::MAX);
    let lines = Lines::new(Vec::new(), Encoding::Auto);
    let mut split =
        Split::new(vec![(SlotSet::range(0, 5), Box::new(expired)), (SlotSet::range(6, 9), Box::new(lines))]);
    let meta = meta_of(n::STRING, Family::Redis, Some(1));
    let takes = [0, 6, 5, 9].map(|slot| give(&mut split, slot, 0, &meta, &text(b"v")).unwrap());
    assert_eq!(takes, [false, true, false, true]);
    assert_eq!(give(&mut split, 10, 0, &meta, &text(b"v")).unwrap_err().kind(), ErrorKind::Bug);
}
