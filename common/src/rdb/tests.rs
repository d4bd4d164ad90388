//! What no server at hand writes, and what must never change.

use proptest::prelude::*;
use tidemark_proto::{ErrorKind, Result};

use super::length::{DIGITS, decimal, length, put_length, put_text};
use super::*;

mod servers;

fn meaning(type_byte: u8, family: Family, raw: &[u8]) -> ValueSummary {
    meaning_of(type_byte, family, raw).unwrap_or_else(|e| panic!("type {type_byte}: {}", e.report()))
}

/// A listpack of short texts.
fn listpack(texts: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    for text in texts {
        body.push(0x80 | text.len() as u8);
        body.extend_from_slice(text.as_bytes());
        body.push(1 + text.len() as u8);
    }
    body.push(0xff);
    let head = [&((6 + body.len()) as u32).to_le_bytes()[..], &(texts.len() as u16).to_le_bytes()].concat();
    let mut out = Vec::new();
    put_text(&[head, body].concat(), &mut out);
    out
}

fn texts(texts: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    texts.iter().for_each(|text| put_text(text.as_bytes(), &mut out));
    out
}

/// 4 102 444 800 123 ms: 2100-01-01.
const AT: u64 = 4_102_444_800_123;

#[test]
fn times_to_live_of_fields_mean_the_same_in_all_layouts() {
    let at = AT.to_string();
    let mut absolute = vec![0x81];
    absolute.extend_from_slice(&AT.to_be_bytes());
    let min = AT.to_le_bytes();
    let none = (-1_i64).to_le_bytes();
    let pre_ga = [&[2][..], &absolute, &texts(&["f", "v"]), &[0], &texts(&["g", "w"])].concat();
    let metadata = [&min[..], &[2, 1], &texts(&["f", "v"]), &[0], &texts(&["g", "w"])].concat();
    let packed = listpack(&["f", "v", &at, "g", "w", "0"]);
    let packed_ga = [&min[..], &packed].concat();
    let valkey = [&[2][..], &texts(&["g", "w"]), &none, &texts(&["f", "v"]), &min].concat();
    let expected = meaning(24, Family::Redis, &metadata);
    assert_eq!(expected.elements, 2);
    for (type_byte, family, raw) in [
        (22, Family::Redis, &pre_ga),
        (23, Family::Redis, &packed),
        (25, Family::Redis, &packed_ga),
        (22, Family::Valkey, &valkey),
    ] {
        assert_eq!(meaning(type_byte, family, raw).meaning, expected.meaning, "type {type_byte} of {family:?}");
    }
    let later = [&(AT + 1).to_le_bytes()[..], &[2, 1], &texts(&["f", "v"]), &[0], &texts(&["g", "w"])].concat();
    assert_ne!(meaning(24, Family::Redis, &later).meaning, expected.meaning);
    // Without times they are ordinary hashes.
    let plain = meaning(4, Family::Redis, &[&[1][..], &texts(&["f", "v"])].concat()).meaning;
    let one = [&min[..], &[1, 0], &texts(&["f", "v"])].concat();
    assert_eq!(meaning(24, Family::Redis, &one).meaning, plain);
    assert_eq!(meaning(22, Family::Valkey, &[&[1][..], &texts(&["f", "v"]), &none].concat()).meaning, plain);
    let impossible = [&[0xff; 7][..], &[0x7f, 1, 2], &texts(&["f", "v"])].concat();
    assert_eq!(meaning_of(24, Family::Redis, &impossible).expect_err("too late").kind(), ErrorKind::Damaged);
}

