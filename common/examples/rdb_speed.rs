//! How fast RDB files are read: with checksum and the hash of each value's meaning, on one core.
//!
//!     cargo run --release -p tidemark-common --example rdb_speed -- FILE...

use std::fs::File;
use std::time::Instant;

use tidemark_common::Result;
use tidemark_common::rdb::{RdbSink, RecordHead, ValueSummary, read};

/// How often each file is read.
const TIMES: usize = 3;

/// Counts, and sums up the hashes so that nothing is left out.
#[derive(Default)]
struct Count {
    records: u64,
    elements: u64,
    raw: u64,
    sum: u128,
}

impl RdbSink for Count {
    fn begin(&mut self, _head: &RecordHead<'_>) -> Result<()> {
        self.records += 1;
        Ok(())
    }
    fn value(&mut self, piece: &[u8]) -> Result<()> {
        self.raw += piece.len() as u64;
        Ok(())
    }
    fn end(&mut self, summary: ValueSummary) -> Result<()> {
        self.elements += summary.elements;
        self.sum = self.sum.wrapping_add(summary.meaning);
        Ok(())
    }
}

fn main() -> Result<()> {
    for path in std::env::args().skip(1) {
        for _ in 0..TIMES {
            let mut file =
                File::open(&path).map_err(|e| tidemark_common::Error::not_found(path.clone()).with_source(e))?;
            let (from, mut count) = (Instant::now(), Count::default());
            let trailer = read(&mut file, &mut count)?;
            let seconds = from.elapsed().as_secs_f64();
            println!(
                "{path}: {:.0} MB/s, {:.2} M records/s, {:.2} M elements/s ({} records, {} bytes, {:032x})",
                trailer.bytes as f64 / 1e6 / seconds,
                count.records as f64 / 1e6 / seconds,
                count.elements as f64 / 1e6 / seconds,
                count.records,
                trailer.bytes,
                count.sum,
            );
        }
    }
    Ok(())
}
