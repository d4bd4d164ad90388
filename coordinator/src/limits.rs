//! Limits of rates: bytes of blocks a second, both directions together, of the fleet and of each agent.
//!
//! They are kept where data passes the coordinator: ingest reads, and serve sends, at the pace of two token buckets.
//! What is not read holds the sender up by QUIC's flow control; while a limit is in force the windows of agents'
//! connections are cut to what it lets pass in a moment, so that also the network sees no more. A changed limit counts at
//! once, for running jobs as well; what an agent was allowed to send before may still arrive, at most one window.
//!
//! An operator's limits are kept in the repository and outlive this coordinator; a limit that none has set is that of
//! the configuration.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::{counter, gauge};
use quinn::{Connection, VarInt};
use tidemark_common::rate::{BURST, Limiter, Rate};
use tidemark_common::transport::limits::CONNECTION_WINDOW;
use tidemark_proto::stored::limits as v1;
use tidemark_proto::{ErrorKind, Result};

use crate::config::LimitsConfig;
use crate::fleet::Member;
use crate::metric_names::{LIMIT, LIMITED_SECONDS};
use crate::repository::{LimitsRecord, Repository, read_limits, write_limits};

/// A limited connection may have so much of the rate in flight, beside what two round trips need.
const WINDOW_TIME: Duration = Duration::from_millis(50);
/// Smallest window of a limited connection, in bytes: a block.
const LEAST_WINDOW: u64 = 128 << 10;

/// A limit for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct LimitInfo {
    /// Bytes a second; null for no limit.
    pub bytes_per_second: Option<u64>,
    /// The same as it is written: `50MB`, `none`.
    pub rate: String,
    /// Who says so: `config` or `operator`.
    pub source: String,
}

/// All limits.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct LimitsInfo {
    /// Of all agents together.
    pub fleet: LimitInfo,
    /// Of each agent.
    pub per_agent: LimitInfo,
    /// When an operator last set one, milliseconds since 1970; 0 for never.
    pub set_millis: u64,
}

/// A change of limits: each a rate (`50MB`, `1.5GiB`), `none`, or `default` for what the configuration says; those left
/// out stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SetLimits {
    /// Of all agents together.
    pub fleet: Option<String>,
    /// Of each agent.
    pub per_agent: Option<String>,
}

/// The word for what the configuration says.
const DEFAULT: &str = "default";

fn parse(text: &str) -> Result<v1::Limit> {
    if text == DEFAULT {
        return Ok(v1::Limit { set: 0, bytes_per_second: 0 });
    }
    let rate: Rate = text.parse()?;
    Ok(v1::Limit { set: 1, bytes_per_second: rate.bytes().unwrap_or(0) })
}

impl SetLimits {
    /// Refuses what is no rate (`Request`).
    pub fn check(&self) -> Result<()> {
        self.fleet.iter().chain(&self.per_agent).try_for_each(|text| parse(text).map(drop))
    }
}

/// The data connections of agents.
#[derive(Debug, Default)]
struct Links {
    open: HashMap<usize, Connection>,
    /// Bytes received and sent by those that have ended.
    ended: (u64, u64),
}

/// The limits of a running coordinator.
#[derive(Debug)]
pub struct Limits {
    defaults: LimitsConfig,
    set: tokio::sync::Mutex<()>,
    record: Mutex<Option<LimitsRecord>>,
    fleet: Limiter,
    /// One for each agent that ever sent or fetched here; certificates bound their number.
    agents: Mutex<HashMap<Member, Arc<Limiter>>>,
    links: Mutex<Links>,
    /// Microseconds that were waited.
    waited: AtomicU64,
}

