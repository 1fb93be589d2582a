//! Whether the API server reaches the webhook: hop by hop from the objects, and then by what came of a pod on trial.

use std::collections::HashSet;

use serde_json::{Value, json};
use weir_injector::inject::decision::{Decision, DecisionSettings, decide};
use weir_injector::inject::finish::status::InjectionStatus;
use weir_injector::inject::selector::Selector;

use super::hop;
use super::view::{Installed, View, containers, selected};
use crate::check::fault::{self, Fault};
use crate::check::finding::{Findings, Object};
use crate::check::snapshot::Probe;

/// The port of the webhook where its flags do not say another one.
const PORT: u64 = 15017;

pub(super) fn judge(view: &View<'_>, findings: &mut Findings) {
    for installed in &view.installations {
        if let (Some(deployment), Some(_)) = (installed.deployment, installed.configuration) {
            for service in services(installed) {
                hops(view, installed, deployment, &service, findings);
            }
        }
    }
    for probe in &view.snapshot.probes {
        if let Some(installed) = view.installation(&probe.revision) {
            tried(view, installed, probe, findings);
        }
    }
}

/// Services and ports that the entries of an installation name.
fn services(installed: &Installed<'_>) -> Vec<Value> {
    let mut services: Vec<Value> = Vec::new();
    for entry in installed.entries() {
        let service = &entry["clientConfig"]["service"];
        let named = json!({"name": service["name"], "namespace": service["namespace"], "port": service["port"].as_u64().unwrap_or(443)});
        if service.is_object() && !services.contains(&named) {
            services.push(named);
        }
    }
    services
}

/// Follows the way from a Service to the pods, up to the first hop that is not there.
fn hops(view: &View<'_>, installed: &Installed<'_>, deployment: &Value, named: &Value, findings: &mut Findings) {
    let home = &view.snapshot.weir;
    let namespace = view.snapshot.places.weir.as_str();
    let name = named["name"].as_str().unwrap_or_default();
    // Another Service is the wrong one, which is said with the entry.
    if named["namespace"] != namespace || name != installed.deployment_object(namespace).name {
        return;
    }
    let object = Object::new("Service", namespace, name);
    let Some(services) = &home.services else { return };
    let Some(service) = services.iter().find(|service| service["metadata"]["name"] == name) else {
        findings.add(&fault::SERVICE_MISSING, object, format!("{} calls it, and it is not there", installed.object()));
        return;
    };
    let template = &deployment["spec"]["template"];
    let port =
        installed.flags.get("https-addr").and_then(|address| address.rsplit(':').next()?.parse().ok()).unwrap_or(PORT);
    if let Some(wrong) = wrong_port(service, template, named["port"].as_u64().unwrap_or(443), port) {
        findings.add(&fault::SERVICE_PORT_MISMATCH, object, wrong);
        return;
    }
    let selector = Selector::parse(&json!({"matchLabels": service["spec"]["selector"]}));
    let selects = selector
        .is_ok_and(|selector| !selector.is_empty() && selector.matches(template["metadata"]["labels"].as_object()));
    if !selects {
        let text =
            format!("its selector does not fit the labels of the pods of {}", installed.deployment_object(namespace));
        findings.add(&fault::SERVICE_SELECTS_NOTHING, object, text);
        return;
    }
    if let Some(slices) = &home.slices {
        let ours = slices.iter().filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == name);
        let mut endpoints = ours.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        // No word about it means ready (API of EndpointSlices).
        if !endpoints.any(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap_or(true)) {
            let replicas = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
            let text = format!("none of its pods is ready ({replicas} wanted)");
            findings.add(&fault::NO_READY_ENDPOINTS, object, text);
        }
    }
    if template["spec"]["hostNetwork"] != true {
        policies(view, template, port, findings);
    }
}

