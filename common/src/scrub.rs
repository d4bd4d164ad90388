//! Taking secrets out of text that leaves the machine: a net below the rule that nothing secret is logged or shown.

/// What stands in place of a secret.
pub const HIDDEN: &str = "(hidden)";
/// Shorter values are no secrets, but would be found everywhere.
const LEAST: usize = 6;
/// Environment variables whose name holds one of these words may hold a secret.
const WORDS: [&str; 6] = ["KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL", "PASSPHRASE"];

/// Knows values that must not be shown. It shows none of them itself.
#[derive(Default)]
pub struct Scrubber(Vec<String>);

impl std::fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scrubber({} values)", self.0.len())
    }
}

impl Scrubber {
    /// Knows what stands in environment variables with a name like that of a secret.
    pub fn of_environment() -> Self {
        let mut scrubber = Self::default();
        let suspect = |name: &str| WORDS.iter().any(|w| name.to_ascii_uppercase().contains(w));
        for (name, value) in std::env::vars_os() {
            if let (Some(name), Some(value)) = (name.to_str(), value.to_str())
                && suspect(name)
            {
                scrubber.add(value);
            }
        }
        scrubber
    }

    /// Knows one more; very short ones are left out.
    pub fn add(&mut self, secret: &str) {
        if secret.len() < LEAST {
            return;
        }
        let quoted = serde_json::Value::from(secret).to_string();
        for form in [secret, &quoted[1..quoted.len() - 1]] {
            if !self.0.iter().any(|s| s == form) {
                self.0.push(form.to_owned());
            }
        }
        // One that holds another goes first, or its rest would stay.
        self.0.sort_by_key(|s| std::cmp::Reverse(s.len()));
    }

    /// The text without them.
    pub fn scrub(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| {
            if text.contains(secret.as_str()) { text.replace(secret.as_str(), HIDDEN) } else { text }
        })
    }
}

/// Rules of a user of Redis or Valkey without passwords and their hashes: `#` and 64 digits, `>` and `<` and a word.
pub fn rules(text: &str) -> String {
    let word = |word: &str| {
        let inner = word.trim_start_matches(['(', '\'', '"', '`']);
        let end = inner.trim_end_matches([')', '\'', '"', '`', '.', ',', ':']);
        match end.strip_prefix(['#', '>', '<', '!']) {
            Some(secret) if !secret.is_empty() => {
                let (before, mark) = (&word[..word.len() - inner.len()], &end[..1]);
                format!("{before}{mark}{HIDDEN}{}", &inner[end.len()..])
            }
            _ => word.to_owned(),
        }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_shown_without_hashes() {
        let line = "user app on #98c1eb4ee934 #00ff ~app:* &* -@all +get (~side:* >word)";
        let shown = "user app on #(hidden) #(hidden) ~app:* &* -@all +get (~side:* >(hidden))";
        assert_eq!(rules(line), shown);
        assert_eq!(rules("Error in modifier '#98c1': no"), "Error in modifier '#(hidden)': no");
        assert_eq!(rules("user a on nopass ~* &* +@all"), "user a on nopass ~* &* +@all");
    }

    #[test]
    fn secrets_go_however_they_are_written() {
        let mut scrubber = Scrubber::default();
        for secret in ["hunter2secret", "hunter2secret-longer", "with \"quotes\"\n", "short"] {
            scrubber.add(secret);
        }
        let text = "a hunter2secret-longer b hunter2secret c {\"x\":\"with \\\"quotes\\\"\\n\"} short";
        assert_eq!(scrubber.scrub(text), "a (hidden) b (hidden) c {\"x\":\"(hidden)\"} short");
        assert!(!format!("{scrubber:?}").contains("hunter"));
    }
}