impl Limits {
    /// The limits that the repository keeps, beside those of the configuration.
    pub async fn load(defaults: LimitsConfig, repository: &Repository) -> Result<Self> {
        let record = match read_limits(repository).await {
            // Without a running coordinator nobody could set others.
            Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Unsupported) => {
                tracing::error!(error = %e.report(), "the limits that were set cannot be read: those of the configuration count");
                None
            }
            read => read.map_err(|e| e.context("reading limits"))?,
        };
        let limits = Self {
            defaults,
            set: tokio::sync::Mutex::default(),
            record: Mutex::new(record),
            fleet: Limiter::new(Rate::NONE),
            agents: Mutex::default(),
            links: Mutex::default(),
            waited: AtomicU64::new(0),
        };
        limits.apply();
        Ok(limits)
    }

    /// The limits in force: fleet, each agent.
    fn rates(&self) -> (Rate, Rate) {
        let record = self.record.lock().expect("no panic while held");
        let rate = |limit: Option<v1::Limit>, default: Rate| match limit {
            // A limit that a later build would let be lower is taken as the lowest here.
            Some(l) if l.set != 0 && l.bytes_per_second > 0 => {
                Rate::new(l.bytes_per_second.max(tidemark_common::rate::MIN_RATE)).unwrap_or(default)
            }
            Some(l) if l.set != 0 => Rate::NONE,
            _ => default,
        };
        let limits = record.as_ref().map(|r| &r.limits);
        (
            rate(limits.map(|l| l.fleet), self.defaults.fleet),
            rate(limits.map(|l| l.per_agent), self.defaults.per_agent),
        )
    }

    /// The limits for people.
    pub fn info(&self) -> LimitsInfo {
        let (fleet, per_agent) = self.rates();
        let record = self.record.lock().expect("no panic while held");
        let limits = record.as_ref().map(|r| &r.limits);
        let info = |rate: Rate, limit: Option<v1::Limit>| LimitInfo {
            bytes_per_second: rate.bytes(),
            rate: rate.to_string(),
            source: if limit.is_some_and(|l| l.set != 0) { "operator" } else { "config" }.into(),
        };
        LimitsInfo {
            fleet: info(fleet, limits.map(|l| l.fleet)),
            per_agent: info(per_agent, limits.map(|l| l.per_agent)),
            set_millis: limits.map_or(0, |l| l.at_millis),
        }
    }

    /// Changes limits: durably first, then for everything that runs. `Request` for what is no rate.
    pub async fn set(&self, repository: &Repository, change: &SetLimits, now_millis: u64) -> Result<LimitsInfo> {
        let parsed = |text: &Option<String>| text.as_deref().map(parse).transpose();
        let (fleet, per_agent) = (parsed(&change.fleet)?, parsed(&change.per_agent)?);
        let _one_at_a_time = self.set.lock().await;
        let unset = v1::Limit { set: 0, bytes_per_second: 0 };
        let before = self.record.lock().expect("no panic while held").as_ref().map(|r| r.limits.clone());
        let limits = v1::Limits {
            fleet: fleet.unwrap_or_else(|| before.as_ref().map_or(unset, |b| b.fleet)),
            per_agent: per_agent.unwrap_or_else(|| before.as_ref().map_or(unset, |b| b.per_agent)),
            at_millis: now_millis,
            put_id: rand::random(),
        };
        let number = write_limits(repository, &limits).await?;
        *self.record.lock().expect("no panic while held") = Some(LimitsRecord { number, limits });
        self.apply();
        Ok(self.info())
    }

    fn apply(&self) {
        let (fleet, per_agent) = self.rates();
        tracing::info!(%fleet, %per_agent, "limits in force");
        self.fleet.set(fleet);
        self.agents.lock().expect("no panic while held").values().for_each(|l| l.set(per_agent));
        let links = self.links.lock().expect("no panic while held");
        links.open.values().for_each(|c| open_window(c, fleet.lower(per_agent)));
        drop(links);
        gauge!(LIMIT, "scope" => "fleet").set(fleet.bytes().unwrap_or(0) as f64);
        gauge!(LIMIT, "scope" => "agent").set(per_agent.bytes().unwrap_or(0) as f64);
    }

    /// Bytes received and sent on agents' data connections since the start.
    pub fn network_bytes(&self) -> (u64, u64) {
        let links = self.links.lock().expect("no panic while held");
        links.open.values().fold(links.ended, plus_bytes)
    }

    fn agent(&self, member: &Member) -> Arc<Limiter> {
        let mut agents = self.agents.lock().expect("no panic while held");
        match agents.get(member) {
            Some(limiter) => limiter.clone(),
            // Asked for under the lock: a limit that is set meanwhile finds it in the map, or is seen here.
            None => agents.entry(member.clone()).or_insert(Arc::new(Limiter::new(self.rates().1))).clone(),
        }
    }

    /// Waits until `bytes` of an agent may pass. Its own limit comes first: who waits for that takes nothing of the
    /// fleet's.
    pub async fn pass(&self, member: &Member, bytes: u64) {
        let waited = self.agent(member).pass(bytes).await + self.fleet.pass(bytes).await;
        if !waited.is_zero() {
            let micros = waited.as_micros() as u64;
            let before = self.waited.fetch_add(micros, Ordering::Relaxed);
            // The metric counts whole seconds; what is left over is kept here.
            counter!(LIMITED_SECONDS).increment((before + micros) / 1_000_000 - before / 1_000_000);
        }
    }

    /// Bytes that the limits let pass in a moment: who takes more at once passes in lumps.
    pub fn moment(&self) -> u64 {
        let (fleet, per_agent) = self.rates();
        let rate = fleet.lower(per_agent).bytes();
        rate.map_or(u64::MAX, |rate| (rate as f64 * BURST.as_secs_f64()) as u64)
    }

    /// Keeps the window of an agent's connection to what the limits let pass, until the guard is dropped.
    pub fn link(&self, connection: &Connection) -> LinkGuard<'_> {
        let id = connection.stable_id();
        // Under the lock, so that a limit that is set meanwhile comes after.
        let mut links = self.links.lock().expect("no panic while held");
        let (fleet, per_agent) = self.rates();
        open_window(connection, fleet.lower(per_agent));
        let _ = links.open.insert(id, connection.clone());
        LinkGuard { limits: self, id }
    }
}

