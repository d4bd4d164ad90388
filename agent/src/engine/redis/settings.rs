//! What a server answers to `CONFIG GET`.

use tidemark_proto::Result;

use super::conn::Connection;

/// Some settings of a server, with their values.
#[derive(Debug, Default)]
pub(super) struct Settings(Vec<(String, String)>);

impl Settings {
    /// Those of these names, which may be patterns; `None` where the user may not ask. One that the server does not know is missing.
    pub(super) fn read(connection: &mut Connection, names: &[&str]) -> Result<Option<Self>> {
        let mut found = Self::default();
        for name in names {
            // Servers before 7.0 take one name at a time.
            let asked = connection.call(&[b"CONFIG", b"GET", name.as_bytes()])?;
            let Ok(words) = asked.list("CONFIG GET") else { return Ok(None) };
            let words = words.into_iter().map(|w| w.text("CONFIG GET")).collect::<Result<_>>()?;
            found.extend(words);
        }
        Ok(Some(found))
    }

    fn extend(&mut self, words: Vec<String>) {
        let mut words = words.into_iter();
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            self.0.push((name, value));
        }
    }

    /// The value of a setting.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether a setting has this value.
    pub(super) fn is(&self, name: &str, value: &str) -> bool {
        self.get(name) == Some(value)
    }

    /// From names and values in turns.
    #[cfg(test)]
    pub(super) fn of(text: &str) -> Self {
        let mut found = Self::default();
        found.extend(text.split(' ').map(|word| word.replace('_', " ").trim().to_owned()).collect());
        found
    }
}
