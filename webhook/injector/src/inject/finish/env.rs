//! Variables that the injector's URL or the cluster's identity ask for: they beat what the template and the user say.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{env_mut, proxy_mut};

/// Replaces the proxy's variables of these names, and puts them at the end, sorted by name. Without a proxy, nothing happens.
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

    fn asked() -> BTreeMap<String, String> {
        [("ISTIO_META_NETWORK", "n"), ("ISTIO_META_CLUSTER_ID", "c")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    #[test]
    fn variables_of_the_url_move_to_the_end_sorted() {
        let mut pod = json!({"spec": {"containers": [{"name": "app", "env": []}, {"name": "istio-proxy", "env": [
            {"name": "ISTIO_META_CLUSTER_ID", "value": "Kubernetes"}, {"name": "X", "value": "1"},
            {"name": "ISTIO_META_CLUSTER_ID", "value": "twice"}]}]}});
        override_env(&mut pod, &asked());
        let expected = json!([{"name": "X", "value": "1"}, {"name": "ISTIO_META_CLUSTER_ID", "value": "c"},
                              {"name": "ISTIO_META_NETWORK", "value": "n"}]);
        assert_eq!(pod["spec"]["containers"][1]["env"], expected);
        assert_eq!(pod["spec"]["containers"][0], json!({"name": "app", "env": []}));
    }

    #[test]
    fn a_native_proxy_without_variables_gets_them() {
        let mut pod = json!({"spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "istio-proxy"}]}});
        override_env(&mut pod, &asked());
        assert_eq!(pod["spec"]["initContainers"][0]["env"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn without_a_proxy_or_variables_nothing_happens() {
        let pod = json!({"spec": {"containers": [{"name": "app"}]}});
        let mut same = pod.clone();
        override_env(&mut same, &asked());
        assert_eq!(same, pod);
        let pod = json!({"spec": {"containers": [{"name": "istio-proxy"}]}});
        let mut same = pod.clone();
        override_env(&mut same, &BTreeMap::new());
        assert_eq!(same, pod);
    }
}
