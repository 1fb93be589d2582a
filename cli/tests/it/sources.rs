//! Sources of the settings of `weir inject`: files, an IstioOperator, a cluster.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use weir_apiserver::{ApiServer, FaultTarget, ServerFault};

use crate::run::{documents, file, inject, weir};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, annotations: {note: kept}}\nspec: {containers: [{name: app, image: nginx}]}\n";

fn pod(args: &[&str]) -> Value {
    documents(&inject(args, POD).stdout).remove(0)
}

fn proxy_image(pod: &Value) -> &str {
    let lists = [&pod["spec"]["initContainers"], &pod["spec"]["containers"]];
    let mut containers = lists.into_iter().filter_map(Value::as_array).flatten();
    containers
        .find(|container| container["name"] == "istio-proxy")
        .and_then(|proxy| proxy["image"].as_str())
        .expect("a proxy")
}

fn config_map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "istio-system"}, "data": data})
}

/// A cluster with a control plane, and one of revision `canary`.
fn cluster(folder: &Path) -> (ApiServer, String) {
    let server = ApiServer::start().expect("a port");
    let values = |tag: &str| json!({"global": {"hub": "cluster", "tag": tag}}).to_string();
    let config = "policy: disabled\ndefaultTemplates: [sidecar, mine]\ntemplates:\n  mine: |\n    metadata: {labels: {mine: \"{{ .Values.global.tag }}\"}}\n";
    server.put("configmaps", config_map("istio-sidecar-injector", &json!({"values": values("one"), "config": config})));
    server.put(
        "configmaps",
        config_map("istio-sidecar-injector-canary", &json!({"values": values("two"), "config": "{}"})),
    );
    server.put("configmaps", config_map("istio", &json!({"mesh": "trustDomain: of.cluster"})));
    server.put("configmaps", config_map("istio-canary", &json!({"mesh": "{}"})));
    for (name, version) in [("a", "v1.33.0"), ("b", "v1.34.1")] {
        let status = json!({"nodeInfo": {"kubeletVersion": version, "architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
            "kubeProxyVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""}});
        server.put("nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": status}));
    }
    let kubeconfig = server.kubeconfig(folder).expect("a kubeconfig");
    (server, kubeconfig.to_str().expect("UTF-8").to_owned())
}

#[test]
fn custom_template_is_rendered() {
    let folder = tempfile::tempdir().unwrap();
    let config = "templates:\n  mine: |\n    metadata: {labels: {image: \"{{ base (index .Spec.Containers 0).Image }}\"}}\ndefaultTemplates: [mine]\n";
    let config = file(folder.path(), "config.yaml", config);
    let got = pod(&["--injectConfigFile", &config]);
    assert_eq!(got["metadata"]["labels"], json!({"image": "nginx"}));
    assert_eq!(got["spec"].get("initContainers"), None, "only the template that the configuration makes the default");

    let bare = "metadata:\n  labels:\n{{- range .Spec.Containers }}\n    of: {{ .Name }}\n{{- end }}\n";
    let bare = file(folder.path(), "sidecar.tmpl", bare);
    assert_eq!(pod(&["--injectConfigFile", &bare])["metadata"]["labels"], json!({"of": "app"}));
}

#[test]
fn template_errors_have_lines() {
    let folder = tempfile::tempdir().unwrap();
    for (text, want) in [
        ("a: 1\nb: {{ nosuch }}\n", "weir: config: templates.sidecar: line 2: function \"nosuch\" not defined\n"),
        ("templates: {mine: '{{ if }}'}\n", "weir: config: templates.mine: line 1: "),
        ("policy: enabled\n templates: [\n", "broken"),
    ] {
        let path = file(folder.path(), "broken", text);
        let run = weir(&["inject", "-f", "-", "--injectConfigFile", &path], POD);
        assert!(run.code == 1 && run.stdout.is_empty() && run.stderr.contains(want), "{run:?}");
    }
    let path = file(folder.path(), "fails", "templates: {sidecar: '{{ fail (print `not ` .ObjectMeta.Name) }}'}");
    let run = weir(&["inject", "-f", "-", "--injectConfigFile", &path], POD);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert_eq!(
        run.stderr,
        "weir: standard input: document 1 (line 1): Pod \"web\": template \"sidecar\", line 1: not web\n"
    );
}

#[test]
fn operator_file_is_merged_over_documents() {
    let folder = tempfile::tempdir().unwrap();
    let operator = "kind: IstioOperator\nspec:\n  tag: of-operator\n  meshConfig: {trustDomain: of.operator}\n  values:\n    sidecarInjectorWebhook:\n      templates:\n        mine: |\n          metadata: {labels: {mine: \"yes\"}}\n      defaultTemplates: [sidecar, mine]\n";
    let operator = file(folder.path(), "iop.yaml", operator);
    let values = file(folder.path(), "values.yaml", "global: {hub: of-file, tag: of-file}");
    let got = pod(&["--operatorFileName", &operator, "--valuesFile", &values]);
    assert_eq!(proxy_image(&got), "of-file/proxyv2:of-operator");
    assert_eq!(got["metadata"]["labels"]["mine"], "yes");
    assert!(got.to_string().contains("of.operator"), "{got}");
    // Alone it is merged over the chart's values, where istio-init captures the traffic.
    assert_eq!(pod(&["--operatorFileName", &operator])["spec"]["initContainers"][0]["name"], "istio-init");

    let run = weir(&["inject", "-f", "-", "--operatorFileName", &values], POD);
    assert_eq!(
        (run.code, run.stderr.as_str()),
        (1, "weir: --operatorFileName: kind is null, expected IstioOperator\n")
    );
}

#[test]
fn namespace_option_applies_to_objects_without_one() {
    let got = pod(&["--namespace", "shop"]);
    assert!(got.to_string().contains("kubernetes://apis/v1/namespaces/shop/pods/web"), "{got}");
    assert_eq!(got["metadata"].get("namespace"), None, "it is not written");
    assert!(inject(&["-n", "kube-system"], POD).stderr.contains("Skipping injection"));
}

#[test]
fn missing_documents_come_from_the_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let (server, kubeconfig) = cluster(folder.path());
    let got = pod(&["--kubeconfig", &kubeconfig]);
    assert_eq!(proxy_image(&got), "cluster/proxyv2:one");
    assert_eq!(got["metadata"]["labels"]["mine"], "one", "the policy is not followed, the templates are");
    assert!(got.to_string().contains("of.cluster"), "{got}");
    assert_eq!(got["spec"]["initContainers"][1]["name"], "istio-proxy", "all nodes run native sidecars");

    assert_eq!(proxy_image(&pod(&["-c", &kubeconfig, "-r", "canary"])), "cluster/proxyv2:two");
    let by_name = pod(&[
        "-c",
        &kubeconfig,
        "--injectConfigMapName",
        "istio-sidecar-injector-canary",
        "--meshConfigMapName",
        "istio",
    ]);
    assert_eq!(proxy_image(&by_name), "cluster/proxyv2:two");

    let old = json!({"nodeInfo": {"kubeletVersion": "v1.28.0", "architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
        "kubeProxyVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""}});
    server.put("nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "old"}, "status": old}));
    let classic = pod(&["-c", &kubeconfig]);
    assert_eq!(classic["spec"]["containers"][1]["name"], "istio-proxy", "one node is too old");
}

#[test]
fn given_documents_are_not_read_from_the_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let (server, kubeconfig) = cluster(folder.path());
    let values = file(folder.path(), "values.yaml", "global: {hub: file, tag: t}");
    let empty = file(folder.path(), "empty.yaml", "policy: enabled");
    let got =
        pod(&["-c", &kubeconfig, "--valuesFile", &values, "--injectConfigFile", &empty, "--native-sidecars", "true"]);
    assert_eq!(proxy_image(&got), "file/proxyv2:t");
    assert_eq!(server.requests(), ["GET /api/v1/namespaces/istio-system/configmaps/istio"].map(str::to_owned).to_vec());
}

#[test]
fn own_config_map_is_the_fallback() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start().expect("a port");
    let values = json!({"global": {"hub": "ours", "tag": "1"}}).to_string();
    let mut map = config_map("weir-webhook", &json!({"values": values, "mesh": "trustDomain: of.weir"}));
    map["metadata"]["namespace"] = "weir-system".into();
    server.put("configmaps", map);
    let kubeconfig = server.kubeconfig(folder.path()).expect("a kubeconfig");
    let got = pod(&["-c", kubeconfig.to_str().unwrap(), "--native-sidecars", "true"]);
    assert_eq!(got["spec"]["initContainers"][1]["image"], "ours/proxyv2:1", "{got}");
    assert!(got.to_string().contains("of.weir"), "{got}");
}

#[test]
fn cluster_errors_have_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let (server, kubeconfig) = cluster(folder.path());
    let refused = |args: &[&str]| {
        let run = weir(&[&["inject", "-f", "-"], args].concat(), POD);
        assert!(run.code == 2 && run.stdout.is_empty(), "{run:?}");
        run.stderr
    };
    let stderr = refused(&["-c", &kubeconfig, "--context", "other"]);
    assert!(stderr.contains("has no context \"other\"; contexts: test"), "{stderr}");
    let stderr = refused(&["-c", &kubeconfig, "-r", "nosuch"]);
    assert!(stderr.contains("ConfigMap istio-system/istio-sidecar-injector-nosuch not found"), "{stderr}");
    assert!(
        stderr.contains("has istio-sidecar-injector, istio-sidecar-injector-canary; choose one with --revision"),
        "{stderr}"
    );
    assert!(stderr.contains("ConfigMap istio-system/istio-nosuch not found"), "both are reported: {stderr}");
    let stderr = refused(&["-c", &kubeconfig, "-i", "elsewhere"]);
    assert!(stderr.contains("namespace elsewhere has no similar one; pass --istioNamespace"), "{stderr}");
    let stderr = refused(&["-c", "/nonexistent/config"]);
    assert!(stderr.contains("cannot read kubeconfig /nonexistent/config"), "{stderr}");

    server.inject_fault(FaultTarget::Always, ServerFault::Status(403), 100);
    let stderr = refused(&["-c", &kubeconfig]);
    assert!(stderr.contains("cannot read ConfigMap istio-system/istio-sidecar-injector: forbidden ("), "{stderr}");
    assert!(stderr.contains("pass --valuesFile and --injectConfigFile instead"), "{stderr}");
    assert!(stderr.contains("pass --native-sidecars true or false instead"), "{stderr}");
    server.clear_faults();
    server.inject_fault(FaultTarget::Always, ServerFault::Status(401), 100);
    assert!(refused(&["-c", &kubeconfig]).contains("unauthorized (401"));
    server.clear_faults();
    drop(server);
    assert!(refused(&["-c", &kubeconfig]).contains("cannot read ConfigMap istio-system/istio"));
}

#[test]
fn unresponsive_cluster_times_out() {
    let folder = tempfile::tempdir().unwrap();
    let (server, kubeconfig) = cluster(folder.path());
    server.inject_fault(FaultTarget::Always, ServerFault::Hang, 100);
    let begun = std::time::Instant::now();
    let run = weir(&["inject", "-f", "-", "-c", &kubeconfig], POD);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
    assert!(begun.elapsed() < Duration::from_mins(2), "{run:?}");
}

#[test]
fn missing_config_map_key_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (server, kubeconfig) = cluster(folder.path());
    server.put("configmaps", config_map("istio", &json!({"meshNetworks": "", "other": ""})));
    let run = weir(&["inject", "-f", "-", "-c", &kubeconfig], POD);
    assert_eq!(run.code, 1);
    assert_eq!(run.stderr, "weir: ConfigMap istio-system/istio has no key \"mesh\"; keys: meshNetworks, other\n");
}
