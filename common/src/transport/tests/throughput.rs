//! Bulk speed on loopback. Not run by default: `cargo test -p tidemark-common --lib throughput -- --ignored --nocapture`.

use std::time::Instant;

use super::*;

/// Body of one frame, like a sealed block.
const BLOCK: usize = 128 << 10;
/// Frames of one stream.
const BLOCKS: usize = 4096;
/// Streams at once.
const STREAMS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn throughput_of_parallel_streams() {
    let fleet = TestFleet::new();
    let mut port = Port::loopback(&fleet.credentials(COORDINATOR));
    let (session, accepted) = port.pair(&fleet.credentials(AGENT)).await;
    let start = Instant::now();
    let senders: Vec<_> = (0..STREAMS)
        .map(|_| {
            let connection = session.connection.clone();
            tokio::spawn(async move {
                let (mut writer, _reader) = open_bi(&connection).await.unwrap();
                let block = Bytes::from(vec![7; BLOCK]);
                for _ in 0..BLOCKS {
                    writer.write_raw(60, 1, block.clone()).await.unwrap();
                }
                writer.drained().await.unwrap();
            })
        })
        .collect();
    let mut readers = Vec::new();
    for _ in 0..STREAMS {
        let (_writer, mut reader) = accept_bi(&accepted.connection).await.unwrap();
        readers.push(tokio::spawn(async move {
            let _hold_answer = _writer;
            while let Some(header) = reader.read_header().await.unwrap() {
                assert_eq!(reader.read_body(header, BLOCK as u32).await.unwrap().len(), BLOCK);
            }
        }));
    }
    for task in senders.into_iter().chain(readers) {
        task.await.unwrap();
    }
    let seconds = start.elapsed().as_secs_f64();
    let stats = session.connection.stats();
    println!(
        "{:.0} MB/s, payload {}, lost packets {}, black holes {}, rtt {:?}",
        (STREAMS * BLOCKS * BLOCK) as f64 / seconds / 1e6,
        stats.path.current_mtu,
        stats.path.lost_packets,
        stats.path.black_holes_detected,
        stats.path.rtt
    );
}
