//! What came of jobs, in words.

use serde::Deserialize;
use tidemark_common::expiry::ExpiryMode;
use tidemark_proto::Timestamp;

use super::follow::took;
use super::kept;
use super::output::{count, duration, fields, listing, micros, short, size};
use super::time;
use crate::catalog::BackupDetail;
use crate::job::collect::CollectReport;
use crate::job::damage::Damage;
use crate::job::restore::{RestorePlan, RestoreRequest};
use crate::job::{JobInfo, JobKind};

/// The result of a restore job, as far as it is shown.
#[derive(Debug, Deserialize)]
pub(crate) struct RestoreResult {
    /// The backup.
    pub(crate) backup: String,
    /// Its cut.
    pub(crate) cut: u64,
    /// Parts loaded, over all nodes.
    pub(crate) parts: u64,
    /// Records loaded.
    pub(crate) records: u64,
    /// Records that had expired, apart from those loaded.
    #[serde(default)]
    pub(crate) expired: Option<u64>,
    /// The nodes.
    pub(crate) nodes: Vec<RestoredNode>,
    /// What a salvage left out.
    #[serde(default)]
    pub(crate) missing: Damage,
    /// What is not as it was.
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
}

/// A restored node.
#[derive(Debug, Deserialize)]
pub(crate) struct RestoredNode {
    /// Its name.
    pub(crate) node: String,
    /// Its records.
    pub(crate) records: u64,
    /// Its slots.
    pub(crate) slots: String,
}

#[derive(Debug, Deserialize)]
struct VerifyResult {
    backup: String,
    parts: u64,
    checked_parts: u64,
    records: u64,
    bytes: u64,
}

#[derive(Debug, Deserialize)]
struct CheckResult {
    cluster: String,
    ledger_entries: u64,
    backups: u64,
    packs: u64,
    pack_bytes: u64,
}

fn typed<T: for<'de> Deserialize<'de>>(info: &JobInfo) -> Option<T> {
    T::deserialize(info.result.as_ref()?).ok()
}

/// The result of a job that succeeded.
pub(crate) fn result(info: &JobInfo) -> String {
    let now = info.finished_millis.unwrap_or_default();
    let known = match info.kind {
        JobKind::Backup => typed(info).map(|detail| backup_done(info, &detail)),
        JobKind::Restore => typed(info).map(|r| restore_done(info, &r)),
        JobKind::Verify => typed(info).map(|r: VerifyResult| {
            format!(
                "backup {} is good: {} of {} parts read back in {}, {} records, {}, every seal and digest holds\n",
                short(&r.backup),
                count(r.checked_parts),
                count(r.parts),
                took(info, now),
                count(r.records),
                size(r.bytes)
            )
        }),
        JobKind::Check => typed(info).map(|r: CheckResult| {
            format!(
                "cluster {} is good: {} ledger entries, {} backups, {} packs of {}, all there and whole\n",
                r.cluster,
                count(r.ledger_entries),
                count(r.backups),
                count(r.packs),
                size(r.pack_bytes)
            )
        }),
        JobKind::Collect => typed(info).map(|r| collected(&r)),
    };
    // A newer coordinator's result: better raw than not at all.
    known.unwrap_or_else(|| info.result.as_ref().map(ToString::to_string).unwrap_or_default())
}

fn collected(r: &CollectReport) -> String {
    let (verb, condition) = if r.dry_run { ("would go", "dry run") } else { ("gone", "done") };
    let held = if r.held_backups > 0 { format!(", {} deleted ones in use", r.held_backups) } else { String::new() };
    let open = if r.open_jobs > 0 { format!(", {} unfinished jobs", r.open_jobs) } else { String::new() };
    fields(&[
        ("cluster", format!("{} ({condition})", r.cluster)),
        ("kept", format!("{} backups{held}{open}: packs of {}", r.backups, size(r.kept_bytes))),
        ("dead", format!("{} of them, in packs that stay", size(r.dead_bytes))),
        (
            verb,
            format!(
                "{} packs of {}, {} manifest objects of {}, {} job records, {} unfinished files",
                count(r.packs),
                size(r.pack_bytes),
                count(r.manifest_objects),
                size(r.manifest_bytes),
                count(r.job_records),
                count(r.staged_files)
            ),
        ),
    ])
}

