//! A log that is worked off in several shares of the slots at once, one server each: what comes out must be what a real server holds
//! that ran the same commands.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_common::overlay::Overlay;
use tidemark_common::record::{RedisMeta, split_redis_key};
use tidemark_common::redis::fold::Scope;
use tidemark_coordinator::fold::CommandFold;
use tidemark_coordinator::job::restore::open_manifest;
use tidemark_coordinator::log::point;
use tidemark_coordinator::repository::Ledger;
use tidemark_proto::{ClusterName, SlotSet, Timestamp, slot_of};
use tidemark_tests::fleet::Fleet;
use tidemark_tests::redis::{Flavor, Server};
use tokio_util::sync::CancellationToken;

use super::contents::{Contents, compare, held_by};
use super::flow::{backup, protect_one};
use super::handmade::{Both, CLUSTER, Writer, repository};

/// Shares that are asked for.
const SHARES: usize = 4;
/// Databases that are used; one is higher than a scratch server has by itself.
const DATABASES: [u64; 3] = [0, 1, 20];
/// Commands of a stage.
const COMMANDS: u64 = 250;

/// Runs commands of all types on a few keys of all databases, none of which ties slots together.
fn run_some(both: &mut Both<'_>, rng: &mut StdRng) {
    let later = SystemClock.millis() + 1_000_000_000;
    for n in 0..COMMANDS {
        let (k, db, other) = (rng.random_range(0..40), DATABASES[rng.random_range(0..3)], rng.random_range(0..40));
        let line = match rng.random_range(0..17) {
            0 => format!("SET s:{k} value-{n}"),
            1 => format!("APPEND s:{k} more-{n}"),
            2 => format!("INCRBY i:{k} {n}"),
            3 => format!("RPUSH l:{k} {n} x"),
            4 => format!("LPOP l:{k}"),
            5 => format!("HSET h:{k} f{other} {n}"),
            6 => format!("HDEL h:{k} f{other}"),
            7 => format!("SADD t:{k} {other} m{n}"),
            8 => format!("SREM t:{k} {other}"),
            9 => format!("ZADD z:{k} {n} m{other}"),
            10 => format!("XADD x:{k} {}-1 f {n}", 1000 + n),
            11 => format!("PEXPIREAT s:{k} {}", later + n),
            12 => format!("PERSIST s:{k}"),
            13 => format!("DEL s:{k} l:{other} z:{k}"),
            14 => format!("MSET s:{k} a-{n} s:{other} b-{n} new:{n} c"),
            15 => format!("COPY {{s:{k}}} {{s:{k}}}:copy:{other} REPLACE"),
            _ => format!("MOVE h:{k} {}", DATABASES[rng.random_range(0..3)]),
        };
        if line.starts_with("MOVE") && line.ends_with(&format!(" {db}")) {
            continue;
        }
        both.run(&format!("{db} {line}"));
        if n % 5 == 0 {
            both.run(&format!("{db} SET {{s:{k}}} {n}"));
            both.run(&format!("{db} EXPIREAT {{s:{k}}} {}", later / 1000));
        }
    }
}

/// What the log makes of the backup, in shares and at once, beside what the server held at that time.
struct Check<'f> {
    fleet: &'f Fleet,
    base: Contents,
}

