//! Golden bytes of log segments.

use super::*;

pub(super) fn segment() -> log::Segment {
    let node = log::SegmentNode {
        node: NodeName::new("n1").unwrap(),
        incarnation: Incarnation::from_u128(6),
        slots: SlotSet::from_ranges([(0, 99), (200, 300)]),
        from: 1 << 50,
        to: 2 << 50,
        closed: Timestamp(2 << 50),
        key_id: 1,
        salt: [2; 16],
        begins: 1,
    };
    let chunk = log::SegmentChunk {
        node: 0,
        region: 3,
        number: 1,
        offset: 8,
        len: 900,
        raw_len: 1000,
        entries: 10,
        first: Timestamp(5 << 48),
        last: Timestamp(6 << 48),
    };
    log::Segment {
        number: 12,
        first: 9,
        stands_for: Hash::of(b"last"),
        previous: Hash::of(b"before"),
        epoch: 9,
        put_id: [4; 16],
        at_millis: 1_700_000_000_000,
        slots_per_region: 64,
        nodes: vec![node],
        chunks: vec![chunk],
    }
}

#[test]
fn golden_bytes_of_the_log() {
    archive!("log-segment", segment());
    let entry = log::LogEntry {
        slot: 7,
        at: Timestamp(1 << 50),
        key: b"key",
        put: Some((b"m", b"value")),
        kind: log::EntryKind::Record,
    };
    let mut bytes = Vec::new();
    entry.encode(&mut bytes);
    log::LogEntry { put: None, ..entry }.encode(&mut bytes);
    check_stored(FILE, "log-entries", &bytes, Clone::clone, |kept| Ok(kept.to_vec()));
    let trailer = log::Trailer { key_id: 1, salt: [7; 16], offset: 1 << 33, len: 5, version: log::FOOTER_VERSION };
    check_stored(
        FILE,
        "log-trailer",
        &trailer,
        |t| t.encode().to_vec(),
        |b| log::Trailer::decode(b.try_into().unwrap()),
    );
}

#[test]
fn golden_bytes_of_a_log_of_commands() {
    let pointed = log::PointedSegment { segment: segment(), points: vec![Timestamp(3 << 50), Timestamp(4 << 50)] };
    archive!("log-segment-pointed", pointed);
    let command = log::LogEntry {
        slot: 7,
        at: Timestamp(1 << 50),
        key: b"key",
        put: Some((&[3], b"*2\r\n$4\r\nINCR\r\n$3\r\nkey\r\n")),
        kind: log::EntryKind::Command,
    };
    let mut bytes = Vec::new();
    log::LogEntry { kind: log::EntryKind::CommandPart, ..command }.encode(&mut bytes);
    command.encode(&mut bytes);
    log::LogEntry { slot: log::ALL_SLOTS, key: b"", ..command }.encode(&mut bytes);
    let mut rest = &bytes[..];
    let first = log::take_entry(&mut rest).unwrap().unwrap();
    assert_eq!((first.kind, log::take_entry(&mut rest).unwrap()), (log::EntryKind::CommandPart, Some(command)));
    assert_eq!(log::database(command.put.unwrap().0).unwrap(), 3);
    check_stored(FILE, "log-commands", &bytes, Clone::clone, |kept| Ok(kept.to_vec()));
    let trailer =
        log::Trailer { key_id: 1, salt: [7; 16], offset: 9, len: 5, version: log::POINTED_FOOTER_VERSION };
    check_stored(
        FILE,
        "log-trailer-pointed",
        &trailer,
        |t| t.encode().to_vec(),
        |b| log::Trailer::decode(b.try_into().unwrap()),
    );
}
