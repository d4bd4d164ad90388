//! `tidemark events`: what happened.

use clap::Args;
use tidemark_proto::{ClusterName, Result};

use super::connect::GlobalArgs;
use super::output::{listing, short};
use super::time;
use crate::events::{EventItem, EventsQuery};

/// `tidemark events`.
#[derive(Debug, Args)]
pub(crate) struct EventsCommand {
    /// Of this cluster; all without
    #[arg(short = 'C', long, env = "TIDEMARK_CLUSTER")]
    cluster: Option<ClusterName>,
    /// Of this job: its id or a unique beginning of it
    #[arg(long)]
    job: Option<String>,
    /// The newest so many
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 200,
        value_parser = clap::value_parser!(u64).range(1..=crate::events::MAX_LISTED as u64))]
    limit: u64,
}

impl EventsCommand {
    /// Shows them, oldest first.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        let query = EventsQuery { cluster: self.cluster, job: self.job, limit: Some(self.limit as usize) };
        global.output.print(&global.client()?.events(&query).await?, |items| table(items))
    }
}

fn table(items: &[EventItem]) -> String {
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let rows = items.iter().map(|i| {
        [
            time::seconds(i.at_millis),
            i.cluster.clone(),
            or_none(short(&i.job)),
            i.kind.clone(),
            i.what.clone(),
            or_none(i.node.clone()),
            // One line for each event.
            i.message.split_whitespace().collect::<Vec<_>>().join(" "),
        ]
    });
    listing(["TIME", "CLUSTER", "JOB", "KIND", "WHAT", "NODE", "MESSAGE"], rows, "nothing has happened yet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let item = EventItem {
            at_millis: 0,
            cluster: "orders".into(),
            job: "0123456789abcdef".into(),
            kind: "backup".into(),
            what: "retry".into(),
            node: String::new(),
            message: "two\nlines".into(),
        };
        let text = table(&[item]);
        let line = text.lines().nth(1).unwrap();
        assert!(line.contains("orders") && line.contains("01234567  backup  retry  -"), "{line}");
        assert!(line.ends_with("two lines") && text.lines().count() == 2, "{text}");
    }
}
