//! `weir support-bundle`: what is in the archive, and that no secret is.

use std::io::Read as _;

use serde_json::json;
use weir_apiserver::ApiServer;

use crate::run::weir;

/// A text that must not leave the cluster, in every place where one could be.
const SECRET: &str = "hunter2hunter2";

fn cluster() -> ApiServer {
    let server = ApiServer::cluster().unwrap();
    let labels = json!({"app.kubernetes.io/part-of": "weir", "app.kubernetes.io/name": "weir-webhook"});
    for namespace in ["weir-system", "weir-node"] {
        server.put(
            "namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}),
        );
    }
    let applied =
        json!({"kubectl.kubernetes.io/last-applied-configuration": json!({"data": {"x": SECRET}}).to_string()});
    let metadata =
        |name: &str| json!({"name": name, "namespace": "weir-system", "labels": labels, "annotations": applied});
    server.put(
        "secrets",
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata("weir-webhook-ca"),
        "data": {"ca.key": SECRET}, "stringData": {"plain": SECRET}}),
    );
    server.put(
        "configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("weir-webhook"), "data": {
            "mesh": format!("trustDomain: kept.example\nclientSecret: {SECRET}\n"),
            "values": json!({"global": {"registryToken": SECRET}}).to_string(),
            "key": format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"),
        }}),
    );
    let container = json!({"name": "webhook", "image": "r.example/weir-webhook:1", "args": [format!("--api-token={SECRET}")],
        "env": [{"name": "PROXY_PASSWORD", "value": SECRET}, {"name": "HTTPS_PROXY", "value": format!("http://u:{SECRET}@proxy:3128")}]});
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [container]}});
    server.put(
        "deployments",
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("weir-webhook"),
        "spec": {"replicas": 1, "template": template}}),
    );
    server.put("pods", json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata("weir-webhook-1"), "spec": {"containers": [container]},
        "status": {"containerStatuses": [{"name": "webhook", "restartCount": 1}]}}));
    server.put("events", json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "weir-system"},
        "involvedObject": {"kind": "Pod", "name": "weir-webhook-1"}, "reason": "Failed", "message": format!("Authorization: Bearer {SECRET}")}));
    let log = format!(
        "INFO ready\nDEBUG token=\"{SECRET}\"\nWARN eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.{SECRET}\n"
    );
    server.set_pod_log("weir-system", "weir-webhook-1", &log);
    server
}

/// Returns the paths in an archive, below its folder, and all of its content.
fn unpack(archive: &[u8]) -> (Vec<String>, String) {
    let mut paths = Vec::new();
    let mut content = String::new();
    for entry in tar::Archive::new(flate2::read::GzDecoder::new(archive)).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let (folder, path) = path.split_once('/').unwrap();
        assert!(folder.starts_with("weir-support-"), "{folder}");
        paths.push(path.to_owned());
        entry.read_to_string(&mut content).unwrap();
    }
    (paths, content)
}

#[test]
fn no_secret_is_in_the_bundle() {
    let server = cluster();
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = server.kubeconfig(folder.path()).unwrap();
    let target = folder.path().join("bundle.tar.gz");
    let (kubeconfig, file) = (kubeconfig.to_str().unwrap(), target.to_str().unwrap());
    let run = weir(&["support-bundle", "--kubeconfig", kubeconfig, "--output-file", file], "");
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.starts_with(file), "{}", run.stdout);
    let (paths, content) = unpack(&std::fs::read(&target).unwrap());
    assert!(
        !content.contains(SECRET),
        "{}",
        content.lines().filter(|line| line.contains(SECRET)).collect::<Vec<_>>().join("\n")
    );
    for path in [
        "versions.json",
        "check.json",
        "objects/deployments.json",
        "objects/configmaps.json",
        "objects/pods.json",
        "objects/secrets-weir-system.json",
        "events-weir-system.json",
        "logs/weir-system/weir-webhook-1-webhook.log",
        "logs/weir-system/weir-webhook-1-webhook-previous.log",
    ] {
        assert!(paths.iter().any(|found| found == path), "{path} is not in {paths:?}");
    }
    for kept in
        ["INFO ready", "weir-webhook-ca", "r.example/weir-webhook:1", "trustDomain: kept.example", "PROXY_PASSWORD"]
    {
        assert!(content.contains(kept), "{kept}");
    }
}

#[test]
fn what_cannot_be_read_is_listed() {
    let server = cluster();
    server.authorize(|access| access.resource != "secrets" && access.subresource != "log");
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = server.kubeconfig(folder.path()).unwrap();
    let target = folder.path().join("bundle.tar.gz");
    let run =
        weir(&["support-bundle", "--kubeconfig", kubeconfig.to_str().unwrap(), "-w", target.to_str().unwrap()], "");
    assert_eq!(run.code, 0, "{}", run.stderr);
    let (paths, content) = unpack(&std::fs::read(&target).unwrap());
    assert!(paths.contains(&"errors.txt".to_owned()), "{paths:?}");
    for error in ["secrets of weir-system: ", "log of weir-system/weir-webhook-1 webhook: "] {
        assert!(content.contains(error), "{error}: {content}");
    }
    // Nothing is left behind where the cluster cannot be reached.
    let nowhere = folder.path().join("nowhere.tar.gz");
    let run = weir(&["support-bundle", "--kubeconfig", "/nonexistent", "-w", nowhere.to_str().unwrap()], "");
    assert!(run.code == 2 && !nowhere.exists(), "{}", run.stderr);
}
