//! Talks to the person at the terminal.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::failure::Failure;
use crate::files;

/// Prints a line of progress.
pub(crate) fn print_line(line: &str) -> Result<(), Failure> {
    files::write(None, &format!("{line}\n")).map_err(Failure::from)
}

/// Asks for confirmation, unless `yes` is set.
///
/// # Errors
/// The answer is no, or standard input is not a terminal.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{question} stdin is not a terminal; pass -y to confirm")));
    }
    let mut stderr = io::stderr();
    let mut answer = String::new();
    write!(stderr, "{question} [y/N] ")
        .and_then(|()| stderr.flush())
        .and_then(|()| io::stdin().lock().read_line(&mut answer))
        .map_err(|error| Failure::usage(format!("cannot ask for confirmation: {error}")))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::findings(vec!["cancelled; nothing was changed".to_owned()]))
    }
}
