//! Servers that say something else of themselves than they are.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// A port that leads to the server at `socket`, whose replies have `to` in place of `from`: both of one length, once in what
/// is read at a time.
pub(crate) fn pretender(socket: PathBuf, from: &'static [u8], to: &'static [u8]) -> u16 {
    assert_eq!(from.len(), to.len());
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("port");
    let port = listener.local_addr().expect("address").port();
    drop(std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, UnixStream::connect(&socket)) else { return };
            let (up, down) = (client.try_clone().expect("socket"), server.try_clone().expect("socket"));
            drop(std::thread::spawn(move || {
                let ends = server.try_clone().expect("socket");
                pass(up, server, b"", b"");
                let _ = ends.shutdown(std::net::Shutdown::Both);
            }));
            drop(std::thread::spawn(move || pass(down, client, from, to)));
        }
    }));
    port
}

fn pass(mut source: impl Read, mut sink: impl Write, from: &[u8], to: &[u8]) {
    let mut buffer = vec![0; 1 << 20];
    while let Ok(len @ 1..) = source.read(&mut buffer) {
        let piece = &mut buffer[..len];
        let found = if from.is_empty() { None } else { piece.windows(from.len()).position(|w| w == from) };
        if let Some(at) = found {
            piece[at..at + to.len()].copy_from_slice(to);
        }
        if sink.write_all(piece).is_err() {
            return;
        }
    }
}
