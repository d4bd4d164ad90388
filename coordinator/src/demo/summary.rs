//! What a demo came to, for people and programs.

use std::path::PathBuf;

use serde::Serialize;
use tidemark_proto::Timestamp;

use super::proof::{Difference, State};
use super::stopwatch::Stopwatch;
use crate::catalog::BackupDetail;
use crate::cli::{count, exact, micros, size};
use crate::job::JobInfo;
use crate::kv::CheckReport;

/// A backup of the demo.
#[derive(Debug, Clone, Serialize)]
pub struct BackupSummary {
    /// Its id.
    pub id: String,
    /// Its cut.
    pub cut: u64,
    /// Attempt at the cut that held.
    pub cut_attempt: u32,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Records that it holds.
    pub records: u64,
    /// Bytes of keys and values that it holds.
    pub data_bytes: u64,
    /// Bytes that were read from the stores.
    pub read_bytes: u64,
    /// Bytes that went over the network.
    pub sent_bytes: u64,
    /// Bytes that the repository grew by.
    pub stored_bytes: u64,
    /// Parts: all.
    pub parts: u64,
    /// Parts that were written whole.
    pub full_parts: u64,
    /// Parts of which only what had changed was written.
    pub delta_parts: u64,
    /// Longest time that a node held writes, in microseconds, from the evidence in the manifest.
    pub held_micros: u64,
    /// Slowest write that clients saw around the cut, in microseconds.
    pub slowest_write_micros: u64,
    /// Median write that clients saw until then, in microseconds.
    pub median_write_micros: u64,
}

/// What was proven, or what stands against it.
#[derive(Debug, Clone, Serialize)]
pub struct Proof {
    /// Records that were compared.
    pub records: u64,
    /// Records of the cut that are not there after the restore.
    pub missing: u64,
    /// Records that are there after the restore alone.
    pub extra: u64,
    /// Records with another value.
    pub different: u64,
    /// Steps of causal chains that were checked.
    pub chain_steps: u64,
    /// Steps without the step that they followed.
    pub violations: u64,
    /// Records whose value no client wrote.
    pub wrong_values: u64,
}

/// What runs on after `--keep`.
#[derive(Debug, Clone, Serialize)]
pub struct Kept {
    /// The folder.
    pub folder: PathBuf,
    /// Configuration of the command line for this fleet.
    pub cli_config: PathBuf,
    /// Processes, the coordinator last.
    pub processes: Vec<u32>,
}

/// What a demo came to.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Base records.
    pub records: u64,
    /// Writes that were acknowledged while backups were taken.
    pub written_while_backing_up: u64,
    /// Nodes that were backed up.
    pub nodes_before: u64,
    /// Nodes that took the restore.
    pub nodes_after: u64,
    /// The first backup.
    pub first: BackupSummary,
    /// The second.
    pub second: BackupSummary,
    /// Seconds of the restore.
    pub restore_seconds: f64,
    /// Records that were restored.
    pub restored_records: u64,
    /// The proof.
    pub proof: Proof,
    /// Seconds of it all.
    pub seconds: f64,
    /// What runs on.
    pub kept: Option<Kept>,
}

impl BackupSummary {
    pub(super) fn of(info: &JobInfo, d: &BackupDetail, stopwatch: &Stopwatch) -> Self {
        let (slowest_write_micros, median_write_micros) = stopwatch.around(Timestamp(d.item.cut));
        Self {
            id: d.item.id.clone(),
            cut: d.item.cut,
            cut_attempt: d.cut_attempt,
            seconds: d.item.duration_millis as f64 / 1e3,
            records: d.item.records,
            data_bytes: d.item.data_bytes,
            read_bytes: d.read_bytes,
            sent_bytes: info.progress.wire_bytes,
            stored_bytes: d.item.new_bytes,
            parts: d.parts,
            full_parts: d.full_parts,
            delta_parts: d.delta_parts,
            held_micros: d.node_evidence.iter().map(|n| n.held_micros).max().unwrap_or(0),
            slowest_write_micros,
            median_write_micros,
        }
    }
}

impl Proof {
    pub(super) fn of(before: &State, after: &State, causality: &CheckReport) -> Self {
        let Difference { missing, extra, different } = before.compare(after);
        Self {
            records: before.len(),
            missing,
            extra,
            different,
            chain_steps: causality.chain_steps,
            violations: causality.violations,
            wrong_values: causality.wrong_values,
        }
    }

    /// Whether it holds. A fleet without records or chains proves nothing.
    pub fn holds(&self) -> bool {
        let faults = self.missing + self.extra + self.different + self.violations + self.wrong_values;
        faults == 0 && self.records > 0 && self.chain_steps > 0
    }
}

