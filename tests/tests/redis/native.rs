//! Values that are too long for a payload: restored by commands, in pieces. A low threshold shows it with short ones.

use tidemark_tests::fleet::{EngineKind, Fleet, restore_of};
use tidemark_tests::redis::{Client, Flavor, Server};

use super::contents::{compare, held_by};
use super::fenced::{good, in_place, spec, start};
use super::files::ghosts;
use super::fill::fill;

/// Every value that is no number is over it.
const THRESHOLD: &str = "native_over_bytes = 8";

/// Values of every type, some of which take many commands.
fn fill_all(client: &mut Client) {
    fill(client);
    ghosts(client);
    for i in 0..3000 {
        let _ = client.run(&format!("RPUSH long:list {i}:{}", "v".repeat(900)));
        let _ = client.run(&format!("ZADD long:zset {i}.25 {i}:{}", "m".repeat(300)));
        let _ = client.run(&format!("HSET long:hash {i} {}", "h".repeat(300)));
        let _ = client.run(&format!("XADD long:stream {i}-1 f {}", "s".repeat(200)));
    }
    let _ = client.run("XGROUP CREATE long:stream g 0");
    let _ = client.run("XREADGROUP GROUP g c COUNT 2000 STREAMS long:stream >");
    let _ = client.call(&["SET", "long:text", &"t".repeat(3 << 20)]);
    for key in ["long:list", "long:zset", "long:text"] {
        let _ = client.run(&format!("PEXPIREAT {key} 4102444800000"));
    }
}

fn target(fleet: &mut Fleet, name: &str, server: &Server, dies_at: &str) {
    let mut spec = spec(name, "n0", server, dies_at);
    spec.engine = EngineKind::Redis(format!("unix:{}", server.socket().display()), THRESHOLD.into());
    fleet.start_agent(spec);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_type_are_made_by_commands_and_an_agent_killed_in_one_begins_it_anew() {
    for flavor in Flavor::installed() {
        let (source, empty, full) =
            (Server::start(flavor, &[]), Server::start(flavor, &[]), Server::start(flavor, &[]));
        fill_all(&mut source.client());
        let mut fleet = Fleet::start().await;
        fleet.start_agent(spec("orders", "n0", &source, ""));
        let _ = fleet.ready("orders", 1).await;
        let _ = good(fleet.backup("orders").await);
        let wanted = held_by(&source);

        target(&mut fleet, "empty", &empty, "agent.native-flushed:9");
        let _ = fleet.ready("empty", 1).await;
        let job = start(&fleet, &restore_of("orders", "empty")).await;
        let _ = fleet.agent("empty", "n0").process.ended().await;
        assert!(empty.client().run("DBSIZE").integer() > 0, "it died with something loaded");
        fleet.revive_agent("empty", "n0").await;
        let _ = good(fleet.api().job_end(&job).await);
        compare("after a kill", &held_by(&empty), &wanted);
        // What no digest of ours says: commands were used, and values have the sizes that they had.
        let stats = empty.client().run("INFO commandstats").text();
        for command in ["rpush", "sadd", "zadd", "hset", "xadd", "xclaim", "append", "pexpireat"] {
            let used = stats.contains(&format!("cmdstat_{command}:"));
            assert_eq!(used, command != "append", "{command}: {stats}");
        }
        for ask in
            ["LLEN long:list", "ZCARD long:zset", "STRLEN long:text", "XLEN long:stream", "ZSCORE long:zset 7:"]
        {
            assert_eq!(empty.client().run(ask), source.client().run(ask), "{ask}");
        }

        // The temporary user of a restore in place may do it as well.
        let _ = full.client().run("RPUSH long:list present");
        target(&mut fleet, "full", &full, "");
        let _ = fleet.ready("full", 1).await;
        let request = tidemark_coordinator::job::restore::RestoreRequest {
            target: Some("full".parse().expect("name")),
            ..in_place("orders", "latest")
        };
        let _ = good(fleet.restore(&request).await);
        compare("in place", &held_by(&full), &wanted);
    }
}
