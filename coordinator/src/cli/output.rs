//! How commands print: results to standard output, everything else to standard error.

use std::io::{ErrorKind as IoKind, Write as _};

use clap::ValueEnum;
use serde::Serialize;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

/// Digits of an id that tables show: enough to be unique among the backups of a cluster.
const SHORT_ID: usize = 8;

/// Form of a command's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON document.
    Json,
}

impl Format {
    /// Prints `value` as JSON, or what `text` says of it.
    pub(crate) fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        match self {
            Self::Text => say(&text(value)),
            Self::Json => say(&serde_json::to_string_pretty(value).or_kind(ErrorKind::Bug, "JSON")?),
        }
    }
}

/// Prints text to standard output, ended by a line end.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{end}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == IoKind::BrokenPipe => Err(Error::cancelled("nobody reads the output any more")),
        done => done.or_kind(ErrorKind::Full, "the output cannot be written"),
    }
}

/// Lines of columns, each as wide as its widest cell; the first row is the heading.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(s, w)| format!("{s:w$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A table with a heading; `empty` in place of a table without rows.
pub(crate) fn listing<const N: usize>(
    heading: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
    empty: &str,
) -> String {
    let mut all = vec![heading.map(String::from).to_vec()];
    all.extend(rows.map(Vec::from));
    if all.len() == 1 { format!("{empty}\n") } else { table(&all) }
}

/// Lines of `name  value`; those without a value are left out.
pub(crate) fn fields(pairs: &[(&str, String)]) -> String {
    let rows = pairs.iter().filter(|(_, v)| !v.is_empty());
    table(&rows.map(|(k, v)| vec![(*k).to_owned(), v.clone()]).collect::<Vec<_>>())
}

/// The beginning of an id.
pub(crate) fn short(id: &str) -> String {
    id.chars().take(SHORT_ID).collect()
}

/// Bytes for people: `1.4 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    // 1023.96 would be shown as 1024.0.
    while value >= 1023.95 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A count for people: `1,500,000`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A duration for people: `412 ms`, `3.4 s`, `12m 5s`, `3h 20m`.
pub(crate) fn duration(millis: u64) -> String {
    let seconds = millis / 1000;
    match millis {
        0..1000 => format!("{millis} ms"),
        1000..60_000 => format!("{:.1} s", (millis / 100) as f64 / 10.0),
        60_000..3_600_000 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// A short time in milliseconds: `2.31 ms`.
pub(crate) fn micros(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a", "bb"], ["ccc", "d"]].map(|r| r.map(String::from).to_vec());
        assert_eq!(table(&rows), "a    bb\nccc  d\n");
        let rows = [["x".to_owned(), "y".to_owned()]];
        assert_eq!(listing(["ONE", "TWO"], rows.into_iter(), "none"), "ONE  TWO\nx    y\n");
        assert_eq!(listing(["ONE"], std::iter::empty(), "none"), "none\n");
        assert_eq!(fields(&[("a", "1".into()), ("bcd", String::new()), ("ef", "2".into())]), "a   1\nef  2\n");
    }

    #[test]
    fn numbers_are_for_people() {
        let sizes =
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), ((1 << 20) - 1, "1.0 MiB"), (u64::MAX, "16.0 EiB")];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), text);
        }
        let times =
            [(7, "7 ms"), (59_999, "59.9 s"), (60_000, "1m 0s"), (3_599_999, "59m 59s"), (12_000_000, "3h 20m")];
        for (millis, text) in times {
            assert_eq!(duration(millis), text);
        }
    }
}
