//! Data of every type, the same whatever the settings they are made under.

use tidemark_tests::redis::{Client, Reply};

/// Settings that decide which encodings the server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As installed.
    Default,
    /// Everything packed that can be.
    Packed,
    /// Nothing packed, nothing compressed.
    Plain,
}

impl Profile {
    pub(crate) const ALL: [Self; 3] = [Self::Default, Self::Packed, Self::Plain];

    pub(crate) fn apply(self, client: &mut Client) {
        let settings: &[(&str, &str)] = match self {
            Self::Default => &[],
            Self::Packed => &[
                ("hash-max-listpack-entries", "1000000"),
                ("hash-max-listpack-value", "3000000"),
                ("zset-max-listpack-entries", "1000000"),
                ("zset-max-listpack-value", "100000"),
                ("set-max-intset-entries", "1000000"),
                ("set-max-listpack-entries", "1000000"),
                ("set-max-listpack-value", "100000"),
                ("list-max-listpack-size", "-5"),
                ("stream-node-max-bytes", "0"),
                ("stream-node-max-entries", "0"),
            ],
            Self::Plain => &[
                ("hash-max-listpack-entries", "0"),
                ("zset-max-listpack-entries", "0"),
                ("set-max-intset-entries", "0"),
                ("set-max-listpack-entries", "0"),
                ("list-max-listpack-size", "1"),
                ("stream-node-max-entries", "1"),
                ("rdbcompression", "no"),
            ],
        };
        for (name, value) in settings {
            let mut reply = client.ask(&["CONFIG", "SET", name, value]).expect("reply");
            if matches!(reply, Reply::Error(_)) {
                // As servers before 7.0 call it.
                reply = client.ask(&["CONFIG", "SET", &name.replace("listpack", "ziplist"), value]).expect("reply");
            }
            // Redis 7.0 has no packed sets.
            assert!(
                format!("{reply:?}").contains("OK") || name.starts_with("set-max-listpack"),
                "{name}: {reply:?}"
            );
        }
        if self == Self::Plain {
            let reply = client.ask(&["DEBUG", "QUICKLIST-PACKED-THRESHOLD", "64B"]).expect("reply");
            // Before 7.0 no element stands alone.
            assert_eq!(reply == Reply::Status("OK".into()), client.knows("FUNCTION"), "{reply:?}");
        }
    }
}

/// Bytes without a pattern, always the same.
pub(crate) fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&(seed ^ seed >> 29).to_le_bytes());
    }
    out.truncate(len);
    out
}

const NUMBERS: [i64; 22] = [
    0,
    1,
    12,
    13,
    63,
    64,
    127,
    128,
    -1,
    -128,
    -129,
    4095,
    4096,
    -4096,
    -4097,
    32767,
    -32768,
    8_388_607,
    -8_388_609,
    2_147_483_648,
    i64::MAX,
    i64::MIN,
];

fn push(out: &mut Vec<Vec<Vec<u8>>>, words: &[&[u8]]) {
    out.push(words.iter().map(|w| w.to_vec()).collect());
}

/// Strings of many lengths, around the borders of every encoding of a length.
fn texts() -> Vec<Vec<u8>> {
    let small = [0, 1, 5, 20, 21, 44, 45, 63, 64, 65, 125, 126, 127, 128, 129];
    let large = [4095, 4096, 16_377, 16_378, 16_379, 16_383, 16_384, 70_000];
    let lengths = small.into_iter().chain(large);
    let mut out: Vec<Vec<u8>> = Vec::new();
    for (i, len) in lengths.enumerate() {
        out.push(noise(len, i as u64));
        out.push(b"tidemark, tidemark; ".iter().copied().cycle().take(len).collect());
    }
    out.push(b"007".to_vec());
    out.push(b"-0".to_vec());
    out.push(b"+5".to_vec());
    out.push(b"9223372036854775808".to_vec());
    out.push(b"\0\xff\r\n".to_vec());
    out.sort();
    out.dedup();
    out
}

