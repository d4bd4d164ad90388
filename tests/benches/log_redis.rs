//! The log of a server of Redis: what it costs the server and its clients beside an ordinary replica, how far it is behind, and how
//! long light cuts hold writes.
//!
//! Three servers take the same load in turns: one alone, one whose log is kept (agent and coordinator, segments in a folder), one
//! with a replica. All three stand all the time; who comes first changes with the rounds. Clients, servers, agent, coordinator and
//! replica share this machine: what they take of it is told as processors' time for each command.
//!
//! Arguments: `[rounds of each load, default 3] [seconds of one load, default 10]`. Binaries first: `cargo build --release
//! --workspace --bins`.

use std::time::{Duration, Instant};

use tidemark_tests::bench::logged::{log_status, now, point, protect};
use tidemark_tests::bench::redis_load::{RedisLoad, RedisRate};
use tidemark_tests::bench::{cpu_seconds, peak_rss_mib, share_of};
use tidemark_tests::fleet::{Fleet, Scrape, eventually};
use tidemark_tests::redis::{Client, Flavor, Server, eventually as soon, listening};
use tokio::sync::oneshot;

/// Rounds when no number is given.
const ROUNDS: u64 = 3;
/// Length of one load when none is given, in seconds.
const SECONDS: u64 = 10;
/// Keys that the load writes.
const KEYS: u64 = 100_000;
/// Bytes of a value.
const VALUE: usize = 100;
/// The loads: connections, commands of one pipeline, and milliseconds between an answer and the next question. The first one leaves
/// the machine room, as a network between clients and server does; the others take all of it.
const LOADS: [(u32, usize, u64); 3] = [(50, 1, 1), (20, 1, 0), (4, 50, 0)];
/// Time between two looks at the lag.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How the servers stand.
const SIDES: [&str; 3] = ["alone", "logged", "replica"];

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let rounds = numbers.next().unwrap_or(ROUNDS);
    let seconds = numbers.next().unwrap_or(SECONDS);
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async { Writes::start().await.run(rounds, Duration::from_secs(seconds)).await });
}

/// Waits until nothing up to now would be lost with the node.
async fn drained(fleet: &Fleet) {
    let at = now();
    eventually("the log to be durable", async || {
        let status = log_status(fleet, SIDES[1]).await;
        status.nodes.iter().all(|n| n.streaming && n.safe >= at.0).then_some(())
    })
    .await;
}

/// Bytes of the stream that a server has sent its replicas.
fn offset(client: &mut Client) -> u64 {
    let info = client.run("INFO replication").text();
    let told = info.lines().find_map(|l| l.strip_prefix("master_repl_offset:")).expect("an offset");
    told.trim().parse().expect("an offset")
}

/// The servers, and who follows them.
struct Writes {
    fleet: Fleet,
    /// Alone, logged, with a replica: the port of each.
    servers: [(u16, Server); 3],
    replica: Server,
}

/// What one load came to.
struct Row {
    rate: RedisRate,
    /// MB of the stream of commands in a second.
    stream: f64,
    /// Processors' time for one command, in microseconds: the server's, that of who follows it (agent, replica), and the
    /// coordinator's, all that is asked of it included.
    cpu: [f64; 3],
    /// Of the log: MB stored, and how many milliseconds each look found it behind.
    log: Option<(f64, Vec<f64>)>,
    /// From the end of the load until who follows has everything.
    behind: Duration,
}

impl Writes {
    async fn start() -> Self {
        let servers = [(); 3].map(|()| listening(Flavor::Redis, &[]));
        let replica = Server::start(Flavor::Redis, &["--replicaof", "127.0.0.1", &servers[2].0.to_string()]);
        soon("the replica to follow", || {
            let info = replica.client().run("INFO replication").text();
            info.contains("master_link_status:up").then_some(())
        });
        let mut fleet = Fleet::start().await;
        protect(&mut fleet, SIDES[1], &servers[1].1).await;
        let _ = servers[1].1.client().run("SET first 1");
        let _ = fleet.tidemark(&["pitr", "enable", "--cluster", SIDES[1]]).await;
        let _ = point(&fleet, SIDES[1], now()).await;
        Self { fleet, servers, replica }
    }

