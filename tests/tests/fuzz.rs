//! The corpora of the fuzz targets, and mutations of them, on the stable toolchain: no decoder panics, none takes memory
//! without bound. `TIDEMARK_CORPUS_ADD=1` writes the seeds that are missing to `fuzz/corpus`.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_proto::stored::envelope::{CHECKSUM_LEN, HEADER_LEN};
use tidemark_tests::bench::peak_rss_mib;
use tidemark_tests::fuzz::TARGETS;

/// Mutations of each file of a corpus.
const MUTATIONS: u64 = 400;
/// Longest input that mutations grow to, in bytes.
const MAX_INPUT: usize = 4096;
/// Peak of the resident set of all of this, in MiB.
const MOST_MEMORY: u64 = 512;
/// Size of all corpora together, in bytes.
const MOST_CORPUS: u64 = 1 << 20;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("workspace").to_owned()
}

fn golden(file: &str) -> Vec<(String, Vec<u8>)> {
    let text = std::fs::read_to_string(top().join(file)).expect("golden bytes");
    let line =
        |l: &str| l.split_once(' ').map(|(n, hex)| (n.to_owned(), HEXLOWER.decode(hex.as_bytes()).expect("hex")));
    text.lines().filter_map(line).collect()
}

/// Pieces with their lengths in front, as the target `run` takes them.
fn pieces(list: &[&[u8]]) -> Vec<u8> {
    list.iter().flat_map(|p| [&(p.len() as u16).to_le_bytes()[..], p].concat()).collect()
}

