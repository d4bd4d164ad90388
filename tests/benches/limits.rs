//! What one machine can do without a fleet: records to sealed blocks and back, and raw QUIC over loopback. MB are 10^6 bytes of
//! keys and values (or of payload). `cargo bench -p tidemark-tests --bench limits -- [MiB]`.

use std::time::Instant;

use bytes::Bytes;
use tidemark_common::identity::Expected;
use tidemark_common::pki::Credentials;
use tidemark_common::run::{Entry, Merge, RunReader, RunWriter, record_hash};
use tidemark_common::seal::Sealer;
use tidemark_common::testing::TestFleet;
use tidemark_common::tls::ALPN_CONTROL;
use tidemark_common::transport::{
    Dialer, Door, Greeting, accept_bi, client_endpoint, limits, open_bi, server_endpoint,
};
use tidemark_proto::Result;
use tidemark_proto::hash::SetDigest;
use tidemark_proto::wire::control::SecretKey;
use tidemark_proto::wire::hello::Purpose;
use tidemark_tests::bench::{mb_per_second, peak_rss_mib, text_records};
use tokio_util::sync::CancellationToken;

/// Data when no size is given, in MiB.
const DEFAULT_MIB: u64 = 256;
/// Frames of the QUIC measurement, in bytes: about those of sealed blocks.
const FRAME: usize = 48 << 10;
/// Streams at once in the QUIC measurement.
const STREAMS: usize = 4;

fn main() -> Result<()> {
    let mib = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(DEFAULT_MIB);
    pipeline(mib << 20)?;
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(quic(mib << 20))?;
    println!("peak RSS of this process, its data included  {} MiB", peak_rss_mib(std::process::id()));
    Ok(())
}

fn pipeline(bytes: u64) -> Result<()> {
    let records = text_records(7, bytes);
    let logical: u64 = records.iter().map(|r| (r.key.len() + r.value.len()) as u64).sum();
    let sealer = || Sealer::new(&SecretKey([1; 32]), [2; 16], true);
    let (seal, mut blocks) = (sealer(), Vec::new());
    let start = Instant::now();
    let mut digest = SetDigest::default();
    let mut writer = RunWriter::new(&seal, |block| {
        blocks.push(block);
        Ok(())
    })?;
    for r in &records {
        digest.add(record_hash(&r.key, b"", &r.value));
        writer.push(Entry { slot: r.slot, key: &r.key, put: Some((b"", &r.value)) })?;
    }
    let summary = writer.finish()?;
    let ratio = logical as f64 / summary.sealed_bytes as f64;
    println!(
        "records -> sealed blocks, one thread   {:7.0} MB/s   (shrunk {ratio:.2} times)",
        mb_per_second(logical, start)
    );
    let start = Instant::now();
    let count = blocks.len() as u32;
    let mut blocks = blocks.into_iter();
    let reader = RunReader::new(sealer(), std::iter::once(0..count).collect(), move || Ok(blocks.next()), 8 << 20)?;
    let (mut merge, mut read) = (Merge::new(vec![reader]), SetDigest::default());
    while merge.advance()? {
        let entry = merge.current();
        let (meta, value) = entry.put.unwrap_or_default();
        read.add(record_hash(entry.key, meta, value));
    }
    assert_eq!(read, digest, "what was read is not what was written");
    println!("sealed blocks -> records, one thread   {:7.0} MB/s", mb_per_second(logical, start));
    Ok(())
}

async fn quic(bytes: u64) -> Result<()> {
    let fleet = TestFleet::new();
    let server: Credentials = fleet.credentials("tidemark://coordinator/bench");
    let client: Credentials = fleet.credentials("tidemark://agent/bench/n1");
    let endpoint = server_endpoint("127.0.0.1:0".parse().expect("address"), &server, ALPN_CONTROL)?;
    let address = endpoint.local_addr().expect("bound").to_string();
    let door = Door::coordinator("bench", 1);
    let receive = tokio::spawn(async move {
        let incoming = endpoint.accept().await.expect("a connection");
        let accepted = door.accept(incoming).await?;
        accepted.connection.set_receive_window(limits::CONNECTION_WINDOW.into());
        let mut total = 0;
        let mut streams = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let (_writer, mut reader) = accept_bi(&accepted.connection).await?;
            let _ = streams.spawn(async move {
                let mut sum = 0u64;
                while let Some(header) = reader.read_header().await? {
                    sum += reader.read_body(header, FRAME as u32).await?.len() as u64;
                }
                Ok::<u64, tidemark_proto::Error>(sum)
            });
        }
        while let Some(sum) = streams.join_next().await {
            total += sum.expect("stream task")?;
        }
        Ok::<u64, tidemark_proto::Error>(total)
    });
    let greeting = Greeting::of(client.identity(), Purpose::Bulk, "bench");
    let mut dialer =
        Dialer::new(client_endpoint()?, &client, ALPN_CONTROL, Expected::Coordinator, vec![address], greeting)?;
    let session = dialer.connect(&CancellationToken::new()).await?;
    let start = Instant::now();
    let payload = Bytes::from(vec![7u8; FRAME]);
    let frames = bytes / STREAMS as u64 / FRAME as u64;
    let mut sends = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let (connection, payload) = (session.connection.clone(), payload.clone());
        let _ = sends.spawn(async move {
            let (mut writer, _reader) = open_bi(&connection).await?;
            for _ in 0..frames {
                writer.write_raw(9, 1, payload.clone()).await?;
            }
            writer.drained().await
        });
    }
    while let Some(sent) = sends.join_next().await {
        sent.expect("send task")?;
    }
    let total = receive.await.expect("receiver")?;
    println!("QUIC over loopback, both ends          {:7.0} MB/s", mb_per_second(total, start));
    Ok(())
}
