//! Times on the command line: shown as RFC 3339 in the local zone, taken as RFC 3339, relative, or raw.

use std::str::FromStr;

use jiff::tz::TimeZone;
use tidemark_proto::{Error, Result, Timestamp};

use crate::client::ApiClient;

/// Milliseconds since 1970 of the year 2000: a raw timestamp below is something else, such as seconds since 1970.
const YEAR_2000: u64 = 946_684_800_000;

/// A time as it is given: `2026-10-04T09:30:00Z` (RFC 3339), `-5m`, `-2h30m`, `-1d` (before now), or a raw timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeArg {
    /// Milliseconds before now.
    Ago(u64),
    /// A timestamp.
    At(Timestamp),
}

impl TimeArg {
    /// The timestamp meant; `now` is milliseconds since 1970.
    pub(crate) fn resolve(self, now: u64) -> Result<Timestamp> {
        match self {
            Self::At(at) => Ok(at),
            Self::Ago(millis) => now
                .checked_sub(millis)
                .map(|at| Timestamp::new(at, 0))
                .ok_or_else(|| Error::request("a time before 1970")),
        }
    }

    /// Whether [`Self::resolve`] needs to know what time it is.
    pub(crate) fn is_relative(self) -> bool {
        matches!(self, Self::Ago(_))
    }
}

/// The timestamp of a time that may be given. What `-5m` is counts from the coordinator's clock, not from this host's.
pub(crate) async fn resolve(at: Option<TimeArg>, client: &ApiClient) -> Result<Option<Timestamp>> {
    match at {
        None => Ok(None),
        Some(at) if at.is_relative() => at.resolve(Timestamp(client.status().await?.now).millis()).map(Some),
        Some(at) => at.resolve(0).map(Some),
    }
}

impl FromStr for TimeArg {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if text == "now" {
            return Ok(Self::Ago(0));
        }
        if let Some(span) = text.strip_prefix('-') {
            return ago(span).map(Self::Ago).ok_or_else(|| {
                Error::request(format!("`{text}` is no time before now: write e.g. -90s, -5m, -2h30m, -1d"))
            });
        }
        if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
            let at: Timestamp = text.parse()?;
            if at.millis() < YEAR_2000 {
                return Err(Error::request(format!(
                    "`{text}` is too small for a raw timestamp (milliseconds since 1970, shifted left by 18): write a \
                     time as 2026-10-04T09:30:00Z or -5m"
                )));
            }
            return Ok(Self::At(at));
        }
        let at: jiff::Timestamp = text.parse().map_err(|_| {
            Error::request(format!(
                "`{text}` is no time: write 2026-10-04T09:30:00Z or 2026-10-04T11:30:00+02:00 (with its zone), -5m, \
                 -2h30m, -1d, or a raw timestamp"
            ))
        })?;
        let millis = u64::try_from(at.as_millisecond()).map_err(|_| Error::request("a time before 1970"))?;
        Ok(Self::At(Timestamp::new(millis, 0)))
    }
}

/// Milliseconds of `2h30m`: numbers with units, each unit smaller than the one before.
fn ago(text: &str) -> Option<u64> {
    let (mut rest, mut sum, mut before) = (text, 0u64, u64::MAX);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        let unit = match unit {
            "w" => 7 * 86_400_000,
            "d" => 86_400_000,
            "h" => 3_600_000,
            "m" | "min" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return None,
        };
        if unit >= before {
            return None;
        }
        sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        (rest, before) = (tail, unit);
    }
    (before != u64::MAX).then_some(sum)
}

fn format(millis: u64, form: &str) -> String {
    let at = i64::try_from(millis).ok().and_then(|m| jiff::Timestamp::from_millisecond(m).ok());
    at.map_or_else(|| "-".into(), |at| at.to_zoned(TimeZone::system()).strftime(form).to_string())
}

/// To the second, in the local zone; `-` for none.
pub(crate) fn seconds(millis: u64) -> String {
    if millis == 0 { "-".into() } else { format(millis, "%Y-%m-%dT%H:%M:%S%:z") }
}

/// To the millisecond, in the local zone, with the raw timestamp.
pub(crate) fn exact(at: Timestamp) -> String {
    format!("{} (timestamp {at})", format(at.millis(), "%Y-%m-%dT%H:%M:%S%.3f%:z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn resolved(text: &str) -> Timestamp {
        text.parse::<TimeArg>().unwrap().resolve(NOW).unwrap()
    }

    #[test]
    fn all_three_forms_are_taken() {
        for (text, ago) in [("-5m", 300_000), ("-2h30m", 9_000_000), ("-1d", 86_400_000), ("-1d1ms", 86_400_001)] {
            assert_eq!(resolved(text), Timestamp::new(NOW - ago, 0), "{text}");
        }
        assert_eq!(resolved("now"), Timestamp::new(NOW, 0));
        let raw = Timestamp::new(NOW, 7);
        assert_eq!(resolved(&raw.to_string()), raw);
        for text in ["2027-01-15T08:00:00Z", "2027-01-15T09:00:00+01:00", "2027-01-15T08:00:00.000Z"] {
            assert_eq!(resolved(text), Timestamp::new(NOW, 0), "{text}");
        }
        assert!("-5m".parse::<TimeArg>().unwrap().is_relative());
    }

    #[test]
    fn what_could_be_misread_is_refused() {
        let bad = [
            "",
            "-",
            "-5",
            "-5x",
            "-m5",
            "-5m2h",
            "-5m5m",
            "5m",
            "yesterday",
            "1800000000",
            "1800000000000",
            "2027-01-15",
            "2027-01-15T08:00:00",
            "-99999999999999999999d",
            "99999999999999999999999",
        ];
        for text in bad {
            let e = text.parse::<TimeArg>().unwrap_err();
            assert_eq!(e.kind(), tidemark_proto::ErrorKind::Request, "{text}");
        }
        assert!("-4000w".parse::<TimeArg>().unwrap().resolve(NOW).is_err(), "before 1970");
    }

    #[test]
    fn what_is_shown_is_taken_again() {
        let at = Timestamp::new(NOW + 123, 4);
        let shown = exact(at);
        assert!(shown.ends_with(&format!("(timestamp {at})")), "{shown}");
        assert_eq!(resolved(shown.split(' ').next().unwrap()), Timestamp::new(NOW + 123, 0));
        assert_eq!(resolved(&seconds(NOW)), Timestamp::new(NOW, 0));
        assert_eq!(seconds(0), "-");
    }
}
