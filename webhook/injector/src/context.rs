//! Computes what the templates need to know about a pod, once per pod.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::annotations::{self as name, StringMap};
use crate::containers::{ContainerList, PROXY_CONTAINER};
use crate::overrides::StoredOverrides;
use crate::request::InjectRequest;
use crate::settings::{Platform, ProxyConfig, Settings};
use crate::workload::Workload;

/// Default user and group of the proxy.
const PROXY_ID: u32 = 1337;

/// Facts about one pod that templates read.
pub(crate) struct InjectContext<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) annotations: StringMap<'a>,
    pub(crate) labels: StringMap<'a>,
    /// Containers of the application, from `spec.containers` of the original pod.
    pub(crate) applications: Vec<&'a Value>,
    /// The proxy container that the user declared, if any.
    pub(crate) user_proxy: Option<&'a Value>,
    /// `spec.serviceAccountName`.
    pub(crate) service_account: Option<&'a str>,
    /// `spec.resources` of the pod, which its containers share.
    pub(crate) pod_resources: Option<&'a Map<String, Value>>,
    pub(crate) workload: Workload,
    /// Effective ProxyConfig of the pod.
    pub(crate) proxy_config: ProxyConfig,
    /// Whether the proxy is a native sidecar: an init container with `restartPolicy: Always`.
    pub(crate) native: bool,
    /// Whether the proxy would be native, but stays an ordinary container because the pod has no other.
    pub(crate) proxy_is_only_container: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// REDIRECT, TPROXY or NONE.
    pub(crate) interception_mode: &'a str,
    /// Port of the agent's status server; `0` turns it off.
    pub(crate) status_port: String,
    /// Network of the pod, or empty.
    pub(crate) network: &'a str,
    /// Proxy variables from the webhook's URL; cluster and network also from the pod's label or the values.
    pub(crate) env_overrides: BTreeMap<String, String>,
}

impl<'a> InjectContext<'a> {
    /// Computes the context of a pod whose annotations have been validated.
    pub(crate) fn new(
        request: &'a InjectRequest,
        pod: &'a Value,
        settings: &'a Settings,
        stored: &'a StoredOverrides,
        proxy_config: ProxyConfig,
        workload: Workload,
    ) -> Self {
        let annotations = StringMap::of(pod, "annotations");
        let labels = StringMap::of(pod, "labels");
        let (applications, user_proxy) = user_containers(pod, stored);
        let (uid, gid) = match settings.platform {
            Platform::OpenShift => openshift_ids(&request.namespace_annotations),
            Platform::Kubernetes => (PROXY_ID, PROXY_ID),
        };
        let proxy_is_only_container = applications.is_empty() && user_proxy.is_some();
        let native = match annotations.get(name::NATIVE_SIDECAR) {
            Some("true") => true,
            Some("false") => false,
            _ => settings.is_native_on(pod["spec"]["nodeName"].as_str()),
        };
        let interception_mode =
            annotations.get(name::INTERCEPTION_MODE).unwrap_or(match proxy_config.interception_mode() {
                "TPROXY" => "TPROXY",
                "NONE" => "NONE",
                _ => "REDIRECT",
            });
        let url_env = &request.url_env;
        let values = &settings.values;
        let network = labels
            .get(name::NETWORK)
            .filter(|network| !network.is_empty())
            .or_else(|| url_env.get("ISTIO_META_NETWORK").map(String::as_str))
            .unwrap_or(&values.global.network);
        let cluster = url_env.get("ISTIO_META_CLUSTER_ID").unwrap_or(&values.global.cluster_name);
        let identity = [("ISTIO_META_NETWORK", network), ("ISTIO_META_CLUSTER_ID", cluster)];
        let identity = identity.into_iter().filter(|(_, value)| !value.is_empty());
        let mut env_overrides = url_env.clone();
        env_overrides.extend(identity.map(|(variable, value)| (variable.to_owned(), value.to_owned())));
        let status_port = annotations.get(name::STATUS_PORT).map(|port| port.trim().to_owned());
        Self {
            settings,
            annotations,
            labels,
            applications,
            user_proxy,
            service_account: pod["spec"]["serviceAccountName"].as_str(),
            pod_resources: pod["spec"]["resources"].as_object(),
            workload,
            proxy_config,
            native: native && !proxy_is_only_container,
            proxy_is_only_container: native && proxy_is_only_container,
            uid,
            gid,
            interception_mode,
            status_port: status_port.unwrap_or_else(|| values.proxy.status_port.to_string()),
            network,
            env_overrides,
        }
    }

