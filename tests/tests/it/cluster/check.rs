//! `weir check` with the manifests applied and the way to the webhook blocked at one hop: it names the hop.
//!
//! No controller creates pods of Deployments here, so only findings about the way, certificates and rights are compared.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use weir_apiserver::fake_webhook::{FakeReply, FakeWebhook};
use weir_apiserver::tls::{Authority, Pair};
use weir_tests::wait_until;

use super::api_server::{Cluster, on_both};
use super::kubectl::Kubectl;

on_both!(blocked_hop_is_named, missing_rights_are_named);

const CONFIGURATION: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/weir-sidecar-injector";
const SERVICE: &str = "/api/v1/namespaces/weir-system/services/weir-webhook";
const NAME: &str = "weir-webhook.weir-system.svc";

/// Runs `weir check` and returns its exit status and findings.
fn check(kubeconfig: &Path, args: &[&str]) -> (i32, Vec<Value>) {
    let output = Command::new(weir_tests::bin("weir"))
        .args(["check", "-o", "json", "--kubeconfig"])
        .arg(kubeconfig)
        .args(args)
        .output()
        .unwrap();
    let document: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), document["findings"].as_array().unwrap().clone())
}

/// Returns the names of findings about the way to the webhook and its certificates. `clients-not-verified` (WEIR310) always applies here.
fn connectivity_findings(findings: &[Value]) -> BTreeSet<&str> {
    let about = |code: &str| match code {
        "WEIR107" => true,
        "WEIR310" => false,
        _ => code.starts_with("WEIR2") || code.starts_with("WEIR3"),
    };
    let found = findings.iter().filter(|finding| about(finding["code"].as_str().unwrap()));
    found.map(|finding| finding["name"].as_str().unwrap()).collect()
}

fn apply_the_manifests(cluster: &Cluster) -> bool {
    let Some(kubectl) = Kubectl::new_or_skip(cluster.kubeconfig()) else { return false };
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
    kubectl.ok(&["apply", "--server-side", "--validate=false", "-k", dir], "");
    cluster.create_namespace("shop", &json!({"istio-injection": "enabled"}));
    true
}

/// Sets the endpoints of the Service.
fn set_endpoints(cluster: &Cluster, replicas: &[SocketAddr]) {
    cluster.set_endpoints("weir-system", "weir-webhook", 443, replicas);
    if let Some(server) = cluster.fake_server() {
        let endpoint = |addr: &SocketAddr| json!({"addresses": [addr.ip()], "conditions": {"ready": true}});
        let endpoints: Vec<Value> = replicas.iter().map(endpoint).collect();
        let metadata = json!({
            "namespace": "weir-system", "name": "weir-webhook-1", "labels": {"kubernetes.io/service-name": "weir-webhook"},
        });
        server.put("endpointslices", json!({"kind": "EndpointSlice", "metadata": metadata, "endpoints": endpoints}));
    }
}

/// Changes every entry of the webhook configuration.
fn configure(cluster: &Cluster, change: impl Fn(&mut Value)) {
    let mut configuration = cluster.get(CONFIGURATION).expect_ok();
    configuration["webhooks"].as_array_mut().unwrap().iter_mut().for_each(change);
    cluster.put(CONFIGURATION, &configuration).expect_ok();
}

/// Returns the reply of a webhook that adds the status annotation only.
fn status_annotation() -> FakeReply {
    let status = json!({"sidecar.istio.io/status": "{\"containers\":[\"istio-proxy\"]}"});
    FakeReply::patch(&json!([{"op": "add", "path": "/metadata/annotations", "value": status}]))
}

