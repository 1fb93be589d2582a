//! The table: a change of a healthy cluster, and the names of exactly what is found then.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::fixture::{Authority, Fixture, namespace, plain_pod, pod_of};
use super::{found, found_with, scope};
use crate::check::fault;
use crate::check::gather::Scope;

/// Names of what is to be found, and the change that makes it so.
type Planted = (&'static [&'static str], fn(&mut Fixture));

/// Args of the webhook's container.
fn args(fixture: &mut Fixture) -> &mut Vec<Value> {
    fixture.deployment()["spec"]["template"]["spec"]["containers"][0]["args"].as_array_mut().unwrap()
}

fn entry<'a>(fixture: &'a mut Fixture, prefix: &str) -> &'a mut Value {
    fixture.entries().find(|entry| entry["name"].as_str().unwrap().starts_with(prefix)).unwrap()
}

fn values(fixture: &mut Fixture, from: &str, to: &str) {
    let values = &mut fixture.get("configmaps", "weir-system", "weir-webhook")["data"]["values"];
    let text = values.as_str().unwrap();
    assert!(text.contains(from), "{text}");
    *values = text.replace(from, to).into();
}

fn not_ready(fixture: &mut Fixture, namespace: &str, pod: &str) {
    fixture.get("pods", namespace, pod)["status"]["conditions"][0]["status"] = "False".into();
}

fn crashes(fixture: &mut Fixture, namespace: &str, pod: &str) {
    not_ready(fixture, namespace, pod);
    let last = json!({"terminated": {"reason": "Error", "exitCode": 64}});
    let state =
        json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"}});
    fixture.get("pods", namespace, pod)["status"]["containerStatuses"] =
        json!([{"name": "main", "restartCount": 17, "state": state, "lastState": last}]);
}

