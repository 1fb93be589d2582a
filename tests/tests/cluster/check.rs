//! `weir check`, as a person runs it: the manifests are applied, the way to the webhook is blocked at one hop, and the hop is named.
//!
//! Nothing makes pods of Deployments here, so only the faults of the way, of certificates and of rights are looked at.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use weir_apiserver::hook::{Answer, Hook};
use weir_apiserver::tls::{Authority, Pair};

use super::cluster::{Cluster, on_both, until};
use super::kubectl::Kubectl;

on_both!(names_the_hop_that_is_blocked, says_what_somebody_may_not_do);

const CONFIGURATION: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/weir-sidecar-injector";
const SERVICE: &str = "/api/v1/namespaces/weir-system/services/weir-webhook";
const NAME: &str = "weir-webhook.weir-system.svc";

/// Runs `weir check`; its exit status, and what it found.
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

/// Names of the faults of the way to the webhook, and of its certificates.
fn of_the_way(findings: &[Value]) -> BTreeSet<&str> {
    let about = |code: &str| code.starts_with("WEIR2") || code.starts_with("WEIR3") || code == "WEIR107";
    let found = findings.iter().filter(|finding| about(finding["code"].as_str().unwrap()));
    found.map(|finding| finding["name"].as_str().unwrap()).collect()
}

fn apply_the_manifests(cluster: &Cluster) -> bool {
    let Some(kubectl) = Kubectl::or_skip(cluster.kubeconfig()) else { return false };
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
    kubectl.ok(&["apply", "--server-side", "--validate=false", "-k", folder], "");
    cluster.namespace("shop", &json!({"istio-injection": "enabled"}));
    true
}

/// Where the Service leads, as its endpoints say.
fn route(cluster: &Cluster, replicas: &[SocketAddr]) {
    cluster.route("weir-system", "weir-webhook", 443, replicas);
    if let Some(server) = cluster.own() {
        let endpoint = |addr: &SocketAddr| json!({"addresses": [addr.ip()], "conditions": {"ready": true}});
        let endpoints: Vec<Value> = replicas.iter().map(endpoint).collect();
        let metadata = json!({
            "namespace": "weir-system", "name": "weir-webhook-1", "labels": {"kubernetes.io/service-name": "weir-webhook"},
        });
        server.put("endpointslices", json!({"kind": "EndpointSlice", "metadata": metadata, "endpoints": endpoints}));
    }
}

/// What is changed of every entry of the webhook configuration.
fn configure(cluster: &Cluster, change: impl Fn(&mut Value)) {
    let mut configuration = cluster.get(CONFIGURATION).good();
    configuration["webhooks"].as_array_mut().unwrap().iter_mut().for_each(change);
    cluster.put(CONFIGURATION, &configuration).good();
}

/// A webhook that records an injection, and does nothing else.
fn recording() -> Answer {
    let status = json!({"sidecar.istio.io/status": "{\"containers\":[\"istio-proxy\"]}"});
    Answer::patch(&json!([{"op": "add", "path": "/metadata/annotations", "value": status}]))
}

