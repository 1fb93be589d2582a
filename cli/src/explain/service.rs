//! `weir explain --from-pod --to-service`: the way of a connection from a pod to a Service.
//!
//! ```text
//! cluster ─▶ Snapshot ─▶ name ─▶ rules of the sending pod ─▶ endpoints ─▶ NetworkPolicies ─▶ rules of their pods ─▶ text | json
//! ```

mod observe;
mod path;
mod policies;
mod print;

use std::time::Duration;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::Value;

use crate::cluster::ConnectArgs;
use crate::failure::Failure;
use crate::manifest::namespaces::{self, NamespaceLabels};
use crate::objects::{ENDPOINT_SLICE, NAMESPACE, NETWORK_POLICY, ObjectRef, POD, SERVICE};
use crate::rules::running::RunningPod;
use path::{ServicePath, Snapshot};

pub(super) use observe::{Observation, observe};
pub(super) use print::{json, text};

const TIMEOUT: Duration = Duration::from_mins(1);

/// Follows a connection from the pod `NAMESPACE/NAME` to the Service `NAMESPACE/NAME:PORT`.
///
/// # Errors
/// A name is malformed, the cluster cannot be read, or the Service has no such port.
pub(super) fn explain(pod: &str, service: &str, connect: &ConnectArgs) -> Result<ServicePath, Failure> {
    let pod_name = pod.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    let service_name = parse_service(service);
    let (Some((from_namespace, from)), Some((namespace, name, port))) = (pod_name, service_name) else {
        return Err(Failure::usage(format!(
            "cannot read --from-pod {pod} and --to-service {service}; write NAMESPACE/NAME and NAMESPACE/NAME:PORT"
        )));
    };
    let (server, snapshot) = connect.run(TIMEOUT, async |cluster| {
        let missing = |what: &str| Failure::findings(vec![format!("{}: {what} not found", cluster.server)]);
        let from_pod = cluster.object(&ObjectRef::new(POD, from_namespace, from)).await?;
        let from_pod = from_pod.ok_or_else(|| missing(&format!("pod {pod}")))?;
        let service = cluster.object(&ObjectRef::new(SERVICE, namespace, name)).await?;
        let service = service.ok_or_else(|| missing(&format!("Service {namespace}/{name}")))?;
        let label = format!("kubernetes.io/service-name={name}");
        let slices = cluster.objects(ENDPOINT_SLICE, namespace, &label).await?;
        let pods = cluster.objects(POD, namespace, "").await?;
        let mut policies = cluster.objects(NETWORK_POLICY, namespace, "").await?;
        if from_namespace != namespace {
            policies.extend(cluster.objects(NETWORK_POLICY, from_namespace, "").await?);
        }
        let mut labels = NamespaceLabels::new();
        for one in [namespace, from_namespace] {
            if let Some(object) = cluster.object(&ObjectRef::new(NAMESPACE, "", one)).await? {
                namespaces::collect(&object, &mut labels);
            }
        }
        let policies = parse_policies(policies)?;
        let from = RunningPod::of(&from_pod);
        Ok((cluster.server, Snapshot { from, service, port, slices, pods, policies, namespaces: labels }))
    })?;
    ServicePath::of(&snapshot).map_err(|finding| Failure::findings(vec![format!("{server}: {finding}")]))
}

fn parse_service(text: &str) -> Option<(&str, &str, u16)> {
    let (name, port) = text.rsplit_once(':')?;
    let (namespace, name) = name.split_once('/')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    (!namespace.is_empty() && !name.is_empty()).then_some((namespace, name, port))
}

fn parse_policies(policies: Vec<Value>) -> Result<Vec<NetworkPolicy>, Failure> {
    let parse = |policy: Value| {
        let name = policy.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        serde_json::from_value(policy)
            .map_err(|error| Failure::findings(vec![format!("cannot parse NetworkPolicy {name}: {error}")]))
    };
    policies.into_iter().map(parse).collect()
}
