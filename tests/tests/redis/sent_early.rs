//! Bases that are sent while those of other nodes are taken: with what differs at the cut they are the backup, whatever
//! was written meanwhile and whoever dies.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_coordinator::job::JobInfo;
use tidemark_proto::slot::{RegionMap, even_share};
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, eventually as later, restore_of};
use tidemark_tests::redis::{Cluster, Flavor, Server};

use super::contents::{compare, held_by, held_by_all};
use super::flow::{backup, filling, protect_as, protect_one, spread, untuned, words};
use super::phases::stands;
use super::replicas::{SLOW, bases};

/// Regions of the first of three nodes.
fn regions() -> usize {
    let (share, per_region) = (even_share(0, 3), RegionMap::DEFAULT_SLOTS_PER_REGION);
    (share.len() as usize).div_ceil(usize::from(per_region))
}

/// Parts that the events of a job say a node has sent before the cut.
async fn told(fleet: &Fleet, job: &JobInfo, node: &str) -> usize {
    let events = later("the events of the job", async || {
        let events: serde_json::Value = fleet.api().get(&format!("events?job={}", job.id)).await.ok()?;
        events.as_array()?.iter().any(|e| e["what"] == "succeeded").then_some(events)
    })
    .await;
    let of = |e: &&serde_json::Value| e["what"] == "early" && e["node"] == node;
    let text =
        events.as_array().into_iter().flatten().find(of).map(|e| e["message"].to_string()).unwrap_or_default();
    text.split(' ').find_map(|word| word.parse().ok()).unwrap_or_default()
}

/// A backup of a Cluster whose first node has its base long before the others, with a coordinator of this environment and an
/// agent of the first node that dies at a point.
async fn begun(env: &[(String, String)], dies_at: &str) -> (Cluster, Fleet, JobInfo) {
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    spread(&cluster, filling());
    let sections = "[backup]\nmax_parallel_bases = 3\n".to_owned();
    let mut fleet = Fleet::start_with(CoordinatorSpec { sections, env: env.to_vec(), ..Default::default() }).await;
    protect_as(&mut fleet, "orders", &cluster, untuned).await;
    if !dies_at.is_empty() {
        fleet.stop_agent("orders", "n0").await;
        let mut spec = untuned("orders", "n0", format!("127.0.0.1:{}", cluster.ports()[0]));
        spec.env.push((tidemark_common::crash::VARIABLE.into(), dies_at.into()));
        fleet.start_agent(spec);
        let _ = fleet.ready("orders", 3).await;
    }
    for n in [1, 2] {
        let _ = cluster.nodes[n].1.client().run(SLOW);
    }
    let job = fleet.start_backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
    (cluster, fleet, job)
}

/// Waits until the first node's parts are all sent, or on their way.
async fn sent(fleet: &Fleet, job: &JobInfo) {
    let dir = fleet.dir().join("orders-n0.state/key-index/waiting").join(job.id.to_string());
    later("parts of the first base", async || {
        let files = std::fs::read_dir(&dir).ok()?.flatten();
        let early = files.filter(|f| f.file_name().to_string_lossy().starts_with("early-"));
        (early.count() == regions()).then_some(())
    })
    .await;
    let info: JobInfo = fleet.api().get(&format!("jobs/{}", job.id)).await.expect("job");
    assert_eq!(info.phase, "taking bases", "the other bases must still be awaited");
}

async fn restored(fleet: &mut Fleet, name: &str, cluster: &Cluster) {
    let target = Server::start(Flavor::Redis, &[]);
    protect_one(fleet, name, &target).await;
    let _ = fleet.restore(&restore_of("orders", name)).await.unwrap_or_else(|e| panic!("{}", e.report()));
    compare(name, &held_by(&target), &held_by_all(cluster));
    fleet.agent(name, "n0").process.stop().await;
}

async fn ends_well(fleet: &Fleet, job: &JobInfo) {
    let _ = fleet.api().job_end(job).await.unwrap_or_else(|e| panic!("{}", e.report()));
}

/// What has not begun when the upload is asked for is no more sent before it, whatever waits; the upload's own word goes on meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sent_by_the_cut_is_left_to_the_upload() {
    let cluster = Cluster::start(Flavor::Redis, 3, &[]);
    // At the lowest limit there is these take the first node longer than the bases of the others.
    let mut rng = StdRng::seed_from_u64(7);
    let mut text = || (0..250).map(|_| format!("{:08x}", rng.random::<u32>())).collect::<String>();
    spread(&cluster, (0..4500).map(|i| words(format!("SET big:{i} {}", text()))).collect());
    let mut fleet = Fleet::start_with(CoordinatorSpec {
        sections: "[backup]\nmax_parallel_bases = 3\nagent_concurrency = 1\n".to_owned(),
        ..Default::default()
    })
    .await;
    for (i, port) in cluster.ports().into_iter().enumerate() {
        let mut spec = untuned("orders", &format!("n{i}"), format!("127.0.0.1:{port}"));
        if i == 0 {
            spec.sections.push_str("[limits]\nbytes_per_second = \"100KB\"\n");
        } else {
            let _ = cluster.nodes[i].1.client().run(SLOW);
        }
        fleet.start_agent(spec);
    }
    let _ = fleet.ready("orders", 3).await;
    let job = fleet.start_backup("orders").await.unwrap_or_else(|e| panic!("{}", e.report()));
    ends_well(&fleet, &job).await;
    let sent = told(&fleet, &job, "n0").await;
    assert!((1..regions()).contains(&sent), "{sent} of {}", regions());
    let log = fleet.agent("orders", "n0").process.log();
    let early = log.lines().filter(|l| l.contains("part sent") && l.contains("upload-early")).count();
    assert!((sent..=sent + 1).contains(&early), "{early} sent, of which {sent} had come by the cut");
    restored(&mut fleet, "copy", &cluster).await;
}

