//! Every kind of stored object, every kind of damage: what is hit is named, nothing wrong is ever given out, nothing
//! panics.

#[path = "damage/kept.rs"]
mod kept;

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemark_coordinator::extract::{Encoding, Lines, extract};
use tidemark_coordinator::history::{History, Seen};
use tidemark_coordinator::job::damage::Damage;
use tidemark_coordinator::job::restore::{Candidate, RestoreRequest, open_manifest, plan_onto};
use tidemark_coordinator::job::verify::{self, VerifyRequest};
use tidemark_coordinator::job::{JobKind, Jobs, check};
use tidemark_coordinator::repository::{Ledger, Repository};
use tidemark_proto::stored::ledger::Backup;
use tidemark_proto::stored::paths;
use tidemark_proto::{ErrorKind, Result, SlotSet, slot_of};
use tidemark_tests::archive::{Archive, SLOTS_PER_REGION, Slotted, cluster, store_of};
use tokio_util::sync::CancellationToken;

/// What happens to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    /// A bit in the middle is flipped.
    Flip,
    /// A bit near the end is flipped (a pack's last index, an object's seal).
    FlipLate,
    /// The second half is gone.
    Cut,
    /// It is another one of its kind.
    Swap,
    /// It is not there.
    Gone,
}

const BLOWS: [Blow; 5] = [Blow::Flip, Blow::FlipLate, Blow::Cut, Blow::Swap, Blow::Gone];

/// What reading the damaged repository came to.
struct Outcome {
    /// Opening it anew.
    opened: Result<()>,
    /// The check of a coordinator that had opened it before.
    check: Result<serde_json::Value>,
    /// Verification of each backup: its error, and the damage that programs read.
    verified: Vec<(Result<serde_json::Value>, Option<Damage>)>,
    /// The plan of a restore of each backup.
    planned: Vec<Result<()>>,
    /// The records of each backup.
    extracted: Vec<Result<Slotted>>,
}

impl Outcome {
    /// The words of check and opening.
    fn told(&self) -> String {
        let check = self.check.as_ref().err().map(|e| e.report());
        let opened = self.opened.as_ref().err().map(|e| e.report());
        [check, opened].into_iter().flatten().collect::<Vec<_>>().join("\n")
    }
}

async fn records(repository: &Repository, backup: &Backup) -> Result<Slotted> {
    let manifest = open_manifest(repository, &cluster(), backup).await?;
    let lines = Lines::new(Vec::new(), Encoding::Text);
    let (_, lines) = extract(&manifest, Default::default(), lines, &CancellationToken::new()).await?;
    let mut found = Slotted::new();
    for line in String::from_utf8(lines.into_inner()).expect("UTF-8").lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let (key, value) = (line["key"].as_str().expect("text"), line["value"].as_str().expect("text"));
        let _ = found.insert((slot_of(key.as_bytes()), key.into()), value.into());
    }
    Ok(found)
}

fn request(salvage: bool) -> RestoreRequest {
    let request =
        serde_json::json!({"cluster": "orders", "backup": "latest", "target": "copy", "salvage": salvage});
    serde_json::from_value(request).expect("request")
}

async fn plan(repository: &Repository, backup: &Backup, salvage: bool) -> Result<Damage> {
    let manifest = open_manifest(repository, &cluster(), backup).await?;
    let node = Candidate {
        node: "t0".parse()?,
        engine: "memory".into(),
        engine_version: String::new(),
        replica: false,
        slots: SlotSet::all(),
        moving: SlotSet::EMPTY,
        records: 0,
    };
    let plan = plan_onto(manifest, vec![node], request(salvage)).await?;
    assert!(plan.problems.is_empty(), "{:?}", plan.problems);
    Ok(plan.missing)
}