    /// Returns an annotation of the pod, else `default`.
    pub(crate) fn annotation_or<'b>(&self, key: &str, default: &'b str) -> &'b str
    where
        'a: 'b,
    {
        self.annotations.get(key).unwrap_or(default)
    }

    /// Returns whether an annotation sets the sidecar's resources.
    pub(crate) fn has_resource_annotations(&self) -> bool {
        let annotations = [name::PROXY_CPU, name::PROXY_MEMORY, name::PROXY_CPU_LIMIT, name::PROXY_MEMORY_LIMIT];
        annotations.iter().any(|key| self.annotations.get(key).is_some())
    }

    pub(crate) fn proxy_image(&self) -> String {
        let annotated = self.annotations.get(name::PROXY_IMAGE_TYPE);
        let kind = annotated.or(self.proxy_config.image_type()).unwrap_or(&self.settings.values.global.variant);
        self.image(&self.settings.values.proxy.image, kind)
    }

    pub(crate) fn init_image(&self) -> String {
        let kind = self.annotations.get(name::PROXY_IMAGE_TYPE).unwrap_or(&self.settings.values.global.variant);
        self.image(&self.settings.values.proxy_init.image, kind)
    }

    fn image(&self, configured: &str, kind: &str) -> String {
        let is_reference = |image: &&str| image.contains('/');
        if let Some(image) =
            self.annotations.get(name::PROXY_IMAGE).filter(is_reference).or(Some(configured).filter(is_reference))
        {
            return image.to_owned();
        }
        let global = &self.settings.values.global;
        image(&global.hub, configured, &global.tag, kind)
    }

    /// Returns whether the proxy may bind ports below 1024.
    pub(crate) fn needs_net_bind_service(&self) -> bool {
        self.annotation_or(name::CAP_NET_BIND_SERVICE, &self.settings.values.proxy.cap_net_bind_service) == "true"
    }

    /// Returns whether traffic is intercepted with TPROXY, by the pod or by the ProxyConfig.
    pub(crate) fn uses_tproxy(&self) -> bool {
        self.interception_mode == "TPROXY" || self.proxy_config.interception_mode() == "TPROXY"
    }

    /// Returns whether the application starts only after the proxy, by container order and a hook.
    pub(crate) fn holds_application(&self) -> bool {
        self.proxy_config.hold_application() || self.settings.values.proxy.hold_application
    }
}

/// Returns the containers of the application, and the proxy container that the user declared.
fn user_containers<'a>(pod: &'a Value, stored: &'a StoredOverrides) -> (Vec<&'a Value>, Option<&'a Value>) {
    let (proxies, applications): (Vec<&Value>, Vec<&Value>) =
        ContainerList::Containers.of(pod).iter().partition(|container| container["name"] == PROXY_CONTAINER);
    let in_init =
        || ContainerList::InitContainers.of(pod).iter().rfind(|container| container["name"] == PROXY_CONTAINER);
    let user_proxy = stored.find(PROXY_CONTAINER).or_else(|| proxies.last().copied()).or_else(in_init);
    (applications, user_proxy)
}

/// Returns `<hub>/<name>:<tag>`, with the image type `kind` as the tag's suffix.
pub(crate) fn image(hub: &str, name: &str, tag: &str, kind: &str) -> String {
    if kind.is_empty() {
        return format!("{hub}/{name}:{tag}");
    }
    let base = tag.strip_suffix("-distroless").or_else(|| tag.strip_suffix("-debug")).unwrap_or(tag);
    if kind == "default" { format!("{hub}/{name}:{base}") } else { format!("{hub}/{name}:{base}-{kind}") }
}

/// Returns the user and group of the proxy on OpenShift: the last ids of the namespace's ranges.
fn openshift_ids(namespace: &BTreeMap<String, String>) -> (u32, u32) {
    let last = |key: &str| namespace.get(key).and_then(|ranges| last_id(ranges.split(',').next()?));
    let uid = last("openshift.io/sa.scc.uid-range");
    let gid = last("openshift.io/sa.scc.supplemental-groups").or(uid);
    (uid.unwrap_or(PROXY_ID), gid.unwrap_or(PROXY_ID))
}

/// Parses `start/size` or `start-end`, and returns the last id.
fn last_id(range: &str) -> Option<u32> {
    let range = range.trim();
    if let Some((start, size)) = range.split_once('/') {
        let (start, size): (u32, u32) = (start.parse().ok()?, size.parse().ok()?);
        return start.checked_add(size.checked_sub(1)?);
    }
    let (start, end) = range.split_once('-')?;
    let (start, end): (u32, u32) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_type_becomes_a_tag_suffix() {
        assert_eq!(image("h", "proxyv2", "11", ""), "h/proxyv2:11");
        assert_eq!(image("h", "proxyv2", "1.12", "distroless"), "h/proxyv2:1.12-distroless");
        assert_eq!(image("h", "proxyv2", "1.12-debug", "distroless"), "h/proxyv2:1.12-distroless");
        assert_eq!(image("h", "proxyv2", "1.12-distroless", "default"), "h/proxyv2:1.12");
        assert_eq!(image("h", "proxyv2", "1.12-odd-tag", "debug"), "h/proxyv2:1.12-odd-tag-debug");
    }

    #[test]
    fn openshift_proxy_uses_the_last_id_of_the_ranges() {
        let ranges = |uid: &str, groups: &str| {
            let pairs = [("openshift.io/sa.scc.uid-range", uid), ("openshift.io/sa.scc.supplemental-groups", groups)];
            let pairs = pairs.into_iter().filter(|(_, range)| !range.is_empty());
            openshift_ids(&pairs.map(|(key, range)| (key.to_owned(), range.to_owned())).collect())
        };
        assert_eq!(ranges("1000620000/10000", "1000620000/10000"), (1_000_629_999, 1_000_629_999));
        assert_eq!(ranges("1000-1999", "5000/10,7000/10"), (1999, 5009));
        assert_eq!(ranges("1000-1999", ""), (1999, 1999));
        assert_eq!(ranges("nonsense", "9-1"), (1337, 1337));
        assert_eq!(ranges("", ""), (1337, 1337));
    }
}
