use serde_json::json;

use super::*;

fn ordered(field: &str, names: &[&str], hold: bool) -> Vec<String> {
    let containers: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
    let mut pod = json!({"spec": {field: containers}});
    order_containers(&mut pod, hold);
    let containers = pod["spec"][field].as_array().unwrap();
    containers.iter().map(|container| container["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn classic_proxy_is_last() {
    assert_eq!(ordered("containers", &["istio-proxy", "a", "b"], false), ["a", "b", "istio-proxy"]);
}

#[test]
fn proxy_that_holds_the_application_is_first() {
    assert_eq!(ordered("containers", &["a", "b", "istio-proxy"], true), ["istio-proxy", "a", "b"]);
}

#[test]
fn containers_without_a_proxy_keep_their_order() {
    assert_eq!(ordered("containers", &["b", "a"], true), ["b", "a"]);
    assert_eq!(ordered("containers", &["b", "a"], false), ["b", "a"]);
}

#[test]
fn mesh_init_containers_come_first_with_a_native_proxy() {
    for hold in [false, true] {
        assert_eq!(
            ordered("initContainers", &["u", "enable-core-dump", "istio-proxy", "v", "istio-validation"], hold),
            ["istio-validation", "istio-proxy", "enable-core-dump", "u", "v"]
        );
    }
    assert_eq!(
        ordered("initContainers", &["u", "istio-proxy", "istio-init"], false),
        ["istio-init", "istio-proxy", "u"]
    );
}

#[test]
fn with_a_classic_proxy_validation_is_first_and_init_last() {
    assert_eq!(ordered("initContainers", &["u", "istio-validation", "v"], false), ["istio-validation", "u", "v"]);
    assert_eq!(
        ordered("initContainers", &["enable-core-dump", "istio-init", "u"], false),
        ["u", "istio-init", "enable-core-dump"]
    );
}

#[test]
fn containers_of_the_same_name_are_kept() {
    assert_eq!(
        ordered("containers", &["istio-proxy", "a", "a", "istio-proxy"], false),
        ["a", "a", "istio-proxy", "istio-proxy"]
    );
}

#[test]
fn pod_without_lists_is_unchanged() {
    let mut pod = json!({"spec": {"containers": null}});
    order_containers(&mut pod, true);
    assert_eq!(pod, json!({"spec": {"containers": null}}));
}