fn plus_bytes((received, sent): (u64, u64), connection: &Connection) -> (u64, u64) {
    let stats = connection.stats();
    (received + stats.udp_rx.bytes, sent + stats.udp_tx.bytes)
}

/// See [`Limits::link`].
#[derive(Debug)]
pub struct LinkGuard<'a> {
    limits: &'a Limits,
    id: usize,
}

impl Drop for LinkGuard<'_> {
    fn drop(&mut self) {
        let mut links = self.limits.links.lock().expect("no panic while held");
        if let Some(connection) = links.open.remove(&self.id) {
            links.ended = plus_bytes(links.ended, &connection);
        }
    }
}

/// Bytes that a connection may have in flight under `rate`.
fn window(rate: Rate, round_trip: Duration) -> u32 {
    let full = u64::from(CONNECTION_WINDOW);
    let Some(rate) = rate.bytes() else { return CONNECTION_WINDOW };
    let moment = (rate as f64 * (WINDOW_TIME + 2 * round_trip).as_secs_f64()) as u64;
    moment.clamp(LEAST_WINDOW, full) as u32
}

fn open_window(connection: &Connection, rate: Rate) {
    connection.set_receive_window(VarInt::from_u32(window(rate, connection.rtt())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{Store, StoreConfig};

    async fn repository() -> Repository {
        let store = Store::open(&StoreConfig { url: "memory:///".into(), ..StoreConfig::default() }).unwrap();
        Repository::init(store, None, 7).await.unwrap()
    }

    fn change(fleet: Option<&str>, per_agent: Option<&str>) -> SetLimits {
        SetLimits { fleet: fleet.map(Into::into), per_agent: per_agent.map(Into::into) }
    }

    #[tokio::test]
    async fn what_is_set_is_kept_and_the_rest_is_configuration() {
        let repository = repository().await;
        let defaults = LimitsConfig { fleet: "10MB".parse().unwrap(), per_agent: Rate::NONE };
        let limits = Limits::load(defaults.clone(), &repository).await.unwrap();
        let shown =
            |i: &LimitsInfo| [&i.fleet, &i.per_agent].map(|l| format!("{} {}", l.rate, l.source)).join(", ");
        assert_eq!(shown(&limits.info()), "10MB config, none config");
        let _ = limits.set(&repository, &change(None, Some("2MB")), 1).await.unwrap();
        assert_eq!(shown(&limits.info()), "10MB config, 2MB operator");
        let set = limits.set(&repository, &change(Some("none"), None), 2).await.unwrap();
        assert_eq!(shown(&set), "none operator, 2MB operator");
        assert_eq!(
            limits.set(&repository, &change(Some("5 apples"), None), 3).await.unwrap_err().kind(),
            tidemark_proto::ErrorKind::Request
        );
        // The next coordinator, with another configuration.
        let other = LimitsConfig { fleet: "7MB".parse().unwrap(), per_agent: "7MB".parse().unwrap() };
        let next = Limits::load(other, &repository).await.unwrap();
        assert_eq!(next.info(), set);
        let back = next.set(&repository, &change(Some("default"), Some("default")), 4).await.unwrap();
        assert_eq!(shown(&back), "7MB config, 7MB config");
        assert_eq!(shown(&Limits::load(defaults, &repository).await.unwrap().info()), "10MB config, none config");
    }

    #[tokio::test]
    async fn an_agent_known_before_and_one_that_comes_after_have_the_limit() {
        let repository = repository().await;
        let defaults = LimitsConfig { fleet: Rate::NONE, per_agent: Rate::NONE };
        let limits = Limits::load(defaults, &repository).await.unwrap();
        let member = |node: &str| Member { cluster: "c".parse().unwrap(), node: node.parse().unwrap() };
        let before = limits.agent(&member("n1"));
        let _ = limits.set(&repository, &change(None, Some("2MB")), 1).await.unwrap();
        for limiter in [before, limits.agent(&member("n1")), limits.agent(&member("n2"))] {
            assert_eq!(limiter.rate().bytes(), Some(2_000_000));
        }
    }

    #[test]
    fn windows_are_what_passes_in_a_moment() {
        let rate = |text: &str| text.parse::<Rate>().unwrap();
        let lan = Duration::from_micros(200);
        assert_eq!(window(Rate::NONE, lan), CONNECTION_WINDOW);
        assert_eq!(window(rate("50MB"), Duration::ZERO), 2_500_000);
        assert_eq!(u64::from(window(rate("1MB"), lan)), LEAST_WINDOW);
        assert_eq!(window(rate("100GB"), lan), CONNECTION_WINDOW);
        // A long way must not slow it down: two round trips of the rate are in flight.
        assert!(window(rate("50MB"), Duration::from_millis(100)) > 10_000_000);
    }
}
