use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[test]
fn slots_are_those_of_redis_cluster() {
    // Values answered by `CLUSTER KEYSLOT` of Redis 7.0.
    assert_eq!(crc16(b"123456789"), 0x31c3);
    assert_eq!(slot_of(b"foo"), 12182);
    assert_eq!(slot_of(b"bar"), 5061);
    assert_eq!(slot_of(b""), 0);
    assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
    assert_eq!(slot_of(b"foo{}{bar}"), crc16(b"foo{}{bar}") & 16383);
    assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
    assert_eq!(slot_of(b"foo{bar}{zap}"), slot_of(b"bar"));
}

#[test]
fn regions_tile_all_slots() {
    let map = RegionMap::new(64).unwrap();
    assert_eq!(map.count(), 256);
    let all = (0..map.count()).fold(SlotSet::EMPTY, |acc, r| acc.union(&map.slots(r)));
    assert_eq!(all, SlotSet::all());
    assert!(RegionMap::new(0).is_err() && RegionMap::new(48).is_err());
    assert_eq!(RegionMap::new(16384).unwrap().slots(0), SlotSet::all());
}

#[test]
fn text_form_comes_back_and_refuses_nonsense() {
    assert_eq!("5-9,0-3,4".parse::<SlotSet>().unwrap(), SlotSet::range(0, 9));
    for bad in ["x", "9-5", "0-16384", "1-2-3"] {
        assert!(bad.parse::<SlotSet>().is_err(), "{bad}");
    }
    assert!("".parse::<SlotSet>().unwrap().is_empty());
}

fn any_set() -> impl Strategy<Value = SlotSet> {
    proptest::collection::vec((0u16..300, 0u16..20), 0..12)
        .prop_map(|v| SlotSet::from_ranges(v.into_iter().map(|(a, n)| (a, a + n))))
}

fn model(s: &SlotSet) -> BTreeSet<u16> {
    s.iter().collect()
}

#[test]
fn even_shares_are_those_of_redis_cli() {
    let shares: Vec<_> = (0..3).map(|i| even_share(i, 3).to_string()).collect();
    assert_eq!(shares, ["0-5460", "5461-10922", "10923-16383"]);
}

proptest! {
    #[test]
    fn set_algebra_equals_a_model(a in any_set(), b in any_set()) {
        let (ma, mb) = (model(&a), model(&b));
        prop_assert_eq!(model(&a.union(&b)), &ma | &mb);
        prop_assert_eq!(model(&a.intersect(&b)), &ma & &mb);
        prop_assert_eq!(model(&a.minus(&b)), &ma - &mb);
        prop_assert!(a.union(&b).is_canonical() && a.intersect(&b).is_canonical() && a.minus(&b).is_canonical());
        prop_assert_eq!(a.len() as usize, ma.len());
        for s in 0..330 {
            prop_assert_eq!(a.contains(s), ma.contains(&s));
        }
        prop_assert_eq!(a.to_string().parse::<SlotSet>().unwrap(), a);
    }

    #[test]
    fn even_shares_tile(n in 1u16..200) {
        let mut seen = SlotSet::EMPTY;
        for i in 0..n {
            let share = even_share(i, n);
            prop_assert!(seen.intersect(&share).is_empty());
            seen = seen.union(&share);
        }
        prop_assert_eq!(seen, SlotSet::all());
    }
}

proptest! {
    /// Bit by bit, as the polynomial says.
    #[test]
    fn checksums_of_all_lengths(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let bit_by_bit = bytes.iter().fold(0u16, |crc, byte| {
            (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| crc << 1 ^ if crc >> 15 == 1 { 0x1021 } else { 0 })
        });
        prop_assert_eq!(crc16(&bytes), bit_by_bit);
    }
}
