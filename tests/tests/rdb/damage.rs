//! Damaged files: always an error, never a panic, never memory for what is only claimed.

use std::io::Read;

use proptest::prelude::*;
use tidemark_common::rdb::{Class, Family, Meaning, RdbSink, RecordHead, ValueSummary, decode_slice, read};
use tidemark_common::{ErrorKind, Result};
use tidemark_tests::bench::peak_rss_mib;
use tidemark_tests::redis::{Flavor, Server};

/// Most memory that this process may ever have had, in MiB: other tests of it run in other processes.
const MOST_MEMORY: u64 = 300;

struct Nowhere;

impl RdbSink for Nowhere {
    fn begin(&mut self, _head: &RecordHead<'_>) -> Result<()> {
        Ok(())
    }
    fn value(&mut self, _piece: &[u8]) -> Result<()> {
        Ok(())
    }
    fn end(&mut self, _summary: ValueSummary) -> Result<()> {
        Ok(())
    }
}

/// A small file with something of each type.
fn file() -> Vec<u8> {
    let server = Server::start(Flavor::Redis, &["--set-max-intset-entries", "8"]);
    let mut client = server.client();
    for line in [
        "SET s abababababababababababababababababababababababababababababababab",
        "SET n 12345 PXAT 4102444800123",
        "RPUSH l a 1 70000 -5 bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
        "SADD i 1 2 3",
        "SADD t 1 2 3 4 5 6 7 8 9 10",
        "ZADD z 1.5 a 2 b",
        "HSET h a 1 b 2",
        "XADD x 1-1 f v",
        "XADD x 2-1 f w",
        "XADD x 3-1 g w h 1",
        "XGROUP CREATE x g 0",
        "XREADGROUP GROUP g c COUNT 2 STREAMS x >",
    ] {
        let _ok = client.run(line);
    }
    server.save()
}

#[test]
fn every_flipped_bit_and_every_cut_is_an_error() {
    let file = file();
    assert!(read(&mut &file[..], &mut Nowhere).is_ok());
    for bit in 0..file.len() * 8 {
        let mut bad = file.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let error = read(&mut &bad[..], &mut Nowhere).expect_err("a flipped bit");
        assert!(
            matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported),
            "bit {bit}: {}",
            error.report()
        );
    }
    for len in 0..file.len() {
        let error = read(&mut &file[..len], &mut Nowhere).expect_err("a cut");
        assert_eq!(error.kind(), ErrorKind::Damaged, "cut at {len}: {}", error.report());
    }
    assert!((1..MOST_MEMORY).contains(&peak_rss_mib(std::process::id())));
}

/// Values far larger than what may be in memory: plain, compressed, and as members.
#[test]
fn memory_stays_flat() {
    const LARGE: u64 = 400 << 20;
    let length = |len: u64| [&[0x81][..], &len.to_be_bytes()].concat();
    let head = [&b"REDIS0011\x00\x01k"[..], &length(LARGE)].concat();
    // One byte, then runs of 264 that repeat it.
    let run = [0xe0, 0xff, 0x00];
    let runs = LARGE / 264;
    let packed = [&[2, 1, b's', 1, 0xc3][..], &length(2 + 3 * runs), &length(1 + 264 * runs), &[0, b'a']].concat();
    let list = [&[1, 1, b'l', 1][..], &length(LARGE / 4)].concat();
    let zeros = std::io::repeat(0);
    let mut file = (&head[..])
        .chain(zeros.take(LARGE))
        .chain(&packed[..])
        .chain(Repeat { bytes: &run, times: runs, at: 0 })
        .chain(&list[..])
        .chain(std::io::repeat(7).take(LARGE / 4))
        .chain(&[255, 0, 0, 0, 0, 0, 0, 0, 0][..]);
    let before = peak_rss_mib(std::process::id());
    let trailer = read(&mut file, &mut Nowhere).expect("read");
    let peak = peak_rss_mib(std::process::id());
    assert!(trailer.bytes > LARGE && peak > 0 && peak < before + 16, "{before} MiB, then {peak} MiB");
}

/// The same bytes again and again.
struct Repeat<'a> {
    bytes: &'a [u8],
    times: u64,
    at: usize,
}

impl Read for Repeat<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let mut count = 0;
        while count < into.len() && self.times > 0 {
            into[count] = self.bytes[self.at];
            (count, self.at) = (count + 1, self.at + 1);
            if self.at == self.bytes.len() {
                (self.at, self.times) = (0, self.times - 1);
            }
        }
        Ok(count)
    }
}

/// Without a checksum a wrong bit may go unseen, but it may not do harm.
#[test]
fn without_a_checksum_damage_does_no_harm() {
    let mut file = file();
    let at = file.len() - 8;
    file[at..].fill(0);
    assert!(!read(&mut &file[..], &mut Nowhere).expect("no checksum").checked);
    for at in 9..at {
        for value in [0, 1, 0x3f, 0x40, 0x7f, 0x80, 0x81, 0xc0, 0xc3, 0xf0, 0xf4, 0xfd, 0xfe, 0xff] {
            let mut bad = file.clone();
            bad[at] = value;
            let _ended = read(&mut &bad[..], &mut Nowhere);
        }
        // A length that nobody can have.
        for length in [u32::MAX.to_be_bytes(), [0x7f, 0xff, 0xff, 0xff], [0x1f, 0xff, 0xff, 0xff]] {
            let bad = [&file[..at], &[0x80], &length, &file[at..]].concat();
            let _ended = read(&mut &bad[..], &mut Nowhere);
        }
    }
    assert!((1..MOST_MEMORY).contains(&peak_rss_mib(std::process::id())));
}

#[test]
fn unknown_types_and_opcodes_are_named_with_version_and_server() {
    let head = b"REDIS0016\xfa\x09redis-ver\x058.8.0\xfe\x00";
    for (number, word) in
        [(27_u8, "type 27"), (6, "type 6"), (243, "opcode 243"), (246, "functions"), (8, "type 8")]
    {
        let file = [&head[..], &[number], b"\x01k\x01v\xff"].concat();
        let error = read(&mut &file[..], &mut Nowhere).expect_err("unknown");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.report();
        assert!(text.contains(word) && text.contains("version 16") && text.contains("Redis 8.8.0"), "{text}");
    }
    for other in
        [&b"REDIS0080"[..], b"VALKEY011", b"REDISabcd", b"PACK00000", b"REDIS-001", b"REDIS0000", b"REDIS0004"]
    {
        assert!(read(&mut [other, b"\xff\0\0\0\0\0\0\0\0"].concat().as_slice(), &mut Nowhere).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), type_byte in 0_u8..28, valkey: bool) {
        let family = if valkey { Family::Valkey } else { Family::Redis };
        let mut meaning = Meaning::new();
        if decode_slice(type_byte, family, &bytes, &mut meaning).is_ok() {
            let (_, elements) = meaning.finish();
            prop_assert!(elements <= bytes.len() as u64);
            prop_assert_ne!(tidemark_common::rdb::class_of(type_byte, family), None::<Class>);
        }
        let file = [&b"REDIS0011\xfe\x00"[..], &[type_byte, 0], &bytes].concat();
        let _ended = read(&mut &file[..], &mut Nowhere);
    }
}