/// Secret with a certificate that is mounted, in place of the built-in CA.
fn own_certificate(fixture: &mut Fixture, authority: &Authority, name: &str, until: (i32, u8, u8)) {
    args(fixture).retain(|arg| !arg.as_str().unwrap().starts_with("--ca-secret"));
    let volumes = fixture.deployment()["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap();
    volumes.push(json!({"name": "certs", "secret": {"secretName": "weir-webhook-certs"}}));
    fixture.add(json!({
        "kind": "Secret", "metadata": {"namespace": "weir-system", "name": "weir-webhook-certs"},
        "data": {"tls.crt": authority.leaf(name, until), "tls.key": "c2VjcmV0"},
    }));
    for entry in fixture.entries() {
        entry["clientConfig"]["caBundle"] = authority.encoded().into();
    }
}

/// A configuration of Istio's own injector.
fn istio(fixture: &mut Fixture, revision: &str) {
    let installation =
        weir_injector::inject::selection::Installation { revision: revision.to_owned(), ..Default::default() };
    let entries = installation.entries().into_iter().map(|entry| {
        json!({
            "name": entry.name, "namespaceSelector": entry.namespace_selector, "objectSelector": entry.object_selector,
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
            "failurePolicy": "Fail", "clientConfig": {"service": {"name": "istiod", "namespace": "istio-system", "path": "/inject"}},
        })
    });
    let entries: Vec<Value> = entries.collect();
    let metadata = json!({"name": "istio-sidecar-injector", "labels": {"istio.io/rev": revision}});
    fixture.add(json!({"kind": "MutatingWebhookConfiguration", "metadata": metadata, "webhooks": entries}));
}

fn tag(fixture: &mut Fixture, tag: &str, revision: &str) {
    use weir_injector::inject::selection::{Installation, objects::Serving};
    let installation =
        Installation { revision: revision.to_owned(), tags: vec![tag.to_owned()], ..Installation::default() };
    let bundle = fixture.entries().next().unwrap()["clientConfig"]["caBundle"].as_str().unwrap().to_owned();
    let serving = Serving { ca_bundle: Some(bundle), ..Serving::default() };
    let made = installation.configurations(&serving).into_iter().next_back().unwrap();
    fixture.add(made);
}

fn event(kind: &str, namespace: &str, name: &str, message: &str, ago: i64) -> Value {
    let now = k8s_openapi::jiff::Timestamp::now() - k8s_openapi::jiff::SignedDuration::from_secs(ago);
    json!({
        "kind": "Event", "metadata": {"namespace": namespace, "name": format!("{name}.1")}, "reason": "FailedCreate",
        "involvedObject": {"kind": kind, "namespace": namespace, "name": name}, "message": message,
        "lastTimestamp": now.to_string(),
    })
}

const REFUSED_CALL: &str = "Error creating: Internal error occurred: failed calling webhook \"namespace.sidecar-injector.weir.dev\": failed to call webhook: Post \"https://weir-webhook.weir-system.svc:443/inject?timeout=5s\": context deadline exceeded";

const PLANTED: &[Planted] = &[
    (&["kubernetes-too-old"], |fixture| fixture.version = "v1.24.9-eks-1"),
    (&["native-sidecars-not-run"], |fixture| {
        args(fixture).push("--native-sidecars=true".into());
        fixture.get("nodes", "", "node-2")["status"]["nodeInfo"]["kubeletVersion"] = "v1.28.3".into();
    }),
    (&["control-plane-missing"], |fixture| fixture.remove("services", "istio-system", "istiod")),
    (&["webhook-not-called"], |fixture| {
        fixture.trial = None;
        // What the API server answers where it has no admission plugin for webhooks: see `Ask`.
        fixture.version = "v1.33.1-without-webhooks";
    }),
    (&["probe-refused"], |fixture| {
        fixture.trial =
            Some((403, "pods \"weir-check-x\" is forbidden: exceeded quota: small, requested: pods=1".to_owned()));
    }),
    (&["service-account-right-missing"], |fixture| fixture.remove("rolebindings", "weir-system", "weir-webhook")),
    (&["service-account-right-missing"], |fixture| {
        fixture.get("configmaps", "weir-node", "weir-node")["data"]["TAINT_ENABLED"] = "true".into();
    }),
    (&["service-account-right-missing"], |fixture| {
        let rules = &mut fixture.get("clusterroles", "", "weir-webhook")["rules"];
        let patch = rules.as_array_mut().unwrap().iter_mut().find(|rule| rule["verbs"] == json!(["patch"])).unwrap();
        patch["resourceNames"] = json!(["another"]);
    }),
    (&["not-installed"], |fixture| {
        fixture.objects.retain(|(_, object)| {
            object["metadata"]["namespace"] != "weir-system" && object["metadata"]["name"] != "weir-sidecar-injector"
        });
    }),
    (&["not-installed"], |fixture| {
        fixture.remove("deployments", "weir-system", "weir-webhook");
        fixture.call_fails("no endpoints available for service \"weir-webhook\"");
    }),
    (&["webhook-configuration-missing"], |fixture| {
        fixture.remove("mutatingwebhookconfigurations", "", "weir-sidecar-injector");
    }),
    (&["service-missing"], |fixture| {
        fixture.remove("services", "weir-system", "weir-webhook");
        fixture.call_fails("service \"weir-webhook\" not found");
    }),
    (&["service-port-mismatch"], |fixture| {
        fixture.get("services", "weir-system", "weir-webhook")["spec"]["ports"][0]["targetPort"] = json!(8443);
        fixture.call_fails("dial tcp 10.0.0.1:8443: connect: connection refused");
    }),
    (&["service-port-mismatch"], |fixture| {
        fixture.get("services", "weir-system", "weir-webhook")["spec"]["ports"][0]["port"] = json!(8443);
        fixture.call_fails("no service port 443 found for service \"weir-webhook\"");
    }),
    (&["service-selects-nothing"], |fixture| {
        fixture.get("services", "weir-system", "weir-webhook")["spec"]["selector"] = json!({"app": "weir"});
        fixture.call_fails("no endpoints available for service \"weir-webhook\"");
    }),
    (&["no-ready-endpoints", "replica-not-ready"], |fixture| {
        let slice = fixture.get("endpointslices", "weir-system", "weir-webhook-x");
        for endpoint in slice["endpoints"].as_array_mut().unwrap() {
            endpoint["conditions"]["ready"] = false.into();
        }
        for number in 1..=2 {
            not_ready(fixture, "weir-system", &format!("weir-webhook-{number}"));
        }
        fixture.call_fails("no endpoints available for service \"weir-webhook\"");
    }),
    (&["network-policy-blocks"], |fixture| {
        fixture.remove("networkpolicies", "weir-system", "weir-webhook");
        let spec = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
        fixture.add(json!({"kind": "NetworkPolicy", "metadata": {"namespace": "weir-system", "name": "deny-all"}, "spec": spec}));
        fixture.call_fails("context deadline exceeded");
    }),
    (&["network-policy-blocks"], |fixture| {
        let policy = fixture.get("networkpolicies", "weir-system", "weir-webhook");
        policy["spec"]["ingress"] =
            json!([{"from": [{"namespaceSelector": {}}], "ports": [{"port": 15017}]}, {"ports": [{"port": 15014}]}]);
    }),
    (&["connection-refused"], |fixture| fixture.call_fails("dial tcp 10.96.0.7:443: connect: connection refused")),
    (&["connection-timeout"], |fixture| fixture.call_fails("context deadline exceeded")),
    (&["connection-broken"], |fixture| fixture.call_fails("http: server gave HTTP response to HTTPS client")),
    (&["webhook-answers-error"], |fixture| fixture.call_fails("the server could not find the requested resource")),
    (&["webhook-denies"], |fixture| {
        let denial = "admission webhook \"namespace.sidecar-injector.weir.dev\" denied the request: template \"sidecar\", line 1: no";
        fixture.trial = Some((400, denial.to_owned()));
    }),
    (&["ca-bundle-empty"], |fixture| {
        for entry in fixture.entries() {
            entry["clientConfig"].as_object_mut().unwrap().remove("caBundle");
        }
        fixture.call_fails("tls: failed to verify certificate: x509: certificate signed by unknown authority");
    }),
    (&["ca-bundle-invalid"], |fixture| {
        for entry in fixture.entries() {
            entry["clientConfig"]["caBundle"] = "bm90IGEgY2VydGlmaWNhdGU=".into();
        }
        fixture.call_fails("unable to load root certificates: unable to parse bytes as PEM block");
    }),
    (&["ca-expired"], |fixture| {
        let old = Authority::new((2026, 1, 1)).encoded();
        for entry in fixture.entries() {
            entry["clientConfig"]["caBundle"] = old.clone().into();
        }
        fixture.call_fails("tls: failed to verify certificate: x509: certificate has expired or is not yet valid");
    }),
    (&["ca-bundle-differs"], |fixture| {
        let entry = entry(fixture, "object.");
        let ours = STANDARD.decode(entry["clientConfig"]["caBundle"].as_str().unwrap()).unwrap();
        let both = [ours, Authority::new((2036, 1, 1)).pem().into_bytes()].concat();
        entry["clientConfig"]["caBundle"] = STANDARD.encode(both).into();
    }),
    (&["ca-bundle-stale"], |fixture| {
        fixture.call_fails("tls: failed to verify certificate: x509: certificate signed by unknown authority");
    }),
    (&["ca-bundle-stale"], |fixture| {
        let other = Authority::new((2036, 1, 1)).encoded();
        for entry in fixture.entries() {
            entry["clientConfig"]["caBundle"] = other.clone().into();
        }
        fixture.call_fails("tls: failed to verify certificate: x509: certificate signed by unknown authority");
    }),
    (&["ca-bundle-stale"], |fixture| {
        let authority = Authority::new((2036, 1, 1));
        own_certificate(fixture, &authority, "weir-webhook.weir-system.svc", (2036, 1, 1));
        let other = Authority::new((2036, 1, 1)).encoded();
        for entry in fixture.entries() {
            entry["clientConfig"]["caBundle"] = other.clone().into();
        }
        fixture.call_fails("tls: failed to verify certificate: x509: certificate signed by unknown authority");
    }),
    (&["certificate-expired"], |fixture| {
        for number in 1..=2 {
            let metrics = "weir_webhook_certificate_expiry_timestamp_seconds 1700000000\n".to_owned();
            fixture.answers.insert(format!("weir-system/weir-webhook-{number}:15014/metrics"), (200, metrics));
        }
        fixture.call_fails("tls: failed to verify certificate: x509: certificate has expired or is not yet valid");
    }),
    (&["certificate-expiring"], |fixture| {
        let soon = k8s_openapi::jiff::Timestamp::now().as_second() + 300;
        let metrics = format!("weir_webhook_certificate_expiry_timestamp_seconds {soon}\n");
        fixture.answers.insert("weir-system/weir-webhook-1:15014/metrics".to_owned(), (200, metrics));
    }),
    (&["certificate-name"], |fixture| {
        own_certificate(fixture, &Authority::new((2036, 1, 1)), "weir.example.com", (2036, 1, 1));
        fixture.call_fails("tls: failed to verify certificate: x509: certificate is valid for weir.example.com, not weir-webhook.weir-system.svc");
    }),
    (&["client-certificate-refused"], |fixture| fixture.call_fails("remote error: tls: certificate required")),
    (&["entry-missing"], |fixture| {
        fixture.configuration()["webhooks"].as_array_mut().unwrap().remove(0);
    }),
    (&["entry-altered"], |fixture| {
        entry(fixture, "namespace.")["namespaceSelector"] = json!({"matchLabels": {"istio-injection": "enabled"}});
    }),
    (&["entry-altered"], |fixture| entry(fixture, "object.")["reinvocationPolicy"] = "Never".into()),
    (&["entry-altered"], |fixture| {
        let selector = &mut entry(fixture, "object.")["objectSelector"];
        *selector =
            json!({"matchExpressions": [{"key": "sidecar.istio.io/inject", "operator": "In", "values": ["yes"]}]});
    }),
    (&["entry-altered"], |fixture| {
        let never = json!({"name": "none-today", "expression": "false"});
        entry(fixture, "object.")["matchConditions"].as_array_mut().unwrap().push(never);
    }),
    (&[], |fixture| {
        // Values in a file that nobody here can read: nothing is compared with them.
        let args = args(fixture);
        args.retain(|arg| !arg.as_str().unwrap().starts_with("--values="));
        args.push("--values=/etc/image/values".into());
        values(fixture, "tag: 1.28.0", "tag: 1.28.1");
    }),
    (&["failure-policy-ignore"], |fixture| entry(fixture, "namespace.")["failurePolicy"] = "Ignore".into()),
    (&["timeout-unsuitable"], |fixture| entry(fixture, "rev.object.")["timeoutSeconds"] = json!(30)),
    (&["timeout-unsuitable"], |fixture| entry(fixture, "rev.object.")["timeoutSeconds"] = json!(1)),
    (&["deactivated"], |fixture| {
        let off = weir_injector::inject::selection::objects::switched(fixture.configuration(), true).unwrap();
        *fixture.configuration() = off;
    }),
    (&["wrong-target"], |fixture| {
        for entry in fixture.entries() {
            entry["clientConfig"]["service"]["name"] = "istiod".into();
        }
        fixture.call_fails("service \"istiod\" not found");
    }),
    (&["double-injection"], |fixture| istio(fixture, "default")),
    (&[], |fixture| istio(fixture, "canary")),
    (&["tag-dangling"], |fixture| tag(fixture, "prod", "gone")),
    (&[], |fixture| {
        tag(fixture, "prod", "default");
        let rules = &mut fixture.get("clusterroles", "", "weir-webhook")["rules"];
        rules.as_array_mut().unwrap()[1]["resourceNames"] = json!(["weir-sidecar-injector", "weir-revision-tag-prod"]);
    }),
    (&["revision-unknown"], |fixture| fixture.add(namespace("team", &json!({"istio.io/rev": "canary"})))),
    (&["namespace-labels-conflict"], |fixture| {
        fixture.get("namespaces", "", "shop")["metadata"]["labels"]["istio.io/rev"] = "default".into();
    }),
    (&["namespace-label-unclear"], |fixture| fixture.add(namespace("team", &json!({"istio-injection": "true"})))),
    (&["system-namespace-labelled"], |fixture| {
        fixture.get("namespaces", "", "kube-system")["metadata"]["labels"]["istio-injection"] = "enabled".into();
    }),
    (&["label-in-wrong-place"], |fixture| {
        fixture.get("namespaces", "", "plain")["metadata"]["labels"]["sidecar.istio.io/inject"] = "true".into();
    }),
    (&["label-in-wrong-place"], |fixture| {
        fixture.get("deployments", "shop", "web")["metadata"]["labels"]["sidecar.istio.io/inject"] = "false".into();
    }),
    (&["label-in-wrong-place"], |fixture| {
        let mut web = fixture.get("deployments", "shop", "web").clone();
        web["metadata"]["namespace"] = "plain".into();
        web["spec"]["template"]["metadata"]["annotations"] = json!({"sidecar.istio.io/inject": "true"});
        fixture.add(web);
    }),
    (&["label-in-wrong-place"], |fixture| {
        fixture.get("deployments", "shop", "web")["spec"]["template"]["metadata"]["labels"]["istio-injection"] =
            "enabled".into();
    }),
    (&["single-replica"], |fixture| {
        fixture.deployment()["spec"]["replicas"] = json!(1);
        fixture.remove("pods", "weir-system", "weir-webhook-2");
    }),
    (&["disruption-budget-missing"], |fixture| fixture.remove("poddisruptionbudgets", "weir-system", "weir-webhook")),
    (&["disruption-budget-blocks"], |fixture| {
        let budget = fixture.get("poddisruptionbudgets", "weir-system", "weir-webhook");
        budget["spec"]["minAvailable"] = json!(2);
        budget["status"]["desiredHealthy"] = json!(2);
    }),
    (&["replicas-on-one-node"], |fixture| {
        fixture.get("pods", "weir-system", "weir-webhook-2")["spec"]["nodeName"] = "node-1".into();
    }),
    (&["replica-not-ready"], |fixture| {
        not_ready(fixture, "weir-system", "weir-webhook-1");
        let ready = "[+]serving\n[-]ca-bundle: the caBundle does not verify the certificate\n".to_owned();
        fixture.answers.insert("weir-system/weir-webhook-1:15014/readyz".to_owned(), (503, ready));
    }),
    (&["replica-crashes"], |fixture| crashes(fixture, "weir-system", "weir-webhook-1")),
    (&["replica-crashes"], |fixture| crashes(fixture, "weir-node", "weir-agent-2")),
    (&["versions-differ"], |fixture| {
        let metrics = "weir_agent_build_info{version=\"0.0.9\"} 1\n".to_owned();
        fixture.answers.insert("weir-node/weir-agent-2:15034/metrics".to_owned(), (200, metrics));
    }),
    (&["settings-change-refused"], |fixture| {
        let ready = "[+]serving\n[+]settings: the last good one is in use; its change was refused: values: global.hub: must be a string\n";
        fixture.answers.insert("weir-system/weir-webhook-1:15014/readyz".to_owned(), (200, ready.to_owned()));
    }),
    (&["replica-finding"], |fixture| {
        let ready = "[+]serving\n[+]certificate: ok\n[!]events: not sent: 403\n".to_owned();
        fixture.answers.insert("weir-system/weir-webhook-1:15014/readyz".to_owned(), (200, ready));
    }),
    (&["service-account-right-missing"], |fixture| tag(fixture, "prod", "default")),
    (&["agents-not-installed"], |fixture| {
        fixture.objects.retain(|(_, object)| object["metadata"]["namespace"] != "weir-node");
    }),
    (&["agent-missing"], |fixture| fixture.remove("pods", "weir-node", "weir-agent-3")),
    (&["agent-not-ready"], |fixture| {
        not_ready(fixture, "weir-node", "weir-agent-3");
        let ready = "[-]install: no network configuration yet\n".to_owned();
        fixture.answers.insert("weir-node/weir-agent-3:15033/readyz".to_owned(), (503, ready));
    }),
    (&["agent-finding"], |fixture| {
        let ready = "[+]install: entry in 10-a.conflist\n[!]contention: cilium fights\n".to_owned();
        fixture.answers.insert("weir-node/weir-agent-3:15033/readyz".to_owned(), (200, ready));
    }),
    (&["cni-mode-off", "sidecar-outdated", "pod-security-refuses"], |fixture| {
        values(fixture, "  cni:\n    enabled: true", "  cni:\n    enabled: false");
    }),
    (&["runtime-without-annotations"], |fixture| {
        fixture.get("nodes", "", "node-2")["status"]["nodeInfo"]["containerRuntimeVersion"] = "cri-o://1.28.4".into();
    }),
    (&["kernel-old"], |fixture| {
        fixture.get("nodes", "", "node-2")["status"]["nodeInfo"]["kernelVersion"] = "4.18.0-477.el8.x86_64".into();
    }),
    (&["node-not-ready-taint"], |fixture| {
        fixture.get("nodes", "", "node-2")["spec"]["taints"] =
            json!([{"key": "weir.dev/not-ready", "effect": "NoSchedule"}]);
    }),
    (&["config-map-missing"], |fixture| fixture.remove("configmaps", "weir-system", "weir-webhook")),
    (&["config-map-missing"], |fixture| {
        let args = args(fixture);
        args.retain(|arg| !arg.as_str().unwrap().starts_with("--mesh="));
        args.extend(["--mesh-config-map=istio".into(), "--istio-namespace=istio-system".into()]);
        let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]);
        fixture.add(
            json!({"kind": "Role", "metadata": {"namespace": "istio-system", "name": "weir-webhook"}, "rules": rules}),
        );
        let role = json!({"kind": "Role", "name": "weir-webhook"});
        let subjects = json!([{"kind": "ServiceAccount", "name": "weir-webhook", "namespace": "weir-system"}]);
        let metadata = json!({"namespace": "istio-system", "name": "weir-webhook"});
        fixture.add(json!({"kind": "RoleBinding", "metadata": metadata, "roleRef": role, "subjects": subjects}));
    }),
    (&["settings-refused"], |fixture| values(fixture, "hub: docker.io/istio", "hub: 5")),
    (&["settings-refused"], |fixture| values(fixture, "global:", "global: [")),
    (&["pod-without-sidecar"], |fixture| fixture.add(plain_pod("shop", "old-1", "old-1-a"))),
    (&["pod-left-alone"], |fixture| {
        let mut pod = plain_pod("shop", "network", "network-1");
        pod["spec"]["hostNetwork"] = true.into();
        fixture.add(pod);
    }),
    (&["double-sidecar"], |fixture| {
        let mut pod = fixture.injected(&plain_pod("shop", "twice", "twice-1"));
        let again = json!({"name": "istio-proxy", "image": "istio/proxyv2"});
        pod["spec"]["containers"].as_array_mut().unwrap().push(again);
        fixture.add(pod);
    }),
    (&["double-sidecar"], |fixture| {
        let mut pod = fixture.injected(&plain_pod("shop", "twice", "twice-1"));
        let init = json!({"name": "istio-init", "image": "istio/proxyv2", "args": ["istio-iptables"]});
        pod["spec"]["initContainers"].as_array_mut().unwrap().push(init);
        fixture.add(pod);
    }),
    (&["sidecar-outdated"], |fixture| values(fixture, "tag: 1.28.0", "tag: 1.28.1")),
    (&["sidecar-outdated"], |fixture| {
        values(fixture, "    autoInject: enabled", "    autoInject: enabled\n    excludeIPRanges: 10.1.0.0/16");
    }),
    (&["pods-without-rules"], |fixture| {
        let metrics =
            "weir_agent_meshed_pods{state=\"ok\"} 4\nweir_agent_meshed_pods{state=\"missing\"} 2\n".to_owned();
        fixture.answers.insert("weir-node/weir-agent-3:15034/metrics".to_owned(), (200, metrics));
    }),
    (&["pods-refused"], |fixture| {
        let failure = json!({"type": "ReplicaFailure", "status": "True", "message": REFUSED_CALL});
        fixture.get("deployments", "shop", "web")["status"]["conditions"].as_array_mut().unwrap().push(failure);
    }),
    (&["pods-refused"], |fixture| fixture.add(event("StatefulSet", "shop", "db", REFUSED_CALL, 60))),
    (&[], |fixture| fixture.add(event("StatefulSet", "shop", "db", REFUSED_CALL, 7200))),
    (&[], |fixture| fixture.add(event("StatefulSet", "shop", "db", "Error creating: exceeded quota", 60))),
    (&["pod-security-refuses"], |fixture| {
        let message = "Error creating: pods \"db-0\" is forbidden: violates PodSecurity \"baseline:latest\": non-default capabilities (container \"istio-init\" must not include \"NET_ADMIN\")";
        fixture.add(event("StatefulSet", "shop", "db", message, 60));
    }),
];

