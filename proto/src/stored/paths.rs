//! Where objects lie: the one place that builds and parses object keys. All are relative to the repository's URL.

use crate::hash::Hash;
use crate::id::{ClusterName, JobId, PackId};

/// Digits of a number in a key, so that keys sort like numbers.
const DIGITS: usize = 20;

/// The repository's description.
pub const REPOSITORY: &str = "repository";
/// Folder of wrapped keys.
pub const KEYS: &str = "keys";
/// Folder of coordinator epochs.
pub const EPOCHS: &str = "epochs";
/// Folder of clusters.
pub const CLUSTERS: &str = "clusters";
/// Folder of limits of rates.
pub const LIMITS: &str = "limits";
/// Folder of the start-up probe's objects.
pub const PROBE: &str = "probe";

/// A wrapped key.
pub fn key(number: u64) -> String {
    format!("{KEYS}/{number:0DIGITS$}")
}

/// A coordinator's epoch.
pub fn epoch(number: u64) -> String {
    format!("{EPOCHS}/{number:0DIGITS$}")
}

/// Folder of a cluster's ledger.
pub fn ledger_dir(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/ledger")
}

/// A ledger entry.
pub fn ledger(cluster: &ClusterName, number: u64) -> String {
    format!("{}/{number:0DIGITS$}", ledger_dir(cluster))
}

/// A manifest root or page, named by the hash of its bytes.
pub fn root(cluster: &ClusterName, hash: &Hash) -> String {
    format!("{CLUSTERS}/{cluster}/roots/{hash}")
}

/// A pack. The first two digits of the id are a folder, so that no folder of a file store grows without bound.
pub fn pack(cluster: &ClusterName, id: &PackId) -> String {
    let id = id.to_string();
    format!("{CLUSTERS}/{cluster}/packs/{}/{id}", &id[..2])
}

/// Folder of a cluster's packs.
pub fn packs_dir(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/packs")
}

/// Folder of a cluster's job records.
pub fn jobs_dir(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/jobs")
}

/// A revision of a job record.
pub fn job(cluster: &ClusterName, id: &JobId, revision: u64) -> String {
    format!("{}/{id}/{revision:0DIGITS$}", jobs_dir(cluster))
}

/// Limits of rates.
pub fn limits(number: u64) -> String {
    format!("{LIMITS}/{number:0DIGITS$}")
}

/// Folder of the events of a cluster's jobs.
pub fn events_dir(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/events")
}

/// A revision of a job's events.
pub fn events(cluster: &ClusterName, job: &JobId, revision: u64) -> String {
    format!("{}/{job}/{revision:0DIGITS$}", events_dir(cluster))
}

/// Job and revision of a key of [`events`].
pub fn events_of(path: &str) -> Option<(JobId, u64)> {
    let job = path.rsplit('/').nth(1)?.parse().ok()?;
    Some((job, number(path)?))
}

/// The number at the end of a key of [`key`], [`epoch`], [`ledger`], [`job`], [`limits`] or [`events`].
pub fn number(path: &str) -> Option<u64> {
    let last = path.rsplit('/').next()?;
    (last.len() == DIGITS && last.bytes().all(|b| b.is_ascii_digit())).then(|| last.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sort_and_come_back() {
        let c = ClusterName::new("c").unwrap();
        assert!(ledger(&c, 9) < ledger(&c, 10));
        for n in [0, 1, u64::MAX] {
            assert_eq!(number(&ledger(&c, n)), Some(n));
        }
        assert_eq!(number("ledger/12"), None);
        let job = JobId::from_u128(7 << 90);
        assert_eq!(events_of(&events(&c, &job, 3)), Some((job, 3)));
        assert_eq!(events_of("events/x/00000000000000000003"), None);
        assert_eq!(number("x/0000000000000000000a"), None);
    }
}
