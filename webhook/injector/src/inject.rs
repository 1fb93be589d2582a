//! Injects one pod: decides, and builds the pod with its sidecar.
//!
//! ```text
//! pod ─▶ uninject ─▶ decision ─▶ validate ─▶ context ─▶ overlay ─▶ merge ─▶ overrides ─▶ finish ─▶ conflicts, api_validation
//!        original    skip?       deny?                  what the   into     the user's   metrics,  does it work, will the
//!        pod                                            pod gets   the pod  containers   probes    API server accept it?
//! ```
//!
//! The result depends only on the original pod and the settings. An injected pod is first restored to its original
//! ([`uninject`]), so injection is idempotent, and new settings leave nothing of the old ones behind. Only what third parties
//! have since added to the injected containers is kept.

use iptables_rules::text::truncate;
use serde_json::{Value, json};

use crate::annotations::{self, StringMap};
use crate::builtin_template::BuiltinTemplate;
use crate::compact;
use crate::conflicts::{self, Conflicts};
use crate::containers::{self, ContainerList, PROXY_CONTAINER};
use crate::context::InjectContext;
use crate::decision::{Decision, DecisionTrace, InjectionPolicy, SkipReason, decide};
use crate::findings::join_findings;
use crate::finish::env::override_env;
use crate::finish::order::order_containers;
use crate::finish::probes::{ProbeRewriteOptions, rewrite_probes};
use crate::finish::prometheus::{MetricsMergeOptions, announce_secure_port, merge_metrics};
use crate::finish::status::InjectionStatus;
use crate::finish::{annotate, label};
use crate::merge::{MergeError, merge, merge_pod};
use crate::overrides::{self, AppliedOverrides, StoredOverrides};
use crate::request::InjectRequest;
use crate::selected_templates::{self, SelectedTemplate};
use crate::settings::{Platform, ProxyConfig, Release, Settings};
use crate::template::RenderError;
use crate::uninject::limit::{self, CurrentInjection, Limited};
use crate::uninject::{self, InjectionRecord, UninjectError, third_party};
use crate::workload::workload_of_pod;
use crate::{api_validation, capture, validate, warnings};

/// Result of an injection.
#[derive(Debug, Clone)]
pub enum InjectOutcome {
    /// The pod got a sidecar.
    Injected {
        /// The pod with its sidecar.
        pod: Value,
        /// Names of the templates that were applied.
        templates: Vec<String>,
        /// Warnings for the user.
        warnings: Vec<String>,
    },
    /// The pod stays as it is.
    Skipped {
        /// Reason for the skip.
        reason: SkipReason,
        /// Warnings for the user, such as a label with an invalid value.
        warnings: Vec<String>,
    },
}

