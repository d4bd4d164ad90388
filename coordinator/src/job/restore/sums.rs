//! The comparison with the manifest: what all nodes together have read of each part must be what the manifest says.
//!
//! A part that one node takes whole is compared at once; of a part that several nodes share, the sum is kept from its
//! first share to its last.

use std::collections::{BTreeMap, HashMap};

use tidemark_proto::hash::SetDigest;
use tidemark_proto::stored::manifest::PartEntry;
use tidemark_proto::wire::control::LoadedPart;
use tidemark_proto::{Error, Result, SlotSet};

use super::share::Batch;

/// What a node has loaded so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Loaded {
    /// Parts.
    pub parts: u64,
    /// Digest of the records given to the loader.
    pub digest: SetDigest,
}

/// Sums over all nodes.
#[derive(Debug, Default)]
pub struct Sums {
    /// Parts of which shares are still out: the slots read so far, and what was in them.
    open: HashMap<u32, (u32, SetDigest)>,
    /// Parts that were compared.
    compared: u64,
}

impl Sums {
    /// Takes what a node with `slots` says of a batch. `Damaged` when a part was read as something else than the
    /// manifest has.
    pub fn take(&mut self, batch: &Batch, slots: &SlotSet, done: Vec<LoadedPart>) -> Result<Loaded> {
        let mut sum = Loaded::default();
        let mut answers: BTreeMap<u32, LoadedPart> = done.into_iter().map(|p| (p.number, p)).collect();
        for (number, part) in batch {
            let missing = || Error::bug(format!("a node ended a load without part {number}"));
            let answer = answers.remove(number).ok_or_else(missing)?;
            sum.parts += 1;
            sum.digest = sum.digest.plus(answer.loaded);
            self.add(*number, part, part.slots.intersect(slots).len(), answer.source)?;
        }
        match answers.keys().next() {
            None => Ok(sum),
            Some(number) => Err(Error::bug(format!("a node loaded part {number}, which it was not given"))),
        }
    }

    fn add(&mut self, number: u32, part: &PartEntry, share: u32, source: SetDigest) -> Result<()> {
        let (slots, sum) = self.open.get(&number).copied().unwrap_or_default();
        let (slots, sum) = (slots + share, sum.plus(source));
        if slots < part.slots.len() {
            let _ = self.open.insert(number, (slots, sum));
            return Ok(());
        }
        let _ = self.open.remove(&number);
        self.compared += 1;
        if sum == part.digest {
            return Ok(());
        }
        Err(Error::damaged(format!(
            "part {number} (region {}): read {} records where the manifest has {}, or other content",
            part.region, sum.count, part.digest.count
        )))
    }

    /// Every one of `parts` parts was compared.
    pub fn whole(&self, parts: u64) -> Result<()> {
        if self.open.is_empty() && self.compared == parts {
            return Ok(());
        }
        Err(Error::bug(format!("{} of {parts} parts were read and compared", self.compared)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidemark_proto::ErrorKind;

    use super::*;

    fn digest(records: &[u128]) -> SetDigest {
        let mut digest = SetDigest::default();
        records.iter().for_each(|r| digest.add(*r));
        digest
    }

    fn batch(number: u32, records: &[u128]) -> Batch {
        let part = PartEntry {
            region: 7,
            node: 0,
            slots: SlotSet::range(0, 9),
            lower: vec![],
            upper: vec![],
            digest: digest(records),
            live_bytes: 0,
            runs: vec![],
        };
        vec![(number, Arc::new(part))]
    }

    fn answer(number: u32, records: &[u128]) -> Vec<LoadedPart> {
        vec![LoadedPart { number, source: digest(records), loaded: digest(records) }]
    }

    #[test]
    fn shares_of_several_nodes_add_up() {
        let (mut sums, part) = (Sums::default(), batch(3, &[1, 2, 3]));
        let (left, right) = (SlotSet::range(0, 3), SlotSet::range(4, 16383));
        let loaded = sums.take(&part, &right, answer(3, &[2])).unwrap();
        assert_eq!((loaded.parts, loaded.digest.count), (1, 1));
        assert!(sums.whole(1).is_err(), "a share is still out");
        let _ = sums.take(&part, &left, answer(3, &[1, 3])).unwrap();
        sums.whole(1).unwrap();
        assert!(sums.open.is_empty() && sums.whole(2).is_err());
    }

    #[test]
    fn one_record_more_less_or_another_is_found() {
        for wrong in [&[1][..], &[1, 2, 3], &[1, 4], &[]] {
            let e = Sums::default().take(&batch(0, &[1, 2]), &SlotSet::all(), answer(0, wrong)).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Damaged, "{wrong:?}");
            assert!(e.message().contains("region 7"), "{e}");
        }
    }

    #[test]
    fn answers_fit_what_was_handed_out() {
        let all = SlotSet::all();
        assert!(Sums::default().take(&batch(0, &[]), &all, vec![]).is_err());
        assert!(Sums::default().take(&batch(0, &[]), &all, answer(1, &[])).is_err());
        let both = [answer(0, &[]), answer(1, &[])].concat();
        assert!(Sums::default().take(&batch(0, &[]), &all, both).is_err());
    }
}
