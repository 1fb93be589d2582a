//! Configuration files of the machines.

use crate::images;
use crate::plan::{CONTROL_IP, Node, POD_CIDRS, Runtime, Tools};

/// A file of a machine: its path and content.
pub type File = (String, String);

/// Returns the configuration files of a node.
pub fn node_files(tools: &Tools, node: Node) -> Vec<File> {
    let (pods4, pods6) = node.pod_cidrs();
    let mut files = vec![
        (
            "/etc/kubernetes/kubelet.yaml",
            fill(include_str!("templates/kubelet.yaml"), &[("socket", node.runtime.socket())]),
        ),
        (
            "/etc/kubernetes/kube-proxy.yaml",
            fill(include_str!("templates/kube-proxy.yaml"), &[("name", &node.name()), ("pod_cidrs", POD_CIDRS)]),
        ),
        (
            "/etc/cni/net.d/10-pods.conflist",
            fill(include_str!("templates/cni.conflist"), &[("pods4", &pods4), ("pods6", &pods6)]),
        ),
    ];
    match node.runtime {
        Runtime::CriO => {
            let values = [("pause", images::PAUSE), ("tools", &tools.path("").display().to_string())];
            let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
            files.push(("/etc/crio/crio.conf", fill(include_str!("templates/crio.conf"), &values)));
            files.push(("/etc/crio/policy.json", policy.to_owned()));
            files.push(("/etc/crio/runc", include_str!("templates/runc").to_owned()));
        }
        Runtime::Containerd1 | Runtime::Containerd2 => files.push((
            "/etc/containerd/config.toml",
            fill(include_str!("templates/containerd.toml"), &[("pause", images::PAUSE)]),
        )),
    }
    files.into_iter().map(|(path, content)| (path.to_owned(), content)).collect()
}

/// Returns the manifest of CoreDNS.
pub fn coredns() -> String {
    let control = CONTROL_IP.0.to_string();
    fill(include_str!("templates/coredns.yaml"), &[("image", images::COREDNS), ("control4", &control)])
}

/// The parts of Istio that do the same work as Weir. By default none of them is installed.
#[derive(Debug, Clone, Copy, Default)]
pub struct IstioParts {
    /// Istiod's injector, for namespaces with `istio-injection=enabled`.
    pub injector: bool,
    /// istio-cni. Without it, Istio's injector adds a privileged init container.
    pub cni: bool,
    /// Its ambient mode.
    pub ambient: bool,
}

/// Returns the settings of Istio for `istioctl`.
pub fn istio(parts: IstioParts) -> String {
    let values = [
        ("hub", images::ISTIO_HUB),
        ("tag", images::ISTIO_TAG),
        ("without_injector", if parts.injector { "false" } else { "true" }),
        ("cni", if parts.cni { "true" } else { "false" }),
        ("ambient", if parts.ambient { "true" } else { "false" }),
    ];
    fill(include_str!("templates/istio.yaml"), &values)
}

/// Replaces `${NAME}` in a template.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("${{{name}}}"), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::NODES;

    #[test]
    fn templates_have_no_placeholder_left() {
        let tools = Tools::of_checkout();
        let files = NODES.into_iter().flat_map(|node| node_files(&tools, node)).map(|(_, content)| content);
        for content in files.chain([coredns(), istio(IstioParts::default())]) {
            assert!(!content.contains("${"), "{content}");
        }
    }

    #[test]
    fn nodes_have_pod_networks_of_their_own() {
        let tools = Tools::of_checkout();
        for node in NODES {
            let files = node_files(&tools, node);
            let (_, list) = files.iter().find(|(path, _)| path.ends_with(".conflist")).unwrap();
            let list: serde_json::Value = serde_json::from_str(list).unwrap();
            let subnet = &list["plugins"][0]["ipam"]["ranges"][1][0]["subnet"];
            assert_eq!(subnet, &format!("fd10:244:0:{}::/64", node.number));
        }
    }
}
