//! Nodes that are away or die.

use tidemark_coordinator::job::{JobInfo, JobKind};
use tidemark_proto::ErrorKind;
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, ended, eventually, restore_of};

use crate::steps::{assert_holds, assert_takes_writes, at_cut, fill};

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_without_a_node_fails_and_names_what_is_missing() {
    let mut fleet = Fleet::start().await;
    fleet.add_cluster("orders", 3).await;
    let router = fleet.router("orders", 3).await;
    fill(&router, 1, 5000).await;
    let good = fleet.backup("orders").await.unwrap();
    fleet.stop_agent("orders", "n1").await;
    let error = fleet.backup("orders").await.unwrap_err();
    assert!(error.message().contains("5461-10922") && error.message().contains("n1"), "{error}");
    let listed = fleet.backups("orders").await;
    assert_eq!((listed.len(), listed[0].state.as_str(), listed[1].state.as_str()), (2, "failed", "complete"));
    assert!(listed[0].reason.contains("n1"), "{:?}", listed[0]);
    // The failed one is no restore point.
    let plan = fleet.plan(&restore_of("orders", "orders")).await.unwrap();
    assert_eq!(plan.backup.to_string(), good.item.id);
    assert_eq!(
        fleet
            .plan(&tidemark_coordinator::job::restore::RestoreRequest {
                backup: listed[0].id.clone(),
                ..restore_of("orders", "orders")
            })
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::NotFound
    );
    fleet.restart_agent("orders", "n1");
    let _ = fleet.ready("orders", 3).await;
    let again = fleet.backup("orders").await.unwrap();
    assert_eq!((again.item.records, again.full_parts), (5000, 0));
    assert_eq!(again.parent, good.root, "a failed backup is nobody's parent");
}

/// One part at a time, many of them, so that there is time to break things.
fn slow() -> CoordinatorSpec {
    let sections = "[backup]\nslots_per_region = 8\nagent_concurrency = 1\n[memory]\ningest_mib = 6\nserve_mib = 6";
    CoordinatorSpec { sections: sections.into(), ..CoordinatorSpec::default() }
}

/// Waits until the job has done some parts of its main phase, and not all.
async fn under_way(fleet: &Fleet, job: &JobInfo) {
    let phase = if job.kind == JobKind::Backup { "sending parts" } else { "loading parts" };
    eventually("some parts", async || {
        let job = fleet.api().job(job).await;
        assert!(!ended(&job), "the job was done before it could be broken: {job:?}");
        (job.phase == phase && job.progress.parts >= 5).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_during_its_upload_comes_back_or_is_named() {
    let mut fleet = Fleet::start_with(slow()).await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 4000).await;
    let job = fleet.start_backup("orders").await.unwrap();
    under_way(&fleet, &job).await;
    fleet.agent("orders", "n1").process.kill().await;
    fleet.restart_agent("orders", "n1");
    match fleet.api().job_end(&job).await {
        Ok(_) => {}
        Err(e) => assert!(e.message().contains("n1"), "{e}"),
    }
    let router = fleet.router("orders", 2).await;
    let backup = fleet.backup("orders").await.unwrap();
    let expected = at_cut(&router, &backup).await;
    assert_eq!(expected.len(), 4000);
    fleet.add_cluster("copy", 3).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.unwrap();
    assert_holds(&fleet, "copy", 3, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_backup_leaves_nothing_behind() {
    let mut fleet = Fleet::start_with(slow()).await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 2000).await;
    let job = fleet.start_backup("orders").await.unwrap();
    let busy = fleet.start_backup("orders").await.unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Conflict, "one backup of a cluster at a time");
    under_way(&fleet, &job).await;
    let _: JobInfo = fleet.api().delete(&format!("jobs/{}", job.id)).await.unwrap();
    assert_eq!(fleet.api().job_end(&job).await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_takes_writes(&fleet, "orders", 2).await;
    let backup = fleet.backup("orders").await.unwrap();
    assert_eq!(backup.item.records, 2000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_restore_leaves_the_target_as_it_was() {
    let mut fleet = Fleet::start_with(slow()).await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 4000).await;
    let _ = fleet.backup("orders").await.unwrap();
    fill(&router, 2, 100).await;
    let before = tidemark_tests::fleet::records_at(&router, None).await;
    let mut request = restore_of("orders", "orders");
    (request.in_place, request.no_safety_backup) = (true, true);
    let job: JobInfo = fleet.api().post("restores", &request).await.unwrap();
    under_way(&fleet, &job).await;
    let _: JobInfo = fleet.api().delete(&format!("jobs/{}", job.id)).await.unwrap();
    assert_eq!(fleet.api().job_end(&job).await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_holds(&fleet, "orders", 2, &before).await;
    assert_takes_writes(&fleet, "orders", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_during_a_restore_goes_on_or_is_named() {
    let mut fleet = Fleet::start_with(slow()).await;
    fleet.add_cluster("orders", 2).await;
    let router = fleet.router("orders", 2).await;
    fill(&router, 1, 4000).await;
    let backup = fleet.backup("orders").await.unwrap();
    let expected = at_cut(&router, &backup).await;
    fleet.add_cluster("copy", 2).await;
    let job: JobInfo = fleet.api().post("restores", &restore_of("orders", "copy")).await.unwrap();
    under_way(&fleet, &job).await;
    fleet.agent("copy", "n0").process.kill().await;
    fleet.restart_agent("copy", "n0");
    if let Err(e) = fleet.api().job_end(&job).await {
        assert!(e.message().contains("n0"), "{e}");
        let mut again = restore_of("orders", "copy");
        again.in_place = true;
        let _ = fleet.ready("copy", 2).await;
        let _ = fleet.restore(&again).await.unwrap();
    }
    assert_holds(&fleet, "copy", 2, &expected).await;
}