/// Reads a repository in every way there is, after its objects have become `objects`.
async fn read(archive: &Archive, objects: &BTreeMap<String, Bytes>) -> Outcome {
    let store = store_of(&archive.objects).await;
    let before = Repository::open(store.clone(), archive.master.as_ref()).await.expect("whole");
    let ledger = Ledger::load(&before, &cluster()).await.expect("whole");
    let history = History::default();
    history.check(&cluster(), &ledger).expect("whole");
    for key in archive.objects.keys() {
        match objects.get(key) {
            Some(body) => store.put(key, body.clone()).await.expect("put"),
            None => store.delete(key).await.expect("delete"),
        }
    }
    let opened = Repository::open(store, archive.master.as_ref()).await.map(drop);
    let jobs = Jobs::default();
    let begin = |kind| jobs.begin(kind, &cluster(), false, 1).expect("job");
    let seen: Option<Seen> = history.of(&cluster());
    let check = check::run(before.clone(), begin(JobKind::Check), cluster(), seen, Vec::new()).await;
    let mut outcome = Outcome { opened, check, verified: Vec::new(), planned: Vec::new(), extracted: Vec::new() };
    for (backup, _) in &archive.backups {
        let job = begin(JobKind::Verify);
        let request = VerifyRequest { cluster: cluster(), backup: backup.job.to_string(), sample: 100.0 };
        let verified = verify::run(before.clone(), job.clone(), request).await;
        let damage = job.info().result.map(|r| serde_json::from_value(r["damage"].clone()).expect("damage"));
        outcome.verified.push((verified, damage));
        outcome.planned.push(plan(&before, backup, false).await.map(drop));
        outcome.extracted.push(records(&before, backup).await);
    }
    outcome
}

/// The repository after `blow` at `key`; `twin` is another object of its kind.
fn strike(archive: &Archive, key: &str, twin: &Bytes, blow: Blow) -> BTreeMap<String, Bytes> {
    let mut objects = archive.objects.clone();
    let mut bytes = objects.remove(key).expect("an object of that key").to_vec();
    let len = bytes.len();
    match blow {
        Blow::Gone => return objects,
        Blow::Flip => bytes[len / 2] ^= 0x10,
        Blow::FlipLate => bytes[len - 24] ^= 1,
        Blow::Cut => bytes.truncate(len / 2),
        Blow::Swap => bytes = twin.to_vec(),
    }
    let _ = objects.insert(key.to_owned(), bytes.into());
    objects
}

struct Bench {
    archive: Archive,
    /// Of another repository with the same cluster and the same records.
    other: Archive,
}

impl Bench {
    async fn new(encrypted: bool) -> Self {
        let make = || Box::pin(Archive::make(encrypted));
        Self { archive: make().await, other: make().await }
    }

    /// Keys that begin so, in order.
    fn keys(&self, start: &str) -> Vec<String> {
        self.archive.objects.keys().filter(|k| k.starts_with(start)).cloned().collect()
    }

    async fn strike(&self, key: &str, twin: &str, blow: Blow) -> Outcome {
        self.strike_with(key, &self.archive.objects[twin].clone(), blow).await
    }

    async fn strike_with(&self, key: &str, twin: &Bytes, blow: Blow) -> Outcome {
        let outcome = read(&self.archive, &strike(&self.archive, key, twin, blow)).await;
        // Whatever was hit: what comes out is right, or nothing comes out.
        for (n, (extracted, (_, expected))) in outcome.extracted.iter().zip(&self.archive.backups).enumerate() {
            assert!(
                extracted.as_ref().map_or(true, |found| found == expected),
                "backup {n} after {blow:?} at {key}"
            );
            let verified = outcome.verified[n].0.is_ok();
            assert!(!verified || extracted.is_ok(), "backup {n} verifies and cannot be read: {blow:?} at {key}");
        }
        outcome
    }
}

async fn benches() -> [Bench; 2] {
    [Box::pin(Bench::new(true)).await, Box::pin(Bench::new(false)).await]
}

#[tokio::test]
async fn a_whole_repository_is_whole() {
    for bench in benches().await {
        let outcome = read(&bench.archive, &bench.archive.objects).await;
        assert!(outcome.opened.is_ok() && outcome.check.is_ok(), "{}", outcome.told());
        assert!(outcome.verified.iter().all(|(v, _)| v.is_ok()) && outcome.planned.iter().all(Result::is_ok));
        for (found, (_, expected)) in outcome.extracted.iter().zip(&bench.archive.backups) {
            assert_eq!(found.as_ref().expect("records"), expected);
        }
    }
}

