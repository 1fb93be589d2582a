//! One explanation: selection by the API server, decision by the injector, and what the pod gets.

use std::collections::HashMap;

use serde_json::{Map, Value};
use weir_injector::decision::{Decision, DecisionTrace, InjectionPolicy, decide};
use weir_injector::finish::status::InjectionStatus;
use weir_injector::selection::configurations::ENTRY_SUFFIX;
use weir_injector::selection::{InjectorRevision, Labels, Selection, namespace_labels};
use weir_injector::settings::{NativeSidecars, Settings};
use weir_injector::uninject::uninject;
use weir_injector::{InjectOutcome, InjectRequest, inject};

use super::args::ExplainInjectArgs;
use super::installed::Installed;
use crate::inject::denial_messages;
use crate::manifest::pods::{PodHolder, ShapeError};

/// Suffix of the names that Istio gives the same entries.
const ISTIO_ENTRY_SUFFIX: &str = "sidecar-injector.istio.io";

/// Explanation of an injection: the deciding rule, and the additions.
#[derive(Debug)]
pub(super) struct InjectExplanation {
    /// Name for messages.
    pub(super) name: String,
    pub(super) namespace: String,
    /// `None` if unknown.
    pub(super) namespace_labels: Option<Map<String, Value>>,
    /// The entries of the webhook configurations, and whether they select the pod.
    pub(super) entries: Vec<(String, bool)>,
    pub(super) selection: Selection,
    pub(super) decision_trace: DecisionTrace,
    /// Additions to the pod, or the reasons for its denial; `None` if it is skipped.
    pub(super) result: Option<Result<InjectionPreview, Vec<String>>>,
}

/// Additions of an injection.
#[derive(Debug)]
pub(super) struct InjectionPreview {
    pub(super) templates: Vec<String>,
    /// The templates whose text is in the configuration; the others are built in.
    pub(super) rendered_templates: Vec<String>,
    pub(super) containers: Vec<String>,
    pub(super) init_containers: Vec<String>,
    pub(super) volumes: Vec<String>,
    /// Kind of the proxy's container, and the setting behind it.
    pub(super) proxy: String,
    /// Program that installs the rules, and the setting behind it.
    pub(super) capture: String,
    pub(super) warnings: Vec<String>,
}

/// Facts that all pods of a manifest share.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExplainContext<'a> {
    /// Labels of the Namespaces in the manifest.
    pub(super) namespaces: &'a HashMap<String, Map<String, Value>>,
    /// The cluster, if one is named.
    pub(super) installed: Option<&'a Installed>,
    pub(super) args: &'a ExplainInjectArgs,
    pub(super) settings: &'a Settings,
}

/// Explains one pod.
///
/// # Errors
/// Every invalid field of the pod.
pub(super) fn explain_pod(
    holder: &PodHolder<'_>,
    context: &ExplainContext<'_>,
) -> Result<InjectExplanation, Vec<String>> {
    let ExplainContext { namespaces, installed, args, settings } = *context;
    let errors = |errors: Vec<ShapeError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut request = holder.request().map_err(errors)?;
    let namespace = request.namespace.get_or_insert_with(|| args.namespace.clone()).clone();
    let given = args.namespace_labels.as_ref();
    let given: Option<Map<String, Value>> =
        given.map(|labels| labels.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect());
    let of_cluster = || installed.and_then(|installed| installed.namespace_labels(&namespace)).cloned();
    let known = given.or_else(|| namespaces.get(&namespace).cloned()).or_else(of_cluster);

    let revision = InjectorRevision {
        revision: settings.revision.clone(),
        tags: args.tags.clone(),
        enable_namespaces_by_default: args.enable_namespaces_by_default,
        deactivated: args.deactivated,
    };
    // Additions of an earlier injection do not count.
    let original = match uninject(&request.pod) {
        Ok(Some(original)) => original.pod,
        _ => request.pod.clone(),
    };
    let none = Map::new();
    let of_namespace = namespace_labels(&namespace, known.clone().unwrap_or_default());
    let labels =
        Labels { namespace: &of_namespace, pod: request.pod["metadata"]["labels"].as_object().unwrap_or(&none) };
    let selected = match installed {
        Some(installed) => installed.select(labels, &namespace, revision.revision()),
        None => expected_entries(&revision, labels).map(|entries| (entries, revision.select(labels, &namespace))),
    };
    let (entries, selection) = selected.map_err(|error| vec![error])?;
    let decision_trace = decide(&original, Some(&namespace), InjectionPolicy::of(settings));
    let result = (decision_trace.decision == Decision::Inject).then(|| preview(&request, settings)).transpose();
    let result = match result {
        Ok(preview) => preview.flatten().map(Ok),
        Err(denials) => Some(Err(denials)),
    };
    Ok(InjectExplanation {
        name: holder.name.to_string(),
        namespace,
        namespace_labels: known,
        entries,
        selection,
        decision_trace,
        result,
    })
}

