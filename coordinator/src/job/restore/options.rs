//! How a restore loads records: which of them, and when their keys expire. Chosen once, for all nodes and for whoever goes
//! on with the restore.

use tidemark_common::expiry::ExpiryMode;
use tidemark_common::glob::KeyFilter;
use tidemark_common::select::Selection;
use tidemark_proto::id::JobId;
use tidemark_proto::stored::job::RestoreOptions;
use tidemark_proto::wire::control::LoadOptions;
use tidemark_proto::{Error, Result, SlotSet, Timestamp};

use super::request::RestoreRequest;

/// Engine whose records are in databases and expire.
const REDIS_ENGINE: &str = "redis";

/// What a request asks for beside the usual, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) expiry: ExpiryMode,
    pub(super) slots: SlotSet,
    dbs: Vec<u64>,
    /// The moment of the restore, milliseconds since 1970.
    now_millis: u64,
    /// How much later keys expire, in milliseconds.
    pub(super) shift_millis: u64,
}

impl Options {
    /// Of a restore of the state at `cut` that is made at `now_millis`.
    pub(super) fn new(request: &RestoreRequest, cut: Timestamp, now_millis: u64) -> Self {
        let shift_millis = match request.expiry {
            // A cut may be ahead of a coordinator's clock; time never goes back.
            ExpiryMode::Shift => now_millis.saturating_sub(cut.millis()),
            ExpiryMode::Absolute | ExpiryMode::Drop => 0,
        };
        let slots = request.slots.clone().unwrap_or_else(SlotSet::all);
        Self { expiry: request.expiry, slots, dbs: request.dbs.clone(), now_millis, shift_millis }
    }

    /// Whether all is loaded as it is: then nobody needs to be told.
    pub(super) fn are_usual(&self) -> bool {
        self.expiry == ExpiryMode::Absolute && self.slots == SlotSet::all() && self.dbs.is_empty()
    }

    /// For agents.
    pub(super) fn to_load(&self) -> LoadOptions {
        LoadOptions {
            slots: self.slots.clone(),
            dbs: self.dbs.clone(),
            expiry: self.expiry.code(),
            shift_millis: self.shift_millis,
        }
    }

    /// For whoever goes on with the job; with what was counted, once all is loaded.
    pub(super) fn to_record(&self, job: JobId, expired: Option<u64>) -> RestoreOptions {
        RestoreOptions {
            job,
            now_millis: self.now_millis,
            expiry: self.expiry.code(),
            slots: self.slots.clone(),
            dbs: self.dbs.clone(),
            expired,
        }
    }
}

/// The request with what a record says of its options, and the moment that counts.
pub(super) fn recorded(mut request: RestoreRequest, record: &RestoreOptions) -> Result<(RestoreRequest, u64)> {
    request.expiry = ExpiryMode::of_code(record.expiry)?;
    request.slots = Some(record.slots.clone());
    request.dbs.clone_from(&record.dbs);
    Ok((request, record.now_millis))
}

/// Which records are wanted. `Request` where a backup of `engine` has nothing of what is asked for.
pub(super) fn selection(request: &RestoreRequest, engine: &str) -> Result<Selection> {
    let keys = KeyFilter::new(&request.keys)?;
    if engine != REDIS_ENGINE && !request.dbs.is_empty() {
        return Err(Error::request(format!("--db: stores of engine `{engine}` have no databases; leave it out")));
    }
    if engine != REDIS_ENGINE && request.expiry != ExpiryMode::Absolute {
        let word = request.expiry.word();
        return Err(Error::request(format!(
            "--expiry {word}: keys of engine `{engine}` do not expire; leave it out"
        )));
    }
    let slots = request.slots.clone().unwrap_or_else(SlotSet::all);
    if slots.is_empty() {
        return Err(Error::request("--slots names no slot: write e.g. `0-5460,10000`, or leave it out"));
    }
    Ok(Selection { keys, slots, dbs: request.dbs.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(expiry: ExpiryMode) -> RestoreRequest {
        let text = serde_json::json!({"cluster": "orders", "backup": "latest", "expiry": expiry});
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn the_moment_is_chosen_once() {
        let cut = Timestamp::new(1000, 0);
        let shift = |now| Options::new(&request(ExpiryMode::Shift), cut, now);
        assert_eq!((shift(5000).shift_millis, shift(400).shift_millis), (4000, 0));
        let record = shift(5000).to_record(JobId::default(), None);
        let (again, now) = recorded(request(ExpiryMode::Absolute), &record).unwrap();
        assert_eq!(Options::new(&again, cut, now), shift(5000));
        assert!(!shift(5000).are_usual() && Options::new(&request(ExpiryMode::Absolute), cut, 5000).are_usual());
    }

    #[test]
    fn what_a_store_has_not_is_refused() {
        let with = |change: fn(&mut RestoreRequest)| {
            let mut asked = request(ExpiryMode::Absolute);
            change(&mut asked);
            asked
        };
        let dbs = with(|r| r.dbs = vec![3]);
        let drop = with(|r| r.expiry = ExpiryMode::Drop);
        let none = with(|r| r.slots = Some(SlotSet::EMPTY));
        assert!(selection(&dbs, "redis").is_ok() && selection(&drop, "redis").is_ok());
        for (asked, engine, word) in
            [(&dbs, "embedded", "--db"), (&drop, "memory", "--expiry"), (&none, "redis", "--slots")]
        {
            assert!(selection(asked, engine).unwrap_err().message().contains(word), "{word}");
        }
    }
}
