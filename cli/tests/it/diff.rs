//! `weir diff`.

use iptables_rules::{CaptureConfig, plan};
use serde_json::{Value, json};
use weir_apiserver::ApiServer;
use weir_kernel::nft;
use weir_lab::Netns;

use crate::run::{Run, serve_pods, weir};

const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";

/// Files of one comparison.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn diff(&self, old: &str, new: &str, args: &[&str]) -> Run {
        let (old, new) = (self.write("old", old), self.write("new", new));
        weir(&[&["diff", &old, &new], args].concat(), "")
    }
}

fn manifest(name: &str, annotations: &Value) -> String {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"template": {
        "metadata": {"labels": {"app": name}, "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    }}})
    .to_string()
}

fn document(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{}{}", run.stdout, run.stderr))
}

#[test]
fn traffic_that_is_no_longer_captured_fails() {
    let files = Files::new();
    let (plain, excluded) =
        (manifest("web", &json!({})), manifest("web", &json!({EXCLUDE_OUTBOUND_PORTS: "15020,3306"})));
    let run = files.diff(&plain, &excluded, &["-o", "json"]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    let workload = &document(&run)["workloads"][0];
    assert_eq!((&workload["name"], &workload["verdict"]), (&json!("Deployment \"web\""), &json!("different")));
    let bypass = &workload["changes"][0];
    assert_eq!((&bypass["kind"], &bypass["before"]["port"]), (&json!("bypass"), &json!(15001)));
    let class = &bypass["classes"][0];
    assert_eq!(class["conditions"]["destinationPort"], "3306");
    assert_eq!(class["setting"], EXCLUDE_OUTBOUND_PORTS);
    assert_eq!(files.diff(&plain, &excluded, &["--fail-on", "none"]).code, 0);
    // The other way round, nothing is lost.
    let run = files.diff(&excluded, &plain, &[]);
    assert!(
        run.code == 0 && run.stdout.contains("newly captured (not captured -> captured on port 15001)"),
        "{}",
        run.stdout
    );
    assert_eq!(files.diff(&excluded, &plain, &["--fail-on", "any"]).code, 1);
}

#[test]
fn two_configurations_of_the_injector_are_compared() {
    let files = Files::new();
    let manifest = files.write("web.yaml", &manifest("web", &json!({})));
    let values = |name: &str, tag: &str, ports: &str, resources: &str| {
        let text = format!(
            "{{pilot: {{cni: {{enabled: true}}}}, global: {{hub: r.example/istio, tag: {tag:?}, \
             proxy: {{excludeOutboundPorts: {ports:?}, resources: {resources}}}}}}}"
        );
        files.write(name, &text)
    };
    let old = values("old", "1.27.0", "", "{limits: {cpu: '2'}, requests: {cpu: 100m}}");
    let new = values("new", "1.28.0", "3306", "{requests: {cpu: 100m}}");
    let diff = |args: &[&str]| weir(&[&["diff", &manifest, "--valuesFile", &new], args].concat(), "");
    let run = diff(&["--old-valuesFile", &old]);
    assert_eq!(run.code, 1, "{}{}", run.stdout, run.stderr);
    for part in [
        "no longer captured",
        "port 3306",
        "container istio-proxy: image: \"r.example/istio/proxyv2:1.27.0\" -> \"r.example/istio/proxyv2:1.28.0\"",
        "container istio-proxy: resources: ",
        "annotation weir.dev/capture: ",
        "web.yaml with the old settings -> ",
    ] {
        assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
    }
    // With istio-init, its arguments say what is captured.
    for file in [&old, &new] {
        let text = std::fs::read_to_string(file).unwrap();
        std::fs::write(file, text.replace("enabled: true", "enabled: false")).unwrap();
    }
    let init = diff(&["--old-valuesFile", &old]);
    assert!(init.code == 1 && init.stdout.contains("port 3306"), "{}{}", init.stdout, init.stderr);
    let same = diff(&["--old-valuesFile", &new, "-o", "json"]);
    let workload = &document(&same)["workloads"][0];
    assert_eq!((same.code, &workload["verdict"], &workload["podChanges"]), (0, &json!("equal"), &json!([])));
    assert!(diff(&["-o", "json"]).stderr.contains("settings of OLD"));
    let html = diff(&["--old-valuesFile", &old, "-o", "html"]).stdout;
    assert!(html.contains("The injected pod") && html.contains("proxyv2:1.27.0"), "{html}");
}

#[test]
fn workloads_are_compared_by_name() {
    let files = Files::new();
    let stream = |names: &[&str]| names.iter().map(|name| manifest(name, &json!({})) + "\n---\n").collect::<String>();
    let run = files.diff(&stream(&["a", "b", "c"]), &stream(&["c", "d", "a"]), &["-o", "json"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let document = document(&run);
    let verdicts = document["workloads"].as_array().unwrap().iter();
    let verdicts: Vec<_> =
        verdicts.map(|one| (one["name"].as_str().unwrap(), one["verdict"].as_str().unwrap())).collect();
    assert_eq!(
        verdicts,
        [
            ("Deployment \"c\"", "equal"),
            ("Deployment \"d\"", "added"),
            ("Deployment \"a\"", "equal"),
            ("Deployment \"b\"", "removed"),
        ]
    );
}

#[test]
fn sarif_points_to_the_workload() {
    let files = Files::new();
    let other = manifest("other", &json!({}));
    let old = format!("{other}\n---\n{}\n", manifest("web", &json!({})));
    let new =
        format!("{other}\n---\n{}\n", manifest("web", &json!({"traffic.sidecar.istio.io/excludeInboundPorts": "80"})));
    let run = files.diff(&old, &new, &["-o", "sarif"]);
    assert_eq!(run.code, 1);
    let document = document(&run);
    assert_eq!(document["version"], "2.1.0");
    let result = &document["runs"][0]["results"][0];
    assert_eq!((&result["ruleId"], &result["level"]), (&json!("traffic-bypass"), &json!("error")));
    let place = &result["locations"][0]["physicalLocation"];
    assert_eq!(place["region"]["startLine"], 3);
    assert!(place["artifactLocation"]["uri"].as_str().unwrap().ends_with("/new"), "{place}");
    assert!(result["message"]["text"].as_str().unwrap().contains("to port 80"), "{result}");
}

#[test]
fn saved_rules_are_compared_with_annotations() {
    let files = Files::new();
    let annotations = json!({EXCLUDE_OUTBOUND_PORTS: "15020,3306"}).to_string();
    let input = files.write("annotations", &annotations);
    let saved = weir(&["rules", "--annotations", &input], "").stdout;
    let run = files.diff(&saved, &annotations, &["--fail-on", "any"]);
    assert!(
        run.code == 0 && run.stdout.contains("no change: every packet is treated alike"),
        "{}{}",
        run.stdout,
        run.stderr
    );
    // One family alone.
    let v4 = saved.split("# ip6tables").next().unwrap();
    let run = files.diff(v4, &annotations, &["--fail-on", "any"]);
    assert!(run.code == 0 && run.stdout.contains("note: IPv6 is not compared"), "{}{}", run.stdout, run.stderr);
    let run = files.diff(&saved, "{}", &[]);
    assert!(run.code == 0 && run.stdout.contains("newly captured"), "{}{}", run.stdout, run.stderr);
}

#[test]
fn rules_that_are_not_understood_are_no_guess() {
    let files = Files::new();
    let rule = "-A OUTPUT -p tcp -m set --match-set mesh dst -j RETURN";
    let saved = format!("*nat\n:OUTPUT ACCEPT [0:0]\n{rule}\nCOMMIT\n");
    let run = files.diff(&saved, &saved, &[]);
    assert_eq!(run.code, 1);
    assert!(run.stdout.contains("cannot be decided") && run.stdout.contains("--match-set mesh dst"), "{}", run.stdout);
    for (text, message) in [
        ("*nat\n-R OUTPUT 1 -j RETURN\n", "cannot parse \"-R OUTPUT 1 -j RETURN\""),
        ("*nat\nCOMMIT\n*nat\nCOMMIT\n", "line 3: table nat comes again"),
    ] {
        let run = files.diff(text, "{}", &[]);
        assert!(run.code == 1 && run.stderr.contains(message), "{}", run.stderr);
    }
}

/// As an empty manifest, it would pass for one whose pods are gone.
#[test]
fn text_of_no_known_kind_is_refused() {
    let files = Files::new();
    let plain = manifest("web", &json!({}));
    for (old, new) in [("garbage", plain.as_str()), (&plain, "garbage"), (&plain, "- a\n- b\n")] {
        let run = files.diff(old, new, &[]);
        assert_eq!(run.code, 1, "{}{}", run.stdout, run.stderr);
        assert!(run.stderr.contains("neither a manifest, annotations nor a text of iptables-save"), "{}", run.stderr);
    }
    assert_eq!(files.diff(&plain, "# the service has moved\n", &[]).code, 0);
}

#[test]
fn wrong_numbers_of_inputs_are_usage_errors() {
    let files = Files::new();
    let file = files.write("one", &manifest("web", &json!({})));
    for args in [&["diff", &file][..], &["diff", "-", "-"], &["diff", "--pid", "1", &file, &file]] {
        let run = weir(args, "");
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{args:?}: {}", run.stderr);
    }
    let two = format!("{}\n---\n{}\n", manifest("a", &json!({})), manifest("b", &json!({})));
    let run = files.diff("{}", &two, &[]);
    assert!(run.code == 2 && run.stderr.contains("but they have 1 and 2"), "{}", run.stderr);
}

#[test]
fn network_namespace_is_compared_with_a_manifest() {
    if !weir_lab::privilege::available_or_skip() {
        return;
    }
    let files = Files::new();
    let netns = Netns::new("compared").unwrap();
    let new = files.write("new", "{}");
    let path = netns.path().to_str().unwrap().to_owned();
    let diff = |args: &[&str]| weir(&[&["diff", "--netns", &path, &new, "--fail-on", "any"], args].concat(), "");
    let run = diff(&[]);
    assert!(
        run.code == 1 && run.stdout.contains("old: no capture rules in the kernel"),
        "{}{}",
        run.stdout,
        run.stderr
    );
    let rules = plan(&CaptureConfig::default()).unwrap();
    netns.run(|| nft::apply(&rules)).unwrap().unwrap();
    let run = diff(&[]);
    assert!(run.code == 0 && run.stdout.contains("every packet is treated alike"), "{}{}", run.stdout, run.stderr);
    let rules = plan(&CaptureConfig { outbound_ports_exclude: vec![], ..CaptureConfig::default() }).unwrap();
    netns.run(|| nft::apply(&rules)).unwrap().unwrap();
    let run = diff(&[]);
    assert!(run.code == 1 && run.stdout.contains("to port 15020"), "{}{}", run.stdout, run.stderr);
}

#[test]
fn running_pod_is_compared_if_its_agent_finds_its_rules() {
    let server = ApiServer::cluster().unwrap();
    let files = Files::new();
    let kubeconfig = server.kubeconfig(files.0.path()).unwrap();
    let object = |namespace: &str, name: &str, metadata: Value| {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"containers": [{"name": "app", "image": "app"}, {"name": "istio-proxy", "image": "proxy"}], "nodeName": "n1"}});
        pod["metadata"]["name"] = name.into();
        pod["metadata"]["namespace"] = namespace.into();
        pod
    };
    for namespace in ["shop", "weir-node"] {
        server.put("namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
    }
    server.put("pods", object("shop", "web", json!({"annotations": {"sidecar.istio.io/status": "{}"}})));
    server.put("pods", object("shop", "db", json!({"annotations": {"sidecar.istio.io/status": "{}"}})));
    server
        .put("pods", object("weir-node", "weir-agent-1", json!({"labels": {"app.kubernetes.io/name": "weir-agent"}})));
    let states = [("shop", "web", "ok"), ("shop", "db", "drifted")];
    server.set_pod_address("weir-node", "weir-agent-1", 15034, serve_pods("n1", &states));
    let new = files.write("new", &manifest("web", &json!({EXCLUDE_OUTBOUND_PORTS: "3306"})));
    let settings = ["valuesFile", "meshConfigFile", "injectConfigFile"].map(|name| {
        let file = files.write(name, if name == "injectConfigFile" { "policy: enabled\n" } else { "{}\n" });
        format!("--{name}={file}")
    });
    let diff = |pod: &str| {
        let settings = settings.iter().map(String::as_str);
        let args = ["diff", "--pod", pod, &new, "--native-sidecars", "true", "-o", "json", "--kubeconfig"];
        let args: Vec<&str> = args.into_iter().chain([kubeconfig.to_str().unwrap()]).chain(settings).collect();
        weir(&args, "")
    };
    let run = diff("shop/web");
    assert_eq!(run.code, 1, "{}", run.stderr);
    let workload = &document(&run)["workloads"][0];
    assert_eq!(workload["changes"][0]["kind"], "bypass", "{workload:#}");
    let run = diff("shop/db");
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("its rules are not those that it should have (drifted)"), "{}", run.stderr);
}