/// What is planted: its name, the webhook that runs, the bundle, and what is to be found.
type Case<'a> = (&'a str, Option<(&'a Pair, fn() -> Answer)>, String, &'a [&'a str]);

fn names_the_hop_that_is_blocked(cluster: &Cluster) {
    if !apply_the_manifests(cluster) {
        return;
    }
    let authority = Authority::new("ours").unwrap();
    let (pair, ca) = (authority.issue("webhook", &[NAME]).unwrap(), authority.cert());
    let misnamed = authority.issue("webhook", &["elsewhere.svc"]).unwrap();
    let stranger = Authority::new("strangers").unwrap().cert();
    let silent = || Answer::Silence;
    let broken = || Answer::Status(500, None);
    let absent = || Answer::Status(404, None);
    let denying = || Answer::Response(json!({"allowed": false, "status": {"code": 403, "message": "no"}}));
    let nonsense = || Answer::Body(json!({"kind": "Pod"}));
    let cases: [Case<'_>; 11] = [
        ("healthy", Some((&pair, recording)), ca.clone(), &[]),
        ("nothing listens", None, ca.clone(), &["connection-refused"]),
        ("unknown authority", Some((&pair, recording)), stranger, &["ca-bundle-stale"]),
        ("no bundle", Some((&pair, recording)), String::new(), &["ca-bundle-empty"]),
        ("garbage bundle", Some((&pair, recording)), "garbage".to_owned(), &["ca-bundle-invalid"]),
        ("another name", Some((&misnamed, recording)), ca.clone(), &["certificate-name"]),
        ("silent", Some((&pair, silent)), ca.clone(), &["connection-timeout"]),
        ("fails", Some((&pair, broken)), ca.clone(), &["webhook-answers-error"]),
        ("no such path", Some((&pair, absent)), ca.clone(), &["webhook-answers-error"]),
        ("denies", Some((&pair, denying)), ca.clone(), &["webhook-denies"]),
        ("nonsense", Some((&pair, nonsense)), ca.clone(), &["webhook-answers-error"]),
    ];
    let found = |what: &str, wanted: &[&str]| {
        until(what, || {
            let (_, findings) = check(cluster.kubeconfig(), &[]);
            let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
            if of_the_way(&findings) == wanted { Ok(()) } else { Err(format!("{findings:#?}")) }
        });
    };
    for (what, webhook, bundle, wanted) in cases {
        // A webhook of its own each time, so that no connection is kept.
        let hook = webhook.map(|(pair, reply)| Hook::start(cluster.address(), pair, move |_| reply()).unwrap());
        let gone = || std::net::TcpListener::bind((cluster.address(), 0)).unwrap().local_addr().unwrap();
        route(cluster, &[hook.as_ref().map_or_else(gone, Hook::addr)]);
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
    let gone = std::net::TcpListener::bind((cluster.address(), 0)).unwrap().local_addr().unwrap();
    route(cluster, &[gone]);
    found("nothing listens, and nobody minds", &["webhook-not-called"]);
    configure(cluster, |entry| entry["failurePolicy"] = "Fail".into());
    route(cluster, &[]);
    found("no endpoint", &["no-ready-endpoints"]);
    cluster.delete(SERVICE).good();
    found("no Service", &["service-missing"]);
    assert_eq!(cluster.get("/api/v1/namespaces/shop/pods").good()["items"], json!([]), "nothing was stored");
}

fn says_what_somebody_may_not_do(cluster: &Cluster) {
    cluster.namespace("shop", &json!({"istio-injection": "enabled"}));
    let token = cluster.token_of("shop", "default");
    let nobody = cluster.kubeconfig_with("nobody", &token);
    let (code, findings) = check(&nobody, &[]);
    let names: BTreeSet<&str> = findings.iter().map(|finding| finding["name"].as_str().unwrap()).collect();
    assert_eq!((code, names), (0, BTreeSet::from(["not-read"])), "{findings:#?}");
    let forbidden = |finding: &Value| finding["message"].as_str().unwrap().contains("forbidden");
    assert!(findings.iter().all(forbidden), "{findings:#?}");
    let (code, findings) = check(&nobody, &["--pre"]);
    let missing: Vec<&str> = findings
        .iter()
        .filter(|finding| finding["name"] == "right-missing")
        .map(|finding| finding["object"]["kind"].as_str().unwrap())
        .collect();
    assert_eq!((code, missing.len()), (1, 28), "{findings:#?}");
    assert!(missing.contains(&"right to create deployments.apps in weir-system"), "{missing:?}");
    // The administrator may do everything; what is missing is the control plane.
    let (code, findings) = check(cluster.kubeconfig(), &["--pre"]);
    let names: Vec<&str> = findings.iter().map(|finding| finding["name"].as_str().unwrap()).collect();
    assert_eq!((code, names), (0, vec!["control-plane-missing"]), "{findings:#?}");
}
