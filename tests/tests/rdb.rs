//! The RDB library against real servers: what it reads is what they answer, what it writes is what they load.

#[path = "rdb/damage.rs"]
mod damage;
#[path = "rdb/fill.rs"]
mod fill;
#[path = "rdb/model.rs"]
mod model;
#[path = "rdb/old.rs"]
mod old;
#[path = "rdb/stream.rs"]
mod stream;

use std::collections::BTreeMap;

use fill::{Profile, fill};
use model::{Build, Contents, Record, ask, contents, expires_at};
use tidemark_common::rdb::{Class, Family, RdbWriter, convert, decode, decode_slice, loads, meaning_of, payload};
use tidemark_tests::redis::{Client, Cluster, Flavor, Reply, Server};

/// RDB version of the oldest server that payloads are converted for.
const LAST_VERSION_OF_REDIS_7_0: u16 = 10;

fn filled(flavor: Flavor, profile: Profile) -> Server {
    let server = Server::start(flavor, &[]);
    let mut client = server.client();
    profile.apply(&mut client);
    fill(&mut client);
    server
}

fn dump(client: &mut Client, record: &Record) -> Vec<u8> {
    client.call(&[&b"DUMP"[..], &record.key]).bytes()
}

fn payload_of(record: &Record, version: u16) -> Vec<u8> {
    let mut out = Vec::new();
    payload::write(version, record.type_byte, &record.raw, &mut out);
    out
}

/// Everything the reader says of a file of this server is what the server answers.
fn check_against(server: &Server, profile: Profile) -> Contents {
    let file = server.save();
    let (contents, trailer) = contents(&file);
    assert!(trailer.checked && trailer.unread.is_empty() && !trailer.is_newer());
    assert_eq!(trailer.bytes, file.len() as u64);
    let mut client = server.client();
    let mut counts = BTreeMap::new();
    for record in &contents.records {
        let shown = format!("{profile:?} {:?} type {}", String::from_utf8_lossy(&record.key), record.type_byte);
        *counts.entry(record.db).or_insert(0) += 1;
        let _ok = client.run(&format!("SELECT {}", record.db));
        let mut built = Build::default();
        decode_slice(record.type_byte, record.family, &record.raw, &mut built).expect("decodes");
        assert!(built.model() == ask(&mut client, &record.key), "{shown}: another value");
        let mut built = Build::default();
        decode(record.type_byte, record.family, &mut stream::Trickle::new(&record.raw), &mut built)
            .expect("decodes");
        assert!(built.model() == ask(&mut client, &record.key), "{shown}: another value in pieces");
        assert_eq!(
            meaning_of(record.type_byte, record.family, &record.raw).expect("meaning"),
            record.summary,
            "{shown}"
        );
        assert!(expires_at(&mut client, &record.key, record.expire), "{shown}");
        let dumped = dump(&mut client, record);
        assert!(payload_of(record, trailer.version) == dumped, "{shown}: another payload");
        let opened = payload::open(&dumped).expect("payload");
        assert!(
            (opened.type_byte, opened.raw, opened.version) == (record.type_byte, &record.raw[..], trailer.version)
        );
    }
    for (db, count) in &counts {
        let _ok = client.run(&format!("SELECT {db}"));
        assert_eq!(client.run("DBSIZE").integer(), *count);
    }
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [0, 2, 9]);
    assert_eq!(contents.sizes.len(), 3);
    let functions: Vec<bool> = contents.functions.iter().map(|f| f.starts_with(b"#!lua name=lib")).collect();
    assert_eq!(functions, vec![true; usize::from(server.flavor.is_from_7_0())]);
    assert!(contents.largest_piece <= 256 << 10, "pieces of {} bytes", contents.largest_piece);
    contents
}

#[test]
fn values_are_what_servers_answer_and_mean_the_same_in_every_encoding() {
    let (mut meanings, mut types): (BTreeMap<_, (u128, u64)>, BTreeMap<u8, u32>) = Default::default();
    for flavor in Flavor::installed() {
        for profile in Profile::ALL {
            let server = filled(flavor, profile);
            for record in check_against(&server, profile).records {
                // Not every server has times to live of fields: this key holds other data there.
                let server = record.key.starts_with(b"hash:ttl").then_some(flavor.program());
                let key = (server, record.db, record.key.clone());
                let found = (record.summary.meaning, record.summary.elements);
                let known = *meanings.entry(key).or_insert(found);
                let shown = String::from_utf8_lossy(&record.key);
                assert!(
                    known == found,
                    "{flavor:?} {profile:?} {shown:.40}: another meaning, type {}",
                    record.type_byte
                );
                *types.entry(record.type_byte).or_default() += 1;
            }
        }
    }
    eprintln!("values by type: {types:?}");
    for needed in [&[0][..], &[2], &[4], &[5], &[11], &[16], &[17], &[18], &[19, 21]] {
        assert!(needed.iter().any(|t| types.contains_key(t)), "type {needed:?} was never met: {types:?}");
    }
    let distinct: std::collections::BTreeSet<_> = meanings.values().collect();
    // Four strings of these data are equal to others.
    assert!(distinct.len() + 8 > meanings.len(), "{} meanings of {} keys", distinct.len(), meanings.len());
}