/// Returns the entries that an installation of the revision has, and whether they select the labels.
fn expected_entries(revision: &InjectorRevision, labels: Labels<'_>) -> Result<Vec<(String, bool)>, String> {
    let entries = revision.webhook_entries().into_iter().map(|entry| {
        let selects = entry.matches(labels)?;
        let prefix = entry.name.strip_suffix(ISTIO_ENTRY_SUFFIX).unwrap_or(&entry.name);
        Ok((format!("{prefix}{ENTRY_SUFFIX}"), selects))
    });
    entries.collect()
}

/// Returns what injection adds to the pod.
fn preview(request: &InjectRequest, settings: &Settings) -> Result<Option<InjectionPreview>, Vec<String>> {
    let InjectOutcome::Injected { pod, templates, warnings } = inject(request, settings).map_err(denial_messages)?
    else {
        return Ok(None);
    };
    let status = InjectionStatus::of_pod(&pod).unwrap_or_default();
    let (containers, init_containers) =
        (status.containers.unwrap_or_default(), status.init_containers.unwrap_or_default());
    let has = |list: &[String], name: &str| list.iter().any(|found| found == name);
    let annotation = |name: &str| request.pod["metadata"]["annotations"][name].as_str();
    let native = has(&init_containers, "istio-proxy");
    let by_annotation = annotation("sidecar.istio.io/nativeSidecar").filter(|value| matches!(*value, "true" | "false"));
    let asked_native = settings.native_sidecars != NativeSidecars::Off;
    let proxy = match (native, by_annotation) {
        (false, _) if !has(&containers, "istio-proxy") => "no proxy; the templates add none".to_owned(),
        (native, Some(value)) if native == (value == "true") => {
            format!("{}; set by annotation sidecar.istio.io/nativeSidecar", kind(native))
        }
        (true, _) => format!("{}; set by the setting for native sidecars", kind(true)),
        (false, _) if asked_native => {
            format!("{}; the template adds no other, or the pod has no other container", kind(false))
        }
        (false, _) => format!("{}; set by the setting for native sidecars", kind(false)),
    };
    let capture = if has(&init_containers, "istio-init") {
        "init container istio-init installs the rules; pilot.cni.enabled is off"
    } else if has(&init_containers, "istio-validation") {
        "the CNI plugin installs the rules, and istio-validation validates them; pilot.cni.enabled is on"
    } else if native || has(&containers, "istio-proxy") {
        "nothing is captured; the interception mode is NONE, or the template captures nothing"
    } else {
        "nothing is captured; there is no proxy"
    };
    let from_configuration = |name: &&String| settings.injection.templates.is_rendered(name);
    Ok(Some(InjectionPreview {
        rendered_templates: templates.iter().filter(from_configuration).cloned().collect(),
        templates,
        containers,
        init_containers,
        volumes: status.volumes.unwrap_or_default(),
        proxy,
        capture: capture.to_owned(),
        warnings,
    }))
}

const fn kind(native: bool) -> &'static str {
    if native { "a native sidecar (an init container that keeps running)" } else { "an ordinary container" }
}
