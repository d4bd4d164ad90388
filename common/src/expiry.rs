//! When restored keys expire.

use tidemark_proto::{Error, Result, Timestamp};

/// What a restore does about the times at which keys expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpiryMode {
    /// Keys expire when they did; those whose time has come are not restored.
    #[default]
    Absolute,
    /// Keys live as long from the restore on as they would have from the cut on.
    Shift,
    /// Keys do not expire any more.
    Drop,
}

impl ExpiryMode {
    /// Its number on the wire and in store.
    pub const fn code(self) -> u8 {
        match self {
            Self::Absolute => 0,
            Self::Shift => 1,
            Self::Drop => 2,
        }
    }

    /// From its number. `Unsupported` for one of a newer build.
    pub fn of_code(code: u8) -> Result<Self> {
        match code {
            0 => Ok(Self::Absolute),
            1 => Ok(Self::Shift),
            2 => Ok(Self::Drop),
            other => {
                Err(Error::unsupported(format!("a way {other} of treating expiry: this build is too old for it")))
            }
        }
    }

    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Absolute => "absolute",
            Self::Shift => "shift",
            Self::Drop => "drop",
        }
    }
}

/// What becomes of a time at which something expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Becomes {
    /// It stays as it is.
    Same,
    /// It had come by the cut: what it belongs to was gone already, whatever lay in store.
    Expired,
    /// It becomes this, milliseconds since 1970; `None`: it never expires.
    Moved(Option<i64>),
}

/// The rule of one restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expiry {
    /// What is done.
    pub mode: ExpiryMode,
    /// Time of the cut, milliseconds since 1970.
    pub cut_millis: i64,
    /// How much later things expire, in milliseconds.
    pub shift_millis: i64,
}

impl Expiry {
    /// The rule of a restore of the state of `cut`; `shift_millis` counts where the mode shifts.
    pub fn new(mode: ExpiryMode, cut: Timestamp, shift_millis: u64) -> Self {
        let signed = |millis| i64::try_from(millis).unwrap_or(i64::MAX);
        Self { mode, cut_millis: signed(cut.millis()), shift_millis: signed(shift_millis) }
    }

    /// What becomes of the time `at`, milliseconds since 1970.
    pub fn of(&self, at: i64) -> Becomes {
        match self.mode {
            ExpiryMode::Absolute => Becomes::Same,
            _ if at <= self.cut_millis => Becomes::Expired,
            ExpiryMode::Shift => Becomes::Moved(Some(at.saturating_add(self.shift_millis))),
            ExpiryMode::Drop => Becomes::Moved(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_move_with_the_cut() {
        let rule = |mode| Expiry::new(mode, Timestamp::new(1000, 3), 50);
        assert_eq!(rule(ExpiryMode::Absolute).of(7), Becomes::Same);
        for mode in [ExpiryMode::Shift, ExpiryMode::Drop] {
            assert_eq!((rule(mode).of(1000), rule(mode).of(-1)), (Becomes::Expired, Becomes::Expired));
        }
        assert_eq!(rule(ExpiryMode::Shift).of(1001), Becomes::Moved(Some(1051)));
        assert_eq!(rule(ExpiryMode::Shift).of(i64::MAX), Becomes::Moved(Some(i64::MAX)));
        assert_eq!(rule(ExpiryMode::Drop).of(1001), Becomes::Moved(None));
    }

    #[test]
    fn codes_come_back() {
        for mode in [ExpiryMode::Absolute, ExpiryMode::Shift, ExpiryMode::Drop] {
            assert_eq!(ExpiryMode::of_code(mode.code()).unwrap(), mode);
            assert_eq!(serde_json::to_string(&mode).unwrap(), format!("\"{}\"", mode.word()));
        }
        assert!(ExpiryMode::of_code(3).is_err());
    }
}