#[test]
fn a_change_of_any_part_is_another_meaning() {
    let server = Server::start(Flavor::Redis, &[]);
    let mut client = server.client();
    let mut seen = BTreeMap::new();
    let mut step = |line: &str| {
        let _ok = client.run(line);
        let dumped = client.run("DUMP k").bytes();
        let opened = payload::open(&dumped).expect("payload");
        let meaning = meaning_of(opened.type_byte, opened.family, opened.raw).expect("meaning").meaning;
        assert!(seen.insert(meaning, line.to_owned()).is_none(), "{line}: as before");
    };
    step("SET k a");
    step("SET k b");
    for line in ["RPUSH k a", "RPUSH k b", "LSET k 0 c", "LPUSH k a", "LMOVE k k LEFT RIGHT"] {
        if line == "RPUSH k a" {
            step("SET k 1");
            let _n = server.client().run("DEL k");
        }
        step(line);
    }
    let _n = server.client().run("DEL k");
    ["SADD k a", "SADD k 1", "SREM k a"].into_iter().for_each(&mut step);
    let _n = server.client().run("DEL k");
    ["ZADD k 1 a", "ZADD k 2 a", "ZADD k 2 b", "ZADD k 1 a"].into_iter().for_each(&mut step);
    let _n = server.client().run("DEL k");
    ["HSET k a b", "HSET k a c", "HSET k c a", "HDEL k a"].into_iter().for_each(&mut step);
    let _n = server.client().run("DEL k");
    for line in [
        "XADD k 1-1 a b",
        "XADD k 2-1 a c",
        "XDEL k 2-1",
        "XSETID k 9-9",
        "XGROUP CREATE k g 0",
        "XGROUP CREATECONSUMER k g c",
        "XGROUP SETID k g 0-5",
        "XREADGROUP GROUP g c STREAMS k >",
        "XCLAIM k g d 0 1-1 TIME 1700000000000 RETRYCOUNT 3",
        "XCLAIM k g d 0 1-1 TIME 1700000000001 RETRYCOUNT 3",
        "XCLAIM k g d 0 1-1 TIME 1700000000001 RETRYCOUNT 4",
        "XCLAIM k g c 0 1-1 TIME 1700000000001 RETRYCOUNT 4",
        "XACK k g 1-1",
    ] {
        step(line);
    }
}

/// Copies a file with our writer.
fn rewrite(contents: &Contents, version: u16) -> Vec<u8> {
    let mut writer = RdbWriter::new(Vec::new(), version).expect("writer");
    writer.aux(b"tidemark", b"yes").expect("aux");
    contents.functions.iter().for_each(|code| writer.function(code).expect("function"));
    for (i, record) in contents.records.iter().enumerate() {
        if i % 2 == 0 {
            writer.record(&record.head(), &record.raw).expect("record");
        } else {
            writer.begin(&record.head()).expect("record");
            record.raw.chunks(100_000).for_each(|piece| writer.value(piece).expect("piece"));
            writer.end().expect("end");
        }
    }
    let (file, checksum) = writer.finish().expect("end");
    assert_eq!(file.last_chunk::<8>(), Some(&checksum.to_le_bytes()));
    file
}

#[test]
fn servers_load_what_the_writer_writes() {
    for flavor in Flavor::installed() {
        let options = ["--maxmemory-policy", "allkeys-lfu"];
        let server = Server::start(flavor, &options);
        fill(&mut server.client());
        let file = server.save();
        let (before, trailer) = contents(&file);
        assert!(before.records.iter().all(|r| r.lfu.is_some()), "LFU is stored under this policy");
        let file = rewrite(&before, trailer.version);
        let (again, _) = contents(&file);
        assert!(again.records == before.records, "what was written reads back");
        let copy = Server::load(flavor, &options, Some(&file));
        assert_eq!(copy.digest(), server.digest());
        if flavor.is_from_7_0() {
            assert_eq!(copy.client().run("FUNCTION LIST").array().len(), 1);
        }
        let mut client = copy.client();
        let _ok = client.run("SELECT 2");
        assert!(expires_at(&mut client, b"other:1", Some(4_102_444_800_456)));
    }
    let lru = Server::start(Flavor::Redis, &["--maxmemory-policy", "allkeys-lru"]);
    let _ok = lru.client().run("SET a b");
    assert_eq!(contents(&lru.save()).0.records[0].lru, Some(0));
}