/// Error that makes the webhook deny a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// The pod is invalid, or would be with a sidecar; every finding.
    #[error("{}", join_findings(.0))]
    Invalid(Vec<String>),
    /// Lists of the pod and of the sidecar cannot be merged.
    #[error("cannot merge the sidecar into the pod: {0}")]
    Merge(#[from] MergeError),
    /// A custom template cannot be rendered for this pod.
    #[error(transparent)]
    Template(#[from] RenderError),
}

/// Decides whether a pod is injected, and injects it.
///
/// # Errors
/// Returns everything for which the pod has to be denied.
pub fn inject(request: &InjectRequest, settings: &Settings) -> Result<InjectOutcome, InjectError> {
    // First, before annotations are parsed, to bound the work. The API server rejects such a pod in any case.
    if let Some(too_large) = api_validation::annotations_too_large(&request.pod) {
        return Err(InjectError::Invalid(vec![too_large]));
    }
    let exceeded = validate::limits::exceeded(&request.pod);
    if !exceeded.is_empty() {
        return Err(InjectError::Invalid(exceeded));
    }
    let (before, refused) = match limited_to_injections(request, settings) {
        Ok(Some(Limited { pod, refused })) => (Some(pod), refused),
        // An unreadable status annotation records no injection.
        Ok(None) | Err(UninjectError::Status(_)) => (None, Vec::new()),
        Err(error) => return Err(InjectError::Invalid(vec![error.to_string()])),
    };
    let pod = before.as_ref().unwrap_or(&request.pod);
    let DecisionTrace { decision, mut warnings, .. } =
        decide(pod, request.namespace_for_decision(), InjectionPolicy::of(settings));
    if let Decision::Skip(reason) = decision {
        return Ok(InjectOutcome::Skipped { reason, warnings });
    }
    let Prepared { stored, proxy_config, templates, refused: undeclared } = prepare(request, pod, settings)?;
    warnings.extend(refused_warning(refused, undeclared));
    let workload = request.workload.clone().unwrap_or_else(|| workload_of_pod(pod, request.namespace.as_deref()));
    let mut context = InjectContext::new(request, pod, settings, &stored, proxy_config, workload);

    let mut injected = compact::copy(pod);
    let (overlay, fingerprint) = apply_overlays(&mut injected, pod, &templates, &context, &mut warnings)?;
    let equivalents = selected_templates::builtin_equivalents(&templates, &injected);
    // Templates of old releases have no native sidecars.
    context.native &= ContainerList::InitContainers.find(&injected, PROXY_CONTAINER).is_some();
    let applied = overrides::reapply(&mut injected, pod, &overlay, &stored, settings.platform)?;
    overrides::sync_init_user(&mut injected, &applied, context.uses_tproxy());
    let overrides = write_overrides(&mut injected, &applied)?;
    // Before more copies are made of what the API server rejects in any case.
    if let Some(too_large) = api_validation::annotations_too_large(&injected) {
        return Err(InjectError::Invalid(vec![too_large]));
    }
    warnings.extend(warnings::collect(pod, &injected, &equivalents, &context));
    let mut findings = Vec::new();
    match finish_pod(&mut injected, &overlay, &context) {
        Ok(more) => warnings.extend(more),
        Err(mut denials) => findings.append(&mut denials),
    }
    let injection = written_record(&injected, applied, overrides.as_deref());
    let variables =
        injection.as_ref().map_or_else(Vec::new, |now| third_party::unlisted_variables(&injected, now, pod));
    if let (Some(_), Some(now)) = (&before, &injection) {
        third_party::carry_over_changes(&request.pod, pod, &mut injected, now, &fingerprint);
    }
    findings.extend(write_capture_annotation(&mut injected, &equivalents, settings).err().into_iter().flatten());
    let record = uninject::build_original_record(&mut injected, injection.as_ref(), pod, &variables, &fingerprint);
    annotate(&mut injected, annotations::ORIGINAL, &record);
    let Conflicts { mut denials, warnings: conflicts } = conflicts::find(&injected, &equivalents, &context);
    findings.append(&mut denials);
    warnings.extend(conflicts);
    findings.extend(api_validation::findings(&injected, pod, &overlay, &context.workload.kind));
    if !findings.is_empty() {
        return Err(InjectError::Invalid(findings));
    }
    Ok(InjectOutcome::Injected { pod: injected, templates: selected_templates::names(&templates), warnings })
}

/// Restores an injected pod, limited to what an injection can have changed, see [`limit`].
fn limited_to_injections(request: &InjectRequest, settings: &Settings) -> Result<Option<Limited>, UninjectError> {
    let restored = || Ok(uninject::restore(&request.pod)?.map(|restored| restored.pod));
    let Some(first) = restored()? else { return Ok(None) };
    let current = CurrentInjection {
        overlay: None,
        annotations: Some(&settings.injection.injected_annotations),
        variables: Some(&request.url_env),
        assigns_users: settings.platform == Platform::OpenShift,
    };
    let trial = limit::limit(&request.pod, first, current);
    if trial.refused.is_empty() {
        return Ok(Some(trial));
    }
    // The templates may explain the rest: what they add again is not lost.
    let Some(overlay) = render_for(request, &trial.pod, settings) else { return Ok(Some(trial)) };
    drop(trial);
    let current = CurrentInjection { overlay: Some(&overlay), ..current };
    Ok(restored()?.map(|restored| limit::limit(&request.pod, restored, current)))
}

/// Returns what the templates add to a pod, merged; `None` if they cannot be rendered.
fn render_for(request: &InjectRequest, pod: &Value, settings: &Settings) -> Option<Value> {
    let Prepared { stored, proxy_config, templates, .. } = prepare(request, pod, settings).ok()?;
    let workload = request.workload.clone().unwrap_or_else(|| workload_of_pod(pod, request.namespace.as_deref()));
    let context = InjectContext::new(request, pod, settings, &stored, proxy_config, workload);
    let rendered = selected_templates::render_all(&templates, pod, &context, &mut Vec::new()).ok()?;
    rendered.into_iter().try_fold(json!({}), merge_pod).ok()
}

/// Warns about what the records would have changed.
fn refused_warning(mut refused: Vec<String>, mut undeclared: Vec<String>) -> Option<String> {
    const SHOWN: usize = 5;
    refused.append(&mut undeclared);
    let rest = refused.len().saturating_sub(SHOWN);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    let shown = refused.iter().take(SHOWN).map(|path| truncate(path)).collect::<Vec<_>>().join(", ");
    (!refused.is_empty()).then(|| {
        format!("the pod's records of an injection ask to restore what an injection does not write; kept as it is: {shown}{more}")
    })
}

/// Records what the user declared for the injected containers; returns the annotation's value.
fn write_overrides(pod: &mut Value, applied: &AppliedOverrides) -> Result<Option<String>, InjectError> {
    let record = applied.to_annotation();
    match &record {
        Some(record) => {
            if let Some(exceeded) = validate::limits::exceeded_by_record(record) {
                return Err(InjectError::Invalid(vec![exceeded]));
            }
            annotate(pod, annotations::OVERRIDES, record);
        }
        // One of the author's would count as the record of this injection from now on.
        None => remove_annotation(pod, annotations::OVERRIDES),
    }
    Ok(record)
}

/// Returns the records of the injection that has just written them. The settings may have replaced `overrides` by another annotation.
fn written_record(pod: &Value, applied: AppliedOverrides, overrides: Option<&str>) -> Option<InjectionRecord> {
    let record = if StringMap::of(pod, "annotations").get(annotations::OVERRIDES) == overrides {
        InjectionRecord::with_overrides(pod, applied.into_stored())
    } else {
        InjectionRecord::of(pod)
    };
    record.ok().flatten()
}

fn remove_annotation(pod: &mut Value, name: &str) {
    if let Some(annotations) =
        pod.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations")?.as_object_mut())
    {
        annotations.shift_remove(name);
    }
}

/// Requests of the pod, read and validated.
struct Prepared<'a> {
    stored: StoredOverrides,
    proxy_config: ProxyConfig,
    templates: Vec<SelectedTemplate<'a>>,
    /// Paths of recorded declarations that do not count.
    refused: Vec<String>,
}