impl Check<'_> {
    async fn at(&self, (at, wanted): &(u64, Contents), shares: usize) {
        let (repository, cluster) = (repository(self.fleet).await, ClusterName::new(CLUSTER).unwrap());
        let ledger = Ledger::load(&repository, &cluster).await.unwrap();
        let point = point(&repository, &ledger, Timestamp(*at), None).await.unwrap();
        let manifest = open_manifest(&repository, &cluster, &point.base.backup).await.unwrap();
        let log = point.log(&repository, &cluster, manifest.root().slots_per_region).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let fold = |most: usize| {
            CommandFold::whole_log(&manifest, log.clone(), point.at, dir.path(), None).with_shares(most, 1)
        };
        assert_eq!(fold(SHARES).shares().await.unwrap().len(), shares);
        for most in [SHARES, 1] {
            let cancel = CancellationToken::new();
            let whole = fold(most).whole(&cancel).await.unwrap();
            let slot = |key: &[u8]| slot_of(split_redis_key(key).unwrap().1);
            let stays = self.base.iter().filter(|(key, _)| whole.keeps(slot(key), key).unwrap());
            let mut given: Contents = stays.map(|(key, value)| (key.clone(), *value)).collect();
            for (key, value) in records(whole.overlay(&Scope::slots(SlotSet::all())).unwrap()) {
                assert!(given.insert(key, value.expect("no deletes")).is_none(), "a key is there twice");
            }
            compare(&format!("{most} shares at most"), &given, wanted);

            let mut laid = self.base.clone();
            let over = fold(most).records(&cancel).await.unwrap();
            for (key, value) in records(over.overlay(&Scope::slots(SlotSet::all())).unwrap()) {
                match value {
                    Some(value) => drop(laid.insert(key, value)),
                    None => assert!(laid.remove(&key).is_some(), "a delete of what the backup does not hold"),
                }
            }
            compare(&format!("records of {most} shares at most"), &laid, wanted);
            assert!(empty(dir.path()), "nothing is left behind");
        }
    }
}

fn empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

type Given = (Vec<u8>, Option<(Option<i64>, u128)>);

fn records(mut overlay: Overlay) -> Vec<Given> {
    let (mut out, mut before) = (Vec::new(), None);
    while overlay.advance().unwrap() {
        let entry = overlay.current().unwrap();
        let place = Some((entry.slot, entry.key.to_vec()));
        assert!(before < place, "ascending");
        before = place;
        let meta = entry.put.map(|(meta, _)| RedisMeta::decode(meta).unwrap());
        out.push((entry.key.to_vec(), meta.map(|meta| (meta.expire_at_millis, meta.meaning))));
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_of_the_slots_at_once_make_what_one_server_makes() {
    let source = Server::start(Flavor::Redis, &["--databases", "40"]);
    let mut client = source.client();
    for db in DATABASES {
        let _ = client.run(&format!("SELECT {db}"));
        for i in 0..40 {
            let _ = client.run(&format!("SET s:{i} base"));
            let _ = client.run(&format!("RPUSH l:{i} a b"));
            let _ = client.run(&format!("SET stays:{i} {db}"));
        }
    }
    let long = "0123456789abcdef".repeat(100_000);
    for i in 0..4 {
        let _ = client.call(&["RPUSH", &format!("long:{i}"), &long, "x"]);
    }
    let mut fleet = Fleet::start().await;
    protect_one(&mut fleet, CLUSTER, &source).await;
    let first = backup(&fleet, CLUSTER).await;
    let base = held_by(&source);
    let log = Writer::begin(&fleet, first.item.cut).await;
    let (mut both, mut rng) = (Both { server: &source, log }, StdRng::seed_from_u64(11));

    run_some(&mut both, &mut rng);
    // Values that are never whole in memory, in the file of every share.
    (0..4).for_each(|i| both.run(&format!("20 RPUSH long:{i} end")));
    let plain = both.point().await;
    // A database, and all of them, are emptied in between; what comes then begins anew.
    both.run("20 FLUSHDB");
    run_some(&mut both, &mut rng);
    both.run("0 FLUSHALL");
    run_some(&mut both, &mut rng);
    let emptied = both.point().await;
    both.run("0 SWAPDB 0 20");
    run_some(&mut both, &mut rng);
    let swapped = both.point().await;
    let check = Check { fleet: &fleet, base };
    check.at(&plain, SHARES).await;
    check.at(&emptied, SHARES).await;
    check.at(&swapped, SHARES).await;

    // Two slots that are tied together are followed by one server.
    both.run("0 SET tied x");
    assert_ne!(slot_of(b"tied"), slot_of(b"renamed"));
    both.run("0 RENAME tied renamed");
    let tied = both.point().await;
    check.at(&tied, 1).await;
}
