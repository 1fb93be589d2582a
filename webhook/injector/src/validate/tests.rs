use serde_json::json;

use super::*;

fn of(annotations: &Value) -> Vec<String> {
    let pod = json!({"metadata": {"annotations": annotations}});
    findings(StringMap::of(&pod, "annotations"))
}

#[test]
fn accepts_every_documented_form() {
    let annotations = json!({
        name::INTERCEPTION_MODE: "NONE",
        name::INCLUDE_OUTBOUND_RANGES: "*",
        name::EXCLUDE_OUTBOUND_RANGES: "10.96.0.2/24,fd00::1/64",
        name::INCLUDE_INBOUND_PORTS: "",
        name::EXCLUDE_INBOUND_PORTS: "0, 80 ,65535",
        name::INCLUDE_OUTBOUND_PORTS: "1,2",
        name::EXCLUDE_INTERFACES: "eth0, net1.5",
        name::STATUS_PORT: "0",
        name::READINESS_PERIOD: "4294967295",
        name::PROXY_CPU: "1.5e3",
        name::PROXY_MEMORY: ".5Gi",
        name::MERGE_METRICS: "T",
        name::USER_VOLUME: "{\"a\":{\"emptyDir\":{}}}",
    });
    assert_eq!(of(&annotations), Vec::<String>::new());
}

#[test]
fn reports_all_invalid_annotations_with_name_value_and_reason() {
    let bad = [
        (name::INTERCEPTION_MODE, "redirect"),
        (name::INCLUDE_OUTBOUND_RANGES, "10.0.0.0"),
        (name::EXCLUDE_OUTBOUND_RANGES, "*"),
        (name::INCLUDE_INBOUND_PORTS, "*,80"),
        (name::EXCLUDE_INBOUND_PORTS, "80,+90"),
        (name::INCLUDE_OUTBOUND_PORTS, "1 --x"),
        (name::EXCLUDE_OUTBOUND_PORTS, "65536"),
        (name::EXCLUDE_INTERFACES, "eth0,0eth"),
        (name::KUBEVIRT_INTERFACES, "abcdefghijklmnop"),
        (name::STATUS_PORT, ""),
        (name::READINESS_PERIOD, "-1"),
        (name::PROXY_CPU, "1 2"),
        (name::PROXY_MEMORY, "lots"),
        (name::MERGE_METRICS, "yes"),
        (name::USER_VOLUME, "[{}]"),
        (name::USER_VOLUME_MOUNT, "{\"a\":1}"),
    ];
    let annotations = bad.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect();
    let findings = of(&Value::Object(annotations));
    assert_eq!(findings.len(), bad.len(), "{findings:#?}");
    for (key, value) in bad {
        let start = format!("invalid value '{value}' for annotation '{key}': ");
        assert!(findings.iter().any(|found| found.starts_with(&start)), "{start}: {findings:#?}");
    }
}

#[test]
fn reports_every_field_of_a_wrong_type() {
    let pod = json!({
        "metadata": {"labels": [], "annotations": null},
        "spec": {"containers": [{}, null], "initContainers": 7, "volumes": "x", "imagePullSecrets": null},
    });
    assert_eq!(
        type_errors(&pod),
        [
            "metadata.labels must be an object, found a list",
            "spec.containers[1] must be an object, found null",
            "spec.initContainers must be a list, found a number",
            "spec.volumes must be a list, found a string",
        ]
    );
    assert_eq!(
        type_errors(&json!({"metadata": 1})),
        ["metadata must be an object, found a number", "the pod has no spec"]
    );
    assert_eq!(type_errors(&json!({"spec": []})), ["spec must be an object, found a list"]);
    assert_eq!(type_errors(&json!({"spec": {}})), Vec::<String>::new());
}

#[test]
fn limits_the_number_of_containers() {
    let of = |number: usize| json!({"spec": {"containers": vec![json!({}); number], "volumes": vec![json!({}); 5000]}});
    assert_eq!(limits::exceeded(&of(limits::MAX_CONTAINERS)), Vec::<String>::new());
    assert_eq!(limits::exceeded(&of(1001)), ["spec.containers has 1001 containers; the limit is 1000"]);
}

#[test]
fn truncates_long_values() {
    let finding = &of(&json!({name::STATUS_PORT: "9".repeat(5000)}))[0];
    assert!(finding.len() < 300, "{finding}");
}
