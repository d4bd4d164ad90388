//! Readers that give little at a time, and the stream of a primary.

use std::io::Read;

use tidemark_common::rdb::{Family, read};
use tidemark_tests::redis::{Flavor, Server};

use crate::fill::{Profile, fill};
use crate::model::{Contents, contents};

/// Gives bytes in pieces of ever other lengths.
pub(crate) struct Trickle<'a> {
    bytes: &'a [u8],
    turn: usize,
}

impl<'a> Trickle<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, turn: 0 }
    }
}

impl Read for Trickle<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.turn += 1;
        if self.turn.is_multiple_of(5) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let large = self.bytes.len() > 100_000 && self.turn.is_multiple_of(2);
        let most = if large { 99_999 } else { [1, 2, 3, 7, 64, 1000][self.turn % 6] };
        let count = most.min(into.len()).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(count);
        into[..count].copy_from_slice(now);
        self.bytes = later;
        Ok(count)
    }
}

#[test]
fn a_reader_that_trickles_gives_the_same() {
    let server = Server::start(Flavor::Redis, &[]);
    Profile::Packed.apply(&mut server.client());
    fill(&mut server.client());
    let file = server.save();
    let (at_once, _) = contents(&file);
    let mut slowly = Contents::default();
    let trailer = read(&mut Trickle::new(&file), &mut slowly).expect("read");
    assert_eq!(trailer.bytes, file.len() as u64);
    assert!(slowly.records == at_once.records && slowly.aux == at_once.aux);
}

/// The mark at the end of a stream whose length the primary does not know, in bytes.
const MARK: usize = 40;

#[test]
fn the_stream_of_a_primary_is_read_to_its_end_and_no_further() {
    for flavor in Flavor::installed() {
        let server = Server::start(flavor, &["--repl-diskless-sync", "yes"]);
        fill(&mut server.client());
        let (saved, _) = contents(&server.save());
        let mut replica = server.client();
        let _ok = replica.run("REPLCONF listening-port 0");
        let _ok = replica.run("REPLCONF capa eof capa psync2");
        if flavor.version().starts_with("valkey") {
            // From 9 on its own format is sent to those alone who name their version; others do not know the word.
            let _ = replica.ask(&["REPLCONF", "version", &flavor.version()[7..]]).expect("reply");
        }
        let resync = replica.run("PSYNC ? -1").text();
        let mut words = resync.split(' ').skip(1);
        let (id, offset) = (words.next().expect("id"), words.next().expect("offset"));
        let frame = loop {
            // Empty lines keep the connection alive while the primary prepares.
            let line = replica.line().expect("frame");
            if !line.is_empty() {
                break line;
            }
        };
        let mark = frame.strip_prefix("$EOF:").unwrap_or_else(|| panic!("{frame}")).to_owned();
        assert_eq!(mark.len(), MARK);
        let mut sent = Contents::default();
        let trailer = read(replica.raw(), &mut sent).expect("stream");
        assert_eq!(trailer.family, Family::of_version(flavor.rdb_version()));
        let mut after = trailer.unread;
        let known = after.len();
        after.resize(MARK, 0);
        replica.raw().read_exact(&mut after[known..]).expect("mark");
        assert_eq!(String::from_utf8(after).expect("mark"), mark);
        let key = |r: &crate::model::Record| (r.db, r.key.clone());
        let (mut sent_records, mut saved_records) = (sent.records, saved.records);
        sent_records.sort_by_key(key);
        saved_records.sort_by_key(key);
        assert!(sent_records == saved_records);
        let aux = |name: &str| sent.aux.iter().find(|(k, _)| k == name.as_bytes()).map(|(_, v)| v.clone());
        assert_eq!(aux("repl-id"), Some(id.as_bytes().to_vec()));
        assert_eq!(aux("repl-offset"), Some(offset.as_bytes().to_vec()));
    }
}
