//! Clients of the cloud stores: environment first, then the URL, then options of the configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::azure::{MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::{BackoffConfig, ClientOptions, Result, RetryConfig};
use url::Url;

use super::store::{BACKOFF_FIRST, BACKOFF_MAX, CLIENT_ATTEMPTS, CONNECT_TIMEOUT, THROTTLE_PATIENCE};

fn retry() -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: BACKOFF_FIRST, max_backoff: BACKOFF_MAX, base: 2. };
    RetryConfig { backoff, max_retries: CLIENT_ATTEMPTS, retry_timeout: THROTTLE_PATIENCE }
}

fn client(timeout: Duration) -> ClientOptions {
    ClientOptions::new().with_timeout(timeout).with_connect_timeout(CONNECT_TIMEOUT)
}

macro_rules! build {
    ($builder:ident, $url:expr, $options:expr, $timeout:expr) => {{
        let mut builder =
            $builder::from_env().with_client_options(client($timeout)).with_retry(retry()).with_url($url.as_str());
        for (name, value) in $options {
            builder = builder.with_config(name.to_ascii_lowercase().parse()?, value);
        }
        builder.build()
    }};
}

pub(super) fn s3(url: &Url, options: &BTreeMap<String, String>, timeout: Duration) -> Result<AmazonS3> {
    build!(AmazonS3Builder, url, options, timeout)
}

pub(super) fn gcs(url: &Url, options: &BTreeMap<String, String>, timeout: Duration) -> Result<GoogleCloudStorage> {
    build!(GoogleCloudStorageBuilder, url, options, timeout)
}

pub(super) fn azure(url: &Url, options: &BTreeMap<String, String>, timeout: Duration) -> Result<MicrosoftAzure> {
    build!(MicrosoftAzureBuilder, url, options, timeout)
}