/// Fills databases 0, 2 and 9.
pub(crate) fn fill(client: &mut Client) {
    let mut c: Vec<Vec<Vec<u8>>> = Vec::new();
    let texts = texts();
    for (i, text) in texts.iter().enumerate() {
        push(&mut c, &[b"SET", format!("string:{i}").as_bytes(), text]);
        push(&mut c, &[b"RPUSH", b"list:all", text]);
        push(&mut c, &[b"SADD", b"set:all", text]);
        push(&mut c, &[b"HSET", b"hash:all", text, &texts[texts.len() - 1 - i]]);
        push(&mut c, &[b"ZADD", b"zset:all", format!("{}", i as f64 * 1.1 - 7.3).as_bytes(), text]);
        push(&mut c, &[b"XADD", b"stream:all", format!("{}-1", i + 1).as_bytes(), b"f", text, text, b"v"]);
    }
    push(&mut c, &[b"SET", b"", b""]);
    push(&mut c, &[b"SET", &noise(3000, 5), b"binary and long key"]);
    push(
        &mut c,
        &[
            b"SET",
            b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            b"key that LZF shrinks",
        ],
    );
    push(&mut c, &[b"SET", b"12345", b"a key that is a number"]);
    for number in NUMBERS {
        let text = number.to_string();
        push(&mut c, &[b"SET", format!("number:{number}").as_bytes(), text.as_bytes()]);
        push(&mut c, &[b"RPUSH", b"list:numbers", text.as_bytes()]);
        push(&mut c, &[b"SADD", b"set:numbers", text.as_bytes()]);
        push(&mut c, &[b"HSET", b"hash:numbers", text.as_bytes(), text.as_bytes()]);
        push(&mut c, &[b"ZADD", b"zset:numbers", text.as_bytes(), text.as_bytes()]);
    }
    for score in ["inf", "-inf", "0", "-0", "1e300", "-1.5e-300", "3.0000000000000004", "0.1"] {
        push(&mut c, &[b"ZADD", b"zset:scores", score.as_bytes(), score.as_bytes()]);
    }
    for i in 0..200 {
        push(&mut c, &[b"SADD", b"set:small-ints", i.to_string().as_bytes()]);
        push(&mut c, &[b"SADD", b"set:middle-ints", (i * 100_000).to_string().as_bytes()]);
        push(&mut c, &[b"PFADD", b"hll", i.to_string().as_bytes()]);
        push(&mut c, &[b"SETBIT", b"bitmap", (i * 37).to_string().as_bytes(), b"1"]);
        push(
            &mut c,
            &[b"GEOADD", b"geo", format!("{}", i as f64 / 3.0).as_bytes(), b"45", i.to_string().as_bytes()],
        );
    }
    for i in 0..2000 {
        push(&mut c, &[b"RPUSH", b"list:many", format!("element {i}").as_bytes()]);
        push(&mut c, &[b"HSET", b"hash:many", format!("field {i}").as_bytes(), i.to_string().as_bytes()]);
        push(&mut c, &[b"ZADD", b"zset:many", (i % 50).to_string().as_bytes(), format!("m{i}").as_bytes()]);
        push(&mut c, &[b"XADD", b"stream:many", format!("{}-{}", 1000 + i / 3, 1 + i % 3).as_bytes(), b"n", b"1"]);
    }
    streams(&mut c);
    for (db, key, at) in
        [(0, "expiring", "4102444800123"), (2, "other:1", "4102444800456"), (9, "far", "9999999999999")]
    {
        push(&mut c, &[b"SELECT", db.to_string().as_bytes()]);
        push(&mut c, &[b"SET", key.as_bytes(), b"value", b"PXAT", at.as_bytes()]);
        push(&mut c, &[b"SADD", b"in-each", b"a", b"b"]);
    }
    push(&mut c, &[b"SELECT", b"0"]);
    let code = "#!lua name=lib\nredis.register_function('f', function() return 1 end)";
    if client.knows("FUNCTION") {
        push(&mut c, &[b"FUNCTION", b"LOAD", b"REPLACE", code.as_bytes()]);
    }
    for part in c.chunks(500) {
        for (reply, command) in client.pipeline(part).into_iter().zip(part) {
            let shown = String::from_utf8_lossy(&command[0]);
            assert!(!matches!(reply, Reply::Error(_)), "{shown}: {reply:?}");
        }
    }
    let _ok = client.call(&[&b"SET"[..], b"big:noise", &noise(10 << 20, 77)]);
    let _ok = client.call(&[&b"SET"[..], b"big:pattern", &b"0123456789abcdef".repeat(640 << 10)]);
    let _ok = client.call(&[&b"RPUSH"[..], b"big:list", &noise(10 << 20, 78), b"small", &vec![b'x'; 10 << 20]]);
    let _n = client.run("HSET hash:ttl a 1 b 2 c 3 d 4");
    for (field, at) in [("a", "4102444800123"), ("b", "4102444800000"), ("d", "9999999999999")] {
        // From Redis 7.4 on.
        let reply = client.ask(&["HPEXPIREAT", "hash:ttl", at, "FIELDS", "1", field]).expect("reply");
        assert!(!matches!(&reply, Reply::Error(e) if !e.contains("unknown command")), "{reply:?}");
    }
    // Around the lengths at which an item of a listpack needs one byte more to say how long it is.
    for len in 2_097_144..2_097_149 {
        let _ok = client.call(&[&b"HSET"[..], b"hash:borders", len.to_string().as_bytes(), &noise(len, 4)]);
    }
    let _ok = client.call(&[&b"HSET"[..], b"big:hash", b"f", &vec![b'y'; 10 << 20], &noise(1 << 20, 3), b""]);
}

