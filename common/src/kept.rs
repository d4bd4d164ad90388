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

/// A line of `ACL LIST` in a form that is the same for equal rights: servers write commands of one kind in another order
/// each time. Grants that follow each other commute, and so do takings; nothing else is put in another place.
pub fn normal_user(line: &[u8]) -> Vec<u8> {
    let spaced = line.split(|b| *b == b' ').flat_map(|word| {
        let open = usize::from(word.first() == Some(&b'('));
        let close = usize::from(word.len() > open && word.last() == Some(&b')'));
        let (before, rest) = word.split_at(open);
        let (inner, after) = rest.split_at(rest.len() - close);
        [before, inner, after]
    });
    let mut words: Vec<&[u8]> = spaced.filter(|w| !w.is_empty()).collect();
    let sign = |word: &[u8]| word.first().copied().filter(|b| matches!(b, b'+' | b'-'));
    words.chunk_by_mut(|a, b| sign(a).is_some() && sign(a) == sign(b)).for_each(|run| run.sort_unstable());
    words.join(&b' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rights_have_one_form() {
        let normal = |line: &str| normal_user(line.as_bytes());
        let line = "user a on ~x -@all +set +@read (~y resetchannels -@all +set +get)";
        assert_eq!(normal(line), normal("user a on ~x -@all +@read +set (~y resetchannels -@all +get +set)"));
        for other in [
            "user a on ~x +set +@read -@all (~y resetchannels -@all +set +get)",
            "user a on ~x -@all +set +@read ~y resetchannels -@all +set +get",
            "user a on ~z -@all +set +@read (~y resetchannels -@all +set +get)",
        ] {
            assert_ne!(normal(line), normal(other), "{other}");
        }
        assert_eq!(normal("user a (+get) +set"), b"user a ( +get ) +set");
    }

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
