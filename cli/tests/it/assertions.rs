//! `weir assert`.

use serde_json::{Value, json};
use weir_apiserver::ApiServer;

use crate::run::{Run, file, serve_pods, weir};

const POLICY: &str = "\
apiVersion: weir.dev/v1alpha1
kind: CaptureAssertion
metadata: {name: pci}
spec:
  namespaceSelector: {matchLabels: {pci: 'true'}}
  rules:
  - {name: outbound, direction: outbound, must: captured}
  - {name: database, direction: outbound, ports: [3306], must: captured}
  - {name: not everything is excluded, direction: outbound, ipFamilies: [IPv4], scope: some, must: captured}
  - {name: inbound, direction: inbound, must: captured}
";

fn namespace(name: &str, pci: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"pci": pci}}})
}

fn deployment(namespace: &str, name: &str, annotations: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
    "spec": {"template": {
        "metadata": {"labels": {"app": name}, "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    }}})
}

fn assert_files(policy: &str, objects: &[Value], args: &[&str]) -> Run {
    let directory = tempfile::tempdir().unwrap();
    let policy = file(directory.path(), "policy.yaml", policy);
    let stream: Vec<String> = objects.iter().map(Value::to_string).collect();
    let manifest = file(directory.path(), "manifest.yaml", &stream.join("\n---\n"));
    weir(&[&["assert", "-f", &policy, &manifest], args].concat(), "")
}

fn document(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{}{}", run.stdout, run.stderr))
}

/// Lists the verdicts of a workload's rules.
fn verdicts(workload: &Value) -> Vec<(&str, &str)> {
    let results = workload["results"].as_array().unwrap().iter();
    results.map(|result| (result["rule"].as_str().unwrap_or(""), result["verdict"].as_str().unwrap())).collect()
}

#[test]
fn default_pod_captures_what_the_policy_demands() {
    let objects = [namespace("shop", "true"), deployment("shop", "web", &json!({}))];
    let run = assert_files(POLICY, &objects, &[]);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("  assumed: ") && run.stdout.ends_with("=> 1 proved\n"), "{}", run.stdout);
    // In a pod with both families, the proxy would have to accept IPv6.
    let run = assert_files(POLICY, &objects, &["--dual-stack"]);
    assert_eq!(run.code, 1);
    assert!(run.stdout.contains("outbound IPv6 TCP") && !run.stdout.contains("IPv4 TCP"), "{}", run.stdout);
}

#[test]
fn violations_name_traffic_and_setting() {
    let excluded = json!({"traffic.sidecar.istio.io/excludeOutboundPorts": "15020,3306"});
    let everything = json!({"traffic.sidecar.istio.io/excludeOutboundIPRanges": "0.0.0.0/0"});
    let skipped = json!({"sidecar.istio.io/inject": "false"});
    let objects = [
        namespace("shop", "true"),
        namespace("blog", "false"),
        deployment("shop", "web", &excluded),
        deployment("shop", "all", &everything),
        deployment("shop", "bare", &skipped),
        deployment("blog", "web", &excluded),
    ];
    let run = assert_files(POLICY, &objects, &["-o", "json"]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    let document = document(&run);
    let workloads = document["workloads"].as_array().unwrap();
    assert_eq!((workloads.len(), &document["unselectedWorkloads"]), (3, &json!(1)));
    assert_eq!(
        verdicts(&workloads[0]),
        [
            ("outbound", "violated"),
            ("database", "violated"),
            ("not everything is excluded", "holds"),
            ("inbound", "holds")
        ]
    );
    let class = &workloads[0]["results"][0]["violations"][0]["classes"][0];
    assert_eq!(class["conditions"]["destinationPort"], "3306");
    assert_eq!(class["setting"], "traffic.sidecar.istio.io/excludeOutboundPorts");
    assert_eq!(class["witness"]["destinationPort"], 3306);
    assert_eq!(verdicts(&workloads[1])[2], ("not everything is excluded", "violated"));
    assert!(verdicts(&workloads[2]).iter().all(|(_, verdict)| *verdict == "violated"), "{:#}", workloads[2]);
    assert!(workloads[2]["origin"].as_str().unwrap().starts_with("no rules"));

    let run = assert_files(POLICY, &objects, &["-o", "sarif"]);
    let results = serde_json::from_str::<Value>(&run.stdout).unwrap()["runs"][0]["results"].clone();
    assert_eq!(results[0]["ruleId"], "assertion-violated");
    assert!(results[0]["message"]["text"].as_str().unwrap().contains("pci: outbound"), "{results:#}");
    assert_eq!(results[0]["locations"][0]["physicalLocation"]["region"]["startLine"], 5);
    let html = assert_files(POLICY, &objects, &["-o", "html"]).stdout;
    assert!(html.starts_with("<!doctype html>") && html.contains("Deployment &quot;shop/web&quot;"), "{html}");
}

#[test]
fn unknown_namespace_labels_are_undecided() {
    let run = assert_files(POLICY, &[deployment("shop", "web", &json!({}))], &["-o", "json"]);
    assert_eq!(run.code, 1);
    let result = &document(&run)["workloads"][0]["results"][0];
    assert_eq!(result["verdict"], "undecided");
    assert!(result["undecided"][0].as_str().unwrap().contains("labels of namespace shop are unknown"), "{result:#}");
    // Without a selector of namespaces, they are not needed.
    let policy = POLICY.replace("namespaceSelector", "selector").replace("pci: 'true'", "app: web");
    let run = assert_files(&policy, &[deployment("shop", "web", &json!({}))], &[]);
    assert_eq!(run.code, 0, "{}", run.stdout);
    let run = assert_files(&policy, &[deployment("shop", "db", &json!({}))], &[]);
    assert_eq!((run.code, run.stdout.as_str()), (0, "=> 1 not selected\n"));
    assert!(run.stderr.contains("CaptureAssertion pci selects no workload"), "{}", run.stderr);
}

#[test]
fn policy_errors_are_named_with_file_and_line() {
    let run = assert_files("kind: CaptureAssertion\n---\nspec: 7\n", &[], &[]);
    assert_eq!(run.code, 1);
    for part in
        ["policy.yaml: document 1 (line 1): apiVersion must be", "policy.yaml: document 2 (line 3): spec must be"]
    {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    assert_eq!(weir(&["assert", "-f", "-", "-"], "").code, 2);
    assert_eq!(weir(&["assert", "-f", "/nonexistent", "--live"], "").code, 2);
}

/// A pod as a cluster has it.
fn pod(name: &str, annotations: &Value, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}, "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "app"}, {"name": "istio-proxy", "image": "proxy"}], "nodeName": "n1"},
        "status": {"phase": "Running", "podIPs": addresses}})
}

#[test]
fn running_pods_are_judged_with_evidence_of_the_agents() {
    let server = ApiServer::cluster().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = server.kubeconfig(directory.path()).unwrap();
    let policy = file(directory.path(), "policy.yaml", POLICY);
    let check = || {
        let arguments = ["assert", "-f", &policy, "--live", "-o", "json", "--kubeconfig", kubeconfig.to_str().unwrap()];
        let run = weir(&arguments, "");
        let found: Vec<(String, String, Value)> = document(&run)["workloads"]
            .as_array()
            .unwrap()
            .iter()
            .map(|workload| {
                let text = |key: &str| workload[key].as_str().unwrap().to_owned();
                (text("name"), text("verdict"), workload["evidence"].clone())
            })
            .collect();
        (run, found)
    };
    server.put("namespaces", namespace("shop", "true"));
    let captured = json!({"sidecar.istio.io/status": "{}"});
    let excluded = json!({"sidecar.istio.io/status": "{}", "traffic.sidecar.istio.io/excludeOutboundPorts": "3306"});
    server.put("pods", pod("captured", &captured, &["10.0.0.1"]));
    // IPv6 traffic of a pod with both families is not captured; one with IPv4 alone has none.
    server.put("pods", pod("dual", &captured, &["10.0.0.2", "fd00::2"]));
    server.put("pods", pod("excluded", &excluded, &["10.0.0.3"]));
    server.put("pods", pod("bare", &json!({}), &["10.0.0.4"]));
    server.put("pods", pod("flushed", &captured, &["10.0.0.5"]));
    let (run, found) = check();
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("no evidence from the kernel"), "{}", run.stderr);
    let verdicts: Vec<(&str, &str)> =
        found.iter().map(|(name, verdict, _)| (name.as_str(), verdict.as_str())).collect();
    for wanted in [
        ("Pod \"shop/captured\"", "holds"),
        ("Pod \"shop/dual\"", "violated"),
        ("Pod \"shop/excluded\"", "violated"),
        ("Pod \"shop/bare\"", "violated"),
        ("Pod \"shop/flushed\"", "holds"),
    ] {
        assert!(verdicts.contains(&wanted), "{wanted:?}: {verdicts:?}");
    }

    let mut agent = pod("weir-agent-1", &json!({}), &["10.0.0.9"]);
    agent["metadata"]["namespace"] = "weir-node".into();
    agent["metadata"]["labels"] = json!({"app.kubernetes.io/name": "weir-agent"});
    server.put("namespaces", namespace("weir-node", "false"));
    server.put("pods", agent);
    let states = [("shop", "captured", "ok"), ("shop", "excluded", "ok"), ("shop", "flushed", "missing")];
    server.set_pod_address("weir-node", "weir-agent-1", 15034, serve_pods("n1", &states));
    let (_, found) = check();
    let of = |pod: &str| found.iter().find(|(name, ..)| *name == format!("Pod \"shop/{pod}\"")).unwrap().clone();
    assert_eq!(of("captured").2, "in place in the kernel, says the agent of node n1");
    let (_, verdict, evidence) = of("flushed");
    assert_eq!((verdict.as_str(), evidence), ("undecided", json!("these rules are not in place: missing on node n1")));
    assert_eq!((of("bare").1.as_str(), of("bare").2), ("violated", Value::Null));
}
