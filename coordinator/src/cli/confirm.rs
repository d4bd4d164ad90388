//! Asking before data goes away.

use std::io::{BufRead, IsTerminal, Write};

use clap::Args;
use tidemark_proto::{Error, ErrorKind, Result, error::ResultExt};

/// `--yes`.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct ConfirmArgs {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}

impl ConfirmArgs {
    /// Asks on a terminal whether to go on; without one only `--yes` goes on.
    pub(crate) fn confirm(self, question: &str) -> Result<()> {
        let stdin = std::io::stdin();
        let terminal = stdin.is_terminal();
        decide(self.yes, terminal, question, &mut stdin.lock(), &mut std::io::stderr())
    }
}

fn decide(
    yes: bool,
    terminal: bool,
    question: &str,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !terminal {
        return Err(Error::request(format!(
            "not done, as nobody can be asked (standard input is no terminal): {question} If so, give --yes"
        )));
    }
    let mut answer = String::new();
    let _ = write!(output, "{question} [y/N] ")
        .and_then(|()| output.flush())
        .and_then(|()| input.read_line(&mut answer))
        .or_kind(ErrorKind::Request, "the question cannot be asked: give --yes")?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Error::cancelled("nothing was done")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(yes: bool, terminal: bool, answer: &str) -> (Option<ErrorKind>, String) {
        let mut shown = Vec::new();
        let done = decide(yes, terminal, "Delete it?", &mut answer.as_bytes(), &mut shown);
        (done.err().map(|e| e.kind()), String::from_utf8(shown).unwrap())
    }

    #[test]
    fn only_a_yes_goes_on() {
        for answer in ["y\n", "YES\n", " y \n"] {
            assert_eq!(asked(false, true, answer), (None, "Delete it? [y/N] ".into()), "{answer:?}");
        }
        for answer in ["", "\n", "n\n", "yess\n", "j\n"] {
            assert_eq!(asked(false, true, answer).0, Some(ErrorKind::Cancelled), "{answer:?}");
        }
    }

    #[test]
    fn without_a_terminal_nothing_is_asked() {
        assert_eq!(asked(false, false, "y\n"), (Some(ErrorKind::Request), String::new()));
        assert_eq!(asked(true, false, ""), (None, String::new()));
        assert_eq!(asked(true, true, ""), (None, String::new()));
    }
}
