//! Restores onto servers that hold data: clients are kept off meanwhile, and come back with the rights that they had.

use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_tests::fleet::{eventually as later, restore_of};
use tidemark_tests::redis::{Client, Cluster, Flavor, Server, eventually, listening};

use super::contents::{compare, held_by, held_by_all};

use super::fenced::*;

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_cut_and_refused_on_primary_and_replica_and_come_back_as_they_were() {
    let (port, primary) = listening(Flavor::Redis, &[]);
    let (_, replica) = listening(Flavor::Redis, &["--replicaof", &format!("127.0.0.1 {port}")]);
    make_users(&primary);
    make_users(&replica);
    fill(&mut primary.client(), "key", KEYS);
    let mut fleet = fleet().await;
    fleet.start_agent(spec("orders", "n0", &primary, "agent.emptied"));
    let _ = fleet.ready("orders", 1).await;
    let taken = good(fleet.backup("orders").await);
    let wanted = held_by(&primary);
    fill(&mut primary.client(), "later", 50);
    let _ = primary.client().run("DEL key:1 key:2 key:3");
    let present = held_by(&primary);
    let before = [users(&primary), users(&replica)];

    let refused = fleet.restore(&restore_of("orders", "orders")).await.unwrap_err().report();
    assert!(refused.contains("--in-place"), "{refused}");
    compare("refused", &held_by(&primary), &present);

    let mut clients = Vec::new();
    for command in [&["MONITOR"][..], &["SUBSCRIBE", "news"], &["BLPOP", "nothing", "0"], &["PING"]] {
        for server in [&primary, &replica] {
            if command[0] == "BLPOP" && std::ptr::eq(server, &replica) {
                continue;
            }
            let mut client = server.client();
            client.send(command).expect("sent");
            if command[0] != "BLPOP" {
                let _ = client.reply().expect("reply");
            }
            clients.push((command[0], client));
        }
    }
    let job = start(&fleet, &in_place("orders", &taken.item.id)).await;
    let _ = fleet.agent("orders", "n0").process.ended().await;
    // Fenced and emptied, and nobody there who could open it.
    clients.iter_mut().for_each(|(what, client)| is_cut(what, client));
    is_refused(&primary);
    is_refused(&replica);
    assert_eq!(kept(&fleet, "orders-n0"), 2);
    fleet.revive_agent("orders", "n0").await;
    let ended = fleet.api().job_end(&job).await;
    let ended = good(ended);
    assert_eq!([users(&primary), users(&replica)], before);
    compare("in place", &held_by(&primary), &wanted);
    follows(&replica, &wanted);
    assert_eq!(kept(&fleet, "orders-n0"), 0);
    let log = fleet.agent("orders", "n0").process.log();
    // The hash of the user's password.
    assert!(!log.contains("98c1eb4ee934") && !log.contains("+@read"), "rules are nobody's business");

    // What was there is there: by its own restore.
    let safety = ended["safety_backup"].as_str().expect("a safety backup").to_owned();
    let _ = good(fleet.restore(&in_place("orders", &safety)).await);
    compare("the safety backup", &held_by(&primary), &present);
    assert_eq!([users(&primary), users(&replica)], before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_at_any_step_leaves_the_old_data_or_the_new_and_the_users_of_before() {
    let server = Server::start(Flavor::Redis, &[]);
    make_users(&server);
    let before = users(&server);
    fill(&mut server.client(), "key", KEYS);
    let mut fleet = fleet().await;
    fleet.start_agent(spec("orders", "n0", &server, ""));
    let _ = fleet.ready("orders", 1).await;
    let taken = good(fleet.backup("orders").await);
    let wanted = held_by(&server);
    fleet.stop_agent("orders", "n0").await;
    let points = [
        ("agent.fence-saved", false),
        ("agent.fence-user", false),
        ("agent.restore-begun", false),
        ("agent.emptying", true),
        ("agent.emptied", true),
        ("agent.part-loaded:3", true),
        ("agent.verified", false),
        ("agent.switching", true),
        ("agent.committed", true),
        ("agent.fence-lowered", true),
        ("agent.switched", true),
    ];
    for (point, goes_on) in points {
        let _ = server.client().call(&["SET", "later", point]);
        let present = held_by(&server);
        fleet.start_agent(spec("orders", "n0", &server, point));
        let _ = fleet.ready("orders", 1).await;
        let request = RestoreRequest { no_safety_backup: true, ..in_place("orders", &taken.item.id) };
        let job = start(&fleet, &request).await;
        fleet.revive_agent("orders", "n0").await;
        let ended = fleet.api().job_end(&job).await;
        if let Err(e) = &ended {
            assert!(!goes_on && e.report().contains("n0"), "{point}: {}", e.report());
        }
        if point == "agent.verified" && ended.is_err() {
            // The data of before is gone: another restore opens the server.
            let _ = later("a restore that may take over", async || fleet.restore(&request).await.ok()).await;
            compare(point, &held_by(&server), &wanted);
        } else {
            is_open(&fleet, "orders", &server, &before).await;
            compare(point, &held_by(&server), if ended.is_ok() { &wanted } else { &present });
        }
        is_open(&fleet, "orders", &server, &before).await;
        assert_eq!(kept(&fleet, "orders-n0"), 0, "{point}");
        fleet.stop_agent("orders", "n0").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_restored_in_place_and_a_replica_out_of_reach_stops_it_before_anything_is_lost() {
    let mut cluster = Cluster::start(Flavor::Redis, 3, &[]);
    cluster.nodes.iter().for_each(|(_, server)| make_users(server));
    let set = |i: usize| vec!["SET".to_owned(), format!("key:{i}"), "v".repeat(1 + i % 400)];
    for mut client in cluster.clients() {
        let _ = client.pipeline(&(0..KEYS).map(set).collect::<Vec<_>>());
    }
    let mut fleet = fleet().await;
    for (i, (_, server)) in cluster.nodes.iter().enumerate() {
        fleet.start_agent(spec("orders", &format!("n{i}"), server, ""));
    }
    let _ = fleet.ready("orders", 3).await;
    let taken = good(fleet.backup("orders").await);
    let wanted = held_by_all(&cluster);
    assert_eq!(wanted.len(), KEYS);
    for mut client in cluster.clients() {
        let later: Vec<_> = (0..50).map(|i| vec!["SET".to_owned(), format!("later:{i}"), "1".into()]).collect();
        let _ = client.pipeline(&later);
    }
    let present = held_by_all(&cluster);
    cluster.add_replica(1, &[]);
    let mut replica = cluster.nodes.pop().expect("the replica").1;
    let before: Vec<_> = cluster.nodes.iter().map(|(_, server)| users(server)).collect();
    let id = cluster.nodes[1].1.client().run("CLUSTER MYID").text();
    eventually("all to know whom the replica follows", || {
        let known = |mut c: Client| c.run("CLUSTER NODES").text().contains(&format!("slave {id} "));
        cluster.clients().into_iter().all(known).then_some(())
    });

    replica.kill();
    let failed = fleet.restore(&in_place("orders", &taken.item.id)).await.unwrap_err().report();
    assert!(failed.contains("keeping clients off server 127.0.0.1:") && failed.contains("n1"), "{failed}");
    later("all to be as it was", async || {
        let open = fleet.ready("orders", 3).await.nodes.iter().all(|n| n.state == "available");
        let now: Vec<_> = cluster.nodes.iter().map(|(_, server)| users(server)).collect();
        (open && now == before).then_some(())
    })
    .await;
    compare("called off", &held_by_all(&cluster), &present);

    replica.restart();
    let _ = good(fleet.restore(&in_place("orders", &taken.item.id)).await);
    compare("a Cluster in place", &held_by_all(&cluster), &wanted);
    assert_eq!(cluster.nodes.iter().map(|(_, server)| users(server)).collect::<Vec<_>>(), before);
    assert_eq!(users(&replica).len(), 1);
    let owned = held_by(&cluster.nodes[1].1);
    follows(&replica, &owned);
}