/// Stored in backups: if this fails, records of old backups no longer compare. Computed once with another implementation
/// of BLAKE3, from the words at the head of `meaning`.
#[test]
fn meanings_never_change() {
    let set = [&[2][..], &texts(&["a", "b"])].concat();
    let zset = [&[1][..], &texts(&["a"]), &1.5_f64.to_le_bytes()].concat();
    let hash = [&[1][..], &texts(&["f", "v"])].concat();
    let stream = [0, 0, 7, 3, 0, 0, 0, 0, 9, 0];
    let module = [5, 2, 1, 0];
    let found = [
        meaning(0, Family::Redis, &texts(&["abc"])),
        meaning(1, Family::Redis, &set),
        meaning(2, Family::Redis, &set),
        meaning(5, Family::Redis, &zset),
        meaning(4, Family::Redis, &hash),
        meaning(19, Family::Redis, &stream),
        meaning(7, Family::Redis, &module),
    ];
    let found: Vec<String> =
        found.iter().map(|s| format!("{:032x} {} {}", s.meaning, s.elements, s.raw_len)).collect();
    let known = [
        "207b5c16d61aa164557e4fa3ba8b030c 1 4",
        "213bf12e050e6c0a3704dbc1b5d904e6 2 5",
        "1ce892b533c96f9dd2d8fc3a627e4857 2 5",
        "76aad6a225d2fdb1816b0efd7925f893 1 11",
        "74a65be2000271599cfeea3ed8f23ee1 1 5",
        "8ca1e8e84febd3b6fbc3d0f505d51760 0 10",
        "2e16d8ea5c739dbbb099734f042e5edd 1 4",
    ];
    assert_eq!(found, known);
}

#[test]
fn zero_has_no_sign_and_nothing_is_no_score() {
    let zset = |score: f64| [&[1][..], &texts(&["a"]), &score.to_le_bytes()].concat();
    let zero = meaning(5, Family::Redis, &zset(0.0)).meaning;
    assert_eq!(meaning(5, Family::Redis, &zset(-0.0)).meaning, zero);
    assert_eq!(meaning(17, Family::Redis, &listpack(&["a", "-0"])).meaning, zero);
    assert_ne!(meaning(5, Family::Redis, &zset(f64::MIN_POSITIVE)).meaning, zero);
    for bad in [f64::NAN, -f64::NAN] {
        assert!(meaning_of(5, Family::Redis, &zset(bad)).is_err());
    }
    assert!(meaning_of(17, Family::Redis, &listpack(&["a", "nan"])).is_err());
    assert!(meaning_of(17, Family::Redis, &listpack(&["a"])).is_err(), "half a pair");
    assert!(meaning_of(16, Family::Redis, &listpack(&["a", "b", "c"])).is_err(), "half a pair");
}

/// A module's value with every kind of part.
fn module() -> Vec<u8> {
    let id = [&[0x81][..], &0x1234_5678_9abc_def0_u64.to_be_bytes()].concat();
    let parts = [
        &[1, 0x81, 255, 255, 255, 255, 255, 255, 255, 255][..],
        &[2, 5],
        &[3, 1, 2, 3, 4],
        &[4, 1, 2, 3, 4, 5, 6, 7, 8],
    ];
    [id, parts.concat(), vec![5, 3], b"abc".to_vec(), vec![5, 0xc3, 5, 7, 1, b'a', b'b', 0x80, 1, 5, 0xc0, 7, 0]]
        .concat()
}

#[derive(Default)]
struct Log {
    lines: Vec<String>,
    module: Vec<u8>,
    refuse: bool,
}

impl RdbSink for Log {
    fn header(&mut self, family: Family, version: u16) -> Result<()> {
        self.lines.push(format!("{family:?} {version}"));
        Ok(())
    }
    fn slot_info(&mut self, info: SlotInfo) -> Result<()> {
        self.lines.push(format!("slot {} {} {}", info.slot, info.keys, info.expiring));
        Ok(())
    }
    fn slot_import(&mut self, import: SlotImport<'_>) -> Result<()> {
        self.lines.push(format!("import {} {:?}", String::from_utf8_lossy(import.job), import.ranges));
        Ok(())
    }
    fn module_aux(&mut self, piece: &[u8]) -> Result<()> {
        self.module.extend_from_slice(piece);
        Ok(())
    }
    fn module_aux_end(&mut self, module: u64) -> Result<()> {
        self.lines.push(format!("module {module:x}"));
        Ok(())
    }
    fn begin(&mut self, head: &RecordHead<'_>) -> Result<()> {
        self.lines.push(format!(
            "{} {:?} {:?}",
            String::from_utf8_lossy(head.key),
            head.class(),
            head.expire_at_millis
        ));
        if self.refuse { Err(tidemark_proto::Error::damaged("the sink's own")) } else { Ok(()) }
    }
    fn value(&mut self, _piece: &[u8]) -> Result<()> {
        Ok(())
    }
    fn end(&mut self, summary: ValueSummary) -> Result<()> {
        self.lines.push(format!("{} bytes", summary.raw_len));
        Ok(())
    }
}

