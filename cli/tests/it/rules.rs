//! `weir rules`.

use iptables_rules::annotations::ProxySpec;
use iptables_rules::restore::{RestoreFamily, restore_text};
use iptables_rules::{CaptureConfig, RuleSet, plan};
use serde_json::{Value, json};
use weir_kernel::nft;

use crate::run::{documents, inject, weir};

/// Runs `weir rules` on a manifest, successfully; returns the rules and standard error.
fn rules(manifest: &str, args: &[&str]) -> (String, String) {
    let args = [&["rules", "-f", "-"], args].concat();
    let run = weir(&args, manifest);
    assert_eq!(run.code, 0, "{}", run.stderr);
    (run.stdout, run.stderr)
}

fn of_annotations(annotations: &Value, format: &str) -> String {
    let run = weir(&["rules", "--annotations", "-", "--format", format], &annotations.to_string());
    assert_eq!(run.code, 0, "{}", run.stderr);
    run.stdout
}

/// A pod that Istio injected, whose proxy has another user.
fn injected_by_istio() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": "shop", "annotations": {
            "sidecar.istio.io/status": "{}", "traffic.sidecar.istio.io/includeInboundPorts": "80"}},
        "spec": {"containers": [{"name": "app"}, {"name": "istio-proxy", "securityContext": {"runAsUser": 1400, "runAsGroup": 1401}}]},
    })
}

/// Plans the same annotations with the library.
fn planned(annotations: &Value) -> RuleSet {
    let annotations = serde_json::from_value(annotations.clone()).unwrap();
    plan(&CaptureConfig::from_annotations(&annotations, &ProxySpec::default()).unwrap()).unwrap()
}

#[test]
fn findings_name_the_line_and_the_annotation_of_the_pod() {
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    \"traffic.sidecar.istio.io/kubevirtInterfaces\": net 0\n    traffic.sidecar.istio.io/includeInboundPorts: '70000'\nspec: {containers: [{name: a, image: i}]}\n";
    for command in [&["rules", "-f", "-"][..], &["inject", "-f", "-"], &["explain", "-f", "-"]] {
        let run = weir(command, manifest);
        assert_eq!(run.code, 1, "{command:?}");
        for (line, key) in [(6, "kubevirtInterfaces"), (7, "includeInboundPorts")] {
            let found = run.stderr.lines().find(|text| text.contains(key)).unwrap();
            assert!(found.contains(&format!("document 1 (line {line}): Pod \"p\": ")), "{command:?}: {found}");
        }
    }
    let valid = manifest.replace("net 0", "net0").replace("70000", "7000");
    for packet in [&[][..], &["--from", "outside", "--in-interface", "net0", "--to", "10.1.1.1:80"]] {
        let text = weir(&[&["explain", "-f", "-"], packet].concat(), &valid).stdout;
        assert!(text.contains("kubevirtInterfaces") && !text.contains("reroute-virtual-interfaces"), "{text}");
    }
}

#[test]
fn iptables_format_has_both_families() {
    let annotations = json!({
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8",
        "traffic.sidecar.istio.io/excludeInboundPorts": "9000",
    });
    let [v4, v6] = [RestoreFamily::V4, RestoreFamily::V6].map(|family| restore_text(&planned(&annotations), family));
    assert!(v4.contains("-A ISTIO_OUTPUT -d 10.0.0.0/8 -j ISTIO_REDIRECT\n") && !v6.contains("10.0.0.0"), "{v4}{v6}");
    let want = format!(
        "# \"standard input\"\n# iptables-restore --noflush\n{v4}# ip6tables-restore --noflush\n{v6}# ip address add ::6/128 dev lo\n"
    );
    assert_eq!(of_annotations(&annotations, "iptables"), want);
}

#[test]
fn nft_format_has_the_plugins_table() {
    let annotations = json!({"traffic.sidecar.istio.io/includeInboundPorts": "80,443"});
    let table = nft::to_nft_script(&planned(&annotations)).unwrap();
    assert!(table.starts_with("table inet weir {\n") && table.contains("443"), "{table}");
    let want = format!("# \"standard input\"\n{table}# ip address add ::6/128 dev lo\n");
    assert_eq!(of_annotations(&annotations, "nft"), want);
}

#[test]
fn json_format_has_every_rule_with_its_reason() {
    let annotations = json!({"traffic.sidecar.istio.io/excludeOutboundIPRanges": "192.0.2.0/24"});
    let document: Value = serde_json::from_str(&of_annotations(&annotations, "json")).unwrap();
    assert_eq!(document["version"], 1);
    let subject = &document["subjects"][0];
    assert_eq!((&subject["name"], &subject["source"]), (&json!("\"standard input\""), &json!("istio-annotations")));
    let rules = subject["ruleSet"]["rules"].as_array().unwrap();
    let excluded: Vec<&Value> = rules.iter().filter(|rule| rule["reason"] == "excluded-outbound-cidr").collect();
    let want = json!({
        "table": "nat", "chain": "ISTIO_OUTPUT", "position": "append", "family": "IPv4",
        "matches": [{"destination": "192.0.2.0/24", "negated": false}],
        "action": "return", "reason": "excluded-outbound-cidr",
    });
    assert_eq!(excluded, [&want]);
    assert_eq!(subject["ruleSet"]["loAddresses"], json!(["::6/128"]));

    let lines = of_annotations(&annotations, "iptables")
        .lines()
        .filter(|line| line.starts_with('-') && !line.starts_with("-N"))
        .count();
    let seen =
        |family: &str| rules.iter().filter(|rule| ["any", family].contains(&rule["family"].as_str().unwrap())).count();
    assert_eq!(seen("IPv4") + seen("IPv6"), lines, "as many rules as the other format has lines");
}