#[test]
fn every_planted_fault_is_found_by_name_and_nothing_else() {
    let mut wrong = Vec::new();
    for (number, (wanted, plant)) in PLANTED.iter().enumerate() {
        let mut fixture = Fixture::healthy();
        plant(&mut fixture);
        let findings = found(&fixture);
        let names: BTreeSet<&str> = findings.iter().map(|finding| finding.fault.name).collect();
        if names != wanted.iter().copied().collect() {
            let texts = findings
                .iter()
                .map(|finding| format!("\n    {} {}: {}", finding.fault.name, finding.object, finding.text));
            wrong.push(format!("\n  fault {number}, {wanted:?} wanted, found:{}", texts.collect::<String>()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.concat());
}

#[test]
fn every_fault_that_has_a_name_is_planted_somewhere() {
    let planted: BTreeSet<&str> = PLANTED.iter().flat_map(|(names, _)| names.iter().copied()).collect();
    let elsewhere = BTreeSet::from(["not-read", "right-missing"]);
    let missing: Vec<&str> = fault::ALL
        .iter()
        .map(|fault| fault.name)
        .filter(|name| !planted.contains(name) && !elsewhere.contains(name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn before_an_installation_the_ground_is_checked() {
    let before = Scope { before: Some("default".to_owned()), ..scope() };
    let mut fixture = Fixture::healthy();
    istio(&mut fixture, "default");
    fixture.get("nodes", "", "node-1")["status"]["nodeInfo"]["containerRuntimeVersion"] = "docker://20.10.1".into();
    fixture.add(namespace("team", &json!({"istio-injection": "on"})));
    let names: Vec<&str> = found_with(&fixture, &before).iter().map(|finding| finding.fault.name).collect();
    assert_eq!(names, ["double-injection", "namespace-label-unclear", "runtime-without-annotations"]);
    // Beside Istio's default injector there is room for a revision.
    let revision = Scope { before: Some("weir".to_owned()), ..scope() };
    let names: Vec<&str> = found_with(&fixture, &revision).iter().map(|finding| finding.fault.name).collect();
    assert_eq!(names, ["namespace-label-unclear", "runtime-without-annotations"]);
}

#[test]
fn a_limit_to_one_namespace_leaves_the_pods_of_others_out() {
    let mut fixture = Fixture::healthy();
    fixture.add(plain_pod("shop", "old-1", "old-1-a"));
    let limited = |namespace: &str| Scope { namespace: Some(namespace.to_owned()), ..scope() };
    assert_eq!(found_with(&fixture, &limited("shop")).len(), 1);
    assert!(found_with(&fixture, &limited("plain")).is_empty());
}

#[test]
fn pods_of_one_owner_are_one_finding() {
    let mut fixture = Fixture::healthy();
    for number in 0..7 {
        fixture.add(plain_pod("shop", "old-1", &format!("old-1-{number}")));
    }
    let findings = found(&fixture);
    assert_eq!((findings.len(), findings[0].alike), (1, 6));
    assert_eq!(findings[0].fix, "kubectl -n shop rollout restart deployment/old");
    let agents = fixture.get("daemonsets", "weir-node", "weir-agent").clone();
    fixture.add(pod_of(&agents, "weir-agent-4", "node-1"));
    for (port, path) in [(15033, "readyz"), (15034, "metrics")] {
        let said = fixture.answers[&format!("weir-node/weir-agent-1:{port}/{path}")].clone();
        fixture.answers.insert(format!("weir-node/weir-agent-4:{port}/{path}"), said);
    }
    assert_eq!(found(&fixture).len(), 1, "two agents on a node during an update");
}

#[test]
fn what_is_wrong_with_one_revision_does_not_hide_what_is_wrong_with_another() {
    use weir_injector::inject::selection::{Installation, objects::Serving};
    let mut fixture = Fixture::healthy();
    // A canary beside the default revision, whose webhook configuration has no bundle yet.
    let installation = Installation { revision: "canary".to_owned(), ..Installation::default() };
    let configuration = installation.configurations(&Serving::default()).remove(0);
    fixture.add(configuration);
    for (resource, namespace, name) in [
        ("deployments", "weir-system", "weir-webhook"),
        ("services", "weir-system", "weir-webhook"),
        ("endpointslices", "weir-system", "weir-webhook-x"),
        ("poddisruptionbudgets", "weir-system", "weir-webhook"),
        ("networkpolicies", "weir-system", "weir-webhook"),
        ("pods", "weir-system", "weir-webhook-1"),
        ("pods", "weir-system", "weir-webhook-2"),
    ] {
        let text = fixture.get(resource, namespace, name).to_string();
        let text = text
            .replace("weir-webhook-1\"", "weir-webhook-canary-1\"")
            .replace("weir-webhook-2\"", "weir-webhook-canary-2\"");
        let text = text.replace("\"weir.dev/rev\":\"default\"", "\"weir.dev/rev\":\"canary\"");
        let mut copy: Value =
            serde_json::from_str(&text.replace("\"weir-webhook\"", "\"weir-webhook-canary\"")).unwrap();
        // Container and configuration are the same ones.
        let text = copy
            .to_string()
            .replace("\"configMap\":{\"name\":\"weir-webhook-canary\"}", "\"configMap\":{\"name\":\"weir-webhook\"}");
        copy = serde_json::from_str(&text).unwrap();
        if resource == "deployments" {
            copy["spec"]["template"]["spec"]["serviceAccountName"] = "weir-webhook".into();
            let args = copy["spec"]["template"]["spec"]["containers"][0]["args"].as_array_mut().unwrap();
            args.push("--revision=canary".into());
        }
        if resource == "endpointslices" {
            copy["metadata"]["name"] = "weir-webhook-canary-x".into();
        }
        fixture.add(copy);
    }
    for number in 1..=2 {
        for path in ["15014/readyz", "15014/metrics"] {
            let said = fixture.answers[&format!("weir-system/weir-webhook-{number}:{path}")].clone();
            fixture.answers.insert(format!("weir-system/weir-webhook-canary-{number}:{path}"), said);
        }
    }
    fixture.call_fails("tls: failed to verify certificate: x509: certificate signed by unknown authority");
    let findings = found(&fixture);
    let mut names: Vec<(&str, &str)> =
        findings.iter().map(|finding| (finding.fault.name, finding.object.name.as_str())).collect();
    names.sort_unstable();
    let wanted = [
        ("ca-bundle-empty", "weir-sidecar-injector-canary"),
        ("ca-bundle-stale", "weir-sidecar-injector"),
        // Its configuration is not among those that the account may patch.
        ("service-account-right-missing", "weir-webhook"),
    ];
    assert_eq!(names, wanted, "{findings:#?}");
}
