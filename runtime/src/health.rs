//! Named conditions behind `/readyz`. Every part of a process registers its own; the answer names all of them.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

/// What a condition says at the moment.
#[derive(Debug)]
enum State {
    /// As it should be, with a word about it where there is one.
    Good(String),
    /// Not as it should be, and why, but no reason to be taken out of service.
    Odd(String),
    /// Not (yet) as it should be, and why.
    Bad(String),
}

/// What a bad condition means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// The process is not ready.
    Blocking,
    /// Somebody should look at it, but the process does its work.
    Advisory,
}

#[derive(Debug)]
struct Entry {
    name: &'static str,
    weight: Weight,
    state: State,
}

/// All conditions, in the order in which they were registered.
#[derive(Debug, Clone, Default)]
pub struct Health {
    entries: Arc<Mutex<Vec<Entry>>>,
}

/// A handle on one condition.
#[derive(Debug, Clone)]
pub struct Condition {
    health: Health,
    index: usize,
}

/// Answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// 200 or 503.
    pub ready: bool,
    /// One line for each condition, in the form of the API server's own `/readyz?verbose`.
    pub detail: String,
}

impl Health {
    /// Registers a condition; it is bad for the reason `pending` until somebody says otherwise.
    pub fn register(&self, name: &'static str, weight: Weight, pending: &str) -> Condition {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.push(Entry { name, weight, state: State::Bad(pending.to_owned()) });
        Condition { health: self.clone(), index: entries.len() - 1 }
    }

    /// The state of everything now. Without any condition nothing is ready.
    pub fn readiness(&self) -> Readiness {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut readiness = Readiness { ready: !entries.is_empty(), detail: String::new() };
        for Entry { name, weight, state } in entries.iter() {
            let (mark, text) = match (state, weight) {
                (State::Good(text), _) => ('+', text.as_str()),
                (State::Odd(text), _) | (State::Bad(text), Weight::Advisory) => ('!', text.as_str()),
                (State::Bad(text), Weight::Blocking) => {
                    readiness.ready = false;
                    ('-', text.as_str())
                }
            };
            // Writing to a string does not fail.
            let _ = writeln!(readiness.detail, "[{mark}]{name}: {}", text.replace('\n', " "));
        }
        readiness
    }
}

impl Condition {
    /// All is well; `text` says how.
    pub fn good(&self, text: impl Into<String>) {
        self.set(State::Good(text.into()));
    }

    /// Something is wrong, but the process does its work; `reason` says what, and what to do.
    pub fn odd(&self, reason: impl Into<String>) {
        self.set(State::Odd(reason.into()));
    }

    /// Something is wrong; `reason` says what, and what to do.
    pub fn bad(&self, reason: impl Into<String>) {
        self.set(State::Bad(reason.into()));
    }

    fn set(&self, state: State) {
        let mut entries = self.health.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(self.index) {
            entry.state = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_ready_once_every_blocking_condition_is_good() {
        let health = Health::default();
        assert!(!health.readiness().ready, "nothing registered yet");
        let install = health.register("install", Weight::Blocking, "starting");
        let war = health.register("contention", Weight::Advisory, "starting");
        assert_eq!(
            health.readiness(),
            Readiness { ready: false, detail: "[-]install: starting\n[!]contention: starting\n".into() }
        );
        install.good("entry in 10-a.conflist");
        war.bad("somebody\nfights");
        assert_eq!(
            health.readiness(),
            Readiness {
                ready: true,
                detail: "[+]install: entry in 10-a.conflist\n[!]contention: somebody fights\n".into()
            }
        );
        install.odd("fought over");
        assert_eq!(health.readiness().detail.lines().next(), Some("[!]install: fought over"));
        assert!(health.readiness().ready);
        install.bad("gone");
        assert!(!health.readiness().ready);
    }
}