/// What is wrong with the way from the port that is asked for to the one on which the webhook listens.
fn wrong_port(service: &Value, template: &Value, asked: u64, listens: u64) -> Option<String> {
    let ports = service["spec"]["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let Some(port) = ports.iter().find(|port| port["port"] == asked) else {
        return Some(format!("it has no port {asked}, which the API server asks for"));
    };
    let target = match &port["targetPort"] {
        Value::String(name) => {
            let pod = json!({"spec": template["spec"]});
            let mut ports = containers(&pod).flat_map(|container| container["ports"].as_array().into_iter().flatten());
            let found =
                ports.find(|port| port["name"] == name.as_str()).and_then(|port| port["containerPort"].as_u64());
            match found {
                Some(number) => number,
                None => return Some(format!("its targetPort {name:?} is no port of the pods")),
            }
        }
        Value::Number(number) => number.as_u64().unwrap_or(0),
        _ => asked,
    };
    (target != listens).then(|| format!("its port {asked} leads to {target}; the webhook listens on {listens}"))
}

/// NetworkPolicies: who selects the pods and lets nobody in on the port blocks the API server, which is no pod.
fn policies(view: &View<'_>, template: &Value, port: u64, findings: &mut Findings) {
    let Some(policies) = &view.snapshot.weir.policies else { return };
    let labels = template["metadata"]["labels"].as_object();
    let for_ingress = |policy: &&Value| {
        let types = policy["spec"]["policyTypes"].as_array();
        types.is_none_or(|types| types.iter().any(|kind| kind == "Ingress"))
    };
    let selecting: Vec<&Value> = policies
        .iter()
        .filter(for_ingress)
        .filter(|policy| Selector::parse(&policy["spec"]["podSelector"]).is_ok_and(|selector| selector.matches(labels)))
        .collect();
    let rules = selecting.iter().flat_map(|policy| policy["spec"]["ingress"].as_array().into_iter().flatten());
    let lets_in = rules.into_iter().any(|rule| admits_port(rule, template, port) && admits_api_server(rule));
    if let (Some(policy), false) = (selecting.first(), lets_in) {
        let text = format!("it selects the pods of the webhook, and no policy lets the API server in on port {port}");
        findings.add(&fault::NETWORK_POLICY_BLOCKS, Object::of("NetworkPolicy", policy), text);
    }
}

fn admits_port(rule: &Value, template: &Value, port: u64) -> bool {
    let Some(ports) = rule["ports"].as_array().filter(|ports| !ports.is_empty()) else { return true };
    let pod = json!({"spec": template["spec"]});
    ports.iter().any(|allowed| {
        let tcp = allowed["protocol"].as_str().unwrap_or("TCP") == "TCP";
        let fits = match &allowed["port"] {
            Value::Number(number) => {
                let first = number.as_u64().unwrap_or(0);
                (first..=allowed["endPort"].as_u64().unwrap_or(first)).contains(&port)
            }
            Value::String(name) => containers(&pod)
                .flat_map(|container| container["ports"].as_array().into_iter().flatten())
                .any(|named| named["name"] == name.as_str() && named["containerPort"] == port),
            _ => true,
        };
        tcp && fits
    })
}

/// The API server comes from an address, not from a pod. Which one is not known here: any block of addresses may have it.
fn admits_api_server(rule: &Value) -> bool {
    rule["from"].as_array().is_none_or(|from| from.is_empty() || from.iter().any(|peer| peer.get("ipBlock").is_some()))
}

/// What came of a pod on trial.
fn tried(view: &View<'_>, installed: &Installed<'_>, probe: &Probe, findings: &mut Findings) {
    if (200..300).contains(&probe.code) {
        let injected = InjectionStatus::of_pod(&probe.answer).is_some();
        let left_alone = installed.settings.as_ref().is_some_and(|settings| {
            let decided = decide(&probe.answer, Some(&probe.namespace), DecisionSettings::of(settings));
            matches!(decided.decision, Decision::Skip(_))
        });
        if !injected && !left_alone && !broken(view, installed, findings) {
            let text = format!("a pod on trial in namespace {} came back without a sidecar", probe.namespace);
            findings.add(&fault::WEBHOOK_NOT_CALLED, installed.object(), text);
        }
        return;
    }
    let message = probe.answer["message"].as_str().unwrap_or_default();
    match hop::read(message) {
        Some((webhook, hop)) if webhook.contains("sidecar-injector.weir.dev") => {
            report(view, installed, &hop, findings);
        }
        _ => {
            let text = format!("a pod on trial was refused ({}): {message}", probe.code);
            findings.add(&fault::PROBE_REFUSED, Object::global("Namespace", &probe.namespace), text);
        }
    }
}

