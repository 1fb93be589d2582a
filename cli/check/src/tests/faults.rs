//! Every fault, planted in a healthy cluster.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::changes::{
    WEBHOOK_TIMEOUT, add_istio_injector, add_tag, change_values, failed_create, make_crash, make_unready,
    mount_certificate, webhook_args, webhook_entry,
};
use super::findings;
use super::fixture::{Authority, Fixture, condition, namespace, plain_pod};
use crate::fault;

/// Names of the faults that a change of the healthy cluster causes.
type Planted = (&'static [&'static str], fn(&mut Fixture));

const PLANTED: &[Planted] = &[
    (&["kubernetes-too-old"], |fixture| fixture.version = "v1.28.9-eks-1"),
    (&["native-sidecars-not-run"], |fixture| {
        webhook_args(fixture).push("--native-sidecars=true".into());
        fixture.get("nodes", "", "node-2")["status"]["nodeInfo"]["kubeletVersion"] = "v1.28.3".into();
    }),
    (&["control-plane-missing"], |fixture| fixture.remove("services", "istio-system", "istiod")),
    (&["control-plane-missing"], |fixture| {
        fixture.get("deployments", "istio-system", "istiod")["status"]["readyReplicas"] = json!(0);
    }),
    (&[], |fixture| fixture.remove("deployments", "istio-system", "istiod")),
    (&["control-plane-unsupported"], |fixture| {
        fixture.get("deployments", "istio-system", "istiod")["spec"]["template"]["spec"]["containers"][0]["image"] =
            "docker.io/istio/pilot:1.16.7-distroless".into();
    }),
    (&["webhook-not-called"], |fixture| {
        fixture.dry_run = None;
        // The fixture does not call webhooks then.
        fixture.version = "v1.33.1-without-webhooks";
    }),
    (&["probe-refused"], |fixture| {
        fixture.dry_run =
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
        fixture.fail_webhook_call("no endpoints available for service \"weir-webhook\"");
    }),
    (&["webhook-configuration-missing"], |fixture| {
        fixture.remove("mutatingwebhookconfigurations", "", "weir-sidecar-injector");
    }),
    (&["service-missing"], |fixture| {
        fixture.remove("services", "weir-system", "weir-webhook");
        fixture.fail_webhook_call("service \"weir-webhook\" not found");
    }),
    (&["service-port-mismatch"], |fixture| {
        fixture.get("services", "weir-system", "weir-webhook")["spec"]["ports"][0]["targetPort"] = json!(8443);
        fixture.fail_webhook_call("dial tcp 10.0.0.1:8443: connect: connection refused");
    }),
    (&["service-port-mismatch"], |fixture| {
        fixture.get("services", "weir-system", "weir-webhook")["spec"]["ports"][0]["port"] = json!(8443);
        fixture.fail_webhook_call("no service port 443 found for service \"weir-webhook\"");
    }),
    (&["service-selects-nothing"], |fixture| {
        fixture.get("services", "weir-system", "weir-webhook")["spec"]["selector"] = json!({"app": "weir"});
        fixture.fail_webhook_call("no endpoints available for service \"weir-webhook\"");
    }),
    (&["no-ready-endpoints", "replica-not-ready"], |fixture| {
        let slice = fixture.get("endpointslices", "weir-system", "weir-webhook-x");
        for endpoint in slice["endpoints"].as_array_mut().unwrap() {
            endpoint["conditions"]["ready"] = false.into();
        }
        for number in 1..=2 {
            make_unready(fixture, "weir-system", &format!("weir-webhook-{number}"));
        }
        fixture.fail_webhook_call("no endpoints available for service \"weir-webhook\"");
    }),
    (&["network-policy-blocks"], |fixture| {
        fixture.remove("networkpolicies", "weir-system", "weir-webhook");
        let spec = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
        fixture.add(json!({"kind": "NetworkPolicy", "metadata": {"namespace": "weir-system", "name": "deny-all"}, "spec": spec}));
        fixture.fail_webhook_call("context deadline exceeded");
    }),
    (&["network-policy-blocks"], |fixture| {
        let policy = fixture.get("networkpolicies", "weir-system", "weir-webhook");
        policy["spec"]["ingress"] =
            json!([{"from": [{"namespaceSelector": {}}], "ports": [{"port": 15017}]}, {"ports": [{"port": 15014}]}]);
    }),
    (&["connection-refused"], |fixture| {
        fixture.fail_webhook_call("dial tcp 10.96.0.7:443: connect: connection refused");
    }),
    (&["connection-timeout"], |fixture| fixture.fail_webhook_call("context deadline exceeded")),
    (&["connection-broken"], |fixture| fixture.fail_webhook_call("http: server gave HTTP response to HTTPS client")),
    (&["webhook-answers-error"], |fixture| {
        fixture.fail_webhook_call("the server could not find the requested resource");
    }),
    (&["webhook-denies"], |fixture| {
        let denial = "admission webhook \"namespace.sidecar-injector.weir.dev\" denied the request: template \"sidecar\", line 1: no";
        fixture.dry_run = Some((400, denial.to_owned()));
    }),
    (&["ca-bundle-empty"], |fixture| {
        for entry in fixture.entries() {
            entry["clientConfig"].as_object_mut().unwrap().remove("caBundle");
        }
        fixture.fail_webhook_call("tls: failed to verify certificate: x509: certificate signed by unknown authority");
    }),
    (&["ca-bundle-invalid"], |fixture| {
        for entry in fixture.entries() {
            entry["clientConfig"]["caBundle"] = "bm90IGEgY2VydGlmaWNhdGU=".into();
        }
        fixture.fail_webhook_call("unable to load root certificates: unable to parse bytes as PEM block");
    }),
    (&["ca-expired"], |fixture| {
        let old = Authority::new((2026, 1, 1)).encoded();
        for entry in fixture.entries() {
            entry["clientConfig"]["caBundle"] = old.clone().into();
        }
        fixture
            .fail_webhook_call("tls: failed to verify certificate: x509: certificate has expired or is not yet valid");
    }),
    (&["ca-bundle-differs"], |fixture| {
        let entry = webhook_entry(fixture, "object.");
        let ours = STANDARD.decode(entry["clientConfig"]["caBundle"].as_str().unwrap()).unwrap();
        let both = [ours, Authority::new((2036, 1, 1)).pem().into_bytes()].concat();
        entry["clientConfig"]["caBundle"] = STANDARD.encode(both).into();
    }),
    (&["ca-bundle-stale"], |fixture| {
        fixture.fail_webhook_call("tls: failed to verify certificate: x509: certificate signed by unknown authority");
    }),
    (&["ca-bundle-stale"], |fixture| {
        let other = Authority::new((2036, 1, 1)).encoded();
        for entry in fixture.entries() {
            entry["clientConfig"]["caBundle"] = other.clone().into();
        }
        fixture.fail_webhook_call("tls: failed to verify certificate: x509: certificate signed by unknown authority");
    }),
    (&["ca-bundle-stale"], |fixture| {
        let authority = Authority::new((2036, 1, 1));
        mount_certificate(fixture, &authority, "weir-webhook.weir-system.svc", (2036, 1, 1));
        let other = Authority::new((2036, 1, 1)).encoded();
        for entry in fixture.entries() {
            entry["clientConfig"]["caBundle"] = other.clone().into();
        }
        fixture.fail_webhook_call("tls: failed to verify certificate: x509: certificate signed by unknown authority");
    }),
    (&["certificate-expired"], |fixture| {
        for number in 1..=2 {
            let metrics = "weir_webhook_certificate_expiry_timestamp_seconds 1700000000\n";
            fixture.set_metrics("weir-system", &format!("weir-webhook-{number}"), metrics);
        }
        fixture
            .fail_webhook_call("tls: failed to verify certificate: x509: certificate has expired or is not yet valid");
    }),
    (&["certificate-expiring"], |fixture| {
        let soon = k8s_openapi::jiff::Timestamp::now().as_second() + 300;
        let metrics = format!("weir_webhook_certificate_expiry_timestamp_seconds {soon}\n");
        fixture.set_metrics("weir-system", "weir-webhook-1", &metrics);
    }),
    (&["certificate-name"], |fixture| {
        mount_certificate(fixture, &Authority::new((2036, 1, 1)), "weir.example.com", (2036, 1, 1));
        fixture.fail_webhook_call("tls: failed to verify certificate: x509: certificate is valid for weir.example.com, not weir-webhook.weir-system.svc");
    }),
    (&["clients-not-verified"], |fixture| {
        webhook_args(fixture).retain(|arg| !arg.as_str().is_some_and(|arg| arg.starts_with("--client-ca-file")));
    }),
    (&["client-certificate-refused"], |fixture| fixture.fail_webhook_call("remote error: tls: certificate required")),
    (&["entry-missing"], |fixture| {
        fixture.configuration()["webhooks"].as_array_mut().unwrap().remove(0);
    }),
    (&["entry-altered"], |fixture| {
        webhook_entry(fixture, "namespace.")["namespaceSelector"] =
            json!({"matchLabels": {"istio-injection": "enabled"}});
    }),
    (&["entry-altered"], |fixture| webhook_entry(fixture, "object.")["reinvocationPolicy"] = "Never".into()),
    (&["entry-altered"], |fixture| {
        let selector = &mut webhook_entry(fixture, "object.")["objectSelector"];
        *selector =
            json!({"matchExpressions": [{"key": "sidecar.istio.io/inject", "operator": "In", "values": ["yes"]}]});
    }),
    (&["entry-altered"], |fixture| {
        let never = json!({"name": "none-today", "expression": "false"});
        webhook_entry(fixture, "object.")["matchConditions"].as_array_mut().unwrap().push(never);
    }),
    (&[], |fixture| {
        // Values in a file of the image cannot be read, so no sidecar is compared with them.
        let args = webhook_args(fixture);
        args.retain(|arg| !arg.as_str().unwrap().starts_with("--values="));
        args.push("--values=/etc/image/values".into());
        change_values(fixture, "tag: 1.28.0", "tag: 1.28.1");
    }),
    (&["failure-policy-ignore"], |fixture| webhook_entry(fixture, "namespace.")["failurePolicy"] = "Ignore".into()),
    (&["timeout-unsuitable"], |fixture| webhook_entry(fixture, "rev.object.")["timeoutSeconds"] = json!(30)),
    (&["timeout-unsuitable"], |fixture| webhook_entry(fixture, "rev.object.")["timeoutSeconds"] = json!(1)),
    (&["deactivated"], |fixture| {
        let off = weir_injector::selection::configurations::with_deactivated(fixture.configuration(), true).unwrap();
        *fixture.configuration() = off;
    }),
    (&["wrong-target"], |fixture| {
        for entry in fixture.entries() {
            entry["clientConfig"]["service"]["name"] = "istiod".into();
        }
        fixture.fail_webhook_call("service \"istiod\" not found");
    }),
    (&["double-injection"], |fixture| add_istio_injector(fixture, "default")),
    (&[], |fixture| add_istio_injector(fixture, "canary")),
    (&["tag-dangling"], |fixture| add_tag(fixture, "prod", "gone")),
    (&[], |fixture| {
        add_tag(fixture, "prod", "default");
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
        make_unready(fixture, "weir-system", "weir-webhook-1");
        let conditions = json!([condition("ca-bundle", "failed", "CABundleMismatch")]);
        fixture.set_readiness("weir-system", "weir-webhook-1", &conditions);
    }),
    (&["replica-crashes"], |fixture| make_crash(fixture, "weir-system", "weir-webhook-1")),
    (&["replica-crashes"], |fixture| make_crash(fixture, "weir-node", "weir-agent-2")),
    (&["versions-differ"], |fixture| {
        fixture.set_metrics("weir-node", "weir-agent-2", "weir_agent_build_info{version=\"0.0.9\"} 1\n");
    }),
    (&["settings-change-refused"], |fixture| {
        let conditions = json!([condition("settings", "degraded", "ConfigurationRejected")]);
        fixture.set_readiness("weir-system", "weir-webhook-1", &conditions);
    }),
    (&["replica-finding"], |fixture| {
        let conditions = json!([condition("nodes", "degraded", "CacheStale")]);
        fixture.set_readiness("weir-system", "weir-webhook-1", &conditions);
    }),
    (&["replica-finding"], |fixture| {
        let text = "[+]shutdown: not in progress\n[!]events: not sent: 403\n".to_owned();
        fixture.reports.insert("weir-system/weir-webhook-1:15014/readyz".to_owned(), (200, text));
    }),
    (&["service-account-right-missing"], |fixture| add_tag(fixture, "prod", "default")),
    (&["agents-not-installed"], |fixture| {
        fixture.objects.retain(|(_, object)| object["metadata"]["namespace"] != "weir-node");
    }),
    (&["agent-missing"], |fixture| fixture.remove("pods", "weir-node", "weir-agent-3")),
    (&["agent-not-ready"], |fixture| {
        make_unready(fixture, "weir-node", "weir-agent-3");
        let conditions = json!([condition("install", "failed", "NoNetworkConfiguration")]);
        fixture.set_readiness("weir-node", "weir-agent-3", &conditions);
    }),
    (&["agent-finding"], |fixture| {
        let conditions = json!([condition("install", "degraded", "Contended")]);
        fixture.set_readiness("weir-node", "weir-agent-3", &conditions);
    }),
    (&["cni-mode-off", "sidecar-outdated", "pod-security-refuses"], |fixture| {
        change_values(fixture, "  cni:\n    enabled: true", "  cni:\n    enabled: false");
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
        let args = webhook_args(fixture);
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
    (&["settings-refused"], |fixture| change_values(fixture, "hub: docker.io/istio", "hub: 5")),
    (&["settings-refused"], |fixture| change_values(fixture, "global:", "global: [")),
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
    (&["sidecar-outdated"], |fixture| change_values(fixture, "tag: 1.28.0", "tag: 1.28.1")),
    (&["sidecar-outdated"], |fixture| {
        change_values(fixture, "    autoInject: enabled", "    autoInject: enabled\n    excludeIPRanges: 10.1.0.0/16");
    }),
    (&["admission-policy-incomplete"], |fixture| {
        fixture.remove("validatingadmissionpolicies", "", "weir-injector-annotations");
    }),
    (&["admission-policy-incomplete"], |fixture| {
        fixture.remove("validatingadmissionpolicybindings", "", "weir-frozen-annotations");
    }),
    (&[], |fixture| fixture.objects.retain(|(resource, _)| !resource.starts_with("validatingadmissionpolic"))),
    (&["sidecar-image-not-pulled"], |fixture| {
        let mut pod = fixture.injected(&plain_pod("shop", "new", "new-1"));
        let waiting = json!({"reason": "ImagePullBackOff", "message": "Back-off pulling image \"nowhere/proxyv2\""});
        pod["status"]["phase"] = "Pending".into();
        pod["status"]["initContainerStatuses"] = json!([{"name": "istio-proxy", "state": {"waiting": waiting}}]);
        fixture.add(pod);
    }),
    (&["pods-without-rules"], |fixture| {
        let metrics = "weir_agent_meshed_pods{state=\"ok\"} 4\nweir_agent_meshed_pods{state=\"missing\"} 2\n";
        fixture.set_metrics("weir-node", "weir-agent-3", metrics);
    }),
    (&["capture-annotations-changed"], |fixture| {
        fixture.set_metrics("weir-node", "weir-agent-3", "weir_agent_capture_annotations_changed 1\n");
    }),
    (&["pods-refused"], |fixture| {
        let failure = json!({"type": "ReplicaFailure", "status": "True", "message": WEBHOOK_TIMEOUT});
        fixture.get("deployments", "shop", "web")["status"]["conditions"].as_array_mut().unwrap().push(failure);
    }),
    (&["pods-refused"], |fixture| fixture.add(failed_create("StatefulSet", "shop", "db", WEBHOOK_TIMEOUT, 60))),
    (&[], |fixture| fixture.add(failed_create("StatefulSet", "shop", "db", WEBHOOK_TIMEOUT, 7200))),
    (&[], |fixture| fixture.add(failed_create("StatefulSet", "shop", "db", "Error creating: exceeded quota", 60))),
    (&["pod-security-refuses"], |fixture| {
        let message = "Error creating: pods \"db-0\" is forbidden: violates PodSecurity \"baseline:latest\": non-default capabilities (container \"istio-init\" must not include \"NET_ADMIN\")";
        fixture.add(failed_create("StatefulSet", "shop", "db", message, 60));
    }),
];

#[test]
fn planted_faults_are_found_and_nothing_else() {
    let mut wrong = Vec::new();
    for (number, (wanted, plant)) in PLANTED.iter().enumerate() {
        let mut fixture = Fixture::healthy();
        plant(&mut fixture);
        let findings = findings(&fixture);
        let names: BTreeSet<&str> = findings.iter().map(|finding| finding.fault.name).collect();
        if names != wanted.iter().copied().collect() {
            let texts = findings
                .iter()
                .map(|finding| format!("\n    {} {}: {}", finding.fault.name, finding.object, finding.text));
            wrong.push(format!("\n  fault {number}, wanted {wanted:?}, found:{}", texts.collect::<String>()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.concat());
}

#[test]
fn every_fault_is_planted() {
    let planted: BTreeSet<&str> = PLANTED.iter().flat_map(|(names, _)| names.iter().copied()).collect();
    let elsewhere = BTreeSet::from(["not-read", "right-missing"]);
    let names = fault::ALL.iter().map(|fault| fault.name);
    let missing: Vec<&str> = names.filter(|name| !planted.contains(name) && !elsewhere.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
