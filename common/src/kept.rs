//! How what a store keeps beside its records is read: users and libraries of functions of Redis and Valkey.

/// Bytes of a library's first line that are looked at.
const LONGEST_HEAD: usize = 1024;

/// Engine and name in the first line of a library (`#!lua name=mylib`); empty where there is none.
pub fn library_head(code: &[u8]) -> (String, String) {
    let first = code.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(&first[..first.len().min(LONGEST_HEAD)]).into_owned();
    let mut words = line.split_ascii_whitespace();
    let engine = words.next().and_then(|w| w.strip_prefix("#!")).unwrap_or_default().to_owned();
    let name = words.find_map(|w| w.strip_prefix("name=")).unwrap_or_default().to_owned();
    (engine, name)
}

/// The name in a line of `ACL LIST`, and the rules behind it.
pub fn user_and_rules(line: &[u8]) -> Option<(&[u8], impl Iterator<Item = &[u8]>)> {
    let mut words = line.split(|b| *b == b' ').filter(|w| !w.is_empty());
    (words.next() == Some(b"user")).then_some(())?;
    Some((words.next()?, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_libraries() {
        let head = |code: &[u8]| library_head(code);
        assert_eq!(head(b"#!lua name=mylib\nredis.x"), ("lua".into(), "mylib".into()));
        assert_eq!(head(b"#!lua other=x name=a"), ("lua".into(), "a".into()));
        assert_eq!(head(b"return 1"), (String::new(), String::new()));
        assert_eq!(head(b""), (String::new(), String::new()));
    }

    #[test]
    fn lines_of_users() {
        let (name, rules) = user_and_rules(b"user app on #00  ~x").unwrap();
        assert_eq!((name, rules.collect::<Vec<_>>()), (&b"app"[..], vec![&b"on"[..], b"#00", b"~x"]));
        assert!(user_and_rules(b"user").is_none() && user_and_rules(b"app on").is_none());
    }
}
