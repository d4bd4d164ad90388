//! Golden bytes of sealed and stored forms, kept forever in the `golden` folder of a package. A line is `name hex`.

use std::fs;
use std::io::Write;
use std::path::Path;

use data_encoding::HEXLOWER;

/// Set to append bytes that are missing; present ones never change.
const ADD: &str = "TIDEMARK_GOLDEN_ADD";

/// The bytes kept as `name` in `file`. When there are none, those of `make` are appended if that was asked for.
pub fn golden(file: &Path, name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let kept = text.lines().filter_map(|l| l.split_once(' ')).find(|(n, _)| *n == name).map(|(_, hex)| hex);
    if let Some(hex) = kept {
        return HEXLOWER.decode(hex.as_bytes()).expect("hex");
    }
    assert!(std::env::var_os(ADD).is_some(), "no golden bytes of {name} in {}: add with {ADD}=1", file.display());
    let bytes = make();
    let mut out = fs::OpenOptions::new().append(true).create(true).open(file).expect("golden file");
    // One write, so that tests of several processes do not mix.
    out.write_all(format!("{name} {}\n", HEXLOWER.encode(&bytes)).as_bytes()).expect("golden file");
    bytes
}
