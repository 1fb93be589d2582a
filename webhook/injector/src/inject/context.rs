//! Everything that the templates look at, computed once per pod.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::annotations::{self as name, Texts};
use super::containers::List;
use super::overrides::Stored;
use super::{InjectRequest, Workload};
use crate::settings::{Platform, ProxyConfig, Settings};

/// Name of the proxy's container.
pub(crate) const PROXY: &str = "istio-proxy";
/// User and group of the proxy where nothing else is asked for.
const PROXY_ID: u32 = 1337;

/// What one pod is injected with.
pub(crate) struct Context<'a> {
    /// Configuration of the installation.
    pub(crate) settings: &'a Settings,
    /// The pod's annotations.
    pub(crate) annotations: Texts<'a>,
    /// The pod's labels.
    pub(crate) labels: Texts<'a>,
    /// Containers of the application, as they are without injection.
    pub(crate) applications: Vec<&'a Value>,
    /// What the user wrote about the proxy, where he wrote it.
    pub(crate) own_proxy: Option<&'a Value>,
    /// `spec.serviceAccountName`.
    pub(crate) service_account: Option<&'a str>,
    /// `spec.resources`: what the containers of the pod may use together.
    pub(crate) budget: Option<&'a Map<String, Value>>,
    /// Whose pod it is.
    pub(crate) workload: Workload,
    /// Effective configuration of the proxy.
    pub(crate) proxy_config: ProxyConfig,
    /// The proxy is an init container that keeps running.
    pub(crate) native: bool,
    /// The proxy would be native, but the pod would be left without a container.
    pub(crate) only_proxy: bool,
    /// User of the proxy.
    pub(crate) uid: u32,
    /// Group of the proxy.
    pub(crate) gid: u32,
    /// REDIRECT, TPROXY or NONE.
    pub(crate) mode: &'a str,
    /// Port of the agent's status server as text; `0` for none.
    pub(crate) status_port: String,
    /// Network of the pod; may be empty.
    pub(crate) network: &'a str,
    /// Variables asked for by URL or, for cluster and network, by label or values.
    pub(crate) env_overrides: BTreeMap<String, String>,
}