/// What a restore job moved.
pub(super) fn progress(info: &JobInfo) -> String {
    let p = &info.progress;
    format!("{} records, {} received, {} loaded", count(p.records), size(p.wire_bytes), size(p.bytes))
}

impl Summary {
    /// For people.
    pub fn text(&self) -> String {
        let (one, two, p) = (&self.first, &self.second, &self.proof);
        let row = |name: &str, a: String, b: String| format!("  {name:<22}{a:>16}{b:>16}\n");
        let mut out = format!(
            "\n{:<24}{:>16}{:>16}\n",
            format!("Backups of {} nodes", self.nodes_before),
            "first (full)",
            "second (delta)"
        );
        out += &row("data", size(one.data_bytes), size(two.data_bytes));
        out += &row("read from the stores", size(one.read_bytes), size(two.read_bytes));
        out += &row("sent to coordinator", size(one.sent_bytes), size(two.sent_bytes));
        out += &row("added to repository", size(one.stored_bytes), size(two.stored_bytes));
        out += &row("took", format!("{:.2} s", one.seconds), format!("{:.2} s", two.seconds));
        out += &row("writes held", micros(one.held_micros), micros(two.held_micros));
        out += &row("slowest write at cut", micros(one.slowest_write_micros), micros(two.slowest_write_micros));
        out += &row("median write", micros(one.median_write_micros), micros(two.median_write_micros));
        out += &format!(
            "\nRestore of the first onto {} nodes: {} records in {:.1} s, the state of {}\n",
            self.nodes_after,
            count(self.restored_records),
            self.restore_seconds,
            exact(Timestamp(one.cut))
        );
        out += &format!(
            "  {} {} of {} records equal the lost nodes' at that timestamp ({} missing, {} extra, {} different)\n",
            sign(p.missing + p.extra + p.different == 0),
            count(p.records - p.missing - p.different),
            count(p.records),
            p.missing,
            p.extra,
            p.different
        );
        out += &format!(
            "  {} {} steps of causal chains: {} effects without their cause, {} wrong values\n",
            sign(p.violations + p.wrong_values == 0),
            count(p.chain_steps),
            p.violations,
            p.wrong_values
        );
        let verdict = if p.holds() { "All of it is proven" } else { "THE PROOF FAILED" };
        out += &format!("\n{verdict}. {:.1} s in all.\n", self.seconds);
        match &self.kept {
            Some(kept) => out += &kept.text(),
            None => out += "Everything has been cleaned up; --keep leaves the fleet running to play with.\n",
        }
        out
    }
}

fn sign(good: bool) -> &'static str {
    if good { "✓" } else { "✗" }
}

impl Kept {
    fn text(&self) -> String {
        let ids: Vec<_> = self.processes.iter().map(u32::to_string).collect();
        let folder = shell_word(&self.folder.display().to_string());
        format!(
            "\nThe fleet of five runs on, all of it lies in {folder}:\n  \
             coordinator.toml, <node>.toml   configurations      logs/    what they say\n  \
             repository/, master.key         the backups         pki/     certificates\n\n\
             Play with it:\n  \
             export TIDEMARK_CLI_CONFIG={}\n  \
             tidemark status\n  \
             tidemark backup list\n  \
             tidemark kv put greeting hello && tidemark kv get greeting\n  \
             tidemark backup create && tidemark verify latest\n  \
             tidemark restore run latest --in-place\n\n\
             End it:\n  \
             kill {} && rm -r {folder}\n",
            shell_word(&self.cli_config.display().to_string()),
            ids.join(" "),
        )
    }
}

/// A word of a shell command.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof() -> Proof {
        Proof { records: 10, missing: 0, extra: 0, different: 0, chain_steps: 3, violations: 0, wrong_values: 0 }
    }

    #[test]
    fn any_fault_and_any_emptiness_fails_the_proof() {
        assert!(proof().holds());
        let spoilers: [fn(&mut Proof); 7] = [
            |p| p.records = 0,
            |p| p.chain_steps = 0,
            |p| p.missing = 1,
            |p| p.extra = 1,
            |p| p.different = 1,
            |p| p.violations = 1,
            |p| p.wrong_values = 1,
        ];
        for spoil in spoilers {
            let mut p = proof();
            spoil(&mut p);
            assert!(!p.holds(), "{p:?}");
        }
    }

    #[test]
    fn paths_become_shell_words() {
        assert_eq!(shell_word("/tmp/tidemark-demo-1"), "/tmp/tidemark-demo-1");
        assert_eq!(shell_word("/tmp/it's here"), r"'/tmp/it'\''s here'");
    }
}
