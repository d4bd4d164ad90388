//! Following a job by its events. A broken connection is taken up again: every stream begins with the job as it
//! stands, so that nothing is missed.

use std::time::Duration;

use tidemark_common::transport::Backoff;
use tidemark_proto::id::JobId;
use tidemark_proto::{Error, ErrorKind, Result};
use tokio::time::{Instant, sleep, timeout};

use super::events::Events;
use super::{ApiClient, fault};
use crate::job::{JobInfo, JobState};

/// A coordinator that says nothing for this long (it sends a keep-alive every 15 s) is asked anew.
const SILENCE: Duration = Duration::from_secs(60);
/// A coordinator that is away for this long ends the following; the job goes on.
const PATIENCE: Duration = Duration::from_secs(60);

impl ApiClient {
    /// Follows a job to its end; `seen` is shown every state. How the job ended is in the answer.
    pub async fn follow(&self, id: &JobId, mut seen: impl FnMut(&JobInfo)) -> Result<JobInfo> {
        let (mut backoff, mut last) = (Backoff::default(), Instant::now());
        let mut known = false;
        loop {
            let note = |info: &JobInfo| {
                (last, known) = (Instant::now(), true);
                backoff.reset();
                seen(info);
            };
            match self.follow_once(id, note).await {
                Ok(info) => return Ok(info),
                Err(e) if e.kind() == ErrorKind::NotFound && known => {
                    return Err(Error::not_found(format!(
                        "the coordinator was restarted and knows nothing of job {id}: `tidemark backup list` and \
                         `tidemark cluster show` say what came of it"
                    )));
                }
                Err(e) if e.kind() == ErrorKind::Retry && last.elapsed() < PATIENCE => {
                    sleep(backoff.next_wait()).await
                }
                Err(e) => return Err(e.context(format_args!("following job {id}"))),
            }
        }
    }

    async fn follow_once(&self, id: &JobId, mut seen: impl FnMut(&JobInfo)) -> Result<JobInfo> {
        let url = self.path(&["jobs", &id.to_string(), "events"])?;
        let silent = |_| Error::retry(format!("{} has gone silent", self.url()));
        let broken = |e| fault::of_transport(self.url(), e);
        let mut response = timeout(SILENCE, self.http.get(url).send()).await.map_err(silent)?.map_err(broken)?;
        let status = response.status();
        if !status.is_success() {
            let body = timeout(SILENCE, response.bytes()).await.map_err(silent)?.map_err(broken)?;
            return Err(fault::of_answer(self.url(), status, &body));
        }
        let mut events = Events::default();
        while let Some(chunk) = timeout(SILENCE, response.chunk()).await.map_err(silent)?.map_err(broken)? {
            for data in events.push(&chunk)? {
                let info: JobInfo = serde_json::from_slice(&data).map_err(|e| fault::of_content(self.url(), e))?;
                seen(&info);
                if info.state != JobState::Running {
                    return Ok(info);
                }
            }
        }
        Err(Error::retry(format!("{} ended the events of the job", self.url())))
    }
}
