//! The id of the data on a server, kept beside it.

use std::path::PathBuf;

use tidemark_proto::{Error, Incarnation, Result};

use super::Options;

fn incarnation_path(options: &Options) -> PathBuf {
    options.dir.join("incarnation")
}

/// That of the data as it stands; data that has none yet gets one.
pub(super) fn read_incarnation(options: &Options) -> Result<Incarnation> {
    let path = incarnation_path(options);
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|e: Error| e.context(path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => write_incarnation(options),
        Err(e) => Err(Error::config(format!("{}", path.display())).with_source(e)),
    }
}

/// Gives the data a new id.
pub(super) fn write_incarnation(options: &Options) -> Result<Incarnation> {
    let incarnation = Incarnation::from_u128(rand::random());
    crate::fsutil::replace(&incarnation_path(options), incarnation.to_string().as_bytes())?;
    Ok(incarnation)
}