#[test]
fn servers_restore_our_payloads_even_older_ones() {
    for flavor in Flavor::installed() {
        let source = filled(flavor, Profile::Packed);
        let (mut before, _) = contents(&source.save());
        let target = Server::start(Flavor::Redis, &[]);
        let mut client = target.client();
        let too_new =
            |r: &Record| convert::type_for(LAST_VERSION_OF_REDIS_7_0, Family::Redis, r.type_byte).is_none();
        // Servers of today have one kind of value that Redis 7.0 has not.
        assert!(before.records.iter().filter(|r| too_new(r)).all(|r| r.key.starts_with(b"hash:ttl")));
        let skipped = before.records.iter().any(too_new);
        before.records.retain(|r| !too_new(r));
        for record in &before.records {
            let version = LAST_VERSION_OF_REDIS_7_0;
            let to = convert::type_for(version, Family::Redis, record.type_byte).expect("a type that 7.0 loads");
            assert!(loads(version, Family::Redis, to));
            let mut raw = Vec::new();
            convert(record.type_byte, &mut &record.raw[..], to, &mut raw).expect("converts");
            let converted = Record { type_byte: to, raw, ..record.clone() };
            let payload = payload_of(&converted, version);
            let _ok = client.run(&format!("SELECT {}", record.db));
            let ttl = record.expire.unwrap_or(0).to_string();
            let _ok = client.call(&[&b"RESTORE"[..], &record.key, ttl.as_bytes(), &payload, b"ABSTTL"]);
        }
        let (after, _) = contents(&target.save());
        let meanings = |c: &Contents| {
            let each = c.records.iter().map(|r| ((r.db, r.key.clone()), (r.summary.meaning, r.expire)));
            each.collect::<BTreeMap<_, _>>()
        };
        assert!(meanings(&before) == meanings(&after), "{flavor:?}: what was restored means something else");
        if flavor == Flavor::Redis && !skipped {
            assert_eq!(source.digest(), target.digest());
        }
    }
}

#[test]
fn a_payload_with_one_wrong_bit_is_refused_here_and_there() {
    let server = Server::start(Flavor::Redis, &[]);
    let mut client = server.client();
    let _n = client.run("RPUSH k a b c");
    let good = client.run("DUMP k").bytes();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(payload::open(&bad).is_err(), "bit {bit}");
    }
    for len in 0..good.len() {
        assert!(payload::open(&good[..len]).is_err());
    }
    let mut bad = good;
    bad[3] ^= 1;
    let reply = client.ask(&[&b"RESTORE"[..], b"l", b"0", &bad]).expect("reply");
    assert!(matches!(reply, Reply::Error(_)));
}

#[test]
fn classes_are_those_of_the_command() {
    let server = filled(Flavor::Redis, Profile::Default);
    let (contents, _) = contents(&server.save());
    let mut client = server.client();
    for record in &contents.records {
        let _ok = client.run(&format!("SELECT {}", record.db));
        let class = record.head().class().expect("known");
        assert_eq!(client.call(&[&b"TYPE"[..], &record.key]).text(), class.name());
        assert_ne!(class, Class::Module);
    }
}

#[test]
fn files_of_a_cluster_hold_each_key_once() {
    for flavor in Flavor::installed() {
        let cluster = Cluster::start(flavor, 3, &[]);
        assert_eq!(cluster.ports().len(), cluster.clients().len());
        let keys: Vec<String> = (0..200).map(|i| format!("key:{i}")).collect();
        for key in &keys {
            let _ok = cluster.owner(key.as_bytes()).client().run(&format!("SET {key} 1"));
        }
        let files: Vec<_> = cluster.nodes.iter().map(|(_, node)| contents(&node.save()).0).collect();
        assert!(files.iter().all(|file| file.records.len() > 20), "keys on every node");
        let mut found: Vec<_> =
            files.into_iter().flat_map(|f| f.records).map(|r| String::from_utf8(r.key).expect("key")).collect();
        found.sort();
        let mut keys = keys;
        keys.sort();
        assert_eq!(found, keys);
    }
}
