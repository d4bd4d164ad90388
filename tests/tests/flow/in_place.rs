//! Restore onto the nodes that the data came from.

use tidemark_coordinator::job::restore::RestorePlan;
use tidemark_proto::ErrorKind;
use tidemark_proto::slot::even_share;
use tidemark_tests::fleet::{Fleet, ended, eventually, records_at, restore_of, write};

use crate::steps::{assert_holds, assert_takes_writes, at_cut, fill};

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_refused_meanwhile_and_later_writes_are_gone() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 5000).await;
    let backup = fleet.backup("orders").await.unwrap();
    let expected = at_cut(&router, &backup).await;
    for n in 0..50 {
        let _ = write(&router, format!("later:{n}").as_bytes(), Some(b"gone soon")).await.unwrap();
        let _ = write(&router, format!("load:1:{n}").as_bytes(), None).await.unwrap();
    }
    let before: Vec<_> = fleet.ready("orders", 2).await.nodes.into_iter().map(|n| n.incarnation).collect();
    let mut request = restore_of("orders", "orders");
    request.in_place = true;
    let job = fleet.api().post("restores", &request).await.unwrap();
    // A client with an open connection, which no restore may leave standing.
    let client = router.another_client();
    let mut refusals = Vec::new();
    while !ended(&fleet.api().job(&job).await) {
        for n in 0..20 {
            if let Err(e) = client.get(format!("later:{n}").into_bytes(), None).await {
                refusals.push(e);
            }
        }
    }
    let end = fleet.api().job_end(&job).await.unwrap();
    // What was replaced can be had back.
    let safety = fleet.backups("orders").await.into_iter().find(|b| b.made == "automatic").unwrap();
    assert_eq!(end["safety_backup"].as_str(), Some(safety.id.as_str()));
    assert_eq!((safety.state.as_str(), safety.records), ("complete", 5000));
    assert!(refusals.iter().any(|e| e.report().contains("restored")), "clients were told nothing: {refusals:?}");
    assert!(refusals.iter().all(|e| e.kind() == ErrorKind::Retry), "{refusals:?}");
    assert_holds(&fleet, "orders", 2, &expected).await;
    // Addresses stay, so that the client of before finds its way back.
    let _ =
        eventually("the client of before", async || client.get(b"load:1:1".to_vec(), None).await.ok().flatten())
            .await;
    let after = eventually("new incarnations", async || {
        let nodes = fleet.ready("orders", 2).await.nodes;
        let now: Vec<_> = nodes.into_iter().map(|n| n.incarnation).collect();
        now.iter().all(|n| !before.contains(n)).then_some(now)
    })
    .await;
    assert_eq!(after.len(), 2);
    assert_takes_writes(&fleet, "orders", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_data_is_refused_and_the_plan_says_why() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 500).await;
    let backup = fleet.backup("orders").await.unwrap();
    fleet.add_cluster("copy", 3).await;
    let request = restore_of("orders", "copy");
    let plan = fleet.plan(&request).await.unwrap();
    assert!(plan.problems.is_empty(), "{plan:?}");
    assert_eq!((plan.backup.to_string(), plan.records, plan.source_nodes), (backup.item.id.clone(), 500, 2));
    assert_shares(&plan, 3);
    let copy = fleet.router("copy", 3).await;
    assert!(records_at(&copy, None).await.is_empty(), "a plan changes nothing");
    let _ = write(&copy, b"mine", Some(b"keep me")).await.unwrap();
    let problems = eventually("a problem in the plan", async || {
        let plan = fleet.plan(&request).await.unwrap();
        (!plan.problems.is_empty()).then_some(plan.problems)
    })
    .await;
    assert!(problems[0].contains("hold data") && problems[0].contains('n'), "{problems:?}");
    let refused = fleet.restore(&request).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert_eq!(records_at(&copy, None).await.len(), 1, "the target was touched");
    let mut in_place = request;
    in_place.in_place = true;
    let _ = fleet.restore(&in_place).await.unwrap();
    assert_holds(&fleet, "copy", 3, &at_cut(&router, &backup).await).await;
}

fn assert_shares(plan: &RestorePlan, nodes: u16) {
    assert_eq!(plan.targets.len(), usize::from(nodes));
    for (i, target) in (0..).zip(&plan.targets) {
        assert_eq!(target.slots, even_share(i, nodes));
        assert!(target.bytes > 0 && target.parts > 0 && target.disk_bytes >= target.bytes, "{target:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_for_nodes_that_are_not_there_says_so() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 1).await;
    let router = fleet.router("orders", 1).await;
    fill(&router, 1, 10).await;
    let _ = fleet.backup("orders").await.unwrap();
    let plan = fleet.plan(&restore_of("orders", "nowhere")).await.unwrap();
    assert!(plan.problems.iter().any(|p| p.contains("nowhere")), "{plan:?}");
    fleet.start_agent(tidemark_tests::fleet::AgentSpec::new("half", "n0", even_share(0, 2)));
    let _ = fleet.ready("half", 1).await;
    let plan = fleet.plan(&restore_of("orders", "half")).await.unwrap();
    assert!(plan.problems.iter().any(|p| p.contains("8192-16383")), "{plan:?}");
    let refused = fleet.restore(&restore_of("orders", "half")).await.unwrap_err();
    assert!(refused.message().contains("8192-16383"), "{refused}");
    let mut unknown = restore_of("orders", "half");
    unknown.backup = "ffffffff".into();
    assert_eq!(fleet.plan(&unknown).await.unwrap_err().kind(), ErrorKind::NotFound);
}
