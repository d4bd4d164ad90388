//! Looking at a daemon as a monitoring system does.

use std::net::SocketAddr;

use super::PATIENCE;

/// Asks for a page; answers status and text.
pub async fn ask(address: SocketAddr, path: &str) -> (u16, String) {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("HTTP client");
    let response = client.get(format!("http://{address}{path}")).send().await.expect("an answer");
    (response.status().as_u16(), response.text().await.expect("text"))
}

/// Metrics as they were told.
#[derive(Debug, Clone)]
pub struct Scrape {
    /// The text.
    pub text: String,
}

impl Scrape {
    /// The metrics of a daemon.
    pub async fn of(address: SocketAddr) -> Self {
        let (status, text) = ask(address, "/metrics").await;
        assert_eq!(status, 200, "{text}");
        Self { text }
    }

    /// Names and kinds of all metrics in the text.
    pub fn kinds(&self) -> Vec<(&str, &str)> {
        self.text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' ')).collect()
    }

    /// The value of a series, written as in the text: `name` or `name{label="value"}`.
    pub fn get(&self, series: &str) -> Option<f64> {
        let line = self.text.lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok())
    }

    /// As [`Scrape::get`], of a series that must be there.
    pub fn value(&self, series: &str) -> f64 {
        self.get(series).unwrap_or_else(|| panic!("no series {series} in\n{}", self.text))
    }
}