/// A key of the first node.
fn first(cluster: &Cluster, name: &str) -> String {
    let mine = |key: &String| std::ptr::eq(cluster.owner(key.as_bytes()), &cluster.nodes[0].1);
    (0..).map(|i| format!("{name}:{i}")).find(mine).expect("a key")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_meanwhile_goes_over_what_was_sent() {
    let (cluster, mut fleet, job) = begun(&[], "").await;
    sent(&fleet, &job).await;
    // Changed, the same again, gone, new, other times to live, a value that grows over any block.
    let (long, gone) = (first(&cluster, "long"), first(&cluster, "gone"));
    let mut writes: Vec<_> = filling().into_iter().step_by(97).collect();
    for i in (0..6000).step_by(6) {
        writes.push(words(match i % 30 {
            0 => format!("SET s:{i} other"),
            6 => format!("DEL s:{i}"),
            12 => format!("PERSIST t:{}", i + 5),
            18 => format!("EXPIRE z:{} 7000", i + 4),
            _ => format!("SET new:{i} {i}"),
        }));
    }
    writes.push(words(format!("SET {gone} 1")));
    writes.push(words(format!("DEL {gone}")));
    writes.push(vec!["SET".into(), long.clone(), "x".repeat(3 << 20)]);
    writes.push(words(format!("SETRANGE {long} 2000000 middle")));
    spread(&cluster, writes);
    ends_well(&fleet, &job).await;
    assert_eq!(told(&fleet, &job, "n0").await, regions(), "every region of n0 was sent before the cut");
    assert_eq!(bases(&fleet, &job, "n0").await, 1);
    restored(&mut fleet, "copy", &cluster).await;
    let _ = fleet.verify("orders", "latest").await.unwrap_or_else(|e| panic!("{}", e.report()));
    // The key indexes are those of the cut: nothing is sent again, and what changes is told from what was there.
    for n in [1, 2] {
        let _ = cluster.nodes[n].1.client().run("CONFIG SET repl-diskless-sync-delay 0");
    }
    let second = backup(&fleet, "orders").await;
    assert_eq!((second.full_parts, second.delta_parts), (0, 0), "{second:?}");
    spread(&cluster, vec![words(format!("SET {long} short")), words("SET s:30 again".to_owned())]);
    let third = backup(&fleet, "orders").await;
    assert_eq!((third.full_parts, third.delta_parts), (0, 2), "{third:?}");
    restored(&mut fleet, "later", &cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_of_a_database_that_was_emptied_does_not_count() {
    let (cluster, mut fleet, job) = begun(&[], "").await;
    sent(&fleet, &job).await;
    assert_eq!(cluster.nodes[0].1.client().run("FLUSHALL").text(), "OK");
    let key = first(&cluster, "after");
    spread(&cluster, vec![words(format!("SET {key} 1"))]);
    ends_well(&fleet, &job).await;
    restored(&mut fleet, "copy", &cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_while_it_sends_takes_its_base_again() {
    let (cluster, mut fleet, job) = begun(&[], "agent.early-sent:20").await;
    fleet.revive_agent("orders", "n0").await;
    ends_well(&fleet, &job).await;
    assert_eq!(bases(&fleet, &job, "n0").await, 2);
    restored(&mut fleet, "copy", &cluster).await;
    let second = backup(&fleet, "orders").await;
    assert_eq!(second.full_parts, 0, "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_dies_before_the_cut_leaves_nothing_that_counts() {
    let env = [(tidemark_common::crash::VARIABLE.to_owned(), "ingest.early:20".to_owned())];
    let (cluster, mut fleet, job) = begun(&env, "").await;
    fleet.revive_coordinator().await;
    let _ = fleet.ready("orders", 3).await;
    assert!(!stands(&fleet).await, "job {} had no cut", job.id);
    let whole = backup(&fleet, "orders").await;
    assert!(whole.full_parts > 0, "{whole:?}");
    restored(&mut fleet, "copy", &cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_dies_after_the_cut_gets_anew_what_it_knew_of() {
    let env = [(tidemark_common::crash::VARIABLE.to_owned(), "ingest.part:10".to_owned())];
    let (cluster, mut fleet, job) = begun(&env, "").await;
    sent(&fleet, &job).await;
    spread(&cluster, filling().into_iter().step_by(97).collect());
    fleet.revive_coordinator().await;
    let _ = fleet.ready("orders", 3).await;
    assert!(stands(&fleet).await, "job {} had its cut", job.id);
    restored(&mut fleet, "copy", &cluster).await;
    let second = backup(&fleet, "orders").await;
    assert_eq!(second.full_parts, 0, "{second:?}");
}
