//! Limits what the records of an injection may change.
//!
//! Whoever writes a pod writes its records too: `sidecar.istio.io/status`, `proxy.istio.io/overrides` and `weir.dev/original` prove
//! nothing. So the restored pod is compared with the pod as it stands, and a difference stays only if
//!
//! * it concerns what every injection writes: containers, volumes, labels and annotations of the mesh, handlers that were redirected to
//!   the agent, variables of gRPC; or
//! * the current templates add exactly this again, so that nothing is lost; or add a container of this name.
//!
//! Every other difference is refused: the value of the pod stays, and the path is reported. What a user declared about the mesh's
//! containers counts only as far as the pod shows it, because another webhook may have changed it since.
//!
//! A key (an HMAC over the records) would have to reach every replica, revision and CLI, would have to be rotated, and a signed record of
//! one pod could be copied to another. This comparison needs none of it, and holds for the pods of Istio's injector as well.
//!
//! ```text
//! comparison.rs ─ walks both pods; keeps or refuses each difference, as a rule decides
//! rules.rs ────── which differences an injection makes: metadata, spec, containers of the application
//! declared.rs ─── what of a user's declaration about a container of the mesh counts
//! ```

mod comparison;
mod declared;
mod rules;

use std::collections::BTreeMap;

use serde_json::Value;

use super::reconstruct::MESH_CONTAINERS;
use crate::containers;
use comparison::{Change, Comparison};
use rules::MeshRules;

/// Additions of the current configuration, besides those of every injection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CurrentInjection<'a> {
    /// Additions of the templates, merged; `None` if unknown.
    pub(crate) overlay: Option<&'a Value>,
    /// Annotations that the settings write.
    pub(crate) annotations: Option<&'a BTreeMap<String, String>>,
    /// Variables that the webhook's URL and the settings write.
    pub(crate) variables: Option<&'a BTreeMap<String, String>>,
    /// Whether the platform assigns users to containers.
    pub(crate) assigns_users: bool,
}

/// The restored pod without the differences that were refused, and their paths.
pub(crate) struct Limited {
    pub(crate) pod: Value,
    pub(crate) refused: Vec<String>,
}

/// Keeps the differences between the pod as it stands and the restored pod that an injection can have made.
pub(crate) fn limit(standing: &Value, restored: Value, current: CurrentInjection<'_>) -> Limited {
    let (rules, mut comparison) = (MeshRules { standing, current }, Comparison::default());
    let change = Change { was: Some(standing), now: Some(restored), added: current.overlay };
    let pod = comparison.fields(change, &mut |at, key, change| match key {
        "metadata" => at.fields(change, &mut |at, key, change| rules.metadata(at, key, change)),
        "spec" => at.fields(change, &mut |at, key, change| rules.spec(at, key, change)),
        _ => at.plain(change),
    });
    Limited { pod: pod.unwrap_or_default(), refused: comparison.refused }
}

/// Keeps of a declaration of a container of the mesh what the pod shows; `None` if the container is not the mesh's.
///
/// A pod without the container shows nothing, but there is nothing that anybody could have changed in it either.
pub(crate) fn limit_declaration(
    standing: &Value,
    declared: Value,
    current: CurrentInjection<'_>,
    refused: &mut Vec<String>,
) -> Option<Value> {
    let name = declared["name"].as_str().unwrap_or_default().to_owned();
    if !MESH_CONTAINERS.contains(&name.as_str()) {
        refused.push(format!("container '{name}'"));
        return None;
    }
    if containers::find(standing, &name).is_none() {
        return Some(declared);
    }
    let mut comparison = Comparison::new(format!("spec.containers[{name}]"));
    let change = Change { was: None, now: Some(declared), added: None };
    let kept = MeshRules { standing, current }.container(&mut comparison, change);
    refused.append(&mut comparison.refused);
    kept
}
