//! Whether the API server reaches the webhook: by the objects on the path, then by the dry-run pod.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weir_injector::decision::{Decision, InjectionPolicy, decide};
use weir_injector::finish::status::InjectionStatus;

use super::call_error::{WebhookCallError, parse_message};
use super::view::{ClusterView, InstalledRevision};
use crate::fault::{self, Fault};
use crate::finding::{FindingObject, Findings};
use crate::snapshot::network::{EndpointSlice, IngressRule, NetworkPolicy, PolicyPort, Service};
use crate::snapshot::own::{Controller, PodTemplate};
use crate::snapshot::webhooks::ServiceReference;
use crate::snapshot::{DryRunOutcome, DryRunResult};

/// The webhook's port, if no flag sets it.
const WEBHOOK_PORT: u64 = 15017;

pub(super) fn analyze(view: &ClusterView<'_>, findings: &mut Findings) {
    for installed in &view.revisions {
        if let (Some(deployment), Some(_)) = (installed.deployment, installed.configuration) {
            let services = installed.entries().filter_map(|entry| entry.client_config.service.as_ref());
            for service in services {
                check_path(view, installed, deployment, service, findings);
            }
        }
    }
    for dry_run in &view.snapshot.dry_runs {
        if let Some(installed) = view.revision(&dry_run.revision) {
            check_dry_run(view, installed, dry_run, findings);
        }
    }
}

/// Follows the path from a Service to the pods, up to the first object that breaks it.
fn check_path(
    view: &ClusterView<'_>,
    installed: &InstalledRevision<'_>,
    deployment: &Controller,
    called: &ServiceReference,
    findings: &mut Findings,
) {
    let objects = &view.snapshot.webhook;
    let namespace = view.snapshot.install_namespaces.webhook.as_str();
    let ServiceReference { name, .. } = called;
    // A wrong Service has a finding with its webhook entry.
    if called.namespace != namespace || *name != installed.deployment_name() {
        return;
    }
    let object = FindingObject::new("Service", namespace, name);
    let Some(services) = &objects.services else { return };
    let Some(service) = services.iter().find(|service| service.metadata.name == *name) else {
        let text = format!("does not exist, but {} calls it", installed.configuration_object());
        findings.add(&fault::SERVICE_MISSING, object, text);
        return;
    };
    let template = &deployment.spec.template;
    let address = installed.flags.get("https-addr").and_then(|address| address.rsplit(':').next());
    let port = address.and_then(|port| port.parse().ok()).unwrap_or(WEBHOOK_PORT);
    if let Some(text) = wrong_port(service, template, called.port(), port) {
        findings.add(&fault::SERVICE_PORT_MISMATCH, object, text);
        return;
    }
    if !service.selects(&template.metadata.labels) {
        let deployment = installed.deployment_object(namespace);
        let text = format!("its selector does not match the labels of the pods of {deployment}");
        findings.add(&fault::SERVICE_SELECTS_NOTHING, object, text);
        return;
    }
    if let Some(slices) = &objects.slices {
        let mut own = slices.iter().filter(|slice| slice.metadata.label("kubernetes.io/service-name") == Some(name));
        if !own.any(EndpointSlice::has_ready_endpoint) {
            let text = format!("none of its {} replicas is ready", deployment.replicas());
            findings.add(&fault::NO_READY_ENDPOINTS, object, text);
        }
    }
    if !template.spec.host_network {
        check_policies(view, template, port, findings);
    }
}

/// Returns why a port of the Service does not lead to the port on which the webhook listens.
fn wrong_port(service: &Service, template: &PodTemplate, called: u64, listening: u64) -> Option<String> {
    let Some(port) = service.spec.ports.iter().find(|port| port.port == called) else {
        return Some(format!("has no port {called}, which the API server calls"));
    };
    let target = match &port.target_port {
        Some(IntOrString::String(name)) => match template.spec.port(name) {
            Some(number) => number,
            None => return Some(format!("its targetPort {name:?} is not a port of the pods")),
        },
        Some(IntOrString::Int(number)) => u64::try_from(*number).unwrap_or(0),
        None => called,
    };
    (target != listening)
        .then(|| format!("its port {called} leads to {target}, but the webhook listens on {listening}"))
}

/// Checks that a policy admits the API server, if any policy selects the pods of the webhook.
fn check_policies(view: &ClusterView<'_>, template: &PodTemplate, port: u64, findings: &mut Findings) {
    let applies = |policy: &&NetworkPolicy| {
        let types = policy.spec.policy_types.as_ref();
        types.is_none_or(|types| types.iter().any(|kind| kind == "Ingress"))
            && policy.spec.pod_selector.matches(&template.metadata.labels)
    };
    let policies: Vec<&NetworkPolicy> = view.snapshot.webhook.policies.iter().flatten().filter(applies).collect();
    let mut rules = policies.iter().flat_map(|policy| &policy.spec.ingress);
    let is_admitted = rules.any(|rule| admits_port(rule, template, port) && admits_api_server(rule));
    if let (Some(policy), false) = (policies.first(), is_admitted) {
        let text = format!("selects the pods of the webhook, and no policy admits the API server on port {port}");
        findings.add(&fault::NETWORK_POLICY_BLOCKS, policy.metadata.object("NetworkPolicy"), text);
    }
}