#[test]
fn modules_are_carried_about() {
    let raw = module();
    let mut writer = RdbWriter::new(Vec::new(), 11).expect("writer");
    writer.module_aux(&raw).expect("aux");
    let head = |key, type_byte| RecordHead {
        db: 0,
        key,
        type_byte,
        family: Family::Redis,
        expire_at_millis: Some(-5),
        lru_idle_seconds: None,
        lfu_freq: None,
    };
    writer.record(&head(b"m", 7), &raw).expect("record");
    assert_eq!(writer.record(&head(b"h", 24), b"").expect_err("too new").kind(), ErrorKind::Unsupported);
    let (file, _) = writer.finish().expect("end");
    let mut log = Log::default();
    let trailer = read(&mut &file[..], &mut log).expect("read");
    assert!(trailer.checked);
    assert_eq!(log.module, raw);
    let bytes = format!("{} bytes", raw.len());
    assert_eq!(log.lines, ["Redis 11", "module 123456789abcdef0", "m Some(Module) Some(-5)", &bytes]);
    // An error of the sink is its own.
    let error = read(&mut &file[..], &mut Log { refuse: true, ..Log::default() }).expect_err("refused");
    assert_eq!(error.report(), "the sink's own");
}

#[test]
fn files_of_valkey_9_say_so() {
    let hash = [&[22, 1, b'k', 1][..], &texts(&["f", "v"]), &AT.to_le_bytes()].concat();
    let slots = [&[243][..], &texts(&["job"]), &[2, 0, 5, 7, 7], &[244, 1, 2, 0]].concat();
    let expiring = [&[253][..], &9_i32.to_le_bytes()].concat();
    let end = [&[255][..], &[0; 8]].concat();
    let mut log = Log::default();
    let file = [&b"VALKEY080"[..], &slots, &expiring, &hash, &end].concat();
    let trailer = read(&mut &file[..], &mut log).expect("read");
    assert_eq!((trailer.family, trailer.version, trailer.checked), (Family::Valkey, 80, false));
    let lines = ["Valkey 80", "import job [(0, 5), (7, 7)]", "slot 1 2 0", "k Some(Hash) Some(9000)", "13 bytes"];
    assert_eq!(log.lines, lines);
}

#[test]
fn plans_can_refuse_by_type() {
    use convert::{type_for, type_for_server};
    assert_eq!([6, 9, 10, 11, 12, 13].map(|v| highest_type_of(v, Family::Redis)), [13, 15, 19, 21, 25, 26]);
    assert_eq!([11, 80].map(|v| highest_type_of(v, Family::Valkey)), [21, 22]);
    assert!(!loads(8, Family::Redis, 15) && loads(9, Family::Redis, 15) && !loads(12, Family::Redis, 6));
    assert!(!loads(80, Family::Valkey, 24) && !loads(12, Family::Redis, 8) && !loads(99, Family::Redis, 27));
    assert_eq!([20, 21, 18, 24].map(|t| type_for(10, Family::Redis, t)), [Some(2), Some(19), Some(18), None]);
    assert_eq!([20, 21].map(|t| type_for(9, Family::Redis, t)), [Some(2), None]);
    assert_eq!([13, 12, 10, 9].map(|v| type_for(v, Family::Redis, 26)), [Some(26), Some(21), Some(19), None]);
    // Valkey has no such type, but the one before; its own 22 is another than that of Redis.
    assert_eq!(type_for_server(80, Family::Redis, 26), Some(21));
    assert_eq!([type_for_server(80, Family::Redis, 22), type_for_server(80, Family::Valkey, 22)], [None, Some(22)]);
    let error = convert(24, &mut &b""[..], 4, &mut Vec::new()).expect_err("no way");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn claims_cost_nothing() {
    let huge = [&[0x81][..], &(1_u64 << 60).to_be_bytes()].concat();
    for type_byte in [0, 1, 2, 4, 5, 14, 15, 18, 20] {
        let error = meaning_of(type_byte, Family::Redis, &[&huge[..], b"abc"].concat()).expect_err("too short");
        assert_eq!(error.kind(), ErrorKind::Damaged);
    }
    let bomb = [&[0xc3, 3][..], &huge, &[0, b'a', 0]].concat();
    assert!(meaning_of(0, Family::Redis, &bomb).is_err());
    let file = [&b"REDIS0011\x00"[..], &huge, b"key"].concat();
    assert_eq!(read(&mut &file[..], &mut Log::default()).expect_err("a key").kind(), ErrorKind::Damaged);
}

/// A reader that fails half way.
struct Broken<'a>(&'a [u8]);

