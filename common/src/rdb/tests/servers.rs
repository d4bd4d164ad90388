//! What newer servers write otherwise than those before them.

use super::*;

#[test]
fn items_at_the_borders_of_their_lengths_are_read_as_either_server_writes_them() {
    let listpack = |len: usize, behind: &[u8]| {
        let text = vec![b'x'; len - 5];
        let item = [&[0xf0][..], &(text.len() as u32).to_le_bytes(), &text, behind].concat();
        let body = [&item[..], &[0x81, b'v', 2], &[0x81, b'g', 2], &[0x81, b'w', 2], &[0xff]].concat();
        let head = [&((6 + body.len()) as u32).to_le_bytes()[..], &4u16.to_le_bytes()].concat();
        let mut out = Vec::new();
        put_text(&[head, body].concat(), &mut out);
        out
    };
    // `lpEncodeBacklen` of Redis and of Valkey before 9.1, and that of Valkey 9.1.
    for (len, redis, valkey) in [
        (16_383, &[0, 0xff, 0xff][..], &[0x7f, 0xff][..]),
        (2_097_151, &[0, 0xff, 0xff, 0xff], &[0x7f, 0xff, 0xff]),
    ] {
        let (one, other) = (listpack(len, redis), listpack(len, valkey));
        let known = meaning(16, Family::Redis, &one);
        assert_eq!((known.elements, known.meaning), (2, meaning(16, Family::Valkey, &other).meaning), "{len}");
        assert_eq!(meaning(16, Family::Redis, &listpack(len - 1, &tail_of(len - 1))).elements, 2);
        assert!(meaning_of(16, Family::Redis, &listpack(len, &[])).is_err());
    }
}

/// The bytes behind an item whose length is at no border.
fn tail_of(len: usize) -> Vec<u8> {
    let mut rest = len >> 7;
    let mut out = vec![len as u8 & 0x7f | 0x80];
    while rest > 0x7f {
        out.push(rest as u8 & 0x7f | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    out.reverse();
    out
}

#[test]
fn streams_that_remember_their_producers_mean_the_same_without() {
    // One group with a consumer, which was seen and active; then for 100 s and 100 entries, two producers, and what was counted.
    let head = [0, 0, 7, 3, 0, 0, 0, 0, 9, 1];
    let group = [&texts(&["g"])[..], &[7, 3, 0], &[0], &[1], &texts(&["c"])].concat();
    let (seen, active) = (AT.to_le_bytes(), (AT + 1).to_le_bytes());
    let old = [&head[..], &group, &seen, &[0]].concat();
    let newer = [&head[..], &group, &seen, &active, &[0]].concat();
    let sent = [&texts(&["one"])[..], &[2], &texts(&["a"]), &[7, 1], &texts(&["b"]), &[7, 3]].concat();
    let other = [&texts(&["another"])[..], &[0]].concat();
    let newest = [&newer[..], &[0x40, 100, 0x40, 100, 2], &sent, &other, &[2, 1]].concat();
    let known = meaning(26, Family::Redis, &newest);
    assert_eq!(known.meaning, meaning(21, Family::Redis, &newer).meaning);
    for (target, wanted) in [(26, &newest), (21, &newer), (19, &old)] {
        let mut out = Vec::new();
        convert(26, &mut &newest[..], target, &mut out).expect("a way");
        assert_eq!(&out, wanted, "to {target}");
    }
    for len in newer.len()..newest.len() {
        assert!(meaning_of(26, Family::Redis, &newest[..len]).is_err(), "cut at {len}");
    }
    assert!(meaning_of(26, Family::Valkey, &newest).is_err());
}
