//! What newer servers can do with values: fields of hashes that expire, commands that older ones do not know.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::id::JobId;
use tidemark_proto::{SlotSet, Timestamp};
use tidemark_tests::fleet::{Fleet, restore_of};
use tidemark_tests::redis::{Client, Flavor, Reply, Server, eventually};

use super::contents::{compare, held_by};
use super::cut::{cut, engine, given, prepare};
use super::flow::{backup, protect_one};

#[test]
fn commands_of_new_servers_are_followed() {
    for flavor in Flavor::installed() {
        let server = Server::start(flavor, &[]);
        let dir = tempfile::tempdir().expect("folder");
        let mut client = server.client();
        let _ = client.run("DEBUG SET-ACTIVE-EXPIRE 0");
        for key in ["a", "b", "c", "d"] {
            let _ = client.run(&format!("SET {key} 1"));
        }
        let _ = client.run("HSET h f v g w");
        let _ = client.run("XADD x 1-1 f v");
        let _ = client.run("XGROUP CREATE x g 0");
        let engine = engine(&server, dir.path());
        let (job, at) = (JobId([7; 16]), Timestamp(42));
        prepare(&engine, job);
        let mut known = BTreeMap::new();
        for line in [
            "MSETEX 2 a 2 new 2 PX 100000",
            "MSETEX 1 b 2 KEEPTTL",
            "DELEX c IFEQ 1",
            "DELIFEQ d 1",
            "SET b 3 IFEQ 2",
            "SET e 1",
            "SET e 2 IFEQ 1",
            "HSETEX h EX 100 FIELDS 1 f z",
            "HGETEX h PX 100000 FIELDS 1 g",
            "HPEXPIRE h 100000 FIELDS 1 g",
            "HSETEX i PX 1 FIELDS 1 f z",
            "HGETDEL h FIELDS 1 g",
            "XADD x IDMP p i 2-1 f v",
            "XADD y IDMP p i * f v",
            "XCFGSET y IDMP-DURATION 60",
            "XREADGROUP GROUP g c STREAMS x >",
            "XACKDEL x g DELREF IDS 1 1-1",
            "XDELEX x KEEPREF IDS 1 2-1",
            "INCR n",
        ] {
            let refused = |reply: &Reply| matches!(reply, Reply::Error(_));
            let reply = client.ask(&line.split(' ').collect::<Vec<_>>()).expect("reply");
            let _ = known.insert(line, !refused(&reply));
        }
        eprintln!("{}: {known:?}", flavor.version());
        assert!(known["INCR n"] && known["SET e 1"]);
        assert_eq!(known["HPEXPIRE h 100000 FIELDS 1 g"], flavor.is_from((7, 4), (9, 0)), "{known:?}");
        assert_eq!(known["MSETEX 2 a 2 new 2 PX 100000"], flavor.is_from((8, 4), (9, 1)), "{known:?}");
        cut(&engine, job, at);
        compare(&flavor.version(), &given(&engine, at, SlotSet::all()), &held_by(&server));
    }
}

/// Hashes of the tests.
const HASHES: u64 = 200;

/// Whether fields of hashes expire on this server.
fn has_expiring_fields(flavor: Flavor) -> bool {
    flavor.is_from((7, 4), (9, 0))
}

/// Fields that stay and fields that go, one after the other in `spread` from now on; of some hashes all go.
fn fill(client: &mut Client, spread: Duration) {
    let now = SystemClock.millis();
    for i in 0..HASHES {
        let _ = client.run(&format!("HSET h:{i} a 1 b 2 c {i}"));
        let at = now + spread.as_millis() as u64 * i / HASHES;
        let fields = if i % 3 == 0 { "3 a b c" } else { "2 a b" };
        let _ = client.run(&format!("HPEXPIREAT h:{i} {at} FIELDS {fields}"));
        let _ = client.run(&format!("HPEXPIREAT h:{i} {} FIELDS 1 b", at + 1500));
    }
}

/// Fields of all hashes, as clients see them.
fn seen(client: &mut Client) -> Vec<Vec<Vec<u8>>> {
    let mut fields = |i: u64| client.run(&format!("HGETALL h:{i}")).strings();
    (0..HASHES).map(&mut fields).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_expire_between_a_cut_and_the_end_of_a_restore_are_no_damage() {
    for flavor in Flavor::installed() {
        let (source, target) = (Server::start(flavor, &[]), Server::start(flavor, &[]));
        if !has_expiring_fields(flavor) {
            let reply = source.client().ask(&["HPEXPIREAT", "h", "1", "FIELDS", "1", "a"]).expect("reply");
            assert!(matches!(&reply, Reply::Error(e) if e.contains("unknown command")), "{reply:?}");
            continue;
        }
        let mut fleet = Fleet::start().await;
        protect_one(&mut fleet, "orders", &source).await;
        protect_one(&mut fleet, "copy", &target).await;
        let spread = Duration::from_secs(6);
        fill(&mut source.client(), spread);
        // Of the target's own accord they go as soon as their time has come.
        let _ = backup(&fleet, "orders").await;
        eventually("the first fields to be gone", || {
            (source.client().run("HLEN h:40").integer() == 1).then_some(())
        });
        let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap_or_else(|e| panic!("{}", e.report()));
        let (mut left, mut right) = (source.client(), target.client());
        eventually("all fields to be gone", || {
            let last = HASHES - 1;
            (left.run(&format!("HLEN h:{last}")).integer() == 1
                && right.run(&format!("HLEN h:{last}")).integer() == 1)
                .then_some(())
        });
        let found = seen(&mut right);
        assert_eq!(found, seen(&mut left), "{}", flavor.version());
        assert!(found.iter().filter(|fields| fields.len() == 2).count() as u64 > HASHES / 2);
    }
}