/// Streams with deletions, fields that differ, groups, consumers and pending entries; no time in them is now.
fn streams(c: &mut Vec<Vec<Vec<u8>>>) {
    let mut run = |line: &str| push(c, &line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
    for i in 1..=300 {
        run(&format!("XADD stream:groups {i}-0 temp {} place p{}", i * 3, i % 7));
    }
    run("XADD stream:groups 301-5 other fields");
    run("XADD stream:groups 18446744073709551615-3 last v");
    run("XDEL stream:groups 1-0 17-0 299-0");
    run("XGROUP CREATE stream:groups g1 0");
    run("XGROUP CREATE stream:groups g2 250-0");
    run("XGROUP CREATE stream:groups empty $");
    run("XGROUP CREATECONSUMER stream:groups g1 idle");
    run("XREADGROUP GROUP g1 alice COUNT 20 STREAMS stream:groups >");
    run("XREADGROUP GROUP g1 bob COUNT 5 STREAMS stream:groups >");
    run("XREADGROUP GROUP g2 carol COUNT 3 STREAMS stream:groups >");
    run("XACK stream:groups g1 2-0 5-0");
    for id in 2..=28 {
        let owner = if id <= 22 { "alice" } else { "bob" };
        run(&format!(
            "XCLAIM stream:groups g1 {owner} 0 {id}-0 TIME {} RETRYCOUNT {}",
            1_700_000_000_000_u64 + id,
            id % 4
        ));
    }
    for id in 251..=253 {
        run(&format!("XCLAIM stream:groups g2 carol 0 {id}-0 TIME 1700000000999 RETRYCOUNT 9"));
    }
    run("XADD stream:empty 5-5 a b");
    run("XDEL stream:empty 5-5");
    run("XGROUP CREATE stream:only-group g $ MKSTREAM");
    run("XADD stream:trimmed 1-1 a b");
    for i in 2..=400 {
        run(&format!("XADD stream:trimmed MAXLEN 50 {i}-0 a {i}"));
    }
}
