//! Talks to the person at the terminal.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::failure::Failure;
use crate::files;

/// Frames of the spinner, and the time of each.
const FRAMES: [&str; 4] = ["|", "/", "-", "\\"];
const FRAME_TIME: Duration = Duration::from_millis(125);

/// Prints a line of progress.
pub(crate) fn print_line(line: &str) -> Result<(), Failure> {
    files::write(None, &format!("{line}\n")).map_err(Failure::from)
}

/// Returns whether standard output shows colors: a terminal, unless `NO_COLOR` is set and not empty (no-color.org).
pub(crate) fn is_colored() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
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

/// A text on standard error while something takes time: with a turning sign on a terminal, which it clears at its end, else one line
/// for each new text after the first.
#[derive(Debug)]
pub(crate) struct Spinner {
    text: String,
    thread: Option<(Sender<String>, JoinHandle<()>)>,
}

impl Spinner {
    /// Shows a text.
    pub(crate) fn start(text: &str) -> Self {
        let is_shown = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let thread = is_shown.then(|| {
            let (sender, texts) = mpsc::channel::<String>();
            let mut text = text.to_owned();
            let turn = move || {
                for frame in FRAMES.iter().cycle() {
                    let _ = write!(io::stderr(), "\r\x1b[K{frame} {text}");
                    match texts.recv_timeout(FRAME_TIME) {
                        Ok(new) => text = new,
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => break,
                    }
                }
                let _ = write!(io::stderr(), "\r\x1b[K");
            };
            (sender, thread::spawn(turn))
        });
        Self { text: text.to_owned(), thread }
    }

    /// Replaces the text.
    pub(crate) fn set(&mut self, text: &str) {
        if self.text == text {
            return;
        }
        text.clone_into(&mut self.text);
        match &self.thread {
            // The thread ends only with this value.
            Some((sender, _)) => drop(sender.send(text.to_owned())),
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.thread.take() {
            drop(sender);
            // A panic in it is no reason for another one.
            let _ = thread.join();
        }
    }
}
