//! Reading configuration files.

use std::path::Path;

use serde::de::DeserializeOwned;
use tidemark_proto::{Error, Result};

/// Largest configuration file, in bytes.
pub const MAX_CONFIG: u64 = 1 << 20;

/// Reads a TOML file into `T`. Errors are `Config` and name file, line and what is wrong there.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let fail = |e: std::io::Error| Error::config(format!("configuration {}", path.display())).with_source(e);
    let size = std::fs::metadata(path).map_err(fail)?.len();
    if size > MAX_CONFIG {
        return Err(Error::config(format!("configuration {}: {size} bytes are no configuration", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(fail)?;
    toml::from_str(&text)
        .map_err(|e| Error::config(format!("configuration {}:\n{}", path.display(), e.to_string().trim_end())))
}