impl std::io::Read for Broken<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.0.is_empty() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        std::io::Read::read(&mut self.0, into)
    }
}

#[test]
fn a_source_that_fails_can_be_tried_again() {
    let error = read(&mut Broken(b"REDIS0011\xfa"), &mut Log::default()).expect_err("broken");
    assert_eq!(error.kind(), ErrorKind::Retry);
}

/// Compresses as LZF does, with references as far back as there are.
fn lzf(input: &[u8]) -> Vec<u8> {
    let (mut out, mut at, mut literal) = (Vec::new(), 0, 0);
    let mut last = std::collections::HashMap::new();
    let flush = |out: &mut Vec<u8>, bytes: &[u8]| {
        for run in bytes.chunks(32) {
            out.push(run.len() as u8 - 1);
            out.extend_from_slice(run);
        }
    };
    while at < input.len() {
        let found = input.get(at..at + 3).and_then(|three| last.insert(three, at)).filter(|from| at - from <= 8192);
        let Some(from) = found else {
            at += 1;
            continue;
        };
        let same = input[from..].iter().zip(&input[at..]).take(264).take_while(|(a, b)| a == b).count();
        flush(&mut out, &input[literal..at]);
        let back = at - from - 1;
        if same - 2 < 7 {
            out.push(((same - 2) << 5 | back >> 8) as u8);
        } else {
            out.extend_from_slice(&[(7 << 5 | back >> 8) as u8, (same - 9) as u8]);
        }
        out.push(back as u8);
        at += same;
        literal = at;
    }
    flush(&mut out, &input[literal..]);
    out
}

#[derive(Default)]
struct Collect(Vec<u8>);

impl ValueVisitor for Collect {
    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

fn unpacked(input: &[u8]) -> Vec<u8> {
    let stored = lzf(input);
    let mut raw = vec![0xc3];
    put_length(stored.len() as u64, &mut raw);
    put_length(input.len() as u64, &mut raw);
    raw.extend_from_slice(&stored);
    let mut out = Collect::default();
    decode(0, Family::Redis, &mut &raw[..], &mut out).expect("LZF");
    assert_eq!(meaning(0, Family::Redis, &raw).elements, 1);
    out.0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn compressed_strings_come_back(words in prop::collection::vec((any::<[u8; 4]>(), 1_usize..3000), 0..120)) {
        let input: Vec<u8> = words.iter().flat_map(|(w, n)| w.iter().copied().cycle().take(*n)).collect();
        prop_assert!(unpacked(&input) == input);
    }

    #[test]
    fn lengths_and_numbers_come_back(number: u64, shift in 0_u32..64, signed: i64) {
        let mut out = Vec::new();
        put_length(number >> shift, &mut out);
        let mut rest = &out[..];
        prop_assert_eq!(length(&mut rest).expect("length"), number >> shift);
        prop_assert!(rest.is_empty());
        let short = signed >> shift;
        prop_assert_eq!(decimal(short, &mut [0; DIGITS]).to_vec(), short.to_string().into_bytes());
    }
}

#[test]
fn a_window_of_compressed_bytes_reaches_far_enough_back() {
    // Repeats at just the greatest distance, over many windows.
    let block: Vec<u8> =
        (0..8192_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).take(8192).collect();
    let input = block.repeat(60);
    assert!(lzf(&input).len() < input.len() / 20, "the compressor finds them");
    assert!(unpacked(&input) == input);
    assert_eq!(decimal(i64::MIN, &mut [0; DIGITS]), i64::MIN.to_string().as_bytes());
}
