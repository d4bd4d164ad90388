//! Limits of rates: bytes a second, by a token bucket whose rate can be changed while others wait for it.
//!
//! What holds: over any time t at least as long as [`BURST`] no more than rate x (t + [`BURST`]) bytes pass, and one piece
//! more. Whoever waits is served in order. A changed rate counts at once, also for who waits already.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tidemark_proto::{Error, Result};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

/// What an idle time may be made up for: this much of the rate passes at once.
pub const BURST: Duration = Duration::from_millis(100);
/// Smallest limit, in bytes a second: below it blocks would take so long that nodes count as silent.
pub const MIN_RATE: u64 = 100_000;

/// Bytes a second, or no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate(Option<u64>);

impl Rate {
    /// No limit.
    pub const NONE: Rate = Rate(None);

    /// `bytes` a second; under [`MIN_RATE`] is `Request`.
    pub fn new(bytes: u64) -> Result<Self> {
        if bytes < MIN_RATE {
            return Err(Error::request(format!(
                "a limit of {bytes} bytes a second is too low: at least {MIN_RATE}, or `none`"
            )));
        }
        Ok(Self(Some(bytes)))
    }

    /// Bytes a second, `None` without a limit.
    pub fn bytes(self) -> Option<u64> {
        self.0
    }

    /// The lower of two limits.
    pub fn lower(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Self(Some(a.min(b))),
            (a, b) => Self(a.or(b)),
        }
    }
}

/// Digits after the point that a rate may have.
const MAX_DECIMALS: usize = 9;

/// Suffixes that a rate may have, the longest match first.
const UNITS: [(&str, u64); 9] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("b", 1),
];

impl FromStr for Rate {
    type Err = Error;

    /// `none`, or a number with a unit: `50MB`, `1.5 GiB`, `800000`; `/s` may follow.
    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::request(format!("`{text}` is no rate: write e.g. 50MB, 64MiB, 1.5GB (a second) or none"));
        let lower = text.trim().to_ascii_lowercase();
        if lower == "none" {
            return Ok(Self::NONE);
        }
        let amount = lower.strip_suffix("/s").unwrap_or(&lower).trim_end();
        let unit = UNITS.iter().find_map(|(name, factor)| Some((amount.strip_suffix(name)?, *factor)));
        let (number, factor) = unit.unwrap_or((amount, 1));
        let bytes = decimal(number.trim_end(), factor).ok_or_else(wrong)?;
        Self::new(bytes)
    }
}

/// `number` x `factor`, what is less than one left out.
fn decimal(number: &str, factor: u64) -> Option<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > MAX_DECIMALS {
        return None;
    }
    let part: u128 =
        if part.is_empty() { 0 } else { part.parse().ok()? } * u128::from(factor) / 10u128.pow(part.len() as u32);
    let whole = whole.parse::<u128>().ok()?.checked_mul(u128::from(factor))?;
    u64::try_from(whole + part).ok()
}

impl fmt::Display for Rate {
    /// The largest decimal unit that loses nothing; what is parsed from it is the same rate.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(bytes) = self.0 else { return f.write_str("none") };
        for (name, factor) in [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)] {
            if bytes >= factor && bytes.is_multiple_of(factor / 1000) {
                let part = format!("{:03}", bytes % factor / (factor / 1000));
                let part = part.trim_end_matches('0');
                let point = if part.is_empty() { "" } else { "." };
                return write!(f, "{}{point}{part}{name}", bytes / factor);
            }
        }
        write!(f, "{bytes}B")
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Bytes(u64),
            Text(String),
        }
        let rate = match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => Self::new(bytes),
            Form::Text(text) => text.parse(),
        };
        rate.map_err(|e| serde::de::Error::custom(e.message()))
    }
}

/// The state of a token bucket. It begins empty and holds at most [`BURST`] of the rate.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate: Rate,
    /// Bytes that may pass now; below zero after a piece that was larger than what was there.
    level: f64,
    at: Instant,
}

impl Bucket {
    /// An empty bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, level: 0.0, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        match self.rate.bytes() {
            Some(rate) => {
                let rate = rate as f64;
                self.level = (self.level + rate * passed).min(rate * BURST.as_secs_f64());
            }
            None => self.level = 0.0,
        }
    }

    /// Another rate from `now` on. A debt stays, a credit is cut to the burst of the new rate.
    pub fn set(&mut self, rate: Rate, now: Instant) {
        self.fill(now);
        self.rate = rate;
        self.fill(now);
    }

    /// Takes `bytes` if they may pass at `now`; the error is how long to wait before asking again.
    ///
    /// They may once the bucket holds them, or as much as it ever holds; what is missing then is a debt.
    pub fn take(&mut self, bytes: u64, now: Instant) -> std::result::Result<(), Duration> {
        self.fill(now);
        let Some(rate) = self.rate.bytes() else { return Ok(()) };
        let rate = rate as f64;
        let missing = (bytes as f64).min(rate * BURST.as_secs_f64()) - self.level;
        // Half a byte is a fault of rounding.
        if missing < 0.5 {
            self.level -= bytes as f64;
            return Ok(());
        }
        Err(Duration::from_secs_f64(missing / rate))
    }
}

/// A bucket that many wait for.
#[derive(Debug)]
pub struct Limiter {
    /// Its turn has who holds it; others queue up in order.
    turn: Mutex<()>,
    bucket: std::sync::Mutex<Bucket>,
    rate: watch::Sender<Rate>,
}

impl Limiter {
    /// A limiter of `rate`.
    pub fn new(rate: Rate) -> Self {
        let bucket = std::sync::Mutex::new(Bucket::new(rate, Instant::now()));
        Self { turn: Mutex::new(()), bucket, rate: watch::Sender::new(rate) }
    }

    /// The present rate.
    pub fn rate(&self) -> Rate {
        *self.rate.borrow()
    }

    /// Another rate, at once.
    pub fn set(&self, rate: Rate) {
        self.bucket.lock().expect("no panic while held").set(rate, Instant::now());
        let _ = self.rate.send_replace(rate);
    }

    /// Waits until `bytes` may pass; answers how long that took. Safe to cancel: nothing is taken then.
    pub async fn pass(&self, bytes: u64) -> Duration {
        let began = Instant::now();
        if self.rate().bytes().is_none() {
            return Duration::ZERO;
        }
        let mut changed = self.rate.subscribe();
        let _turn = self.turn.lock().await;
        loop {
            let _ = changed.borrow_and_update();
            let taken = self.bucket.lock().expect("no panic while held").take(bytes, Instant::now());
            match taken {
                Ok(()) => return began.elapsed(),
                Err(wait) => tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    // The sender lives in this limiter.
                    _ = changed.changed() => {}
                },
            }
        }
    }
}

#[cfg(test)]
mod tests;