    async fn run(mut self, rounds: u64, duration: Duration) {
        println!(
            "SET of {VALUE} B, {KEYS} keys, {} s each; the log's interval and light cuts are the defaults",
            duration.as_secs()
        );
        println!(
            "{:>5} {:>9} {:8} {:>10} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>8} {:>9} {:>9} {:>10} {:>8}",
            "round",
            "load",
            "",
            "commands/s",
            "MB/s",
            "p50 ms",
            "p99.9 ms",
            "max ms",
            "server us",
            "follow us",
            "coord us",
            "stored MB",
            "stored /s",
            "lag p99 ms",
            "behind s"
        );
        let held = self.fleet.scrape_agent(SIDES[1], "n0").await;
        for (connections, depth, away) in LOADS {
            let mut rows = [const { Vec::new() }; 3];
            for round in 1..=rounds {
                for turn in 0..3 {
                    // Who comes first changes, so that nobody always finds the machine as another left it.
                    let side = (turn + round as usize) % 3;
                    let load = RedisLoad {
                        port: self.servers[side].0,
                        connections,
                        depth,
                        keys: KEYS,
                        value: VALUE,
                        away: Duration::from_millis(away),
                        duration,
                        seed: round,
                    };
                    let row = self.one_load(side, load).await;
                    print_row(round, side, load, &row);
                    rows[side].push(row);
                }
            }
            summary(&rows, (connections, depth, away));
        }
        self.holds(&held).await;
        println!(
            "peak RSS: agent {} MiB, coordinator {} MiB, replica {} MiB, the server that is logged {} MiB\n",
            peak_rss_mib(self.fleet.agent(SIDES[1], "n0").process.id()),
            peak_rss_mib(self.fleet.coordinator().process.id()),
            peak_rss_mib(self.replica.pid()),
            peak_rss_mib(self.servers[1].1.pid())
        );
    }

    /// Processors' time so far: of a server, of who follows it, and of the coordinator where it has part in that.
    fn cpu(&mut self, side: usize) -> [f64; 3] {
        let [agent, coordinator] = match side {
            0 => [0.0; 2],
            1 => [self.fleet.agent(SIDES[1], "n0").process.id(), self.fleet.coordinator().process.id()]
                .map(cpu_seconds),
            _ => [cpu_seconds(self.replica.pid()), 0.0],
        };
        [cpu_seconds(self.servers[side].1.pid()), agent, coordinator]
    }

    /// Bytes of all segments that the coordinator has stored.
    async fn stored(&self) -> f64 {
        let name = tidemark_coordinator::metric_names::LOG_BYTES;
        self.fleet.scrape().await.get(&format!("{name}{{cluster=\"{}\"}}", SIDES[1])).unwrap_or(0.0)
    }

    async fn one_load(&mut self, side: usize, load: RedisLoad) -> Row {
        let mut client = self.servers[side].1.client();
        let (stored, sent, cpu) = (self.stored().await, offset(&mut client), self.cpu(side));
        let (over, ends) = oneshot::channel::<()>();
        let work = async {
            let rate = load.run().await;
            drop(over);
            rate
        };
        // The log is asked for its lag whoever has the load: the questions must not make a difference.
        let (rate, lags) = tokio::join!(work, look_at_lag(&self.fleet, ends));
        // A server without replicas counts no stream.
        let stream = (offset(&mut client) - sent) as f64 / 1e6 / rate.seconds;
        let start = Instant::now();
        match side {
            1 => drained(&self.fleet).await,
            2 => soon("the replica to have all", || {
                (offset(&mut self.replica.client()) >= offset(&mut client)).then_some(())
            }),
            _ => {}
        }
        let (behind, after) = (start.elapsed(), self.cpu(side));
        let cpu = [0, 1, 2].map(|i| (after[i] - cpu[i]) * 1e6 / rate.commands as f64);
        let log = (side == 1).then_some(((self.stored().await - stored) / 1e6, lags));
        Row { rate, stream, cpu, log, behind }
    }