/// Reads and validates what the pod asks for; an error has all findings at once.
fn prepare<'a>(request: &InjectRequest, pod: &Value, settings: &'a Settings) -> Result<Prepared<'a>, InjectError> {
    let annotations = StringMap::of(pod, "annotations");
    let mut findings = validate::type_errors(pod);
    findings.extend(validate::findings(annotations));
    let stored = StoredOverrides::read(annotations).unwrap_or_else(|finding| {
        findings.push(finding);
        StoredOverrides::default()
    });
    let mut refused = Vec::new();
    let current = CurrentInjection {
        assigns_users: settings.platform == Platform::OpenShift,
        variables: Some(&request.url_env),
        ..CurrentInjection::default()
    };
    let stored = stored.limited(|container| limit::limit_declaration(&request.pod, container, current, &mut refused));
    let annotation = annotations.get(annotations::PROXY_CONFIG);
    let labels = StringMap::of(pod, "labels");
    let namespace = request.namespace_of_pod();
    let proxy_config = settings.proxy_configs.resolve(&settings.mesh, namespace, |key| labels.get(key), annotation);
    let proxy_config = proxy_config.unwrap_or_else(|reasons| {
        findings.push(validate::finding(
            annotations::PROXY_CONFIG,
            annotation.unwrap_or_default(),
            &reasons.join(", "),
        ));
        ProxyConfig::default()
    });
    let templates = selected_templates::select(annotations, settings).unwrap_or_else(|mut errors| {
        findings.append(&mut errors);
        Vec::new()
    });
    if !findings.is_empty() {
        // The check runs again after the templates; it runs here so that the denial is complete.
        findings.extend(merge_metrics(&mut pod.clone(), metrics_options(settings)).err().into_iter().flatten());
    }
    if findings.is_empty() {
        Ok(Prepared { stored, proxy_config, templates, refused })
    } else {
        Err(InjectError::Invalid(findings))
    }
}

