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

/// A manifest root or page, or the kept things of a backup, named by the hash of its bytes.
pub fn root(cluster: &ClusterName, hash: &Hash) -> String {
    format!("{}/{hash}", roots_dir(cluster))
}

/// A pack. The first two digits of the id are a folder, so that no folder of a file store grows without bound.
pub fn pack(cluster: &ClusterName, id: &PackId) -> String {
    let id = id.to_string();
    format!("{CLUSTERS}/{cluster}/packs/{}/{id}", &id[..2])
}

/// The pack whose key ends like this; `None` for a key that is no pack's.
pub fn pack_id(path: &str) -> Option<PackId> {
    let (folder, id) = path.rsplit_once('/')?;
    let id = id.parse::<PackId>().ok().filter(|parsed| parsed.to_string() == id)?;
    folder.ends_with(&format!("/{}", &id.to_string()[..2])).then_some(id)
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
    format!("{}/{revision:0DIGITS$}", job_dir(cluster, id))
}

/// Folder of a job's record.
pub fn job_dir(cluster: &ClusterName, id: &JobId) -> String {
    format!("{}/{id}", jobs_dir(cluster))
}

/// The job whose record a key of [`job`] is.
pub fn job_of(path: &str) -> Option<JobId> {
    path.rsplit('/').nth(1)?.parse().ok()
}

/// The root or page whose key of [`root`] this is.
pub fn root_of(path: &str) -> Option<Hash> {
    Hash::parse(path.rsplit('/').next()?)
}

/// Folder of a cluster's manifest roots and pages.
pub fn roots_dir(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/roots")
}

/// Limits of rates.
pub fn limits(number: u64) -> String {
    format!("{LIMITS}/{number:0DIGITS$}")
}

/// Folder of a cluster's log segments.
pub fn log_dir(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/log")
}

/// A log segment.
pub fn log(cluster: &ClusterName, number: u64) -> String {
    format!("{}/{number:0DIGITS$}", log_dir(cluster))
}

/// Folder of a cluster's merged log segments.
pub fn merged_log_dir(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/log-merged")
}

/// A merged log segment, which stands for those from `first` to `last`.
pub fn merged_log(cluster: &ClusterName, first: u64, last: u64) -> String {
    format!("{}/{first:0DIGITS$}-{last:0DIGITS$}", merged_log_dir(cluster))
}

/// First and last of a key of [`merged_log`].
pub fn merged_log_of(path: &str) -> Option<(u64, u64)> {
    let (first, last) = path.rsplit('/').next()?.split_once('-')?;
    Some((number(first)?, number(last)?)).filter(|(first, last)| first < last)
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

/// The number at the end of a key of [`key`], [`epoch`], [`ledger`], [`job`], [`limits`], [`log`] or
/// [`events`].
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
        let pack = PackId::from_u128(7 << 120);
        assert_eq!(pack_id(&super::pack(&c, &pack)), Some(pack));
        assert_eq!(pack_id(&format!("packs/00/{pack}")), None, "in another folder");
        assert_eq!(pack_id("packs/07/x"), None);
        assert_eq!(number("ledger/12"), None);
        let hash = Hash::of(b"root");
        assert_eq!(root_of(&root(&c, &hash)), Some(hash));
        let record = job(&c, &JobId::from_u128(5), 3);
        assert_eq!((job_of(&record), number(&record)), (Some(JobId::from_u128(5)), Some(3)));
        assert_eq!((root_of("x/y"), job_of("y")), (None, None));
        let id = JobId::from_u128(7 << 90);
        assert_eq!(events_of(&events(&c, &id, 3)), Some((id, 3)));
        assert_eq!(events_of("events/x/00000000000000000003"), None);
        assert_eq!(number("x/0000000000000000000a"), None);
        assert_eq!(merged_log_of(&merged_log(&c, 3, 12)), Some((3, 12)));
        assert_eq!((merged_log_of("x/3-12"), merged_log_of(&merged_log(&c, 5, 5))), (None, None));
    }
}
