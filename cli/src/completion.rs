//! Completion of names that only the kubeconfig and the cluster know: contexts here, names of objects in `objects`.

pub(crate) mod objects;

use std::ffi::OsStr;
use std::path::PathBuf;

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use kube::config::Kubeconfig;

/// Limit of candidates; a shell shows no more in a useful way.
const MAX_CANDIDATES: usize = 1000;

/// Completes contexts of the kubeconfig.
pub(crate) fn contexts() -> ArgValueCompleter {
    completer(|_| {
        let read = kubeconfig().map_or_else(Kubeconfig::read, Kubeconfig::read_from);
        read.map(|config| config.contexts.into_iter().map(|context| context.name).collect()).unwrap_or_default()
    })
}

fn completer(list: impl Fn(&str) -> Vec<String> + Send + Sync + 'static) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| {
        let current = current.to_str().unwrap_or_default();
        let mut found = list(current);
        found.retain(|name| name.starts_with(current));
        found.sort_unstable();
        found.into_iter().take(MAX_CANDIDATES).map(CompletionCandidate::new).collect::<Vec<_>>()
    })
}

/// Returns the kubeconfig in the command line.
fn kubeconfig() -> Option<PathBuf> {
    word_after(&["-c", "--kubeconfig"]).map(PathBuf::from)
}

/// Returns the value of an option in the command line that is being completed.
fn word_after(options: &[&str]) -> Option<String> {
    value_of(options, std::env::args())
}

fn value_of(options: &[&str], mut words: impl Iterator<Item = String>) -> Option<String> {
    let value = words.find_map(|word| match word.split_once('=') {
        Some((option, value)) if options.contains(&option) => Some(Some(value.to_owned())),
        _ => options.contains(&word.as_str()).then_some(None),
    })?;
    value.or_else(|| words.next()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_options_are_found_in_both_forms() {
        let value = |line: &str| value_of(&["-n", "--namespace"], line.split(' ').map(str::to_owned));
        assert_eq!(value("weir explain --pod x -n shop").as_deref(), Some("shop"));
        assert_eq!(value("weir explain --namespace=shop").as_deref(), Some("shop"));
        assert_eq!(value("weir explain --namespace"), None);
        assert_eq!(value("weir explain"), None);
    }
}
