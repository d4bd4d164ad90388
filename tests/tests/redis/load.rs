//! Clients that do everything that makes a log hard to follow: short times to live that are renewed, copies and renames of
//! volatile keys, transactions, scripts, several databases.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_tests::redis::{Client, Reply};

/// Rest of a client between two steps: the processor belongs to what is tried.
const PACE: Duration = Duration::from_micros(300);
/// Keys of each kind.
const KEYS: u32 = 300;

/// What the clients do beside plain writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wildness {
    /// Nothing that a Cluster refuses.
    Cluster,
    /// Several databases too.
    Databases,
    /// And fields of hashes that expire, and what else newer servers know.
    Fields,
    /// Whole databases are emptied and swapped as well.
    Everything,
}

/// Clients at work.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// One client for each connection.
    pub(crate) fn start(clients: Vec<Client>, wildness: Wildness) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let run = |(number, mut client): (usize, Client)| {
            let (stop, done) = (stop.clone(), done.clone());
            std::thread::spawn(move || {
                let mut rng = StdRng::seed_from_u64(number as u64);
                while !stop.load(Ordering::Relaxed) {
                    for command in step(&mut rng, wildness) {
                        match client.ask(&command).expect("reply") {
                            // What a command is not for is a part of the load.
                            Reply::Error(e)
                                if ["WRONGTYPE", "MOVED", "CROSSSLOT", "ASK", "TRYAGAIN", "EXECABORT", "ERR "]
                                    .iter()
                                    .any(|known| e.starts_with(known)) => {}
                            Reply::Error(e) => panic!("{command:?}: {e}"),
                            _ => {}
                        }
                    }
                    let _ = done.fetch_add(1, Ordering::Relaxed);
                    std::thread::park_timeout(PACE);
                }
            })
        };
        let threads = clients.into_iter().enumerate().map(run).collect();
        Self { stop, done, threads }
    }

    /// Steps done so far.
    pub(crate) fn steps(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends it.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|t| t.join().expect("load"));
    }
}

fn words(line: String) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn step(rng: &mut StdRng, wildness: Wildness) -> Vec<Vec<String>> {
    // One hash tag for both keys, so that a Cluster takes commands of two.
    let tag = rng.random_range(0..40);
    let key = |rng: &mut StdRng, kind: &str| format!("{kind}:{{{tag}}}:{}", rng.random_range(0..KEYS));
    let (a, b) = (key(rng, "s"), key(rng, "s"));
    let value = rng.random::<u64>();
    let millis = rng.random_range(1..400);
    let kinds = if wildness == Wildness::Fields { 28 } else { 24 };
    let line = match rng.random_range(0..kinds) {
        0..=3 => format!("SET {a} {value}"),
        4..=6 => format!("SET {a} {value} PX {millis}"),
        7 => format!("PEXPIRE {a} {}", millis * 10),
        8 => format!("PERSIST {a}"),
        9 => format!("COPY {a} {b} REPLACE"),
        10 => format!("RENAME {a} {b}"),
        11 => format!("DEL {a} {b}"),
        12 => format!("LPUSH {} {value} {millis}", key(rng, "l")),
        13 => format!("RPOP {}", key(rng, "l")),
        14 => format!("SADD {} {millis} {value}", key(rng, "e")),
        15 => format!("SPOP {}", key(rng, "e")),
        16 => format!("HSET {} f{millis} {value}", key(rng, "h")),
        17 => format!("ZADD {} {millis} m{value}", key(rng, "z")),
        18 => format!("XADD {} * f {value}", key(rng, "x")),
        19 => format!("ZUNIONSTORE {} 2 {} {}", key(rng, "z"), key(rng, "z"), key(rng, "z")),
        20 => format!("EXPIRE {} {}", key(rng, "h"), millis / 100),
        21 => {
            let (c, d) = (key(rng, "n"), key(rng, "n"));
            return ["MULTI".into(), format!("INCR {c}"), format!("SET {d} {millis} PX {millis}"), "EXEC".into()]
                .map(words)
                .to_vec();
        }
        22 => {
            let script = "redis.call('SET',KEYS[1],ARGV[1],'PX',ARGV[2]) return redis.call('INCR',KEYS[2])";
            let (c, d) = (key(rng, "s"), key(rng, "c"));
            let mut command = words("EVAL".into());
            command.extend([script.into(), "2".into(), c, d, value.to_string(), millis.to_string()]);
            return vec![command];
        }
        // Of these older servers know none, or not all.
        24 => format!("HPEXPIRE {} {millis} FIELDS 2 f{} f{millis}", key(rng, "h"), rng.random_range(1..400)),
        25 => format!("HSETEX {} PX {millis} FIELDS 1 f{millis} {value}", key(rng, "h")),
        26 => format!("MSETEX 2 {a} {value} {b} {millis} PX {millis}"),
        27 => format!("HPERSIST {} FIELDS 1 f{millis}", key(rng, "h")),
        _ => return wild(rng, wildness, &a),
    };
    vec![words(line)]
}

fn wild(rng: &mut StdRng, wildness: Wildness, key: &str) -> Vec<Vec<String>> {
    let db = rng.random_range(0..4);
    match (wildness, rng.random_range(0..60)) {
        (Wildness::Cluster, _) => vec![words(format!("APPEND {key} x"))],
        (Wildness::Everything, 0) => vec![words("FLUSHDB".into())],
        (Wildness::Everything, 1) => vec![words("SWAPDB 1 2".into())],
        (Wildness::Everything, 2..=9) => vec![words(format!("MOVE {key} {db}"))],
        _ => vec![words(format!("SELECT {db}"))],
    }
}
