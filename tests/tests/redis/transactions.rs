//! A restore to any time takes transactions as a whole, also where that time is no consistent state of the cluster.

use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_proto::Timestamp;
use tidemark_tests::fleet::restore_of;
use tidemark_tests::redis::{Flavor, Server};

use super::flow::protect_one;
use super::log::{enable, fleet, logged, now, point_after};

#[tokio::test(flavor = "multi_thread")]
async fn no_time_divides_a_transaction() {
    let server = Server::start(Flavor::Redis, &[]);
    let mut fleet = fleet().await;
    protect_one(&mut fleet, "orders", &server).await;
    enable(&fleet).await;
    let _ = point_after(&fleet, Timestamp(1)).await;
    let mut client = server.client();
    // Of keys of several slots, and so many that those of one transaction come in several pieces.
    let filler = "x".repeat(40_000);
    for round in 0..120 {
        let _ = client.run("MULTI");
        for key in ["first", "second", "third", "last"] {
            let _ = client.call(&["SET", key, &round.to_string()]);
            let _ = client.call(&["SET", "filler", &filler]);
        }
        let _ = client.run("EXEC");
    }
    let _ = point_after(&fleet, now()).await;
    let found = logged(&fleet).await;
    let of = |key: &str| {
        let prefix = format!("SET {key} ");
        let times = found.iter().filter_map(move |(at, .., line)| line.starts_with(&prefix).then_some(*at));
        times.collect::<Vec<_>>()
    };
    let (first, last) = (of("first"), of("last"));
    assert_eq!((first.len(), last.len()), (120, 120));
    for (round, (first, last)) in first.iter().zip(&last).enumerate() {
        assert!(first < last && first.millis() == last.millis(), "round {round}: {first} to {last}");
    }
    for (name, round) in [("early", 40), ("late", 80)] {
        let target = Server::start(Flavor::Redis, &[]);
        protect_one(&mut fleet, name, &target).await;
        // In the midst of it.
        let at = Some(Timestamp(first[round].0 + 1).0);
        let request = RestoreRequest { at, inexact: true, ..restore_of("orders", name) };
        let done = fleet.restore(&request).await.unwrap_or_else(|e| panic!("{}", e.report()));
        let taken = done["at"].as_u64().unwrap();
        assert!(taken < first[round].0 && taken >= last[round - 40].0, "{taken}: {done}");
        let mut client = target.client();
        let values = ["first", "second", "third", "last"].map(|key| client.run(&format!("GET {key}")).text());
        assert!(values.iter().all(|v| *v == values[0]), "{values:?}");
        let restored: usize = values[0].parse().unwrap();
        assert!(restored < round && restored + 40 > round, "{restored} of {round}");
    }
}
