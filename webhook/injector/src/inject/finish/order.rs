//! The order of containers: who must start first, and who may wait.

use serde_json::Value;

use super::{PROXY, is_proxy};

/// Init containers that come first beside a native proxy, in this order; all others follow.
const FIRST_WITH_NATIVE: [&str; 4] = ["istio-init", "istio-validation", PROXY, "enable-core-dump"];

/// Puts the containers in order.
///
/// A classic proxy stands last, or first where the application is to wait for it (`hold_application`). Beside a native
/// proxy the init containers of the mesh stand before all others. Otherwise validation comes first, so that a pod without
/// rules fails early, and `istio-init` last, so that the user's init containers still have the plain network.
/// Everything else keeps its order, and containers of the same name all stay.
pub fn order_containers(pod: &mut Value, hold_application: bool) {
    if let Some(containers) = list(pod, "containers") {
        containers.sort_by_key(|container| is_proxy(container) != hold_application);
    }
    let Some(containers) = list(pod, "initContainers") else { return };
    if containers.iter().any(is_proxy) {
        containers.sort_by_key(|container| {
            let name = container["name"].as_str();
            FIRST_WITH_NATIVE.iter().position(|first| name == Some(first)).unwrap_or(FIRST_WITH_NATIVE.len())
        });
    } else {
        containers.sort_by_key(|container| match container["name"].as_str() {
            Some("istio-validation") => 0,
            Some("istio-init") => 2,
            Some("enable-core-dump") => 3,
            _ => 1,
        });
    }
}

fn list<'a>(pod: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    pod.get_mut("spec")?.get_mut(field)?.as_array_mut()
}

#[cfg(test)]
mod tests {
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
    fn a_classic_proxy_stands_last() {
        assert_eq!(ordered("containers", &["istio-proxy", "a", "b"], false), ["a", "b", "istio-proxy"]);
    }

    #[test]
    fn a_proxy_that_the_application_waits_for_stands_first() {
        assert_eq!(ordered("containers", &["a", "b", "istio-proxy"], true), ["istio-proxy", "a", "b"]);
    }

    #[test]
    fn without_a_proxy_the_containers_stay_as_they_are() {
        assert_eq!(ordered("containers", &["b", "a"], true), ["b", "a"]);
        assert_eq!(ordered("containers", &["b", "a"], false), ["b", "a"]);
    }

    #[test]
    fn beside_a_native_proxy_the_meshs_init_containers_come_first() {
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
    fn beside_a_classic_proxy_validation_is_first_and_init_last() {
        assert_eq!(ordered("initContainers", &["u", "istio-validation", "v"], false), ["istio-validation", "u", "v"]);
        assert_eq!(
            ordered("initContainers", &["enable-core-dump", "istio-init", "u"], false),
            ["u", "istio-init", "enable-core-dump"]
        );
    }

    #[test]
    fn containers_of_the_same_name_all_stay() {
        assert_eq!(
            ordered("containers", &["istio-proxy", "a", "a", "istio-proxy"], false),
            ["a", "a", "istio-proxy", "istio-proxy"]
        );
    }

    #[test]
    fn a_pod_without_lists_is_left_alone() {
        let mut pod = json!({"spec": {"containers": null}});
        order_containers(&mut pod, true);
        assert_eq!(pod, json!({"spec": {"containers": null}}));
    }
}
