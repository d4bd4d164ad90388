use tidemark_proto::id::JobId;

use super::*;
use crate::job::{JobError, JobProgress};

fn job(state: JobState) -> JobInfo {
    JobInfo {
        id: JobId([7; 16]),
        kind: JobKind::Restore,
        cluster: "orders".parse().unwrap(),
        state,
        phase: "loading parts".into(),
        started_millis: 1000,
        finished_millis: None,
        progress: JobProgress::default(),
        error: None,
        result: None,
    }
}

#[test]
fn progress_goes_by_bytes_where_they_are_known_and_by_parts_elsewhere() {
    let mut info = job(JobState::Running);
    assert_eq!(fraction(&info), None);
    assert_eq!(line("restore of orders", &info, 0), "restore of orders: loading parts");
    info.progress = JobProgress { parts: 1, total_parts: 4, bytes: 2048, wire_bytes: 1024, ..Default::default() };
    assert_eq!(fraction(&info), Some(0.25));
    assert_eq!(line("r", &info, 0), "r: loading parts, 25 %, 2.0 KiB, 1.0 KiB sent");
    info.progress.total_bytes = 4096;
    info.progress.records = 1000;
    assert_eq!(
        line("r", &info, 512),
        "r: loading parts, 50 %, 2.0 KiB of 4.0 KiB, 1.0 KiB sent, 1,000 records, 512 B/s"
    );
    info.progress.bytes = 5000;
    assert_eq!(fraction(&info), Some(1.0), "an estimate that was too low");
}

#[test]
fn the_kind_of_a_jobs_error_becomes_the_exit_code() {
    assert!(check(&job(JobState::Succeeded)).is_ok());
    for kind in ErrorKind::ALL {
        let mut info = job(JobState::Failed);
        info.error = Some(JobError { kind: kind.name().into(), message: "because".into() });
        let e = check(&info).unwrap_err();
        assert_eq!(e.kind(), kind);
        assert!(e.message().ends_with(": because"), "{e}");
    }
    assert_eq!(check(&job(JobState::Failed)).unwrap_err().kind(), ErrorKind::Bug);
}

#[test]
fn the_rate_counts_from_the_first_bytes() {
    let (mut rate, start) = (Rate::default(), Instant::now());
    assert_eq!(rate.take(start, 0), 0);
    let later = start + Duration::from_secs(10);
    assert_eq!(rate.take(later, 1000), 0);
    assert_eq!(rate.take(later + Duration::from_secs(2), 5000), 2000);
}

#[test]
fn time_taken_ends_with_the_job() {
    let mut info = job(JobState::Running);
    assert_eq!(took(&info, 3500), "2.5 s");
    info.finished_millis = Some(1500);
    assert_eq!(took(&info, 3500), "500 ms");
}
