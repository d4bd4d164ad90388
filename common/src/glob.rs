//! Key filters: globs as in Redis' `KEYS` (`*`, `?`, `[a-z]`, `[^x]`, `\` escapes), over raw bytes. Braces are plain
//! characters, because they mark hash tags.

use tidemark_proto::{Error, Result};

/// Longest glob, in bytes.
pub const MAX_GLOB: usize = 1024;

/// Takes keys that match any glob without `!` (all keys when there is none) and no glob with `!`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyFilter {
    include: Vec<Vec<u8>>,
    exclude: Vec<Vec<u8>>,
}

impl KeyFilter {
    /// From globs; `!` in front excludes.
    pub fn new<S: AsRef<str>>(globs: &[S]) -> Result<Self> {
        let mut filter = Self::default();
        for glob in globs {
            let text = glob.as_ref();
            let (list, pattern) = match text.strip_prefix('!') {
                Some(rest) => (&mut filter.exclude, rest),
                None => (&mut filter.include, text),
            };
            if pattern.is_empty() || pattern.len() > MAX_GLOB {
                return Err(Error::request(format!(
                    "key glob `{text}`: write 1 to {MAX_GLOB} characters, e.g. `user:*`"
                )));
            }
            list.push(pattern.as_bytes().to_vec());
        }
        Ok(filter)
    }

    /// Whether every key is taken.
    pub fn is_all(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether `key` is taken.
    pub fn takes(&self, key: &[u8]) -> bool {
        (self.include.is_empty() || self.include.iter().any(|g| glob(g, key)))
            && !self.exclude.iter().any(|g| glob(g, key))
    }
}

/// Whether `text` matches `pattern` as a whole. Runs in O(pattern × text): only the last `*` is ever tried again.
pub fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(_) => one(&pattern[p..], text[t]),
            None => None,
        };
        match (step, star) {
            (Some(len), _) => (p, t) = (p + len, t + 1),
            (None, Some((after, from))) => {
                star = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

/// Matches one byte against the element at the front of `pattern`; answers the element's length.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern[0] {
        b'?' => Some(1),
        b'\\' if pattern.len() > 1 => (pattern[1] == byte).then_some(2),
        b'[' => class(pattern, byte),
        plain => (plain == byte).then_some(1),
    }
}

fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let negated = pattern.get(1) == Some(&b'^');
    let (mut i, mut hit) = (1 + usize::from(negated), false);
    while i < pattern.len() && pattern[i] != b']' {
        if pattern[i] == b'\\' && i + 1 < pattern.len() {
            i += 1;
        }
        if i + 2 < pattern.len() && pattern[i + 1] == b'-' && pattern[i + 2] != b']' {
            let (a, b) = (pattern[i].min(pattern[i + 2]), pattern[i].max(pattern[i + 2]));
            hit |= (a..=b).contains(&byte);
            i += 3;
        } else {
            hit |= pattern[i] == byte;
            i += 1;
        }
    }
    // An unclosed class ends with the pattern, as in Redis.
    (hit != negated).then_some((i + 1).min(pattern.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn globs_of_redis() {
        for (g, yes, no) in [
            ("user:*", &["user:", "user:1/x"][..], &["use", "xuser:1"][..]),
            ("*", &["", "x"], &[]),
            ("h?llo", &["hello"], &["hllo"]),
            ("h[ae]llo", &["hallo", "hello"], &["hillo"]),
            ("h[^e]llo", &["hallo"], &["hello"]),
            ("h[a-c]llo", &["hbllo"], &["hdllo"]),
            ("a\\*b", &["a*b"], &["axb"]),
            ("{tag}*x", &["{tag}ax"], &["tagx"]),
            ("*a*b*c", &["xxaxbxc", "abc"], &["acb"]),
        ] {
            yes.iter().for_each(|t| assert!(glob(g.as_bytes(), t.as_bytes()), "{g} {t}"));
            no.iter().for_each(|t| assert!(!glob(g.as_bytes(), t.as_bytes()), "{g} {t}"));
        }
    }

    #[test]
    fn excludes_win() {
        let f = KeyFilter::new(&["user:*", "!user:tmp:*"]).unwrap();
        assert!(f.takes(b"user:1") && !f.takes(b"user:tmp:1") && !f.takes(b"order:1"));
        assert!(KeyFilter::new(&["!x*"]).unwrap().takes(b"y"));
        assert!(KeyFilter::new(&["!"]).is_err());
    }

    /// The plain recursive definition, for patterns of stars, question marks and letters.
    fn model(p: &[u8], t: &[u8]) -> bool {
        match (p.first(), t.first()) {
            (None, None) => true,
            (Some(b'*'), _) => model(&p[1..], t) || (!t.is_empty() && model(p, &t[1..])),
            (Some(b'?'), Some(_)) => model(&p[1..], &t[1..]),
            (Some(a), Some(b)) => a == b && model(&p[1..], &t[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn equals_the_recursive_definition(p in "[ab*?]{0,8}", t in "[ab]{0,8}") {
            prop_assert_eq!(glob(p.as_bytes(), t.as_bytes()), model(p.as_bytes(), t.as_bytes()));
        }

        #[test]
        fn never_panics(p in proptest::collection::vec(any::<u8>(), 0..12), t in proptest::collection::vec(any::<u8>(), 0..12)) {
            let _ = glob(&p, &t);
        }
    }
}
