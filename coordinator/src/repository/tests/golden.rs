//! Objects as the first build stored them: a master key of then opens them now.

use std::path::PathBuf;

use tidemark_common::testing::golden;

use super::*;

fn kept(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/objects-v1.txt");
    golden(&file, name, make)
}

const ID: RepositoryId = RepositoryId::from_u128(0x77 << 64 | 5);
const NAME: &str = "clusters/c/ledger/00000000000000000012";
const BODY: &[u8] = b"the body of an object";

fn master() -> MasterKey {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("master.key");
    std::fs::write(&file, "0123456789abcdef".repeat(4)).unwrap();
    MasterKey::load(Some(&file)).unwrap().unwrap()
}

fn repository(keys: Keyring) -> Repository {
    Repository {
        inner: Arc::new(Inner { store: memory(), id: ID, keys, created_millis: 1, drawn: Default::default() }),
    }
}

fn check(mode: &str, repository: &Repository) {
    for kind in [ObjectKind::LedgerEntry, ObjectKind::Root, ObjectKind::Page, ObjectKind::JobRecord] {
        let seal = || repository.seal_object(&cluster(), kind, 1, NAME, BODY).unwrap();
        let old = kept(&format!("{mode}-{}", kind.name().replace(' ', "-")), seal);
        assert_eq!(repository.open_object(&cluster(), kind, 1, NAME, &old).unwrap(), BODY);
        // Its salt is drawn anew each time; all else is as it was.
        let new = seal();
        assert_eq!((old.len(), &old[..12]), (new.len(), &new[..12]), "{mode}: header and key id");
        let elsewhere = repository.open_object(&cluster(), kind, 1, "clusters/c/ledger/13", &old);
        assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::Damaged);
    }
}

#[test]
fn sealed_objects_open_with_the_key_of_then() {
    let wrapped = kept("wrapped-key", || {
        let (_, wrapped) = Keyring::create(ID, &master()).unwrap();
        frame::to_archive(&wrapped).into_vec()
    });
    let wrapped: v1::WrappedKey = frame::from_archive(&wrapped).unwrap();
    let keys = Keyring::open(ID, &master(), &[wrapped]).unwrap();
    check("sealed", &repository(keys));
}

#[test]
fn plain_objects_open() {
    check("plain", &repository(Keyring::plain(ID)));
}

#[tokio::test]
async fn a_pack_is_header_extents_checksum() {
    let store = memory();
    let packs = PackSet::new(&store, &cluster(), &Default::default());
    let first =
        packs.append(PackKind::Base(0), &[Bytes::from_static(b"first "), Bytes::from_static(b"extent")]).await;
    let (first, second) =
        (first.unwrap(), packs.append(PackKind::Base(0), &[Bytes::from_static(b"second")]).await.unwrap());
    packs.flush().await.unwrap();
    let made = store.get(&paths::pack(&cluster(), &first.pack)).await.unwrap().to_vec();
    let old = kept("pack", || made.clone());
    assert_eq!(made, old);
    let body = envelope::unwrap(ObjectKind::Pack, pack::VERSION, &old).unwrap().body;
    assert_eq!(body, b"first extentsecond");
    assert_eq!((first.offset, first.len, second.offset, second.len), (8, 12, 20, 6));
}