fn backup_done(info: &JobInfo, detail: &BackupDetail) -> String {
    let sent = size(info.progress.wire_bytes);
    let i = &detail.item;
    let held = detail.node_evidence.iter().map(|n| n.held_micros).max().unwrap_or(0);
    fields(&[
        ("backup", format!("{} of cluster {}: {} in {}", i.id, i.cluster, i.state, duration(i.duration_millis))),
        ("cut", time::exact(Timestamp(i.cut))),
        ("holds", format!("{} records, {} of {} nodes", count(i.records), size(i.data_bytes), i.nodes)),
        ("moved", format!("{} read, {sent} sent, {} stored", size(detail.read_bytes), size(i.new_bytes))),
        ("parts", parts(detail)),
        ("writes", writes(held, detail.cut_attempt)),
        ("kept", detail.kept.as_ref().map(kept::counted).unwrap_or_default()),
    ])
}

/// How long writes waited; a quiet fleet is cut without holding any.
fn writes(held_micros: u64, attempt: u32) -> String {
    match held_micros {
        0 => format!("not held, attempt {attempt}"),
        held => format!("held for {} at most, attempt {attempt}", micros(held)),
    }
}

fn parts(d: &BackupDetail) -> String {
    format!(
        "{}: {} full, {} delta, {} unchanged",
        count(d.parts),
        count(d.full_parts),
        count(d.delta_parts),
        count(d.same_parts)
    )
}

/// One backup in full.
pub(crate) fn backup(d: &BackupDetail) -> String {
    let i = &d.item;
    let head = fields(&[
        ("backup", i.id.clone()),
        ("cluster", format!("{} ({})", i.cluster, d.engine)),
        ("type", capital(&i.made)),
        ("state", i.state.clone()),
        ("cut", time::exact(Timestamp(i.cut))),
        ("began", time::seconds(i.started_millis)),
        ("took", duration(i.duration_millis)),
        ("holds", format!("{} records, {} of {} nodes", count(i.records), size(i.data_bytes), i.nodes)),
        ("moved", format!("{} read, {} stored", size(d.read_bytes), size(i.new_bytes))),
        ("restore reads", size(d.stored_bytes)),
        ("parts", parts(d)),
        ("manifest", d.root.clone()),
        ("builds on", d.parent.clone()),
        ("reason", i.reason.clone()),
    ]);
    let evidence = d.node_evidence.iter().map(|n| {
        let stood = if n.held_at == n.sealed_at { "yes" } else { "NO" };
        [
            n.node.clone(),
            n.slots.clone(),
            format!("{} / {}", n.held_at, n.sealed_at),
            stood.into(),
            micros(n.held_micros),
            n.max_timestamp.to_string(),
            short(&n.incarnation),
        ]
    });
    let heading =
        ["NODE", "SLOTS", "HELD AT / SEALED AT", "STOOD STILL", "WRITES HELD", "HIGHEST TIMESTAMP", "DATA"];
    let evidence = listing(heading, evidence, "none");
    let kept = d.kept.as_ref().map(kept::shown).unwrap_or_default();
    format!("{head}\nevidence of the cut (attempt {})\n{evidence}{kept}", d.cut_attempt)
}

fn restore_done(info: &JobInfo, r: &RestoreResult) -> String {
    let expired = match r.expired {
        None | Some(0) => String::new(),
        Some(expired) => format!("{} records more: their time had come, they were left out", count(expired)),
    };
    let head = fields(&[
        ("restore", format!("{} onto cluster {}: done in {}", info.id, info.cluster, took(info, 0))),
        ("backup", r.backup.clone()),
        ("state of", time::exact(Timestamp(r.cut))),
        (
            "loaded",
            format!(
                "{} records in {} parts, compared with the manifest and read back",
                count(r.records),
                count(r.parts)
            ),
        ),
        ("expired", expired),
    ]);
    let nodes = r.nodes.iter().map(|n| [n.node.clone(), n.slots.clone(), count(n.records)]);
    let table = listing(["NODE", "SLOTS", "RECORDS"], nodes, "no node");
    format!("{head}\n{table}{}{}", missing(&r.missing), kept::warnings(&r.warnings))
}