/// Seeds: golden bytes where there are some, else examples of the grammar.
fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut out = Vec::new();
    for (target, file) in [
        ("hello", "proto/golden/hello-v1.txt"),
        ("control", "proto/golden/control-v1.txt"),
        ("bulk", "proto/golden/bulk-v1.txt"),
        ("kv", "proto/golden/kv-v1.txt"),
        ("sealed", "common/golden/run-v1.txt"),
        ("envelope", "coordinator/golden/objects-v1.txt"),
    ] {
        out.extend(golden(file).into_iter().map(|(name, bytes)| (target, name, bytes)));
    }
    let small = [
        "repository",
        "key",
        "epoch",
        "job-record",
        "backup-begun",
        "backup-cut",
        "restore-begun",
        "restore-switching",
        "restore-ended",
        "job-events",
        "limits",
        "restore-with-users",
        "restore-at",
    ];
    for (name, bytes) in golden("proto/golden/stored-v1.txt") {
        let wrapped = bytes.starts_with(b"TIDE");
        if wrapped {
            out.push(("envelope", name.clone(), bytes.clone()));
        }
        let body = if wrapped { bytes[HEADER_LEN..bytes.len() - CHECKSUM_LEN].to_vec() } else { bytes };
        match &name[..] {
            "root" | "page" | "root-with-kept" | "kept-things" => out.push(("manifest", name, body)),
            "run-index" => out.push(("index", name, body)),
            _ if name.starts_with("log-") => out.push(("segment", name, body)),
            _ if name.starts_with("ledger-") => {
                out.push(("ledger", format!("{name}-entry"), body.clone()));
                (1..=11u8)
                    .for_each(|kind| out.push(("ledger", format!("{name}-{kind}"), [&[kind][..], &body].concat())));
            }
            _ => {
                let which = small.iter().position(|s| *s == name);
                out.extend(which.map(|w| ("small", name, [&[w as u8][..], &body].concat())));
            }
        }
    }
    let words: [(&'static str, &str, &[u8]); 24] = [
        ("frame", "header", &[16, 0, 0, 0, 21, 0, 1, 0]),
        ("run", "put", &pieces(&[&[0, 7, 0, 1, b'k', 0, 2, b'v', b'w'], &[1, 7, 0, 1, b'k']])),
        ("run", "long", &pieces(&[&[2, 7, 0, 1, b'k', 0, 0x81, 0x80, 0x40], &[b'x'; 64]])),
        ("run", "long-varint", &pieces(&[&[0, 7, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]])),
        ("config", "coordinator", include_bytes!("../../deploy/config/coordinator.example.toml")),
        ("config", "agent", include_bytes!("../../deploy/config/agent.example.toml")),
        ("config", "key", &[b'a'; 64]),
        ("requests", "restore", br#"{"cluster":"orders","backup":"latest","keys":["a*","!b"],"salvage":true}"#),
        ("requests", "verify", br#"{"cluster":"orders","backup":"3f","sample":12.5}"#),
        ("requests", "backup", br#"{"full":true,"automatic":false}"#),
        ("words", "agent", b"tidemark://agent/orders/n1"),
        ("words", "operator", b"tidemark://operator/alice"),
        ("words", "slots", b"0-100,200,300-16383"),
        ("words", "slots-odd", b"65535-0,,5-"),
        ("words", "ledger", b"clusters/orders/ledger/00000000000000000012"),
        ("words", "pack", b"clusters/orders/packs/07/07000000000000000000000000000000"),
        ("words", "job", b"clusters/orders/jobs/07000000000000000000000000000000/00000000000000000001"),
        (
            "words",
            "root",
            b"clusters/orders/roots/0707070707070707070707070707070707070707070707070707070707070707",
        ),
        ("glob", "star", b"a*b?[x-z]\nazzb.y"),
        ("glob", "class", b"[^a-\\]\nq"),
        ("glob", "escape", b"\\*\\\nx"),
        ("glob", "not", b"!user:*:[0-9]\nuser:a:7"),
        ("glob", "open", b"*[*[*[\n[[["),
        ("certificate", "sequence", &[0x30, 0x82, 0x01, 0x00, 0x30, 0x81, 0x10, 0xa0, 0x03, 0x02, 0x01, 0x02]),
    ];
    out.extend(words.into_iter().map(|(target, name, bytes)| (target, name.to_owned(), bytes.to_vec())));
    out.extend(rdb_seeds());
    let fleet = tidemark_common::testing::TestFleet::new();
    let identity = "tidemark://agent/orders/n1".parse().expect("identity");
    let paths = fleet.issue("n1", &identity, (-1, 1));
    let pem = std::fs::read_to_string(paths.cert).expect("certificate");
    let base64: String = pem.lines().filter(|l| !l.starts_with("---")).collect();
    out.push(("certificate", "agent".into(), data_encoding::BASE64.decode(base64.as_bytes()).expect("PEM")));
    out
}

/// RDB: single values of every type (the first byte is the type plus 4, or plus 128 for Valkey's), and a file made of
/// them. What real servers write was added to the corpus by hand.
fn rdb_seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let ziplist = b"\x0f\x0f\0\0\0\x0c\0\0\0\x02\0\0\xf3\x02\xf6\xff";
    let listpack = b"\x0b\x0b\0\0\0\x02\0\x01\x01\x02\x01\xff";
    let triples = b"\x0d\x0d\0\0\0\x03\0\x01\x01\x02\x01\x00\x01\xff";
    let values: [(u8, &[u8]); 20] = [
        (0, b"\xc3\x09\x14\x01aa\xe0\x07\x00\x01aa"),
        (0, b"\xc2\x01\x02\x03\x04"),
        (1, b"\x02\x01a\xc0\xff"),
        (2, b"\x01\x40\x05hello"),
        (3, b"\x02\x01a\x031.5\x01b\xfe"),
        (4, b"\x01\x01f\x80\0\0\0\x01v"),
        (5, b"\x01\x01a\0\0\0\0\0\0\xf0\x3f"),
        (7, b"\x81\x01\x02\x03\x04\x05\x06\x07\x08\x02\x05\x04\0\0\0\0\0\0\0\0\x05\x02hi\x00"),
        (9, b"\x0d\x01\x01k\x01\x02vxx\x01a\x00\x00\xff"),
        (10, ziplist),
        (11, b"\x0c\x02\0\0\0\x02\0\0\0\x01\0\xff\xff"),
        (13, ziplist),
        (14, &[&[1], &ziplist[..]].concat()),
        (16, listpack),
        (17, listpack),
        (18, &[&[2, 1, 1, b'p', 2], &listpack[..]].concat()),
        (20, listpack),
        (24, b"\x10\x27\0\0\0\0\0\0\x02\x01\x01f\x01v\x00\x01g\x01w"),
        (25, &[&[1, 0, 0, 0, 0, 0, 0, 0], &triples[..]].concat()),
        (22 + 124, b"\x01\x01f\x01v\xff\xff\xff\xff\xff\xff\xff\xff"),
    ];
    let each = values.iter().enumerate().map(|(i, (t, raw))| (format!("value-{i}-{t}"), [&[t + 4], *raw].concat()));
    let mut file = b"\x01\xfa\x09redis-ver\x057.2.0\xfe\x00\xfb\x02\x01\xf5\x03lib".to_vec();
    for (type_byte, raw) in values.iter().filter(|(t, _)| *t < 100) {
        file.extend_from_slice(&[0xfc, 0, 0, 0, 0, 0, 1, 0, 0, 0xf8, 9, *type_byte, 1, *type_byte]);
        file.extend_from_slice(raw);
    }
    file.extend_from_slice(&[0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut all: Vec<_> = each.chain([("file".to_owned(), file)]).collect();
    all.push((
        "valkey".into(),
        b"\x02\xfa\x0avalkey-ver\x059.0.0\xf3\x03job\x01\x00\x05\xf4\x01\x02\x03\xff\0\0\0\0\0\0\0\0".to_vec(),
    ));
    all.into_iter().map(|(name, bytes)| ("rdb", name, bytes)).collect()
}

/// The corpora by target.
fn corpora() -> BTreeMap<String, Vec<(PathBuf, Vec<u8>)>> {
    let mut out: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for (target, _) in TARGETS {
        let folder = top().join("fuzz/corpus").join(target);
        let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for file in files.map(|f| f.expect("entry").path()) {
            let bytes = std::fs::read(&file).expect("file");
            out.entry((*target).to_owned()).or_default().push((file, bytes));
        }
    }
    out
}

/// Changes an input a little, as bit rot, cuts and liars do.
fn mutate(rng: &mut StdRng, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..=out.len());
        match rng.random_range(0..7) {
            0 if at < out.len() => out[at] ^= 1 << rng.random_range(0..8),
            1 if at < out.len() => {
                out[at] = *[0, 1, 0x7f, 0x80, 0xff].get(rng.random_range(0..5)).expect("one of five")
            }
            2 => out.truncate(at),
            3 => out.insert(at, rng.random()),
            4 if at + 4 <= out.len() => {
                let number: u32 = [0, 1, u32::MAX, 1 << 31, rng.random()][rng.random_range(0..5)];
                out[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            5 => {
                let from = rng.random_range(0..=other.len());
                out.truncate(at);
                out.extend_from_slice(&other[from..]);
            }
            _ => out.extend_from_within(at..),
        }
    }
    out.truncate(MAX_INPUT);
    out
}

#[test]
fn no_decoder_panics_or_takes_memory_without_bound() {
    let (corpora, seed) = (corpora(), rand::random::<u64>());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tried = 0;
    for (name, target) in TARGETS {
        let files = &corpora[*name];
        let run = |bytes: &[u8], from: &Path| {
            let ended = catch_unwind(AssertUnwindSafe(|| target(bytes)));
            assert!(ended.is_ok(), "seed {seed}: {name}, from {}: {}", from.display(), HEXLOWER.encode(bytes));
        };
        for (path, bytes) in files {
            run(bytes, path);
            for _ in 0..MUTATIONS {
                let other = &files[rng.random_range(0..files.len())].1;
                run(&mutate(&mut rng, bytes, other), path);
                tried += 1;
            }
        }
        for len in 0..64 {
            run(&vec![0xff; len], Path::new("all ones"));
        }
    }
    let peak = peak_rss_mib(std::process::id());
    eprintln!("{tried} mutations, peak {peak} MiB");
    assert!((1..MOST_MEMORY).contains(&peak), "peak of the resident set: {peak} MiB");
}

#[test]
fn seeds_stand_in_the_corpora() {
    let add = std::env::var_os("TIDEMARK_CORPUS_ADD").is_some();
    let (mut all, folder) = (0, top().join("fuzz/corpus"));
    for (target, name, bytes) in seeds() {
        assert!(TARGETS.iter().any(|(t, _)| *t == target), "{target} is no target");
        let path = folder.join(target).join(name);
        if add && !path.exists() {
            std::fs::create_dir_all(folder.join(target)).expect("folder");
            std::fs::write(&path, bytes).expect("seed");
        }
        assert!(path.exists(), "{}: TIDEMARK_CORPUS_ADD=1 writes it", path.display());
    }
    for files in corpora().values() {
        all += files.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    }
    assert!(all < MOST_CORPUS, "corpora of {all} bytes");
}

/// A seed that is refused at its first byte would lead a fuzzer nowhere.
#[test]
fn seeds_of_values_are_valid() {
    use tidemark_common::rdb::{Family, meaning_of};
    for (_, name, bytes) in rdb_seeds().into_iter().filter(|(_, name, _)| name.starts_with("value-")) {
        let (type_byte, family) =
            if bytes[0] < 128 { (bytes[0] - 4, Family::Redis) } else { (bytes[0] - 128, Family::Valkey) };
        let found = meaning_of(type_byte, family, &bytes[1..]);
        assert!(found.is_ok_and(|summary| summary.elements > 0), "{name}");
    }
}

/// A target that nobody fuzzes, or a fuzzer of nothing.
#[test]
fn every_target_has_its_fuzzer() {
    let names = |entries: std::fs::ReadDir| -> Vec<String> {
        let mut names: Vec<String> = entries
            .map(|e| e.expect("entry").path().file_stem().expect("name").to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let mut targets: Vec<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    targets.sort();
    assert_eq!(names(std::fs::read_dir(top().join("fuzz/fuzz_targets")).expect("targets")), targets);
}
