//! `inject`: one pod in, one decision out.
//!
//! ```text
//! pod ─▶ uninject ─▶ decision ─▶ validate ─▶ context ─▶ overlay ─▶ merge ─▶ overrides ─▶ finish ─▶ conflicts, api_rules ─▶ Outcome
//!        as it was    skip?      deny?                  what it    onto     what the     metrics,  does it work, would
//!        written                                        gets       the pod  user wrote   probes    Kubernetes take it?
//! ```
//!
//! The result is a function of the original pod and the configuration. A pod that is injected already is taken back to its
//! original first ([`uninject()`]), so injecting twice is injecting once, and a new configuration leaves nothing of the old one
//! behind; only what others added to the injected containers in between is kept.

mod annotations;
mod api_rules;
mod capture;
mod chosen;
mod conflicts;
mod containers;
mod context;
mod names;
mod overlay;
mod overrides;
mod quantity;
mod validate;
mod warnings;

pub mod decision;
pub mod finish;
pub mod merge;
pub mod patch;
pub mod selection;
pub mod selector;
pub(crate) mod template;
pub mod uninject;
pub mod url;
pub mod workload;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use annotations::Texts;
use chosen::Chosen;
use conflicts::Conflicts;
use context::Context;
use decision::{Decided, Decision, DecisionSettings, decide};
use finish::env::override_env;
use finish::order::order_containers;
use finish::probes::{ProbeSettings, rewrite_probes};
use finish::prometheus::{PrometheusSettings, announce_secure_port, merge_metrics};
use finish::status::InjectionStatus;
use finish::{annotate, label};
use merge::{MergeError, merge, merge_pod};
use overlay::Template;
use overrides::Stored;
use uninject::{Injection, UninjectError, foreign, uninject};
use workload::workload_of_pod;

pub use template::texts::TextSet;

use crate::settings::{ProxyConfig, Settings};

pub use template::RenderError;

/// One pod to decide about.
#[derive(Debug, Clone, Default)]
pub struct InjectRequest {
    /// The pod as the API server or the manifest has it.
    pub pod: Value,
    /// Namespace of the request, for pods that do not name one.
    pub namespace: Option<String>,
    /// Annotations of that namespace (OpenShift uid ranges), where known.
    pub namespace_annotations: BTreeMap<String, String>,
    /// Environment asked for in the URL of the webhook (`/inject/cluster/c1/net/n1`).
    pub url_env: BTreeMap<String, String>,
    /// The workload that owns the pod, where the caller knows it (manifests); else derived from the pod.
    pub workload: Option<Workload>,
}

impl InjectRequest {
    /// Namespace of the pod: its own, else that of the request, else Kubernetes' default.
    fn namespace_of_pod(&self) -> &str {
        let own = self.pod["metadata"]["namespace"].as_str().filter(|own| !own.is_empty());
        own.or(self.namespace.as_deref()).unwrap_or("default")
    }
}

/// What a pod belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workload {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// Namespace of the object; may be empty.
    pub namespace: String,
}

/// What came out.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The pod with its sidecar.
    Injected {
        /// The whole pod.
        pod: Value,
        /// Templates that were used.
        templates: Vec<String>,
        /// What the user should hear.
        warnings: Vec<String>,
    },
    /// Left alone.
    Skipped {
        /// Why.
        reason: SkipReason,
        /// What the user should hear besides, such as a wish that could not be understood.
        warnings: Vec<String>,
    },
}

/// Why a pod is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// `spec.hostNetwork`: rules would capture the node's traffic.
    HostNetwork,
    /// A namespace of the system.
    SystemNamespace,
    /// The image of a static pod in the API server: the kubelet runs it from a file.
    StaticPod,
    /// A pod for nodes with Windows.
    Windows,
    /// `sidecar.istio.io/inject: "false"`.
    ExplicitlyOff,
    /// A `neverInjectSelector` matches.
    NeverSelector,
    /// The policy is not to inject unless asked.
    PolicyDisabled,
    /// The policy is none that is known.
    UnknownPolicy,
    /// The pod carries a sidecar, but no record of its injection.
    UnrecordedSidecar,
}

impl SkipReason {
    /// Short name for metrics and logs, stable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostNetwork => "host_network",
            Self::SystemNamespace => "system_namespace",
            Self::StaticPod => "static_pod",
            Self::Windows => "windows",
            Self::ExplicitlyOff => "explicitly_off",
            Self::NeverSelector => "never_selector",
            Self::PolicyDisabled => "policy_disabled",
            Self::UnknownPolicy => "unknown_policy",
            Self::UnrecordedSidecar => "unrecorded_sidecar",
        }
    }

    /// A sentence for the user.
    pub const fn explain(self) -> &'static str {
        match self {
            Self::HostNetwork => "the pod uses the host network; capture rules would take the node's own traffic",
            Self::SystemNamespace => "pods of this system namespace are never injected",
            Self::StaticPod => {
                "the kubelet runs this static pod from a file of its node; what is added here would never run"
            }
            Self::Windows => "the pod is for Windows nodes, and the sidecar needs Linux",
            Self::ExplicitlyOff => "sidecar.istio.io/inject is \"false\"",
            Self::NeverSelector => "a neverInjectSelector of the injector matches the pod's labels",
            Self::PolicyDisabled => "the injector's policy is \"disabled\" and the pod does not ask for injection",
            Self::UnknownPolicy => "the injector's policy is neither \"enabled\" nor \"disabled\"",
            Self::UnrecordedSidecar => {
                "the pod carries a sidecar without the annotation sidecar.istio.io/status that records its injection; \
                 remove the old sidecar from the manifest, or restore the annotation"
            }
        }
    }
}

