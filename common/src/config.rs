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

/// A count that may be left to the program: a number, or `"auto"`, which is 0.
pub mod auto_or_count {
    use serde::{Deserialize, Deserializer, Serializer};

    const AUTO: &str = "auto";

    /// Writes `auto` for 0.
    pub fn serialize<S: Serializer>(count: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        if *count == 0 { serializer.serialize_str(AUTO) } else { serializer.serialize_u32(*count) }
    }

    /// Reads a number or `auto`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Count(u32),
            Word(String),
        }
        match Form::deserialize(deserializer) {
            Ok(Form::Count(count)) => Ok(count),
            Ok(Form::Word(word)) if word == AUTO => Ok(0),
            _ => Err(serde::de::Error::custom("a number or \"auto\" is wanted")),
        }
    }
}

#[cfg(test)]
mod tests {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Section {
        #[serde(with = "super::auto_or_count")]
        count: u32,
    }

    #[test]
    fn a_count_may_be_left_to_the_program() {
        for (text, count) in [("count = 3", 3), ("count = 0", 0), ("count = \"auto\"", 0)] {
            let read: Section = toml::from_str(text).unwrap();
            assert_eq!(read, Section { count }, "{text}");
            assert_eq!(toml::from_str::<Section>(&toml::to_string(&read).unwrap()).unwrap(), read);
        }
        for text in ["count = \"some\"", "count = -1", "count = 1.5"] {
            let wrong = toml::from_str::<Section>(text).unwrap_err();
            assert!(wrong.to_string().contains("\"auto\""), "{wrong}");
        }
    }
}