    /// Says how long the light cuts held writes, by the agent's own metric.
    async fn holds(&mut self, before: &Scrape) {
        let name = tidemark_agent::metric_names::HOLD_SECONDS;
        // What was measured last is in the buckets a few seconds later.
        let wanted = eventually("light cuts to be counted", async || {
            let now = self.fleet.scrape_agent(SIDES[1], "n0").await;
            (now.get(&format!("{name}_count")) > before.get(&format!("{name}_count"))).then_some(now)
        });
        let now = wanted.await;
        let of = |series: &str| now.get(series).unwrap_or(0.0) - before.get(series).unwrap_or(0.0);
        let (count, sum) = (of(&format!("{name}_count")), of(&format!("{name}_sum")));
        let mut told = String::new();
        for le in tidemark_common::telemetry::FRACTIONS_OF_A_SECOND {
            let within = of(&format!("{name}_bucket{{le=\"{le}\"}}"));
            told.push_str(&format!("; {within:.0} within {} ms", le * 1e3));
            if within >= count {
                break;
            }
        }
        println!("light cuts: {count:.0} tries, writes held for {:.2} ms on average{told}", sum * 1e3 / count);
    }
}

async fn look_at_lag(fleet: &Fleet, mut ends: oneshot::Receiver<()>) -> Vec<f64> {
    let mut lags = Vec::new();
    loop {
        tokio::select! {
            _ = &mut ends => return lags,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let status = log_status(fleet, SIDES[1]).await;
        lags.push(status.nodes.iter().map(|n| n.lag_millis).max().unwrap_or(0).max(status.rpo_millis) as f64);
    }
}

fn print_row(round: u64, side: usize, load: RedisLoad, row: &Row) {
    let RedisLoad { connections, depth, away, .. } = load;
    let log = row.log.as_ref().map_or(format!("{:>9} {:>9} {:>10}", "", "", ""), |(mb, lags)| {
        format!("{mb:>9.1} {:>9.1} {:>10.0}", mb / row.rate.seconds, share_of(lags, 0.99))
    });
    println!(
        "{round:>5} {:>9} {:8} {:>10.0} {:>8.1} {:>8.2} {:>8.2} {:>8.1} {:>9.2} {:>9.2} {:>8.2} {log} {:>8.2}",
        format!("{connections} x {depth}{}", if away.is_zero() { "" } else { " away" }),
        SIDES[side],
        row.rate.per_second(),
        row.stream,
        row.rate.millis_at(0.5),
        row.rate.millis_at(0.999),
        row.rate.millis_at(1.0),
        row.cpu[0],
        row.cpu[1],
        row.cpu[2],
        row.behind.as_secs_f64()
    );
}

/// Says what the log costs beside what a replica costs: medians of the rounds, each against the server alone in its own round.
fn summary(rows: &[Vec<Row>; 3], (connections, depth, away): (u32, usize, u64)) {
    let ratio = |side: usize, of: fn(&Row) -> f64| {
        let each: Vec<f64> = rows[side].iter().zip(&rows[0]).map(|(row, alone)| of(row) / of(alone)).collect();
        format!("{:.3} ({:.3} to {:.3})", share_of(&each, 0.5), share_of(&each, 0.0), share_of(&each, 1.0))
    };
    let lags: Vec<f64> = rows[1].iter().filter_map(|r| r.log.as_ref()).flat_map(|l| l.1.clone()).collect();
    println!(
        "{connections} connections{}, {depth} in a pipeline, against the server alone, median of the rounds (least to most):",
        if away > 0 { format!(", each {away} ms away") } else { String::new() }
    );
    for side in [1, 2] {
        println!(
            "  {:8} commands/s {}, p99.9 {}, server's time for a command {}",
            SIDES[side],
            ratio(side, |r| r.rate.per_second()),
            ratio(side, |r| r.rate.millis_at(0.999)),
            ratio(side, |r| r.cpu[0])
        );
    }
    println!(
        "  lag p99 {:.0} ms, longest {:.0} ms, {} looks",
        share_of(&lags, 0.99),
        share_of(&lags, 1.0),
        lags.len()
    );
}
