//! Completion of names that only the kubeconfig and the cluster know: contexts, namespaces, nodes and pods.
//!
//! A shell waits for the answer, so that the cluster gets little time, and no answer is no error.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use serde_json::Value;

use crate::cluster::ConnectArgs;
use crate::objects::{NAMESPACE, NODE, POD, ResourceKind};

/// Time for the cluster's answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Limit of candidates; a shell shows no more in a useful way.
const MAX_CANDIDATES: usize = 1000;

/// Completes contexts of the kubeconfig.
pub(crate) fn contexts() -> ArgValueCompleter {
    completer(|connect, _| connect.contexts())
}

/// Completes namespaces.
pub(crate) fn namespaces() -> ArgValueCompleter {
    completer(|connect, _| names(connect, NAMESPACE, ""))
}

/// Completes pods: `NAMESPACE/NAME`, or `pod/NAME` of the namespace in the command line.
pub(crate) fn pods() -> ArgValueCompleter {
    completer(pod_names)
}

/// Completes nodes, and pods as `pod/NAME`.
pub(crate) fn nodes_and_pods() -> ArgValueCompleter {
    completer(
        |connect, current| {
            if current.starts_with("pod/") { pod_names(connect, current) } else { names(connect, NODE, "") }
        },
    )
}

fn pod_names(connect: &ConnectArgs, current: &str) -> Vec<String> {
    if current.starts_with("pod/") {
        let namespace = word_after(&["-n", "--namespace"]).unwrap_or_else(|| "default".to_owned());
        return names(connect, POD, &namespace).into_iter().map(|name| format!("pod/{name}")).collect();
    }
    let namespace = current.split_once('/').map_or("", |(namespace, _)| namespace);
    objects(connect, POD, namespace)
        .iter()
        .filter_map(|pod| Some(format!("{}/{}", text(pod, "namespace")?, text(pod, "name")?)))
        .collect()
}

fn completer(list: impl Fn(&ConnectArgs, &str) -> Vec<String> + Send + Sync + 'static) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| {
        let current = current.to_str().unwrap_or_default();
        let kubeconfig = word_after(&["-c", "--kubeconfig"]).map(PathBuf::from);
        let connect = ConnectArgs::named(kubeconfig, word_after(&["--context"]));
        let mut found = list(&connect, current);
        found.retain(|name| name.starts_with(current));
        found.sort_unstable();
        found.into_iter().take(MAX_CANDIDATES).map(CompletionCandidate::new).collect::<Vec<_>>()
    })
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

fn names(connect: &ConnectArgs, kind: ResourceKind, namespace: &str) -> Vec<String> {
    objects(connect, kind, namespace).iter().filter_map(|object| text(object, "name").map(str::to_owned)).collect()
}

fn objects(connect: &ConnectArgs, kind: ResourceKind, namespace: &str) -> Vec<Value> {
    connect.run(TIMEOUT, async |cluster| cluster.objects(kind, namespace, "").await).unwrap_or_default()
}

fn text<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object["metadata"][field].as_str()
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