fn admits_port(rule: &IngressRule, template: &PodTemplate, port: u64) -> bool {
    let admits = |allowed: &PolicyPort| {
        let is_tcp = allowed.protocol.as_deref().unwrap_or("TCP") == "TCP";
        let is_port = match &allowed.port {
            Some(IntOrString::Int(first)) => {
                let first = u64::try_from(*first).unwrap_or(0);
                (first..=allowed.end_port.unwrap_or(first)).contains(&port)
            }
            Some(IntOrString::String(name)) => template.spec.port(name) == Some(port),
            None => true,
        };
        is_tcp && is_port
    };
    rule.ports.is_empty() || rule.ports.iter().any(admits)
}

/// Returns whether a rule may admit the API server, which is no pod. Its address is not known here, so any block of addresses may contain it.
fn admits_api_server(rule: &IngressRule) -> bool {
    rule.from.is_empty() || rule.from.iter().any(|peer| peer.ip_block.is_some())
}

fn check_dry_run(
    view: &ClusterView<'_>,
    installed: &InstalledRevision<'_>,
    dry_run: &DryRunResult,
    findings: &mut Findings,
) {
    let namespace = &dry_run.namespace;
    match &dry_run.outcome {
        DryRunOutcome::Admitted(pod) => {
            let is_injected = InjectionStatus::of_pod(pod).is_some();
            let is_skipped = installed.settings.as_ref().is_some_and(|settings| {
                let decision = decide(pod, Some(namespace), InjectionPolicy::of(settings)).decision;
                matches!(decision, Decision::Skip(_))
            });
            if !is_injected && !is_skipped && !is_unreachable(view, installed, findings) {
                let text = format!("the dry-run pod in namespace {namespace} got no sidecar");
                findings.add(&fault::WEBHOOK_NOT_CALLED, installed.configuration_object(), text);
            }
        }
        DryRunOutcome::Rejected { code, message } => match parse_message(message) {
            Some((webhook, error)) if webhook.contains("sidecar-injector.weir.dev") => {
                add_call_error(view, installed, &error, findings);
            }
            _ => {
                let text = format!("the dry-run pod was rejected ({code}): {message}");
                findings.add(&fault::PROBE_REFUSED, FindingObject::cluster_scoped("Namespace", namespace), text);
            }
        },
    }
}

/// Adds a finding about a failed call, unless its cause was found already.
fn add_call_error(
    view: &ClusterView<'_>,
    installed: &InstalledRevision<'_>,
    error: &WebhookCallError,
    findings: &mut Findings,
) {
    let names = view.object_names(installed);
    if causes(error.fault).iter().any(|cause| findings.has_for(cause, &names)) {
        return;
    }
    let namespace = &view.snapshot.install_namespaces.webhook;
    let object = if error.fault.code.starts_with("WEIR3") {
        installed.configuration_object()
    } else if error.fault == &fault::WEBHOOK_DENIES {
        installed.deployment_object(namespace)
    } else {
        let called = installed.entries().find_map(|entry| entry.client_config.service.as_ref());
        let name = called.map_or_else(|| installed.deployment_name(), |service| service.name.clone());
        FindingObject::new("Service", namespace, &name)
    };
    findings.add(error.fault, object, format!("the API server reports: {}", error.text));
}

/// Faults of a caBundle that make calls fail.
const BUNDLE_CAUSES: [&Fault; 5] = [
    &fault::CA_BUNDLE_EMPTY,
    &fault::CA_BUNDLE_INVALID,
    &fault::CA_EXPIRED,
    &fault::CA_BUNDLE_STALE,
    &fault::WRONG_TARGET,
];
/// Faults of a Service or its pods that make calls fail.
const SERVICE_CAUSES: [&Fault; 5] = [
    &fault::SERVICE_PORT_MISMATCH,
    &fault::SERVICE_SELECTS_NOTHING,
    &fault::NO_READY_ENDPOINTS,
    &fault::NOT_INSTALLED,
    &fault::WRONG_TARGET,
];

/// Returns the faults of objects that a failed call may be a symptom of.
fn causes(symptom: &Fault) -> Vec<&'static Fault> {
    match symptom.name {
        "ca-bundle-stale" | "ca-bundle-invalid" => BUNDLE_CAUSES.to_vec(),
        "certificate-expired" => [&BUNDLE_CAUSES[..], &[&fault::CERTIFICATE_EXPIRED]].concat(),
        "certificate-name" => vec![&fault::CERTIFICATE_NAME],
        "connection-timeout" => [&SERVICE_CAUSES[..], &[&fault::NETWORK_POLICY_BLOCKS]].concat(),
        "webhook-denies" => vec![&fault::SETTINGS_REFUSED],
        "service-missing" => vec![&fault::SERVICE_MISSING, &fault::WRONG_TARGET],
        "no-ready-endpoints" | "connection-refused" | "connection-broken" | "webhook-answers-error" => {
            SERVICE_CAUSES.to_vec()
        }
        _ => Vec::new(),
    }
}

/// Returns whether a fault was found that keeps the API server from calling the webhook. With failurePolicy Ignore, the dry-run pod then gets no
/// sidecar.
fn is_unreachable(view: &ClusterView<'_>, installed: &InstalledRevision<'_>, findings: &Findings) -> bool {
    let names = view.object_names(installed);
    let others: [&Fault; 4] =
        [&fault::NETWORK_POLICY_BLOCKS, &fault::SERVICE_MISSING, &fault::CERTIFICATE_EXPIRED, &fault::ENTRY_ALTERED];
    let mut all = SERVICE_CAUSES.iter().chain(&BUNDLE_CAUSES).chain(&others);
    all.any(|cause| findings.has_for(cause, &names))
}
