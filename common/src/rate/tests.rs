use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const MB: u64 = 1_000_000;

fn rate(bytes: u64) -> Rate {
    Rate::new(bytes).unwrap()
}

#[test]
fn rates_are_written_as_people_write_them() {
    for (text, bytes) in [
        ("50MB", 50 * MB),
        ("50 mb/s", 50 * MB),
        ("64MiB", 64 << 20),
        ("1.5GB", 1_500 * MB),
        ("800000", 800_000),
        ("800000B", 800_000),
        ("250kB", 250_000),
    ] {
        assert_eq!(text.parse::<Rate>().unwrap().bytes(), Some(bytes), "{text}");
    }
    assert_eq!("none".parse::<Rate>().unwrap(), Rate::NONE);
    for wrong in ["", "MB", "-5MB", "5 apples", "1e9", "inf", "1..5MB", "99999999TB", "none/s", "0", "1kB"] {
        let e = wrong.parse::<Rate>().unwrap_err();
        assert_eq!(e.kind(), tidemark_proto::ErrorKind::Request, "{wrong}");
    }
}

proptest! {
    #[test]
    fn a_shown_rate_is_read_as_the_same(bytes in MIN_RATE..u64::MAX / 2000) {
        for bytes in [bytes, bytes / 1000 * 1000 + MIN_RATE, bytes / MB * MB + MIN_RATE] {
            let rate = rate(bytes);
            prop_assert_eq!(rate.to_string().parse::<Rate>().unwrap(), rate);
        }
    }

    /// Whatever is asked for and however often: never more than rate x (time + burst), and one piece.
    #[test]
    fn no_more_passes_than_the_rate_allows(
        bytes in MIN_RATE..100 * MB,
        asks in proptest::collection::vec((1u64..400_000, 0u64..50_000), 1..300),
    ) {
        let start = Instant::now();
        let (mut bucket, mut now, mut passed) = (Bucket::new(rate(bytes), start), start, 0u64);
        for (piece, idle) in asks {
            now += Duration::from_micros(idle);
            while let Err(wait) = bucket.take(piece, now) {
                now += wait;
            }
            passed += piece;
            let most = bytes as f64 * ((now - start) + BURST).as_secs_f64() + piece as f64 + 1.0;
            prop_assert!(passed as f64 <= most, "{} of {}", passed, most);
        }
    }
}

#[test]
fn who_always_asks_gets_the_rate() {
    let start = Instant::now();
    let (mut bucket, mut now) = (Bucket::new(rate(5 * MB), start), start);
    for _ in 0..400 {
        while let Err(wait) = bucket.take(131_072, now) {
            now += wait;
        }
    }
    let got = 400.0 * 131_072.0 / (now - start).as_secs_f64();
    assert!((got / 5e6 - 1.0).abs() < 0.02, "{got}");
}

#[test]
fn a_long_idle_time_is_made_up_for_by_the_burst_alone() {
    let start = Instant::now();
    let mut bucket = Bucket::new(rate(10 * MB), start);
    let later = start + Duration::from_secs(3600);
    bucket.take(MB, later).unwrap();
    assert_eq!(bucket.take(MB, later).unwrap_err().as_millis(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_change_counts_for_who_waits() {
    let limiter = Arc::new(Limiter::new(rate(MIN_RATE)));
    let waiting = |limiter: &Arc<Limiter>, bytes| {
        let limiter = limiter.clone();
        tokio::spawn(async move {
            let _ = limiter.pass(bytes).await;
            let _ = limiter.pass(1).await;
            Instant::now()
        })
    };
    // A debt of 100 s at the low rate.
    let began = Instant::now();
    let task = waiting(&limiter, 100 * MIN_RATE);
    tokio::time::sleep(Duration::from_secs(1)).await;
    limiter.set(rate(100 * MIN_RATE));
    let up = task.await.unwrap() - began;
    assert!(up > Duration::from_secs(1) && up < Duration::from_millis(2200), "{up:?}");
    let began = Instant::now();
    let task = waiting(&limiter, 1000 * MIN_RATE);
    tokio::time::sleep(Duration::from_secs(1)).await;
    limiter.set(Rate::NONE);
    assert_eq!(task.await.unwrap() - began, Duration::from_secs(1), "without a limit nobody waits");
    limiter.set(rate(MIN_RATE));
    let waited = limiter.pass(MIN_RATE).await + limiter.pass(MIN_RATE).await;
    assert!(waited >= Duration::from_secs(1), "{waited:?}: a limit counts again at once");
}

#[tokio::test(start_paused = true)]
async fn those_who_share_it_get_the_rate_together_in_turn() {
    let limiter = Arc::new(Limiter::new(rate(MB)));
    let began = Instant::now();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let limiter = limiter.clone();
            tokio::spawn(async move {
                for _ in 0..25 {
                    let _ = limiter.pass(100_000).await;
                }
                began.elapsed().as_secs_f64()
            })
        })
        .collect();
    for task in tasks {
        let took = task.await.unwrap();
        assert!((9.0..10.2).contains(&took), "{took}: each has its share until the end");
    }
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_takes_nothing() {
    let limiter = Limiter::new(rate(MB));
    let _ = limiter.pass(MB).await;
    let began = Instant::now();
    assert!(tokio::time::timeout(Duration::from_millis(500), limiter.pass(50 * MB)).await.is_err());
    let _ = limiter.pass(100_000).await;
    assert!(began.elapsed() < Duration::from_millis(1200), "{:?}", began.elapsed());
}
