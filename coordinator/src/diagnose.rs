//! What the report of a fault needs to know: builds, configurations, states, ledgers, events, metrics, last log lines of
//! the coordinator and of every connected agent. No key, no password, no option of a store.
//!
//! What cannot be had (the store is away, an agent does not answer) is said in its place: a diagnosis is asked for when
//! something is wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use serde::Serialize;
use tidemark_common::scrub::Scrubber;
use tidemark_proto::id::JobId;
use tidemark_proto::wire::control::{Diagnose, Diagnosed};
use tidemark_proto::{ClusterName, Result};
use url::Url;

use crate::api::clusters_of;
use crate::config::CoordinatorConfig;
use crate::context::Shared;
use crate::events::{self, EventsQuery};
use crate::fleet::Member;
use crate::repository::Ledger;
use crate::telemetry::Telemetry;

/// Time for an agent to tell of itself.
const AGENT_DEADLINE: Duration = Duration::from_secs(5);
/// Agents asked at once.
const AGENTS_AT_ONCE: usize = 8;
/// Agents asked at most.
const MAX_AGENTS: usize = 100;
/// Events that are told.
const EVENTS: usize = 1000;
/// Entries of each ledger that are told, the newest.
const ENTRIES: usize = 50;

/// A file of a diagnosis.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct DiagnosisFile {
    /// Its name, with folders by `/`.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// A ledger in short.
#[derive(Debug, Serialize)]
struct LedgerSummary {
    entries: usize,
    ignored: usize,
    epoch: u64,
    backups: usize,
    failures: usize,
    tail: (u64, String),
    by_kind: BTreeMap<u16, usize>,
    /// Number, time in milliseconds, epoch and kind of the newest.
    newest: Vec<(u64, u64, u64, u16)>,
}

/// Values that must not be in a diagnosis, though nothing should tell them.
fn scrubber(config: &CoordinatorConfig) -> Scrubber {
    let mut scrubber = Scrubber::of_environment();
    config.repository.options.0.values().for_each(|v| scrubber.add(v));
    if let Ok(url) = Url::parse(&config.repository.url) {
        scrubber.add(url.username());
        scrubber.add(url.password().unwrap_or_default());
        url.query_pairs().for_each(|(_, value)| scrubber.add(&value));
    }
    scrubber
}

fn json<T: Serialize>(value: Result<T>) -> String {
    match value {
        Ok(value) => serde_json::to_string_pretty(&value).unwrap_or_else(|e| format!("cannot be written: {e}")),
        Err(e) => format!("cannot be told: {}", e.report()),
    }
}

/// Gathers the files.
pub async fn gather(context: &Shared) -> Vec<DiagnosisFile> {
    let config = toml::to_string(&context.config).unwrap_or_else(|e| format!("cannot be written: {e}"));
    let observed = Telemetry::new(context.clone());
    let query = EventsQuery { limit: Some(EVENTS), ..EventsQuery::default() };
    let mut files = vec![
        ("about.json".to_owned(), json(Ok(about(context)))),
        ("clusters.json".to_owned(), json(clusters_of(context).await)),
        ("jobs.json".to_owned(), json(Ok(context.jobs.list()))),
        ("events.json".to_owned(), json(events::list(&context.repository, &query).await)),
        ("ledgers.json".to_owned(), json(ledgers(context).await)),
        ("coordinator/config.toml".to_owned(), config),
        ("coordinator/limits.json".to_owned(), json(Ok(context.limits.info()))),
        ("coordinator/metrics.txt".to_owned(), context.metrics.render(&observed)),
        ("coordinator/log.txt".to_owned(), context.log.text()),
    ];
    files.extend(agents(context).await);
    let scrubber = scrubber(&context.config);
    files.into_iter().map(|(name, text)| DiagnosisFile { name, text: scrubber.scrub(&text) }).collect()
}

fn about(context: &Shared) -> serde_json::Value {
    serde_json::json!({
        "build": crate::BUILD,
        "system": std::env::consts::OS,
        "machine": std::env::consts::ARCH,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "coordinator": context.config.name,
        "epoch": context.epoch,
        "started_millis": context.started_millis,
        "now_millis": context.now_millis(),
        "repository": context.repository.store().url(),
        "repository_id": context.repository.id(),
        "encrypted": context.repository.keys().encrypts(),
        "store_trouble": context.repository.store().health().trouble(Duration::MAX),
    })
}

async fn ledgers(context: &Shared) -> Result<BTreeMap<ClusterName, serde_json::Value>> {
    let mut all = BTreeMap::new();
    for cluster in context.repository.clusters().await? {
        let told = match Ledger::load(&context.repository, &cluster).await {
            Ok(ledger) => serde_json::to_value(summary(&ledger)).unwrap_or_default(),
            Err(e) => format!("cannot be read: {}", e.report()).into(),
        };
        let _ = all.insert(cluster, told);
    }
    Ok(all)
}

fn summary(ledger: &Ledger) -> LedgerSummary {
    let entries = ledger.entries();
    let mut by_kind = BTreeMap::new();
    for recorded in entries {
        *by_kind.entry(recorded.entry.kind).or_default() += 1;
    }
    let (number, hash) = ledger.tail();
    let newest = entries.iter().rev().take(ENTRIES).map(|r| &r.entry);
    LedgerSummary {
        entries: entries.len(),
        ignored: entries.iter().filter(|r| !r.counts).count(),
        epoch: ledger.epoch(),
        backups: ledger.backups().len(),
        failures: ledger.failures().len(),
        tail: (number, hash.to_string()),
        by_kind,
        newest: newest.map(|e| (e.number, e.at_millis, e.epoch, e.kind)).collect(),
    }
}

async fn agents(context: &Shared) -> Vec<(String, String)> {
    let members = context.fleet.members(None).into_iter().take(MAX_AGENTS);
    let asked: Vec<_> = members.map(|(member, _)| agent(context, member).boxed()).collect();
    let told: Vec<_> = futures::stream::iter(asked).buffered(AGENTS_AT_ONCE).collect().await;
    told.into_iter().flatten().collect()
}

async fn agent(context: &Shared, member: Member) -> Vec<(String, String)> {
    let head = context.head(JobId::default(), 0);
    let told: Result<Diagnosed> = context.fleet.command(&member, head, &Diagnose {}, AGENT_DEADLINE, |_| ()).await;
    let name = |file: &str| format!("agents/{}/{}/{file}", member.cluster, member.node);
    match told {
        Ok(told) => vec![
            (name("build.txt"), told.build),
            (name("config.toml"), told.config),
            (name("metrics.txt"), told.metrics),
            (name("log.txt"), told.log),
        ],
        Err(e) => vec![(name("error.txt"), e.report())],
    }
}