impl SkipReason {
    /// What somebody who wants a sidecar has to change.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::HostNetwork => "run the pod without spec.hostNetwork",
            Self::SystemNamespace => "run the pod in a namespace of your own",
            Self::StaticPod => "run it by a DaemonSet instead",
            Self::Windows => "run it on Linux nodes",
            Self::ExplicitlyOff => "remove sidecar.istio.io/inject from the pod, or set it to \"true\"",
            Self::NeverSelector => "set the pod's label sidecar.istio.io/inject to \"true\", which beats selectors",
            Self::PolicyDisabled => "set the pod's label sidecar.istio.io/inject to \"true\"",
            Self::UnknownPolicy => "set the injector's policy (global.proxy.autoInject) to \"enabled\" or \"disabled\"",
            Self::UnrecordedSidecar => "remove the old sidecar from the manifest",
        }
    }
}

/// Why a pod is denied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// What the pod asks for cannot be taken; all of it.
    #[error("{}", told(.0))]
    Invalid(Vec<String>),
    /// Lists of the pod that cannot be merged with those of the sidecar.
    #[error("cannot merge the sidecar into the pod: {0}")]
    Merge(#[from] MergeError),
    /// A template of the administrator that gives nothing for this pod.
    #[error(transparent)]
    Template(#[from] RenderError),
}

/// Most findings that one text lists: it is read by people, and must not grow with what somebody sends.
const TOLD: usize = 50;

/// Findings as one text.
fn told<T: ToString>(findings: &[T]) -> String {
    let mut texts: Vec<String> = findings.iter().take(TOLD).map(ToString::to_string).collect();
    if findings.len() > TOLD {
        texts.push(format!("and {} more", findings.len() - TOLD));
    }
    texts.join("; ")
}

/// Decides about a pod and injects it.
///
/// # Errors
/// Everything that makes the pod be denied.
pub fn inject(request: &InjectRequest, settings: &Settings) -> Result<Outcome, InjectError> {
    // Before anything is read that may be made to take time. The API server refuses such a pod whatever is decided here.
    if let Some(too_large) = api_rules::annotations_too_large(&request.pod) {
        return Err(InjectError::Invalid(vec![too_large]));
    }
    let before = match uninject(&request.pod) {
        Ok(before) => before,
        // Whatever the status was, it records nothing.
        Err(UninjectError::Status(_)) => None,
        Err(error) => return Err(InjectError::Invalid(vec![error.to_string()])),
    };
    let pod = before.as_ref().map_or(&request.pod, |before| &before.pod);
    let Decided { decision, mut warnings, .. } =
        decide(pod, request.namespace.as_deref(), DecisionSettings::of(settings));
    if let Decision::Skip(reason) = decision {
        return Ok(Outcome::Skipped { reason, warnings });
    }
    let Prepared { stored, proxy_config, templates } = prepare(request, pod, settings)?;
    let workload = request.workload.clone().unwrap_or_else(|| workload_of_pod(pod, request.namespace.as_deref()));
    let context = Context::new(request, pod, settings, &stored, proxy_config, workload);

    let mut injected = pod.clone();
    let overlay = lay_over(&mut injected, pod, &templates, &context)?;
    let kinds = chosen::kinds(&templates, &injected);
    let recorded = overrides::reapply(&mut injected, pod, &overlay, &stored, settings.platform)?;
    overrides::fix_init_user(&mut injected, &recorded, &context);
    if let Some(record) = recorded.to_annotation() {
        annotate(&mut injected, annotations::OVERRIDES, &record);
    }
    warnings.extend(warnings::of(pod, &injected, &kinds, &context));
    let mut findings = Vec::new();
    match finish(&mut injected, &overlay, &context) {
        Ok(more) => warnings.extend(more),
        Err(mut denials) => findings.append(&mut denials),
    }
    // Our own records can be read.
    let injection = Injection::of(&injected).ok().flatten();
    let variables = injection.as_ref().map_or_else(Vec::new, |now| foreign::unknown_variables(&injected, now, pod));
    if let (Some(_), Some(now)) = (&before, &injection) {
        foreign::carry_over(&request.pod, pod, &mut injected, now);
    }
    findings.extend(write_capture(&mut injected, &kinds, settings).err().into_iter().flatten());
    let record = uninject::record(&injected, injection.as_ref(), pod, &variables);
    annotate(&mut injected, annotations::ORIGINAL, &record);
    let Conflicts { mut denials, warnings: conflicts } = conflicts::of(&injected, &kinds, &context);
    findings.append(&mut denials);
    warnings.extend(conflicts);
    findings.extend(api_rules::findings(&injected, pod, &overlay, &context.workload.kind));
    if !findings.is_empty() {
        return Err(InjectError::Invalid(findings));
    }
    Ok(Outcome::Injected { pod: injected, templates: chosen::names(&templates), warnings })
}

/// What can be read of a pod before anything is built.
struct Prepared<'a> {
    stored: Stored,
    proxy_config: ProxyConfig,
    templates: Vec<Chosen<'a>>,
}

