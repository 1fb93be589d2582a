//! Completion of names of objects in the cluster.
//!
//! A shell waits for the answer, so that the cluster gets little time, and no answer is no error.

use std::time::Duration;

use clap_complete::engine::ArgValueCompleter;
use serde_json::Value;

use super::{completer, kubeconfig, word_after};
use crate::cluster::ConnectArgs;
use crate::objects::{NAMESPACE, NODE, POD, ResourceKind};

/// Time for the cluster's answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Completes namespaces.
pub(crate) fn namespaces() -> ArgValueCompleter {
    completer(|_| names(NAMESPACE, ""))
}

/// Completes pods: `NAMESPACE/NAME`, or `pod/NAME` of the namespace in the command line.
pub(crate) fn pods() -> ArgValueCompleter {
    completer(pod_names)
}

/// Completes nodes, and pods as `pod/NAME`.
pub(crate) fn nodes_and_pods() -> ArgValueCompleter {
    completer(|current| if current.starts_with("pod/") { pod_names(current) } else { names(NODE, "") })
}

fn pod_names(current: &str) -> Vec<String> {
    if current.starts_with("pod/") {
        let namespace = word_after(&["-n", "--namespace"]).unwrap_or_else(|| "default".to_owned());
        return names(POD, &namespace).into_iter().map(|name| format!("pod/{name}")).collect();
    }
    let namespace = current.split_once('/').map_or("", |(namespace, _)| namespace);
    objects(POD, namespace)
        .iter()
        .filter_map(|pod| Some(format!("{}/{}", text(pod, "namespace")?, text(pod, "name")?)))
        .collect()
}

fn names(kind: ResourceKind, namespace: &str) -> Vec<String> {
    objects(kind, namespace).iter().filter_map(|object| text(object, "name").map(str::to_owned)).collect()
}

fn objects(kind: ResourceKind, namespace: &str) -> Vec<Value> {
    let connect = ConnectArgs::named(kubeconfig(), word_after(&["--context"]));
    connect.run(TIMEOUT, async |cluster| cluster.objects(kind, namespace, "").await).unwrap_or_default()
}

fn text<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object["metadata"][field].as_str()
}