#[test]
fn pod_of_istio_gets_rules_of_annotations_and_proxy() {
    let (text, said) = rules(&injected_by_istio().to_string(), &[]);
    assert_eq!(said, "weir: Pod \"shop/web-0\": from Istio's annotations and the proxy container\n");
    assert!(text.starts_with("# Pod \"shop/web-0\"\n# iptables-restore --noflush\n"), "{text}");
    assert!(text.contains("\n-A ISTIO_INBOUND -p tcp --dport 80 -j ISTIO_IN_REDIRECT\n"), "{text}");
    assert!(text.contains(" --uid-owner 1400 ") && text.contains(" --gid-owner 1401 "), "{text}");
}

#[test]
fn init_container_that_installs_rules_is_reported() {
    let mut pod = injected_by_istio();
    pod["spec"]["initContainers"] = json!([{"name": "istio-init"}]);
    let (_, said) = rules(&pod.to_string(), &[]);
    assert!(said.contains("its init container istio-init installs the rules"), "{said}");
}

#[test]
fn rules_are_those_of_the_injected_manifest() {
    let manifest = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  template:\n    metadata:\n      annotations:\n        traffic.sidecar.istio.io/excludeOutboundPorts: \"3306\"\n    spec:\n      containers: [{name: app}]\n";
    let (before, said) = rules(manifest, &[]);
    assert_eq!(
        said,
        "weir: Deployment \"web\": not injected yet; these are the rules it would get, from the annotation weir.dev/capture\n"
    );
    let (after, said) = rules(&inject(&[], manifest).stdout, &[]);
    assert_eq!(said, "weir: Deployment \"web\": from the annotation weir.dev/capture\n");
    assert_eq!(before, after);
    assert!(before.contains("-A ISTIO_OUTPUT -p udp --dport 3306 -j RETURN\n"), "{before}");
}

#[test]
fn skipped_pod_has_no_rules_and_a_reason() {
    let mut pod = injected_by_istio();
    pod["metadata"]["annotations"] = json!({});
    pod["spec"]["hostNetwork"] = true.into();
    let (text, said) = rules(&pod.to_string(), &[]);
    assert_eq!(text, "# Pod \"shop/web-0\"\n# no rules\n");
    assert!(said.starts_with("weir: Pod \"shop/web-0\": no rules: the pod uses the host network"), "{said}");
    let (text, _) = rules(&pod.to_string(), &["--format", "json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        document["subjects"][0],
        json!({"name": "Pod \"shop/web-0\"", "skipped": "host_network", "ruleSet": null})
    );
}

#[test]
fn all_pods_of_a_stream_are_printed() {
    let pod = injected_by_istio();
    let list =
        json!({"apiVersion": "v1", "kind": "List", "items": [pod, {"apiVersion": "v1", "kind": "Service"}, pod]});
    let (text, _) = rules(&format!("{pod}\n---\n{list}"), &["--format", "nft"]);
    assert_eq!(text.matches("# Pod \"shop/web-0\"\ntable inet weir {\n").count(), 3, "{text}");
    let (text, said) = rules("kind: Service\n", &[]);
    assert_eq!((text.as_str(), said.as_str()), ("", "weir: standard input: no pods found\n"));
}

#[test]
fn all_errors_are_reported_and_nothing_is_printed() {
    let mut pod = injected_by_istio();
    pod["metadata"]["annotations"]["traffic.sidecar.istio.io/includeInboundPorts"] = "x".into();
    pod["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeInterfaces"] = "0eth".into();
    let run = weir(&["rules", "-f", "-"], &format!("{}\n---\n{pod}\n---\na: [\n", injected_by_istio()));
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{}", run.stderr);
    let place = "weir: standard input: document 2 (line 3): Pod \"shop/web-0\": invalid value ";
    assert!(lines[0].starts_with(place) && lines[1].starts_with(place), "{}", run.stderr);
    assert!(lines[2].starts_with("weir: standard input: document 3 (line 5): "), "{}", run.stderr);
}

#[test]
fn invalid_capture_annotation_is_reported_by_field() {
    let annotations = json!({"sidecar.istio.io/status": "{}", "weir.dev/capture": "{\"v\": 99}"});
    let run = weir(&["rules", "--annotations", "-"], &annotations.to_string());
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert!(run.stderr.contains("weir.dev/capture"), "{}", run.stderr);
}

#[test]
fn annotations_exclude_manifest_and_injector_settings() {
    assert_eq!(weir(&["rules"], "").code, 2);
    assert_eq!(weir(&["rules", "-f", "-", "--annotations", "-"], "").code, 2);
    let run = weir(&["rules", "--annotations", "-", "-r", "canary"], "");
    assert_eq!(run.code, 2);
    insta::assert_snapshot!(run.stderr, @"weir: --annotations accepts no injector settings, because nothing is injected");
}

#[test]
fn output_of_inject_is_accepted() {
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: app}]}\n";
    let injected = inject(&[], manifest).stdout;
    assert_eq!(documents(&injected).len(), 1);
    assert!(rules(&injected, &["--format", "nft"]).0.contains("redirect to :15006"));
}