/// What is missing, in lines; nothing where nothing is.
fn missing(damage: &Damage) -> String {
    if damage.is_none() {
        return String::new();
    }
    let Damage { parts, regions, slots, faults } = damage;
    let mut out = match parts {
        0 => "\nMISSING, beside the records:\n".to_owned(),
        parts => format!("\nMISSING: {parts} parts of regions {regions}, slots {slots}\n"),
    };
    for fault in faults {
        out.push_str(&format!("  {fault}\n"));
    }
    out
}

/// Which keys a restore takes, in words; nothing where it takes all.
pub(crate) fn wanted(request: &RestoreRequest) -> String {
    let mut words = Vec::new();
    if !request.keys.is_empty() {
        words.push(format!("keys that fit {}", request.keys.join(" ")));
    }
    words.extend(request.slots.as_ref().map(|slots| format!("slots {slots}")));
    if !request.dbs.is_empty() {
        let dbs: Vec<_> = request.dbs.iter().map(ToString::to_string).collect();
        words.push(format!("databases {}", dbs.join(", ")));
    }
    words.join(", ")
}

/// What a restore does about expiry, in words; nothing where it does nothing.
fn expiry(mode: ExpiryMode) -> String {
    match mode {
        ExpiryMode::Absolute => String::new(),
        ExpiryMode::Shift => "keys live as long from the restore on as they would have from the cut on".into(),
        ExpiryMode::Drop => "keys do not expire any more".into(),
    }
}

/// A plan.
pub(crate) fn plan(p: &RestorePlan) -> String {
    let target = p.request.target.as_ref().unwrap_or(&p.request.cluster);
    let head = fields(&[
        ("backup", p.backup.to_string()),
        ("state of", time::exact(p.state())),
        ("log", log_of(p)),
        ("from", format!("cluster {}, {} nodes", p.request.cluster, p.source_nodes)),
        (
            "onto",
            format!(
                "cluster {target}, {} nodes{}{}",
                p.targets.len(),
                if p.request.in_place { ", replacing what they hold" } else { "" },
                if p.request.with_users { ", with the users of the backup" } else { "" }
            ),
        ),
        ("only", wanted(&p.request)),
        ("expiry", expiry(p.request.expiry)),
        ("holds", format!("{} records, {}", count(p.records), size(p.bytes))),
        ("reads", format!("{} from the repository", size(p.stored_bytes))),
        ("takes", format!("about {}", duration(p.estimated_seconds.max(1) * 1000))),
    ]);
    let targets = p.targets.iter().map(|t| {
        [
            t.node.to_string(),
            t.slots.to_string(),
            count(t.parts),
            size(t.bytes),
            size(t.disk_bytes),
            count(t.present_records),
        ]
    });
    let table =
        listing(["NODE", "SLOTS", "PARTS", "LOADS", "NEEDS DISK", "HOLDS NOW"], targets, "no node takes it");
    let mut out = format!("{head}\n{table}{}{}", missing(&p.missing), kept::warnings(&p.warnings));
    for problem in &p.problems {
        out.push_str(&format!("\nIT CANNOT RUN: {problem}"));
    }
    out
}

/// What of the log is read, and from where on.
fn log_of(p: &RestorePlan) -> String {
    match p.at {
        0 => String::new(),
        _ => format!(
            "{} segments, {}, over the backup's cut at {}",
            count(p.log_segments),
            size(p.log_bytes),
            time::exact(Timestamp(p.cut))
        ),
    }
}

/// A word with a capital letter.
pub(crate) fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobProgress, JobState};

    #[test]
    fn results_of_other_builds_are_shown_raw() {
        let mut info = JobInfo {
            id: Default::default(),
            kind: JobKind::Verify,
            cluster: "orders".parse().unwrap(),
            state: JobState::Succeeded,
            phase: String::new(),
            started_millis: 0,
            finished_millis: Some(1500),
            progress: JobProgress::default(),
            error: None,
            result: Some(serde_json::json!({"new": "form"})),
        };
        assert_eq!(result(&info), r#"{"new":"form"}"#);
        info.result = Some(serde_json::json!({
            "backup": "0123456789abcdef", "parts": 256, "checked_parts": 13, "records": 1000, "bytes": 2048,
        }));
        assert_eq!(
            result(&info),
            "backup 01234567 is good: 13 of 256 parts read back in 1.5 s, 1,000 records, 2.0 KiB, every seal and digest holds\n"
        );
    }

    #[test]
    fn words_get_capitals() {
        assert_eq!((capital("manual"), capital("")), ("Manual".into(), String::new()));
    }
}