#[tokio::test]
async fn description_and_keys() {
    for start in [paths::REPOSITORY, paths::KEYS] {
        let bench = Box::pin(Bench::new(true)).await;
        let key = bench.keys(start).remove(0);
        for blow in BLOWS {
            let twin = bench.other.objects[&key].clone();
            let outcome = bench.strike_with(&key, &twin, blow).await;
            let error = outcome.opened.as_ref().expect_err("a coordinator cannot start on it");
            assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound), "{blow:?}: {error}");
            // A swapped description makes the keys strange: either is named.
            assert!(outcome.told().contains(start), "{blow:?} at {key}: {}", outcome.told());
            let checked = outcome.check.expect_err("the check of a running coordinator");
            assert!(checked.message().contains(start), "{blow:?} at {key}: {checked}");
            // Who has it open already reads on.
            assert!(outcome.verified.iter().all(|(v, _)| v.is_ok()), "{blow:?} at {key}");
        }
    }
}

#[tokio::test]
async fn epochs_and_job_records_hit_no_backup() {
    for bench in benches().await {
        let epochs = bench.keys("epochs/");
        let records = bench.keys("clusters/orders/jobs/");
        assert_eq!((epochs.len(), records.len()), (2, 4));
        for (key, twin, kind) in [
            (&epochs[0], &epochs[1], "epoch"),
            (&epochs[1], &epochs[0], "epoch"),
            (&records[0], &records[1], "record"),
            (&records[1], &records[0], "record"),
        ] {
            for blow in BLOWS {
                let outcome = bench.strike(key, twin, blow).await;
                assert!(outcome.verified.iter().all(|(v, _)| v.is_ok()), "{blow:?} at {key}");
                assert!(outcome.planned.iter().all(Result::is_ok), "{blow:?} at {key}");
                // An epoch says nothing but who took its number; the last record of a job is a hint that may be lost.
                let harmless = (kind, blow) == ("epoch", Blow::Swap) || (key == &records[1] && blow == Blow::Gone);
                assert_eq!(
                    outcome.told().contains(key.as_str()),
                    !harmless,
                    "{blow:?} at {key}: {}",
                    outcome.told()
                );
            }
        }
    }
}

#[tokio::test]
async fn ledger_entries() {
    for bench in benches().await {
        let entries = bench.keys("clusters/orders/ledger/");
        for (at, key) in entries.iter().enumerate() {
            let (twin, last) = (&entries[(at + 1) % entries.len()], at + 1 == entries.len());
            for blow in BLOWS {
                let outcome = bench.strike(key, twin, blow).await;
                let checked = outcome.check.as_ref().expect_err("history is damaged");
                assert_eq!(checked.kind(), ErrorKind::Damaged, "{checked}");
                if last && blow == Blow::Gone {
                    // A shorter history is a good history: only who was told of more knows.
                    assert!(checked.message().contains("history is missing"), "{checked}");
                    assert!(outcome.verified[0].0.is_ok() && outcome.verified[1].0.is_err());
                } else {
                    assert!(checked.message().contains(key.as_str()), "{blow:?} at {key}: {checked}");
                    assert!(outcome.verified.iter().all(|(v, _)| v.is_err()), "{blow:?} at {key}");
                }
            }
        }
    }
}

/// Root and pages of the second backup.
async fn manifest_of(archive: &Archive, at: usize) -> (String, Vec<String>) {
    let repository =
        Repository::open(store_of(&archive.objects).await, archive.master.as_ref()).await.expect("whole");
    let backup = &archive.backups[at].0;
    let manifest = open_manifest(&repository, &cluster(), backup).await.expect("whole");
    let path = |hash| paths::root(&cluster(), hash);
    (path(&backup.root), manifest.root().pages.iter().map(|p| path(&p.hash)).collect())
}

#[tokio::test]
async fn manifest_roots() {
    for bench in benches().await {
        let ((first, _), (second, _)) =
            (manifest_of(&bench.archive, 0).await, manifest_of(&bench.archive, 1).await);
        for blow in BLOWS {
            let outcome = bench.strike(&second, &first, blow).await;
            let backup = bench.archive.backups[1].0.job.to_string();
            for error in [
                outcome.check.as_ref().expect_err("check"),
                outcome.verified[1].0.as_ref().expect_err("verify"),
                outcome.planned[1].as_ref().expect_err("plan"),
            ] {
                assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
                assert!(error.message().contains(&second) && error.message().contains(&backup), "{error}");
            }
            // Without its root nothing of a backup can be salvaged; the other one stands.
            let objects = strike(&bench.archive, &second, &bench.archive.objects[&first], blow);
            let store = store_of(&objects).await;
            let repository = Repository::open(store, bench.archive.master.as_ref()).await.expect("open");
            assert!(plan(&repository, &bench.archive.backups[1].0, true).await.is_err());
            assert!(outcome.verified[0].0.is_ok() && outcome.planned[0].is_ok());
        }
    }
}

