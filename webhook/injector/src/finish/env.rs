//! Variables from the webhook's URL and the cluster's identity, which override those of the template and the user.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{env_mut, proxy_mut};

/// Sets variables of the proxy, at the end and sorted by name. Does nothing if the pod has no proxy.
pub fn override_env(pod: &mut Value, variables: &BTreeMap<String, String>) {
    if variables.is_empty() {
        return;
    }
    if let Some(proxy) = proxy_mut(pod) {
        let env = env_mut(proxy);
        env.retain(|variable| !variable["name"].as_str().is_some_and(|name| variables.contains_key(name)));
        env.extend(variables.iter().map(|(name, value)| json!({"name": name, "value": value})));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides() -> BTreeMap<String, String> {
        [("ISTIO_META_NETWORK", "n"), ("ISTIO_META_CLUSTER_ID", "c")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    #[test]
    fn overridden_variables_move_to_the_end_sorted() {
        let mut pod = json!({"spec": {"containers": [{"name": "app", "env": []}, {"name": "istio-proxy", "env": [
            {"name": "ISTIO_META_CLUSTER_ID", "value": "Kubernetes"}, {"name": "X", "value": "1"},
            {"name": "ISTIO_META_CLUSTER_ID", "value": "twice"}]}]}});
        override_env(&mut pod, &overrides());
        let expected = json!([{"name": "X", "value": "1"}, {"name": "ISTIO_META_CLUSTER_ID", "value": "c"},
                              {"name": "ISTIO_META_NETWORK", "value": "n"}]);
        assert_eq!(pod["spec"]["containers"][1]["env"], expected);
        assert_eq!(pod["spec"]["containers"][0], json!({"name": "app", "env": []}));
    }

    #[test]
    fn native_proxy_without_variables_gets_them() {
        let mut pod = json!({"spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "istio-proxy"}]}});
        override_env(&mut pod, &overrides());
        assert_eq!(pod["spec"]["initContainers"][0]["env"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn pod_without_proxy_is_unchanged() {
        let pod = json!({"spec": {"containers": [{"name": "app"}]}});
        let mut same = pod.clone();
        override_env(&mut same, &overrides());
        assert_eq!(same, pod);
        let pod = json!({"spec": {"containers": [{"name": "istio-proxy"}]}});
        let mut same = pod.clone();
        override_env(&mut same, &BTreeMap::new());
        assert_eq!(same, pod);
    }
}
