//! `weir explain inject`.

use serde_json::{Value, json};
use weir_apiserver::ApiServer;

use crate::run::{file, weir};

fn pod(labels: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: shop, labels: {{{labels}}}}}\nspec: {{{spec}containers: [{{name: app, image: i}}]}}\n"
    )
}

fn explained(args: &[&str], manifest: &str) -> Value {
    let run = weir(&[&["explain", "inject", "-f", "-", "--format", "json"], args].concat(), manifest);
    assert_eq!(run.code, 0, "{}", run.stderr);
    serde_json::from_str::<Value>(&run.stdout).unwrap()["pods"][0].clone()
}

#[test]
fn namespace_labels_option_overrides_the_manifest() {
    let namespace =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio-injection: enabled}}\n---\n";
    let manifest = format!("{namespace}{}", pod("app: a", ""));
    let pod = explained(&[], &manifest);
    assert_eq!((&pod["selection"]["sent"], &pod["decision"]["inject"]), (&true.into(), &true.into()));
    let selecting = pod["selection"]["entries"].as_array().unwrap().iter().filter(|entry| entry["selects"] == true);
    assert_eq!(
        selecting.map(|entry| entry["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["namespace.sidecar-injector.weir.dev"]
    );
    assert_eq!(pod["decision"]["decidedBy"], "policy");
    assert_eq!(pod["result"]["initContainers"], serde_json::json!(["istio-validation", "istio-proxy"]));

    let pod = explained(&["--namespace-labels", "istio-injection=disabled,team=a"], &manifest);
    assert_eq!(pod["selection"]["sent"], false);
    assert_eq!(pod["namespaceLabels"]["team"], "a");
    assert!(
        pod["selection"]["reason"].as_str().unwrap().starts_with("label istio-injection=disabled of the namespace")
    );
}

#[test]
fn cluster_gives_namespace_labels_and_webhook_entries() {
    let server = ApiServer::cluster().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = server.kubeconfig(dir.path()).unwrap();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let values = file(dir.path(), "values.yaml", "{global: {hub: h, tag: t}}");
    let mesh = file(dir.path(), "mesh.yaml", "{}");
    let config = file(dir.path(), "config.yaml", "{policy: enabled}");
    let files = [
        "--valuesFile",
        &values,
        "--meshConfigFile",
        &mesh,
        "--injectConfigFile",
        &config,
        "--native-sidecars",
        "true",
    ];
    let explain = || explained(&[&["--kubeconfig", kubeconfig], &files[..]].concat(), &pod("app: a", ""));
    let labels = json!({"istio-injection": "enabled", "kubernetes.io/metadata.name": "shop"});
    server.put(
        "namespaces",
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}}),
    );

    let none = explain();
    assert_eq!(
        (&none["selection"]["sent"], &none["namespaceLabels"]["istio-injection"]),
        (&false.into(), &"enabled".into())
    );
    assert!(none["selection"]["reason"].as_str().unwrap().contains("no webhook configuration weir-sidecar-injector"));
    assert_eq!(
        weir(&["install", "-y", "--set", "images.hub=r.example", "--wait=false", "--kubeconfig", kubeconfig], "").code,
        0
    );
    let sent = explain();
    assert_eq!(sent["selection"]["sent"], true, "{sent:#}");
    let entries = sent["selection"]["entries"].as_array().unwrap();
    let selecting: Vec<&str> =
        entries.iter().filter(|entry| entry["selects"] == true).map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(selecting, ["weir-sidecar-injector: namespace.sidecar-injector.weir.dev"]);

    // What an administrator has changed counts, not what this release would install.
    let mut changed = server.get("mutatingwebhookconfigurations", "", "weir-sidecar-injector").unwrap();
    for entry in changed["webhooks"].as_array_mut().unwrap() {
        let terms = entry["namespaceSelector"]["matchExpressions"].as_array_mut().unwrap();
        terms.push(json!({"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["shop"]}));
    }
    server.put("mutatingwebhookconfigurations", changed);
    let excluded = explain();
    assert_eq!(excluded["selection"]["sent"], false);
    assert!(
        excluded["selection"]["reason"].as_str().unwrap().contains("no installed webhook entry selects it"),
        "{excluded:#}"
    );
}

#[test]
fn misspelt_annotation_is_warned_about_with_its_likely_name() {
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {traffic.sidecar.istio.io/includeInboundPort: '80'}}\nspec: {containers: [{name: app, image: i}]}\n";
    let warnings = explained(&["--namespace-labels", "istio-injection=enabled"], manifest)["warnings"].to_string();
    assert!(warnings.contains("did you mean 'traffic.sidecar.istio.io/includeInboundPorts'?"), "{warnings}");
}

#[test]
fn deciding_rule_is_named_with_a_remedy() {
    let values = |text: &str, directory: &std::path::Path| file(directory, "values.yaml", text);
    let directory = tempfile::tempdir().unwrap();
    let disabled = values("{global: {hub: h, tag: t, proxy: {autoInject: disabled}}}", directory.path());
    for (labels, spec, args, rule, reason) in [
        ("app: a", "hostNetwork: true, ", vec![], "host_network", "host_network"),
        ("sidecar.istio.io/inject: 'false'", "", vec![], "own_word", "explicitly_off"),
        ("app: a", "", vec!["--valuesFile", disabled.as_str()], "policy", "policy_disabled"),
        ("app: a", "nodeSelector: {kubernetes.io/os: windows}, ", vec![], "windows", "windows"),
    ] {
        let pod = explained(&args, &pod(labels, spec));
        let decision = &pod["decision"];
        assert_eq!((&decision["inject"], &decision["decidedBy"]), (&false.into(), &rule.into()), "{pod:#}");
        assert_eq!(decision["reason"], reason);
        assert!(!decision["remedy"].as_str().unwrap().is_empty());
        assert_eq!(decision["rules"].as_array().unwrap().last().unwrap()["outcome"], "skip");
        assert_eq!(pod["result"], Value::Null);
    }
}

#[test]
fn revisions_and_tags_select_pods() {
    let manifest = pod("'istio.io/rev': canary", "");
    assert_eq!(explained(&["--revision", "r1"], &manifest)["selection"]["sent"], false);
    assert_eq!(explained(&["--revision", "r1", "--tags", "stable,canary"], &manifest)["selection"]["sent"], true);
    let enabled = ["--revision", "r1", "--namespace-labels", "istio-injection=enabled"];
    assert_eq!(explained(&enabled, &manifest)["selection"]["sent"], false);
    assert_eq!(explained(&[&enabled[..], &["--tags", "default"]].concat(), &manifest)["selection"]["sent"], true);
    assert_eq!(
        explained(&["--namespace-labels", "istio-injection=enabled", "--deactivated"], &manifest)["selection"]["sent"],
        false
    );
    assert_eq!(explained(&["--enable-namespaces-by-default"], &pod("app: a", ""))["selection"]["sent"], true);
}

#[test]
fn denied_pod_is_explained() {
    let manifest = pod("app: a", "").replace("labels:", "annotations: {status.sidecar.istio.io/port: http}, labels:");
    let pod = explained(&[], &manifest);
    assert_eq!(pod["decision"]["inject"], true);
    assert!(pod["result"]["refused"][0].as_str().unwrap().contains("status.sidecar.istio.io/port"), "{pod:#}");
}

#[test]
fn injected_pod_is_explained_like_the_original() {
    let manifest = pod("app: a", "");
    let injected = crate::run::inject(&[], &manifest).stdout;
    assert_eq!(explained(&[], &injected), explained(&[], &manifest));
}

#[test]
fn invalid_labels_are_errors() {
    let run = weir(&["explain", "inject", "-f", "-", "--namespace-labels", "istio-injection"], &pod("app: a", ""));
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("NAME=VALUE"), "{}", run.stderr);
}
