//! Certificates of a cluster, and kubeconfigs with them.

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use crate::files::File;
use crate::plan::{API_SERVICE_IP, CONTROL_IP, NODES, Node};

/// The certificates of a new cluster, as the files of its machines.
pub struct Pki {
    /// Files of the control plane.
    pub control: Vec<File>,
    /// Files of each node.
    pub nodes: Vec<(Node, Vec<File>)>,
    /// A kubeconfig with all rights.
    pub admin: String,
}

impl Pki {
    /// Creates a certificate authority and every certificate.
    ///
    /// # Errors
    /// When no key can be generated.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca = Ca(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?);
        let accounts = KeyPair::generate()?;
        let mut control = vec![
            file("ca.crt", ca.0.pem()),
            // The controller manager signs requests for certificates with it.
            file("ca.key", ca.0.key().serialize_pem()),
            file("service-accounts.key", accounts.serialize_pem()),
            file("service-accounts.pub", accounts.public_key_pem()),
        ];
        let mut names =
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).to_vec();
        names.push("kubernetes.default.svc.cluster.local".to_owned());
        names.extend(["127.0.0.1".to_owned(), API_SERVICE_IP.to_string()]);
        names.extend([CONTROL_IP.0.to_string(), CONTROL_IP.1.to_string()]);
        let admin = ca.issue("admin", "system:masters", &[])?;
        for (name, pair) in [
            ("apiserver", ca.issue("kube-apiserver", "", &names)?),
            ("admin", admin.clone()),
            ("front-proxy", ca.issue("front-proxy", "", &[])?),
        ] {
            control.extend([file(&format!("{name}.crt"), pair.cert), file(&format!("{name}.key"), pair.key)]);
        }
        for name in ["controller-manager", "scheduler"] {
            let pair = ca.issue(&format!("system:kube-{name}"), "", &[])?;
            control.push(file(&format!("{name}.kubeconfig"), ca.kubeconfig(&pair)));
        }
        let proxy = ca.kubeconfig(&ca.issue("system:kube-proxy", "", &[])?);
        let nodes = NODES.map(|node| {
            let name = node.name();
            let (v4, v6) = node.ips();
            let pair =
                ca.issue(&format!("system:node:{name}"), "system:nodes", &[name, v4.to_string(), v6.to_string()])?;
            let files = vec![
                file("ca.crt", ca.0.pem()),
                file("kubelet.kubeconfig", ca.kubeconfig(&pair)),
                file("kube-proxy.kubeconfig", proxy.clone()),
                file("kubelet.crt", pair.cert),
                file("kubelet.key", pair.key),
            ];
            Ok((node, files))
        });
        let nodes = nodes.into_iter().collect::<anyhow::Result<_>>()?;
        Ok(Self { control, nodes, admin: ca.kubeconfig(&admin) })
    }
}

fn file(name: &str, content: String) -> File {
    (format!("/etc/kubernetes/{name}"), content)
}

struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, PEM.
#[derive(Clone)]
struct Pair {
    cert: String,
    key: String,
}

impl Ca {
    /// Issues a certificate for servers and clients. Kubernetes reads the user from the common name and the group from the organization.
    fn issue(&self, user: &str, group: &str, names: &[String]) -> anyhow::Result<Pair> {
        let mut params = CertificateParams::new(names.to_vec()).with_context(|| format!("names of {user}"))?;
        params.distinguished_name.push(DnType::CommonName, user);
        if !group.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok(Pair { cert: params.signed_by(&key, &self.0)?.pem(), key: key.serialize_pem() })
    }

    /// Returns a kubeconfig that contains everything. JSON is YAML.
    fn kubeconfig(&self, pair: &Pair) -> String {
        let cluster = json!({
            "server": format!("https://{}:6443", CONTROL_IP.0), "certificate-authority-data": STANDARD.encode(self.0.pem()),
        });
        let user = json!({
            "client-certificate-data": STANDARD.encode(&pair.cert), "client-key-data": STANDARD.encode(&pair.key),
        });
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "weir-cluster",
            "clusters": [{ "name": "weir-cluster", "cluster": cluster }],
            "users": [{ "name": "weir-cluster", "user": user }],
            "contexts": [{ "name": "weir-cluster", "context": { "cluster": "weir-cluster", "user": "weir-cluster" } }],
        });
        format!("{config:#}\n")
    }
}