/// Name, certificate and reply of the webhook, CA bundle, expected findings.
type Case<'a> = (&'a str, Option<(&'a Pair, fn() -> FakeReply)>, String, &'a [&'a str]);

fn blocked_hop_is_named(cluster: &Cluster) {
    if !apply_the_manifests(cluster) {
        return;
    }
    let authority = Authority::new("ours").unwrap();
    let (pair, ca) = (authority.issue("webhook", &[NAME]).unwrap(), authority.cert());
    let misnamed = authority.issue("webhook", &["elsewhere.svc"]).unwrap();
    let stranger = Authority::new("strangers").unwrap().cert();
    let silent = || FakeReply::Silence;
    let broken = || FakeReply::Status(500, None);
    let absent = || FakeReply::Status(404, None);
    let denying = || FakeReply::Response(json!({"allowed": false, "status": {"code": 403, "message": "no"}}));
    let nonsense = || FakeReply::Body(json!({"kind": "Pod"}));
    let cases: [Case<'_>; 11] = [
        ("healthy", Some((&pair, status_annotation)), ca.clone(), &[]),
        ("nothing listens", None, ca.clone(), &["connection-refused"]),
        ("unknown authority", Some((&pair, status_annotation)), stranger, &["ca-bundle-stale"]),
        ("no bundle", Some((&pair, status_annotation)), String::new(), &["ca-bundle-empty"]),
        ("garbage bundle", Some((&pair, status_annotation)), "garbage".to_owned(), &["ca-bundle-invalid"]),
        ("another name", Some((&misnamed, status_annotation)), ca.clone(), &["certificate-name"]),
        ("silent", Some((&pair, silent)), ca.clone(), &["connection-timeout"]),
        ("fails", Some((&pair, broken)), ca.clone(), &["webhook-answers-error"]),
        ("no such path", Some((&pair, absent)), ca.clone(), &["webhook-answers-error"]),
        ("denies", Some((&pair, denying)), ca.clone(), &["webhook-denies"]),
        ("nonsense", Some((&pair, nonsense)), ca.clone(), &["webhook-answers-error"]),
    ];
    let found = |what: &str, wanted: &[&str]| {
        wait_until(what, || {
            let (_, findings) = check(cluster.kubeconfig(), &[]);
            let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
            if connectivity_findings(&findings) == wanted { Ok(()) } else { Err(format!("{findings:#?}")) }
        });
    };
    for (what, webhook, bundle, wanted) in cases {
        // A webhook for each case, so that no connection is reused.
        let hook =
            webhook.map(|(pair, reply)| FakeWebhook::start(cluster.webhook_address(), pair, move |_| reply()).unwrap());
        let gone = || std::net::TcpListener::bind((cluster.webhook_address(), 0)).unwrap().local_addr().unwrap();
        set_endpoints(cluster, &[hook.as_ref().map_or_else(gone, FakeWebhook::addr)]);
        configure(cluster, |entry| {
            entry["clientConfig"]["caBundle"] = STANDARD.encode(&bundle).into();
            entry["timeoutSeconds"] = json!(2);
        });
        found(what, wanted);
    }
    configure(cluster, |entry| {
        entry["clientConfig"]["caBundle"] = STANDARD.encode(&ca).into();
        entry["failurePolicy"] = "Ignore".into();
    });
    let gone = std::net::TcpListener::bind((cluster.webhook_address(), 0)).unwrap().local_addr().unwrap();
    set_endpoints(cluster, &[gone]);
    found("nothing listens, failurePolicy Ignore", &["webhook-not-called"]);
    configure(cluster, |entry| entry["failurePolicy"] = "Fail".into());
    set_endpoints(cluster, &[]);
    found("no endpoint", &["no-ready-endpoints"]);
    cluster.delete(SERVICE).expect_ok();
    found("no Service", &["service-missing"]);
    assert_eq!(cluster.get("/api/v1/namespaces/shop/pods").expect_ok()["items"], json!([]), "nothing was stored");
}

fn missing_rights_are_named(cluster: &Cluster) {
    cluster.create_namespace("shop", &json!({"istio-injection": "enabled"}));
    let token = cluster.service_account_token("shop", "default");
    let nobody = cluster.kubeconfig_with("nobody", &token);
    let (code, findings) = check(&nobody, &[]);
    let names: BTreeSet<&str> = findings.iter().map(|finding| finding["name"].as_str().unwrap()).collect();
    // Nothing was read, so nothing is in order.
    assert_eq!((code, names), (1, BTreeSet::from(["not-read"])), "{findings:#?}");
    let forbidden = |finding: &Value| finding["message"].as_str().unwrap().contains("forbidden");
    assert!(findings.iter().all(forbidden), "{findings:#?}");
    let (code, findings) = check(&nobody, &["--pre"]);
    let missing: Vec<&str> = findings
        .iter()
        .filter(|finding| finding["name"] == "right-missing")
        .map(|finding| finding["object"]["kind"].as_str().unwrap())
        .collect();
    assert_eq!((code, missing.len()), (1, 28), "{findings:#?}");
    assert!(missing.contains(&"permission to create deployments.apps in weir-system"), "{missing:?}");
    // The administrator may do everything; only the control plane is missing.
    let (code, findings) = check(cluster.kubeconfig(), &["--pre"]);
    let names: Vec<&str> = findings.iter().map(|finding| finding["name"].as_str().unwrap()).collect();
    assert_eq!((code, names), (0, vec!["control-plane-missing"]), "{findings:#?}");
}
