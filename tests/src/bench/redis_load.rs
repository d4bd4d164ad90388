//! Load on a server of Redis from a thread of its own, as `redis-benchmark` makes it: many connections, one event loop.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What the server answers to each command.
const OK: &[u8] = b"+OK\r\n";
/// Values are cut out of this many random characters.
const POOL: usize = 1 << 16;
/// The server's answers are read into so many bytes.
const READ: usize = 16 << 10;

/// `SET`s: each connection sends the next when the last was answered.
#[derive(Debug, Clone, Copy)]
pub struct RedisLoad {
    /// Loopback port of the server.
    pub port: u16,
    /// Connections.
    pub connections: u32,
    /// Commands that are sent before their answers are read.
    pub depth: usize,
    /// Keys that are written, at random.
    pub keys: u64,
    /// Bytes of a value, at most 60,000.
    pub value: usize,
    /// How long a connection waits between an answer and what it sends next, as over a network with such a round trip; zero for
    /// the full rate.
    pub away: Duration,
    /// For how long.
    pub duration: Duration,
    /// Makes keys and values.
    pub seed: u64,
}

/// What a load came to.
#[derive(Debug, Clone)]
pub struct RedisRate {
    /// Commands that were answered.
    pub commands: u64,
    /// From the first command to the last answer.
    pub seconds: f64,
    /// Microseconds from sending a pipeline to its last answer, ascending.
    micros: Vec<u32>,
}

impl RedisRate {
    /// Commands a second.
    pub fn per_second(&self) -> f64 {
        self.commands as f64 / self.seconds
    }

    /// Milliseconds that such a share of the answers did not take longer than.
    pub fn millis_at(&self, share: f64) -> f64 {
        let at = (self.micros.len() as f64 * share).ceil() as usize;
        self.micros.get(at.saturating_sub(1)).map_or(0.0, |micros| f64::from(*micros) / 1e3)
    }
}

impl RedisLoad {
    /// Makes the load, on a thread of its own; answers when it is over. Panics when the server refuses anything.
    pub async fn run(self) -> RedisRate {
        let (told, hears) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            let _ = told.send(runtime.block_on(self.connections()));
        });
        let rate = hears.await.expect("the load");
        thread.join().expect("the load's thread");
        rate
    }

    async fn connections(self) -> RedisRate {
        let start = Instant::now();
        let clients = (0..self.connections).map(|n| self.client(n, start + self.duration));
        let mut micros: Vec<u32> = futures::future::join_all(clients).await.concat();
        let seconds = start.elapsed().as_secs_f64();
        micros.sort_unstable();
        RedisRate { commands: micros.len() as u64 * self.depth as u64, seconds, micros }
    }

    /// One connection until `end`; the time of each pipeline.
    async fn client(self, number: u32, end: Instant) -> Vec<u32> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.expect("connection");
        stream.set_nodelay(true).expect("option");
        let mut rng = StdRng::seed_from_u64(self.seed << 32 | u64::from(number));
        let pool: Vec<u8> = (0..POOL).map(|_| b"etaoinshrdlucmfw"[rng.random_range(0..16usize)]).collect();
        let (mut out, mut micros, mut read) = (Vec::new(), Vec::new(), vec![0; READ]);
        while Instant::now() < end {
            out.clear();
            for _ in 0..self.depth {
                let key = format!("key:{:010}", rng.random_range(0..self.keys));
                let at = rng.random_range(0..POOL - self.value);
                put_command(&mut out, &[b"SET", key.as_bytes(), &pool[at..at + self.value]]);
            }
            let sent = Instant::now();
            stream.write_all(&out).await.expect("sent");
            let (mut have, wanted) = (0, self.depth * OK.len());
            while have < wanted {
                let n = stream.read(&mut read).await.expect("an answer");
                assert!(n > 0, "the server has ended the connection");
                let good = read[..n].iter().zip(OK.iter().cycle().skip(have % OK.len())).all(|(a, b)| a == b);
                assert!(good, "the server answers {}", String::from_utf8_lossy(&read[..n]));
                have += n;
            }
            micros.push(sent.elapsed().as_micros().min(u128::from(u32::MAX)) as u32);
            if !self.away.is_zero() {
                tokio::time::sleep(self.away).await;
            }
        }
        micros
    }
}

/// A command as clients send it.
pub fn put_command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}