/// Reads and checks everything that the pod says, and denies it with all findings at once.
fn prepare<'a>(request: &InjectRequest, pod: &Value, settings: &'a Settings) -> Result<Prepared<'a>, InjectError> {
    let annotations = Texts::of(pod, "annotations");
    let mut findings = validate::shape(pod);
    findings.extend(validate::findings(annotations));
    let stored = Stored::read(annotations).unwrap_or_else(|finding| {
        findings.push(finding);
        Stored::default()
    });
    let written = annotations.get(annotations::PROXY_CONFIG);
    let labels = Texts::of(pod, "labels");
    let namespace = request.namespace_of_pod();
    let proxy_config = settings.proxy_configs.effective(&settings.mesh, namespace, |key| labels.get(key), written);
    let proxy_config = proxy_config.unwrap_or_else(|reasons| {
        findings.push(validate::finding(annotations::PROXY_CONFIG, written.unwrap_or_default(), &reasons.join(", ")));
        ProxyConfig::default()
    });
    let templates = chosen::select(annotations, settings).unwrap_or_else(|mut unknown| {
        findings.append(&mut unknown);
        Vec::new()
    });
    if !findings.is_empty() {
        // Asked again below, where a template has had its say; here so that nothing is left to find.
        findings.extend(merge_metrics(&mut pod.clone(), metrics(settings)).err().into_iter().flatten());
    }
    if findings.is_empty() {
        Ok(Prepared { stored, proxy_config, templates })
    } else {
        Err(InjectError::Invalid(findings))
    }
}

/// Merges what the templates add into the pod, one after the other; gives back the outline of what they add together.
fn lay_over(
    injected: &mut Value,
    original: &Value,
    templates: &[Chosen<'_>],
    context: &Context<'_>,
) -> Result<Value, InjectError> {
    let mut rendered = chosen::render_all(templates, original, context)?;
    let mut outline = rendered.first().map_or_else(|| json!({}), containers::outline);
    for next in rendered.iter_mut().skip(1) {
        overrides::join_lists(next, &outline);
        merge(&mut outline, &containers::outline(next))?;
    }
    overrides::join_lists(injected, &outline);
    for next in rendered {
        *injected = merge_pod(injected.take(), next)?;
    }
    Ok(outline)
}

fn metrics(settings: &Settings) -> PrometheusSettings {
    PrometheusSettings {
        enabled: settings.mesh.prometheus_merge,
        status_port: settings.mesh.default_config.status_port(),
    }
}

/// What depends on the injected pod as a whole; gives back warnings, or what makes the pod be denied.
fn finish(pod: &mut Value, overlay: &Value, context: &Context<'_>) -> Result<Vec<String>, Vec<String>> {
    let settings = context.settings;
    let status_port = settings.mesh.default_config.status_port();
    override_env(pod, &context.env_overrides);
    let mut warnings = merge_metrics(pod, metrics(settings))?;
    announce_secure_port(pod);
    let probes = ProbeSettings { enabled: settings.values.rewrite_probes, status_port };
    warnings.extend(rewrite_probes(pod, probes));
    if !context.network.is_empty() {
        label(pod, annotations::NETWORK, context.network);
    }
    InjectionStatus::of_template(overlay, &settings.revision).write(pod);
    for (name, value) in &settings.injection.injected_annotations {
        annotate(pod, name, value);
    }
    order_containers(pod, context.holds_application());
    Ok(warnings)
}

/// Writes the effective capture configuration, always over what the author wrote; without a plugin there is none.
fn write_capture(pod: &mut Value, kinds: &[Template], settings: &Settings) -> Result<(), Vec<String>> {
    let captured = kinds.contains(&Template::Sidecar);
    let annotation = if captured && settings.values.pilot.cni_enabled {
        Some(capture::annotation(pod, &settings.mesh)?)
    } else {
        None
    };
    let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() else { return Ok(()) };
    match annotation {
        Some(text) => drop(annotations.insert(annotations::CAPTURE.to_owned(), text.into())),
        None => drop(annotations.shift_remove(annotations::CAPTURE)),
    }
    Ok(())
}
