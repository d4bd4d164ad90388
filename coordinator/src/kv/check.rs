//! Finds values that no load wrote, and steps of chains without the step that they name.

use std::collections::HashMap;

use serde::Serialize;
use tidemark_proto::wire::kv::MAX_PAGE;
use tidemark_proto::{Result, Timestamp};

use super::chain::{self, CHAIN, Named};
use super::route::Router;
use super::value::{self, LOAD};

/// Faults that are named in a report; all are counted.
const NAMED_FAULTS: usize = 20;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// The timestamp that was read on all nodes.
    pub at: Timestamp,
    /// Load records.
    pub records: u64,
    /// Load records and chain steps whose value is not what a load writes.
    pub wrong_values: u64,
    /// Steps of chains.
    pub chain_steps: u64,
    /// Steps without the step that they name, or with an older one: the state is not a consistent cut.
    pub violations: u64,
    /// The first faults in words.
    pub faults: Vec<String>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.violations == 0 && self.wrong_values == 0
    }

    fn fault(&mut self, text: impl FnOnce() -> String) {
        if self.faults.len() < NAMED_FAULTS {
            self.faults.push(text());
        }
    }
}

/// Reads every node at one timestamp (`at`, or now) and checks what loads wrote there. Keeps the keys of all chain
/// steps in memory, and nothing of the records.
pub async fn check(router: &Router, at: Option<Timestamp>) -> Result<CheckReport> {
    let mut report = CheckReport {
        at: at.unwrap_or_default(),
        records: 0,
        wrong_values: 0,
        chain_steps: 0,
        violations: 0,
        faults: Vec::new(),
    };
    report.at = router
        .scan(LOAD.as_bytes(), at, MAX_PAGE, |record| {
            report.records += 1;
            if !value::is_right(&record.key, &record.value) {
                report.wrong_values += 1;
                report.fault(|| format!("{}: not a value of a load", String::from_utf8_lossy(&record.key)));
            }
            Ok(true)
        })
        .await?;
    let mut steps: HashMap<String, (Timestamp, Option<Named>)> = HashMap::new();
    let read_at = Some(report.at);
    let _ = router
        .scan(CHAIN.as_bytes(), read_at, MAX_PAGE, |record| {
            report.chain_steps += 1;
            let key = String::from_utf8_lossy(&record.key).into_owned();
            if let Ok(named) = chain::parse(&record.value) {
                let _ = steps.insert(key, (record.timestamp, named));
            } else {
                report.wrong_values += 1;
                report.fault(|| format!("{key}: not a step of a chain"));
            }
            Ok(true)
        })
        .await?;
    for (key, (_, named)) in &steps {
        let Some(named) = named else { continue };
        let fault = match steps.get(&named.key) {
            None => format!("{key} is there, {} that it names is not", named.key),
            Some((at, _)) if *at < named.at => format!("{key} names {} at {}, found at {at}", named.key, named.at),
            Some(_) => continue,
        };
        report.violations += 1;
        report.fault(|| fault);
    }
    Ok(report)
}
