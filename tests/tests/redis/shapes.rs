//! Every type in every encoding, and every shape into another one.

use tidemark_tests::fleet::{Fleet, restore_of};
use tidemark_tests::redis::{Client, Cluster, Flavor, Server, eventually};

use super::contents::{compare, held_by, held_by_all};
use super::files::ghosts;
use super::fill::{Profile, fill};
use super::flow::{backup, filling, protect, protect_one, spread};
use super::load::{Load, Wildness};

async fn restore(fleet: &Fleet, from: &str, to: &str) {
    let _ = fleet.restore(&restore_of(from, to)).await.unwrap_or_else(|e| panic!("{to}: {}", e.report()));
}

/// Keys of the first database whose values the servers themselves find different.
fn differing(source: &Server, target: &Server) -> Vec<String> {
    let [mut source, mut target] = [source, target].map(Server::client);
    let keys = source.run("KEYS *").strings();
    let digest = |client: &mut Client, key: &[u8]| client.call(&[&b"DEBUG"[..], b"DIGEST-VALUE", key]).array();
    let other = keys.into_iter().filter(|key| digest(&mut source, key) != digest(&mut target, key));
    other.map(|key| String::from_utf8_lossy(&key).into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_in_every_encoding_comes_back() {
    for flavor in Flavor::installed() {
        let mut fleet = Fleet::start().await;
        for profile in Profile::ALL {
            let (source, target) = (Server::start(flavor, &[]), Server::start(flavor, &[]));
            let mut client = source.client();
            profile.apply(&mut client);
            // A server that packs a set of scores while it loads makes 0 of -0.
            profile.apply(&mut target.client());
            fill(&mut client);
            ghosts(&mut client);
            let name = format!("{profile:?}").to_lowercase();
            let copy = format!("{name}-copy");
            protect_one(&mut fleet, &name, &source).await;
            protect_one(&mut fleet, &copy, &target).await;
            let _ = backup(&fleet, &name).await;
            restore(&fleet, &name, &copy).await;
            compare(&name, &held_by(&target), &held_by(&source));
            assert_eq!(differing(&source, &target), Vec::<String>::new(), "{flavor:?} {profile:?}");
            assert_eq!(target.digest(), source.digest(), "{flavor:?} {profile:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_become_fewer_and_a_single_server_becomes_a_cluster() {
    for flavor in Flavor::installed() {
        let (five, two) = (Cluster::start(flavor, 5, &[]), Cluster::start(flavor, 2, &[]));
        let (alone, three) = (Server::start(flavor, &[]), Cluster::start(flavor, 3, &[]));
        spread(&five, filling().into_iter().take(9000).collect());
        let wanted = held_by_all(&five);
        let mut fleet = Fleet::start().await;
        protect(&mut fleet, "five", &five).await;
        protect(&mut fleet, "two", &two).await;
        protect_one(&mut fleet, "alone", &alone).await;
        protect(&mut fleet, "three", &three).await;
        // Each from the backup of the one before.
        for (from, to) in [("five", "two"), ("two", "alone"), ("alone", "three")] {
            let _ = backup(&fleet, from).await;
            restore(&fleet, from, to).await;
        }
        compare("two primaries", &held_by_all(&two), &wanted);
        compare("a server of its own", &held_by(&alone), &wanted);
        compare("three primaries", &held_by_all(&three), &wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volatile_keys_that_were_renewed_copied_and_kept_are_right_after_all_others_have_expired() {
    for flavor in Flavor::installed() {
        let (source, target) = (Server::start(flavor, &[]), Server::start(flavor, &[]));
        let mut fleet = Fleet::start().await;
        protect_one(&mut fleet, "orders", &source).await;
        protect_one(&mut fleet, "copy", &target).await;
        let load = Load::start((0..3).map(|_| source.client()).collect(), Wildness::Everything);
        eventually("some load", || (load.steps() > 500).then_some(()));
        let begun = load.steps();
        // The base is taken while they write; the cut waits until they stand still.
        let job = fleet.start_backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
        eventually("load behind the base", || (load.steps() > begun + 2000).then_some(()));
        load.stop();
        let first = fleet.api().job_end(&job).await;
        let _ = first.unwrap_or_else(|e| panic!("{}", e.report()));
        // The source stands still from here on: what the second one holds is what it holds.
        let _ = backup(&fleet, "orders").await;
        eventually("every time to live to be over", || {
            (!source.client().run("INFO keyspace").text().contains("expires=")
                || source
                    .client()
                    .run("INFO keyspace")
                    .text()
                    .split("expires=")
                    .skip(1)
                    .all(|rest| rest.starts_with("0,")))
            .then_some(())
        });
        restore(&fleet, "orders", "copy").await;
        assert_eq!(target.digest(), source.digest(), "{flavor:?}");
        compare("after all", &held_by(&target), &held_by(&source));
    }
}