/// Merges the templates' overlays into the pod in order, and returns the names of what they add and its fingerprint. Adds warnings.
fn apply_overlays(
    injected: &mut Value,
    original: &Value,
    templates: &[SelectedTemplate<'_>],
    context: &InjectContext<'_>,
    warnings: &mut Vec<String>,
) -> Result<(Value, String), InjectError> {
    let mut rendered = selected_templates::render_all(templates, original, context, warnings)?;
    let fingerprint = third_party::fingerprint(&rendered, &context.env_overrides);
    let mut outline = rendered.first().map_or_else(|| json!({}), containers::outline);
    for next in rendered.iter_mut().skip(1) {
        overrides::align_proxy_list(next, &outline);
        merge(&mut outline, &containers::outline(next))?;
    }
    overrides::align_proxy_list(injected, &outline);
    for next in rendered {
        *injected = merge_pod(injected.take(), next)?;
    }
    Ok((outline, fingerprint))
}

fn metrics_options(settings: &Settings) -> MetricsMergeOptions {
    MetricsMergeOptions {
        enabled: settings.mesh.prometheus_merge,
        status_port: settings.mesh.default_config.status_port(),
    }
}

/// Applies the steps that depend on the injected pod as a whole; returns warnings, or the reasons to deny the pod.
fn finish_pod(pod: &mut Value, overlay: &Value, context: &InjectContext<'_>) -> Result<Vec<String>, Vec<String>> {
    let settings = context.settings;
    let status_port = settings.mesh.default_config.status_port();
    override_env(pod, &context.env_overrides);
    let mut warnings = merge_metrics(pod, metrics_options(settings))?;
    announce_secure_port(pod);
    let agent = containers::find(pod, PROXY_CONTAINER).and_then(Release::of_container).unwrap_or(settings.release);
    let lifecycle = !agent.is_before(25);
    let probes = ProbeRewriteOptions { enabled: settings.values.rewrite_probes, status_port, lifecycle };
    warnings.extend(rewrite_probes(pod, probes));
    if !context.network.is_empty() {
        label(pod, annotations::NETWORK, context.network);
    }
    InjectionStatus::of_overlay(overlay, &settings.revision).write(pod);
    for (name, value) in &settings.injection.injected_annotations {
        annotate(pod, name, value);
    }
    order_containers(pod, context.holds_application());
    Ok(warnings)
}

/// Writes the effective capture configuration over whatever the author wrote; removes it if no CNI plugin is used.
fn write_capture_annotation(
    pod: &mut Value,
    templates: &[BuiltinTemplate],
    settings: &Settings,
) -> Result<(), Vec<String>> {
    let captured = templates.contains(&BuiltinTemplate::Sidecar);
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
