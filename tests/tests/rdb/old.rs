//! Types that today's servers only load: made by hand, loaded by a real server, and compared with what it answers.

use tidemark_common::rdb::{Family, decode_slice, meaning_of, payload};
use tidemark_tests::redis::{Flavor, Server};

use crate::model::{Build, ask};

/// A string as RDB has it, of any length below 16384.
fn text(bytes: &[u8]) -> Vec<u8> {
    let head = if bytes.len() < 64 {
        vec![bytes.len() as u8]
    } else {
        vec![0x40 | (bytes.len() >> 8) as u8, bytes.len() as u8]
    };
    [head, bytes.to_vec()].concat()
}

/// A ziplist of items as they are encoded, each without the length of the one before.
fn ziplist(items: &[Vec<u8>]) -> Vec<u8> {
    let (mut body, mut before, mut tail) = (Vec::new(), 0, 10);
    for item in items {
        tail = 10 + body.len();
        let from = body.len();
        if before < 254 {
            body.push(before as u8);
        } else {
            body.push(254);
            body.extend_from_slice(&(before as u32).to_le_bytes());
        }
        body.extend_from_slice(item);
        before = body.len() - from;
    }
    let len = 10 + body.len() + 1;
    let head = [(len as u32).to_le_bytes(), (tail as u32).to_le_bytes()].concat();
    [head, (items.len() as u16).to_le_bytes().to_vec(), body, vec![255]].concat()
}

fn item(bytes: &[u8]) -> Vec<u8> {
    let head = match bytes.len() {
        0..64 => vec![bytes.len() as u8],
        64..16_384 => vec![0x40 | (bytes.len() >> 8) as u8, bytes.len() as u8],
        len => [&[0x80][..], &(len as u32).to_be_bytes()].concat(),
    };
    [head, bytes.to_vec()].concat()
}

/// Every form of an item of a ziplist.
fn items() -> Vec<Vec<u8>> {
    vec![
        item(b"short"),
        item(&[b'm'; 300]),
        vec![0xf1],
        vec![0xfd],
        vec![0xfe, 0x80],
        [&[0xc0][..], &(-300_i16).to_le_bytes()].concat(),
        vec![0xf0, 0x01, 0x02, 0x83],
        [&[0xd0][..], &i32::MIN.to_le_bytes()].concat(),
        [&[0xe0][..], &i64::MIN.to_le_bytes()].concat(),
        item(b""),
    ]
}

/// Types and raw bytes.
fn values() -> Vec<(&'static str, u8, Vec<u8>)> {
    let pairs: Vec<Vec<u8>> = (0..40).map(|i| item(format!("item {i}").as_bytes())).collect();
    let scores: Vec<Vec<u8>> = items()
        .into_iter()
        .zip([&b"1.5"[..], b"-inf", b"3", b"inf", b"1e-7"].iter().cycle())
        .flat_map(|(m, s)| [m, item(s)])
        .collect();
    let zipmap = {
        let mut map = vec![2, 3];
        map.extend_from_slice(b"foo\x03\x02barxx\xfe\x2c\x01\x00\x00");
        map.extend_from_slice(&[b'k'; 300]);
        map.extend_from_slice(b"\x00\x00\xff");
        map
    };
    let quicklist = [vec![2], text(&ziplist(&items())), text(&ziplist(&pairs))].concat();
    let zset =
        [&[4][..], &text(b"a"), b"\x041.25", &text(b"b"), &[254], &text(b"c"), &[255], &text(b"d"), b"\x05-3e20"]
            .concat();
    vec![
        ("zset in decimal", 3, zset),
        ("hash in a zipmap", 9, text(&zipmap)),
        ("list in a ziplist", 10, text(&ziplist(&items()))),
        ("long list in a ziplist", 10, text(&ziplist(&[item(&[b'l'; 9000]), item(&[b'l'; 260]), item(b"x")]))),
        ("list", 1, [vec![3], text(b"a"), vec![0xc0, 0xff], vec![0xc2, 1, 2, 3, 4]].concat()),
        ("zset in a ziplist", 12, text(&ziplist(&scores))),
        ("hash in a ziplist", 13, text(&ziplist(&pairs))),
        ("quicklist of ziplists", 14, quicklist),
    ]
}

#[test]
fn old_types_mean_what_a_server_makes_of_them() {
    let server = Server::start(Flavor::Redis, &[]);
    let mut client = server.client();
    for (name, type_byte, raw) in values() {
        let mut built = Build::default();
        decode_slice(type_byte, Family::Redis, &raw, &mut built)
            .unwrap_or_else(|e| panic!("{name}: {}", e.report()));
        let mut bytes = Vec::new();
        payload::write(6, type_byte, &raw, &mut bytes);
        let _ok = client.call(&[&b"RESTORE"[..], name.as_bytes(), b"0", &bytes]);
        assert_eq!(built.model(), ask(&mut client, name.as_bytes()), "{name}");
        // The server has turned it into a layout of today.
        let dumped = client.call(&[&b"DUMP"[..], name.as_bytes()]).bytes();
        let now = payload::open(&dumped).expect("payload");
        let meaning = |type_byte, raw| meaning_of(type_byte, Family::Redis, raw).expect("meaning").meaning;
        assert_ne!(now.type_byte, type_byte, "{name}");
        assert_eq!(meaning(type_byte, &raw), meaning(now.type_byte, now.raw), "{name}");
    }
}

/// A stream as servers before 7 stored it: one of today without what they did not know.
#[test]
fn a_stream_of_redis_6_means_what_a_server_makes_of_it() {
    let server = Server::start(Flavor::Redis, &["--stream-node-max-entries", "3"]);
    let mut client = server.client();
    for i in 1..=9 {
        let _id = client.run(&format!("XADD s {i}-7 field {i}"));
    }
    let dumped = client.run("DUMP s").bytes();
    let now = payload::open(&dumped).expect("payload");
    // Without consumers these have one layout; that of Redis 6 itself, and of 8.6, is another.
    if !Flavor::Redis.is_from_7_0() || Flavor::Redis.is_from((8, 6), (u32::MAX, 0)) {
        return;
    }
    assert!(matches!(now.type_byte, 19 | 21));
    // Length, last id, first id, greatest deleted id, entries added, groups: all of them fit one byte here.
    let (nodes, counters) = now.raw.split_at(now.raw.len() - 9);
    assert_eq!(counters, [9, 9, 7, 1, 7, 0, 0, 9, 0]);
    let group = [
        text(b"g"),
        vec![3, 7, 1],
        2_u128.to_be_bytes().to_vec(),
        1_700_000_000_000_u64.to_le_bytes().to_vec(),
        vec![4, 1],
    ];
    let consumer =
        [text(b"c"), 1_700_000_000_000_u64.to_le_bytes().to_vec(), vec![1], 2_u128.to_be_bytes().to_vec()];
    let old = [nodes, &[9, 9, 7, 1], &group.concat(), &consumer.concat()].concat();
    let mut bytes = Vec::new();
    payload::write(9, 15, &old, &mut bytes);
    let _ok = client.call(&[&b"RESTORE"[..], b"old", b"0", &bytes]);
    let dumped = client.run("DUMP old").bytes();
    let now = payload::open(&dumped).expect("payload");
    let meaning = |type_byte, raw| meaning_of(type_byte, Family::Redis, raw).expect("meaning");
    assert_eq!(meaning(15, &old).meaning, meaning(now.type_byte, now.raw).meaning);
    assert_eq!(meaning(15, &old).elements, 9);
}
