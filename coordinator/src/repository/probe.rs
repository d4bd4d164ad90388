//! The start-up probe: does the store honour create-if-absent? Some ignore the condition silently, some check and then
//! write; the first overwrites, the second lets several writers of a race win. Either would lose ledger entries.

use bytes::Bytes;
use tidemark_proto::stored::paths;
use tidemark_proto::{Error, ErrorKind, Result};

use super::store::Store;

/// Writers of one race.
pub(super) const WRITERS: usize = 8;
/// Races.
pub(super) const RACES: usize = 3;

/// Refuses a store (`Unsupported`) in which more or fewer than one of several writers wins a name.
pub(super) async fn probe(store: &Store) -> Result<()> {
    for _ in 0..RACES {
        race(store).await?;
    }
    Ok(())
}

async fn race(store: &Store) -> Result<()> {
    let key = format!("{}/{:032x}", paths::PROBE, rand::random::<u128>());
    let bodies: Vec<Bytes> =
        (0..WRITERS).map(|i| Bytes::from(format!("{i} {:032x}", rand::random::<u128>()))).collect();
    let puts = bodies.iter().map(|body| store.create(&key, body.clone()));
    let results = futures::future::join_all(puts).await;
    let late = store.create(&key, Bytes::from_static(b"late")).await;
    let found = store.get(&key).await;
    store.delete(&key).await?;
    let mut winners = Vec::new();
    for (result, body) in results.into_iter().zip(&bodies) {
        match result {
            Ok(()) => winners.push(body),
            Err(e) if e.kind() == ErrorKind::Conflict => {}
            Err(e) => return Err(e.context("probing the object store")),
        }
    }
    let late_refused = late.is_err_and(|e| e.kind() == ErrorKind::Conflict);
    match winners[..] {
        [one] if late_refused && found? == *one => Ok(()),
        _ => Err(Error::unsupported(format!(
            "{} does not honour create-if-absent (If-None-Match: *): {} of {WRITERS} writers won one name. \
             Two coordinators could overwrite each other there, so Tidemark does not use it",
            store.url(),
            winners.len() + usize::from(!late_refused)
        ))),
    }
}
