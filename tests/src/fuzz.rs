//! Every decoder of bytes from outside as a function of bytes that must neither panic nor allocate without bound. The
//! `fuzz` package feeds them with what libFuzzer finds; a test of the normal suite with the corpora and mutations of them.

mod rdb;
mod stored;
mod wire;

use tidemark_common::glob::KeyFilter;
use tidemark_common::identity::Identity;
use tidemark_coordinator::config::CoordinatorConfig;
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_coordinator::job::verify::VerifyRequest;
use tidemark_coordinator::repository::MasterKey;
use tidemark_proto::stored::paths;
use tidemark_proto::{ClusterName, NodeName, SlotSet};

pub use rdb::rdb;
pub use stored::{envelope, index, ledger, manifest, run, sealed, segment, small};
pub use wire::{bulk, control, frame, hello, kv};

/// A decoder under test.
pub type Target = fn(&[u8]);

/// All of them by their names, which are those of their corpora.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame", frame),
    ("hello", hello),
    ("control", control),
    ("bulk", bulk),
    ("kv", kv),
    ("envelope", envelope),
    ("small", small),
    ("ledger", ledger),
    ("manifest", manifest),
    ("index", index),
    ("run", run),
    ("sealed", sealed),
    ("segment", segment),
    ("rdb", rdb),
    ("config", config),
    ("requests", requests),
    ("words", words),
    ("glob", glob),
    ("certificate", certificate),
];

/// Configuration files, and files of a master key.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = toml::from_str::<CoordinatorConfig>(text);
    let _ = toml::from_str::<tidemark_agent::config::AgentConfig>(text);
    let _ = MasterKey::parse(text.trim());
}

/// Bodies of the HTTP API.
pub fn requests(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<RestoreRequest>(bytes) {
        let _ = KeyFilter::new(&request.keys);
    }
    let _ = serde_json::from_slice::<VerifyRequest>(bytes);
    let _ = serde_json::from_slice::<tidemark_coordinator::api::CreateBackup>(bytes);
}

/// Words with a grammar of ours: names, identities, slot sets, object keys.
pub fn words(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(identity) = text.parse::<Identity>() {
        assert_eq!(identity.to_string().parse::<Identity>().ok(), Some(identity), "identities come back");
    }
    if let Ok(slots) = text.parse::<SlotSet>() {
        assert!(slots.is_canonical() && slots.len() <= 16384);
        let _ = (slots.minus(&SlotSet::range(5, 9)), slots.union(&SlotSet::range(5, 9)), slots.iter().count());
    }
    let _ = (ClusterName::new(text), NodeName::new(text));
    let _ = (paths::number(text), paths::pack_id(text), paths::job_of(text), paths::root_of(text));
}

/// Key filters: a pattern, a line end, and the key.
pub fn glob(bytes: &[u8]) {
    let at = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    let (pattern, key) = (&bytes[..at], bytes.get(at + 1..).unwrap_or_default());
    let _ = tidemark_common::glob::glob(pattern, key);
    if let Ok(pattern) = std::str::from_utf8(pattern)
        && let Ok(filter) = KeyFilter::new(&[pattern])
    {
        let _ = filter.takes(key);
    }
}

/// Certificates of peers.
pub fn certificate(bytes: &[u8]) {
    let _ = Identity::of_certificate(bytes);
}