/// Says a hop, unless its cause was found already.
fn report(view: &View<'_>, installed: &Installed<'_>, hop: &hop::Hop, findings: &mut Findings) {
    let names = names(view, installed);
    let explained = causes(hop.fault).iter().any(|cause| findings.has_of(cause, &names));
    if explained {
        return;
    }
    let object = match hop.fault.code.as_bytes().get(4) {
        Some(b'3') => installed.object(),
        _ if hop.fault == &fault::WEBHOOK_DENIES => installed.deployment_object(&view.snapshot.places.weir),
        _ => {
            let name = services(installed).first().and_then(|service| service["name"].as_str().map(str::to_owned));
            let default = installed.deployment_object("").name;
            Object::new("Service", &view.snapshot.places.weir, &name.unwrap_or(default))
        }
    };
    findings.add(hop.fault, object, format!("the API server says: {}", hop.text));
}

/// Faults of objects whose symptom a hop may be.
fn causes(fault: &'static Fault) -> Vec<&'static Fault> {
    let bundle = [
        &fault::CA_BUNDLE_EMPTY,
        &fault::CA_BUNDLE_INVALID,
        &fault::CA_EXPIRED,
        &fault::CA_BUNDLE_STALE,
        &fault::WRONG_TARGET,
    ];
    let pods = [
        &fault::SERVICE_PORT_MISMATCH,
        &fault::SERVICE_SELECTS_NOTHING,
        &fault::NO_READY_ENDPOINTS,
        &fault::NOT_INSTALLED,
        &fault::WRONG_TARGET,
    ];
    match fault.name {
        "ca-bundle-stale" | "ca-bundle-invalid" => bundle.to_vec(),
        "certificate-expired" => [&bundle[..], &[&fault::CERTIFICATE_EXPIRED]].concat(),
        "certificate-name" => vec![&fault::CERTIFICATE_NAME],
        "connection-timeout" => [&pods[..], &[&fault::NETWORK_POLICY_BLOCKS]].concat(),
        "webhook-denies" => vec![&fault::SETTINGS_REFUSED],
        "service-missing" => vec![&fault::SERVICE_MISSING, &fault::WRONG_TARGET],
        "no-ready-endpoints" | "connection-refused" | "connection-broken" | "webhook-answers-error" => pods.to_vec(),
        _ => Vec::new(),
    }
}

/// Whether something was found that keeps the webhook from answering; with failurePolicy Ignore a pod then passes without a sidecar.
fn broken(view: &View<'_>, installed: &Installed<'_>, findings: &Findings) -> bool {
    let names = names(view, installed);
    let more = [&fault::SERVICE_MISSING, &fault::CERTIFICATE_EXPIRED, &fault::ENTRY_ALTERED];
    let all = causes(&fault::CONNECTION_TIMEOUT).into_iter().chain(causes(&fault::CA_BUNDLE_STALE)).chain(more);
    all.into_iter().any(|cause| findings.has_of(cause, &names))
}

/// Names of the objects that an installation consists of, and of the policies that may be about it.
fn names(view: &View<'_>, installed: &Installed<'_>) -> HashSet<String> {
    let selector = installed.deployment.map(|deployment| &deployment["spec"]["selector"]);
    let pods = selector.map(|selector| selected(view.snapshot.weir.pods.as_ref(), selector)).unwrap_or_default();
    let policies = view.snapshot.weir.policies.iter().flatten();
    let config_maps = view.snapshot.config_maps.iter().flatten();
    let objects = installed.configurations().chain(pods).chain(policies).chain(config_maps);
    let names = objects.filter_map(|object| object["metadata"]["name"].as_str().map(str::to_owned));
    // The Service has the name of the Deployment.
    names.chain([installed.deployment_object("").name]).collect()
}
