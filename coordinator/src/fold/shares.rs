//! Shares of the slots that are worked off at once.
//!
//! A share is made of whole regions: a chunk of the log is opened for one of them, and so is a part of the backup. Commands of
//! several slots are opened for all.

use futures::FutureExt;
use tidemark_proto::slot::SLOT_COUNT;
use tidemark_proto::{Result, SlotSet};

use super::{CommandFold, ties};

/// Most shares, and servers, at once.
const MOST_SHARES: usize = 4;
/// Raw bytes of the log for which a share, and the start of its server, is worth it.
const LEAST_SHARE: u64 = 8 << 20;
/// One of so many raw bytes may be of commands of several slots, which each share reads.
const MOST_EVERYWHERE: u64 = 4;

impl CommandFold {
    /// The shares in which all slots are worked off: one where commands tie slots together, or where more are not worth it.
    pub async fn shares(&self) -> Result<Vec<SlotSet>> {
        let raw = |pieces: &[_]| pieces.iter().map(|p| u64::from(self.log.chunk(*p).1.raw_len)).sum::<u64>();
        let (all, everywhere) = (self.log.raw_bytes(), raw(self.log.everywhere()));
        let (most, least) = self.most_shares;
        let most = usize::try_from(all / least.max(1)).unwrap_or(most).min(most);
        let alone = || vec![SlotSet::all()];
        if most < 2 || everywhere > all / MOST_EVERYWHERE {
            return Ok(alone());
        }
        if let Some(tie) = ties::ties_slots(&self.manifest, &self.log, self.at).boxed().await? {
            tracing::debug!(%tie, "slots are tied together: one share");
            return Ok(alone());
        }
        let mut regions: Vec<(u16, u64)> = self.log.regions().map(|r| (r, raw(self.log.pieces(r)))).collect();
        regions.sort_unstable();
        Ok(divide(&regions, self.manifest.root().slots_per_region.max(1), most))
    }

    /// With at most so many shares, each for at least so many raw bytes of the log.
    pub fn with_shares(self, most: usize, least: u64) -> Self {
        Self { most_shares: (most, least), ..self }
    }
}

/// How many shares there are at most on this machine, and for how many raw bytes of the log each is worth it.
pub(super) fn usual() -> (usize, u64) {
    (std::thread::available_parallelism().map_or(1, usize::from).min(MOST_SHARES), LEAST_SHARE)
}

/// All slots in at most `most` shares of regions, with about as many bytes each.
fn divide(regions: &[(u16, u64)], each: u16, most: usize) -> Vec<SlotSet> {
    let all: u64 = regions.iter().map(|(_, bytes)| bytes).sum();
    let (mut shares, mut first, mut sum) = (Vec::new(), 0u32, 0);
    for &(region, bytes) in regions {
        let begins = u32::from(region) * u32::from(each);
        // A share ends before the region with whose bytes more of them would lie behind its bound than before it.
        let bound = (shares.len() as u64 + 1) * all / most as u64;
        if shares.len() + 1 < most && sum > 0 && sum + bytes / 2 >= bound && begins > first {
            shares.push(SlotSet::range(first as u16, (begins - 1) as u16));
            first = begins;
        }
        sum += bytes;
    }
    shares.push(SlotSet::range(first as u16, SLOT_COUNT - 1));
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_about_as_many_bytes() {
        let even: Vec<(u16, u64)> = (0..256).map(|r| (r, 10)).collect();
        let range = |first, last| SlotSet::range(first, last);
        assert_eq!(divide(&even, 64, 2), [range(0, 8191), range(8192, 16383)]);
        assert_eq!(divide(&even, 64, 4).len(), 4);
        assert_eq!(divide(&even, 64, 1), [SlotSet::all()]);
        assert_eq!(divide(&[], 64, 4), [SlotSet::all()]);
        // All in one region: nothing to be divided.
        assert_eq!(divide(&[(7, 1000)], 64, 4), [SlotSet::all()]);
        let uneven = [(0, 900), (1, 50), (200, 50)];
        assert_eq!(divide(&uneven, 64, 2), [range(0, 63), range(64, 16383)]);
        let found = divide(&[(3, 1), (5, 1), (9, 2), (255, 1)], 64, 4);
        let whole = found.iter().fold(SlotSet::EMPTY, |all, share| {
            assert!(all.intersect(share).is_empty() && share.ranges()[0].0 % 64 == 0);
            all.union(share)
        });
        assert_eq!(whole, SlotSet::all());
    }
}