impl<'a> Context<'a> {
    /// The context of a pod whose annotations have been validated, with its effective proxy configuration.
    pub(crate) fn new(
        request: &'a InjectRequest,
        pod: &'a Value,
        settings: &'a Settings,
        stored: &'a Stored,
        proxy_config: ProxyConfig,
        workload: Workload,
    ) -> Self {
        let annotations = Texts::of(pod, "annotations");
        let labels = Texts::of(pod, "labels");
        let (applications, own_proxy) = original_containers(pod, stored);
        let (uid, gid) = match settings.platform {
            Platform::OpenShift => openshift_ids(&request.namespace_annotations),
            Platform::Kubernetes => (PROXY_ID, PROXY_ID),
        };
        let only_proxy = applications.is_empty() && own_proxy.is_some();
        let wants_native = match annotations.get(name::NATIVE_SIDECAR) {
            Some("true") => true,
            Some("false") => false,
            _ => settings.native_for(pod["spec"]["nodeName"].as_str()),
        };
        let mode = annotations.get(name::INTERCEPTION_MODE).unwrap_or(match proxy_config.interception_mode() {
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
        let mut env_overrides = url_env.clone();
        for (variable, value) in [("ISTIO_META_NETWORK", network), ("ISTIO_META_CLUSTER_ID", cluster)] {
            if !value.is_empty() {
                env_overrides.insert(variable.to_owned(), value.to_owned());
            }
        }
        let status_port = annotations.get(name::STATUS_PORT).map(|port| port.trim().to_owned());
        Self {
            settings,
            annotations,
            labels,
            applications,
            own_proxy,
            service_account: pod["spec"]["serviceAccountName"].as_str(),
            budget: pod["spec"]["resources"].as_object(),
            workload,
            proxy_config,
            native: wants_native && !only_proxy,
            only_proxy: wants_native && only_proxy,
            uid,
            gid,
            mode,
            status_port: status_port.unwrap_or_else(|| values.proxy.status_port.to_string()),
            network,
            env_overrides,
        }
    }

    /// An annotation, else a default.
    pub(crate) fn annotation_or<'b>(&self, key: &str, default: &'b str) -> &'b str
    where
        'a: 'b,
    {
        self.annotations.get(key).unwrap_or(default)
    }

    /// The pod says itself what its sidecar may use.
    pub(crate) fn asks_for_resources(&self) -> bool {
        let annotations = [name::PROXY_CPU, name::PROXY_MEMORY, name::PROXY_CPU_LIMIT, name::PROXY_MEMORY_LIMIT];
        annotations.iter().any(|key| self.annotations.get(key).is_some())
    }

    /// Image of the proxy.
    pub(crate) fn proxy_image(&self) -> String {
        let annotated = self.annotations.get(name::PROXY_IMAGE_TYPE);
        let kind = annotated.or(self.proxy_config.image_type()).unwrap_or(&self.settings.values.global.variant);
        self.image(&self.settings.values.proxy.image, kind)
    }

    /// Image of the init container.
    pub(crate) fn init_image(&self) -> String {
        let kind = self.annotations.get(name::PROXY_IMAGE_TYPE).unwrap_or(&self.settings.values.global.variant);
        self.image(&self.settings.values.proxy_init.image, kind)
    }

    fn image(&self, configured: &str, kind: &str) -> String {
        let whole = |image: &&str| image.contains('/');
        if let Some(image) = self.annotations.get(name::PROXY_IMAGE).filter(whole).or(Some(configured).filter(whole)) {
            return image.to_owned();
        }
        let global = &self.settings.values.global;
        image(&global.hub, configured, &global.tag, kind)
    }

    /// Whether the proxy gets NET_BIND_SERVICE.
    pub(crate) fn binds_low_ports(&self) -> bool {
        self.annotation_or(name::CAP_NET_BIND_SERVICE, &self.settings.values.proxy.cap_net_bind_service) == "true"
    }

    /// Whether the proxy and the agent are up before the application, by container order and a hook.
    pub(crate) fn holds_application(&self) -> bool {
        self.proxy_config.hold_application() || self.settings.values.proxy.hold_application
    }
}

/// The containers of the application, and what the user wrote about the proxy.
fn original_containers<'a>(pod: &'a Value, stored: &'a Stored) -> (Vec<&'a Value>, Option<&'a Value>) {
    let (proxies, applications): (Vec<&Value>, Vec<&Value>) =
        List::Containers.of(pod).iter().partition(|container| container["name"] == PROXY);
    let in_init = || List::InitContainers.of(pod).iter().rfind(|container| container["name"] == PROXY);
    let own_proxy = stored.find(PROXY).or_else(|| proxies.last().copied()).or_else(in_init);
    (applications, own_proxy)
}

/// `<hub>/<name>:<tag>`, the tag with its type.
pub(crate) fn image(hub: &str, name: &str, tag: &str, kind: &str) -> String {
    if kind.is_empty() {
        return format!("{hub}/{name}:{tag}");
    }
    let base = tag.strip_suffix("-distroless").or_else(|| tag.strip_suffix("-debug")).unwrap_or(tag);
    if kind == "default" { format!("{hub}/{name}:{base}") } else { format!("{hub}/{name}:{base}-{kind}") }
}

/// User and group of the proxy on OpenShift: the last of the ranges that the namespace may use.
fn openshift_ids(namespace: &BTreeMap<String, String>) -> (u32, u32) {
    let last = |key: &str| namespace.get(key).and_then(|ranges| last_id(ranges.split(',').next()?));
    let uid = last("openshift.io/sa.scc.uid-range");
    let gid = last("openshift.io/sa.scc.supplemental-groups").or(uid);
    (uid.unwrap_or(PROXY_ID), gid.unwrap_or(PROXY_ID))
}

/// Last id of `start/size` or `start-end`.
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
    fn builds_image_references_with_their_type() {
        assert_eq!(image("h", "proxyv2", "11", ""), "h/proxyv2:11");
        assert_eq!(image("h", "proxyv2", "1.12", "distroless"), "h/proxyv2:1.12-distroless");
        assert_eq!(image("h", "proxyv2", "1.12-debug", "distroless"), "h/proxyv2:1.12-distroless");
        assert_eq!(image("h", "proxyv2", "1.12-distroless", "default"), "h/proxyv2:1.12");
        assert_eq!(image("h", "proxyv2", "1.12-odd-tag", "debug"), "h/proxyv2:1.12-odd-tag-debug");
    }

    #[test]
    fn takes_the_last_id_of_the_ranges_of_openshift() {
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
