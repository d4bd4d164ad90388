//! Documents that must say what the code says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tidemark_common::telemetry::Metric;

/// Packages with metrics, and their tables.
const PACKAGES: [(&str, &[Metric]); 3] = [
    ("common", tidemark_common::metric_names::ALL),
    ("agent", tidemark_agent::metric_names::ALL),
    ("coordinator", tidemark_coordinator::metric_names::ALL),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn line(metric: &Metric) -> String {
    let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
    let labels = if labels.is_empty() { "-".to_owned() } else { labels.join(", ") };
    format!("| `{}` | {} | {labels} | {} |", metric.name, metric.kind.name(), metric.help)
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let document = std::fs::read_to_string(root().join("deploy/metrics.md")).expect("deploy/metrics.md");
    let mut found: Vec<&str> = document.lines().filter(|l| l.starts_with("| `tidemark_")).collect();
    let mut expected: Vec<String> = PACKAGES.iter().flat_map(|(_, all)| all.iter().map(line)).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "deploy/metrics.md; the right lines:\n{}", expected.join("\n"));
}

#[test]
fn names_follow_the_conventions() {
    for metric in PACKAGES.iter().flat_map(|(_, all)| *all) {
        let (name, kind) = (metric.name, metric.kind.name());
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        let unit = name.trim_end_matches("_total");
        match metric.unit {
            metrics::Unit::Seconds => assert!(unit.ends_with("_seconds"), "{name}"),
            metrics::Unit::Bytes => {
                assert!(unit.ends_with("_bytes") || unit.ends_with("_bytes_per_second"), "{name}")
            }
            _ => assert!(!unit.ends_with("_seconds") && !unit.ends_with("_bytes"), "{name}"),
        }
        for label in metric.labels {
            // Operators ask for the lag of each node; nothing else is told of nodes by name.
            if (name, *label) == ("tidemark_coordinator_log_lag_seconds", "node") {
                continue;
            }
            assert!(!["job", "part", "region", "id", "node"].contains(label), "{name}: `{label}` is not bounded");
        }
    }
}

/// Constants in a package's file of names: `NAME` and what it stands for.
fn constants(package: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(root().join(package).join("src/metric_names.rs")).expect("names");
    let constant = |line: &str| {
        let (name, value) = line.strip_prefix("pub const ")?.split_once(": &str = \"")?;
        Some((name.to_owned(), value.strip_suffix("\";")?.to_owned()))
    };
    text.lines().filter_map(constant).collect()
}

/// All sources of a package but its names, as one text.
fn sources(dir: &Path) -> String {
    let entries = std::fs::read_dir(dir).expect("sources").map(|e| e.expect("entry").path());
    entries.filter(|p| !p.ends_with("metric_names.rs")).fold(String::new(), |all, path| {
        let text = if path.is_dir() { sources(&path) } else { std::fs::read_to_string(&path).expect("a source") };
        all + &text
    })
}

#[test]
fn every_name_stands_in_its_table_and_is_used() {
    for (package, all) in PACKAGES {
        let (constants, sources) = (constants(package), sources(&root().join(package).join("src")));
        let mut names: Vec<&str> = constants.values().map(String::as_str).collect();
        let mut listed: Vec<&str> = all.iter().map(|m| m.name).collect();
        names.sort_unstable();
        listed.sort_unstable();
        assert_eq!(names, listed, "{package}");
        for constant in constants.keys() {
            // Beside where it may be imported.
            let uses = sources.matches(&format!("!({constant}")).count()
                + sources.matches(&format!("metric_names::{constant}")).count();
            assert!(uses > 0, "{package}: nothing emits {constant}");
        }
        for (place, _) in sources.match_indices("\"tidemark_") {
            let text: String = sources[place..].chars().take(60).collect();
            assert!(
                text.contains("tidemark_agent=") || !text.contains("_total"),
                "a name outside its file: {text}"
            );
        }
    }
}
