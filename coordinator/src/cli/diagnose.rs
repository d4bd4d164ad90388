//! `tidemark diagnose`: an archive for the report of a fault.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use tidemark_common::clock::{SystemClock, WallClock};
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

use super::connect::GlobalArgs;
use super::output::size;
use crate::diagnose::DiagnosisFile;

/// Folder of everything in the archive.
const FOLDER: &str = "tidemark-diagnosis";

/// `tidemark diagnose`.
#[derive(Debug, Args)]
pub(crate) struct DiagnoseCommand {
    /// The archive to write (tar, gzip); a file that is there is kept
    #[arg(long, value_name = "FILE", default_value = "tidemark-diagnosis.tar.gz")]
    out: PathBuf,
}

#[derive(Debug, Serialize)]
struct Written {
    file: PathBuf,
    bytes: u64,
    files: Vec<String>,
}

impl DiagnoseCommand {
    /// Asks the coordinator and writes what it tells.
    pub(crate) async fn run(self, global: &GlobalArgs) -> Result<()> {
        let client = global.client()?;
        let mut files = client.diagnosis().await?;
        let about = format!("{}\nasked {}\n", crate::BUILD, client.url());
        files.push(DiagnosisFile { name: "client.txt".into(), text: about });
        let bytes = write(&self.out, &files, SystemClock.millis() / 1000)?;
        let files = files.into_iter().map(|f| f.name).collect();
        global.output.print(&Written { file: self.out, bytes, files }, |w| {
            format!(
                "{}: {} files, {}. Keys, passwords and options of the store are not in it; names of hosts, nodes and \
                 folders are: look through it before you pass it on.",
                w.file.display(),
                w.files.len(),
                size(w.bytes)
            )
        })
    }
}

/// Writes the archive, readable by its owner alone; answers its size.
fn write(path: &Path, files: &[DiagnosisFile], at_seconds: u64) -> Result<u64> {
    let fail = || format!("{}: choose another --out", path.display());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut archive =
        tar::Builder::new(GzEncoder::new(file.or_kind(ErrorKind::Config, fail())?, Compression::default()));
    for file in files {
        // Whatever answers there: nothing in the archive may be unpacked elsewhere.
        if file.name.starts_with('/') || file.name.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(Error::damaged(format!("the coordinator named a file `{}`", file.name)));
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(file.text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(at_seconds);
        archive
            .append_data(&mut header, format!("{FOLDER}/{}", file.name), file.text.as_bytes())
            .or_kind(ErrorKind::Full, fail())?;
    }
    let mut file = archive.into_inner().and_then(GzEncoder::finish).or_kind(ErrorKind::Full, fail())?;
    file.flush().or_kind(ErrorKind::Full, fail())?;
    Ok(file.metadata().or_kind(ErrorKind::Full, fail())?.len())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn file(name: &str) -> DiagnosisFile {
        DiagnosisFile { name: name.into(), text: format!("text of {name}") }
    }

    #[test]
    fn what_is_written_unpacks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.tar.gz");
        let long = format!("agents/{}/{}/log.txt", "c".repeat(63), "n".repeat(63));
        let files = [file("about.json"), file(&long)];
        let _ = write(&path, &files, 1_700_000_000).unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(std::fs::File::open(&path).unwrap()));
        let read: Vec<(PathBuf, String)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let (mut entry, mut text) = (entry.unwrap(), String::new());
                let _ = entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().into_owned(), text)
            })
            .collect();
        let expected = files.map(|f| (PathBuf::from(format!("{FOLDER}/{}", f.name)), f.text));
        assert_eq!(read, expected);
        assert_eq!(write(&path, &[], 0).unwrap_err().kind(), ErrorKind::Config, "a file that is there is kept");
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (n, name) in ["../x", "/x", "a/../../x", "a//x"].into_iter().enumerate() {
            let path = dir.path().join(format!("{n}.tar.gz"));
            assert_eq!(write(&path, &[file(name)], 0).unwrap_err().kind(), ErrorKind::Damaged, "{name}");
        }
    }
}
