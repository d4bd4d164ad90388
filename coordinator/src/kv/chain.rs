//! Causal chains: each step names the one before, which another node had acknowledged.

use std::sync::Arc;

use tidemark_proto::wire::kv::Write;
use tidemark_proto::{Result, Timestamp};

use super::route::Router;
use super::writer::Shared;

/// Prefix of chain keys.
pub(super) const CHAIN: &str = "chain:";
/// Salts tried to find a key on another node than the step before.
const MAX_SALT: u32 = 10_000;

/// What a step's value names: the key and timestamp of the step before; step 0 names nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) key: String,
    pub(super) at: Timestamp,
}

/// The value of a step.
fn value(before: Option<&Named>) -> Vec<u8> {
    before.map_or_else(|| "begins".to_owned(), |b| format!("after {} {}", b.at, b.key)).into_bytes()
}

/// What a step's value names: `None` for a first step, `Err` for a value that no step has.
pub(super) fn parse(value: &[u8]) -> std::result::Result<Option<Named>, ()> {
    let text = std::str::from_utf8(value).map_err(|_| ())?;
    if text == "begins" {
        return Ok(None);
    }
    let (at, key) = text.strip_prefix("after ").and_then(|t| t.split_once(' ')).ok_or(())?;
    Ok(Some(Named { key: key.to_owned(), at: at.parse().map_err(|_| ())? }))
}

/// A key of the step that another node than `not` serves, if there is another.
fn key(router: &Router, seed: u64, run: u64, chain: u32, step: u64, not: Option<usize>) -> (String, usize) {
    let candidate = |salt: u32| {
        let key = format!("{CHAIN}{seed}:{chain}.{run:x}:{step}#{salt}");
        let node = router.node_of(key.as_bytes());
        (key, node)
    };
    if router.len() < 2 {
        return candidate(0);
    }
    (0..MAX_SALT).map(candidate).find(|(_, node)| Some(*node) != not).unwrap_or_else(|| candidate(0))
}

/// Writes steps until the load ends.
pub(super) async fn write(shared: Arc<Shared>, router: Router, chain: u32) -> Result<()> {
    let seed = shared.options.seed;
    // A second load with the same seed begins chains of its own: it does not know where the first one stopped.
    let run: u64 = rand::random();
    let (mut before, mut at_node): (Option<Named>, _) = (None, None);
    for step in 0.. {
        if shared.ending.is_cancelled() {
            break;
        }
        let (key, node) = key(&router, seed, run, chain, step, at_node);
        let put = Write { key: key.clone().into_bytes(), value: Some(value(before.as_ref())) };
        let Some(at) = shared.commit(&router, node, vec![put]).await? else { break };
        shared.step_done();
        (before, at_node) = (Some(Named { key, at }), Some(node));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_name_the_step_before() {
        let named = Named { key: "chain:1:2:3#4".into(), at: Timestamp(99) };
        assert_eq!(parse(&value(Some(&named))), Ok(Some(named)));
        assert_eq!(parse(&value(None)), Ok(None));
        assert_eq!(parse(b"after x y"), Err(()));
    }
}