#[tokio::test]
async fn manifest_pages() {
    for bench in benches().await {
        let (_, pages) = manifest_of(&bench.archive, 1).await;
        assert_eq!(pages.len(), 4);
        for (at, page) in pages.iter().enumerate() {
            let regions = format!("{}-{}", at * 4, at * 4 + 3);
            for blow in BLOWS {
                let outcome = bench.strike(page, &pages[(at + 1) % 4], blow).await;
                let backup = bench.archive.backups[1].0.job.to_string();
                for error in [
                    outcome.check.as_ref().expect_err("check"),
                    outcome.verified[1].0.as_ref().expect_err("verify"),
                    outcome.planned[1].as_ref().expect_err("plan"),
                ] {
                    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
                    for word in [page, &backup, &regions] {
                        assert!(error.message().contains(word.as_str()), "{word}: {error}");
                    }
                }
                let damage = outcome.verified[1].1.as_ref().expect("damage for programs");
                assert_eq!((damage.parts, &damage.regions), (4, &regions));
                let objects = strike(&bench.archive, page, &bench.archive.objects[&pages[(at + 1) % 4]], blow);
                let store = store_of(&objects).await;
                let repository = Repository::open(store, bench.archive.master.as_ref()).await.expect("open");
                let missing = plan(&repository, &bench.archive.backups[1].0, true).await.expect("a salvage");
                assert_eq!((missing.parts, &missing.regions, &missing.faults[0].object), (4, &regions, page));
                assert_eq!(missing.slots.len(), 4 * u32::from(SLOTS_PER_REGION));
                assert!(outcome.verified[0].0.is_ok() && outcome.planned[0].is_ok());
            }
        }
    }
}

#[tokio::test]
async fn packs() {
    for bench in benches().await {
        let repository = Repository::open(store_of(&bench.archive.objects).await, bench.archive.master.as_ref())
            .await
            .expect("open");
        // Base and delta packs of the second backup, by halves.
        let manifest = open_manifest(&repository, &cluster(), &bench.archive.backups[1].0).await.expect("manifest");
        let mut packs: Vec<Vec<String>> = vec![Vec::new(); 2];
        let mut pages = Box::pin(manifest.pages());
        while let Some(page) = futures::StreamExt::next(&mut pages).await {
            for (_, part) in page.numbered().expect("page") {
                for (kind, run) in part.runs.iter().enumerate() {
                    let path = paths::pack(&cluster(), &run.index.pack);
                    if !packs[kind].contains(&path) {
                        packs[kind].push(path);
                    }
                }
            }
        }
        for (kind, packs) in packs.iter().enumerate() {
            assert_eq!(packs.len(), 2, "a pack for each half");
            for blow in BLOWS {
                let outcome = bench.strike(&packs[0], &packs[1], blow).await;
                let error = outcome.verified[1].0.as_ref().expect_err("verify");
                let backup = bench.archive.backups[1].0.job.to_string();
                assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
                assert!(error.message().contains(&packs[0]) && error.message().contains(&backup), "{error}");
                let damage = outcome.verified[1].1.as_ref().expect("damage for programs");
                let all = matches!(blow, Blow::Swap | Blow::Gone);
                assert!(
                    if all { damage.regions == "0-7" } else { damage.parts > 0 && damage.parts < 8 },
                    "{damage:?}"
                );
                assert!(damage.slots.ranges().iter().all(|r| r.1 < 8 * SLOTS_PER_REGION), "{damage:?}");
                // What the list of objects shows, check and plan see without reading.
                if matches!(blow, Blow::Cut | Blow::Gone) {
                    for error in
                        [outcome.check.as_ref().expect_err("check"), outcome.planned[1].as_ref().expect_err("plan")]
                    {
                        assert!(
                            error.message().contains(&packs[0]) && error.message().contains("region"),
                            "{error}"
                        );
                        assert!(error.message().contains(&backup), "{error}");
                    }
                }
                // The full backup needs no delta.
                assert_eq!(outcome.verified[0].0.is_ok(), kind == 1, "{blow:?}");
            }
        }
    }
}
