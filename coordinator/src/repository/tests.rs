use bytes::Bytes;
use tidemark_proto::ErrorKind;
use tidemark_proto::stored::ledger::{Body, Fence, Policy};

use super::*;

mod golden;

fn memory() -> Store {
    Store::open(&StoreConfig { url: "memory:///".into(), ..StoreConfig::default() }).unwrap()
}

fn cluster() -> ClusterName {
    ClusterName::new("c").unwrap()
}

#[tokio::test]
async fn init_open_and_wrong_keys() {
    let (store, key) = (memory(), MasterKey::generate());
    let made = Repository::init(store.clone(), Some(&key), 7).await.unwrap();
    assert_eq!(Repository::open(store.clone(), Some(&key)).await.unwrap().id(), made.id());
    let wrong = MasterKey::generate();
    assert_eq!(Repository::open(store.clone(), Some(&wrong)).await.unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(Repository::open(store.clone(), None).await.unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(Repository::init(store, Some(&key), 7).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(Repository::open(memory(), None).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_folder_survives_and_epochs_grow() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { url: format!("file://{}", dir.path().display()), ..StoreConfig::default() };
    let repository = Repository::init(Store::open(&config).unwrap(), None, 7).await.unwrap();
    assert_eq!(repository.take_epoch("a", 1).await.unwrap(), 1);
    let again = Repository::open(Store::open(&config).unwrap(), None).await.unwrap();
    assert_eq!(again.take_epoch("b", 2).await.unwrap(), 2);
    assert_eq!((again.id(), again.created_millis()), (repository.id(), 7));
    assert!(again.clusters().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_older_of_two_coordinators_is_fenced() {
    let key = MasterKey::generate();
    let repository = Repository::init(memory(), Some(&key), 7).await.unwrap();
    let policy = Body::Policy(Policy { engine: "memory".into(), slots_per_region: 64, nodes: vec![] });
    let (mut old, mut new) = (
        Ledger::load(&repository, &cluster()).await.unwrap(),
        Ledger::load(&repository, &cluster()).await.unwrap(),
    );
    let ok = |_: &Ledger| Ok(());
    let _ = old.append(1, 1, &policy, ok).await.unwrap();
    let _ = new.append(2, 2, &Body::Fence(Fence { coordinator: "b".into() }), ok).await.unwrap();
    assert_eq!(new.tail().0, 2, "the loser of number 1 went on at 2");
    assert_eq!(old.append(1, 3, &policy, ok).await.unwrap_err().kind(), ErrorKind::Fenced);
    let read = Ledger::load(&repository, &cluster()).await.unwrap();
    assert_eq!((read.entries().len(), read.epoch()), (2, 2));
    assert_eq!(read.policy().unwrap().slots_per_region, 64);
}

#[tokio::test]
async fn damaged_and_missing_entries_are_named() {
    let repository = Repository::init(memory(), None, 7).await.unwrap();
    let mut ledger = Ledger::load(&repository, &cluster()).await.unwrap();
    for i in 0..3 {
        let _ = ledger.append(1, i, &Body::Fence(Fence { coordinator: "a".into() }), |_| Ok(())).await.unwrap();
    }
    let path = paths::ledger(&cluster(), 2);
    let good = repository.store().get(&path).await.unwrap();
    let mut bad = good.to_vec();
    bad[40] ^= 1;
    repository.store().put(&path, bad.into()).await.unwrap();
    let err = Ledger::load(&repository, &cluster()).await.unwrap_err();
    assert!(err.kind() == ErrorKind::Damaged && err.report().contains(&path), "{}", err.report());
    // An entry in another's place opens under neither its name nor its number.
    let third = repository.store().get(&paths::ledger(&cluster(), 3)).await.unwrap();
    repository.store().put(&path, third).await.unwrap();
    assert_eq!(Ledger::load(&repository, &cluster()).await.unwrap_err().kind(), ErrorKind::Damaged);
    repository.store().delete(&path).await.unwrap();
    assert_eq!(Ledger::load(&repository, &cluster()).await.unwrap_err().kind(), ErrorKind::Damaged);
}

#[tokio::test]
async fn packs_split_at_their_target_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { url: format!("file://{}", dir.path().display()), ..StoreConfig::default() };
    let store = Store::open(&config).unwrap();
    let packs = PackSet::new(&store, &cluster(), &Default::default());
    let piece = |i: u8| Bytes::from(vec![i; 3 << 20]);
    let mut extents = Vec::new();
    for i in 0..30 {
        extents.push(packs.append(PackKind::Base(0), &[piece(i)]).await.unwrap());
    }
    let delta = packs.append(PackKind::Delta, &[piece(99)]).await.unwrap();
    assert!(packs.is_durable(&extents[0].pack) && !packs.is_durable(&extents[29].pack));
    assert_ne!(delta.pack, extents[29].pack, "base and delta share no pack");
    packs.flush().await.unwrap();
    assert!(packs.is_durable(&extents[29].pack) && packs.is_durable(&delta.pack));
    for (i, e) in extents.iter().enumerate() {
        let got = store.get_range(&paths::pack(&cluster(), &e.pack), e.offset, e.len).await.unwrap();
        assert_eq!(got, piece(i as u8));
    }
    let whole = store.get(&paths::pack(&cluster(), &delta.pack)).await.unwrap();
    assert!(envelope::unwrap(ObjectKind::Pack, pack::VERSION, &whole).is_ok());
    let past = store.get_range(&paths::pack(&cluster(), &delta.pack), delta.offset, 4 << 20).await;
    assert_eq!(past.unwrap_err().kind(), ErrorKind::Damaged);
}
