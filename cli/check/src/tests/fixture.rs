//! A healthy cluster: the objects of the manifests, what controllers create from them, and a few pods of users.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use weir_injector::settings::{Documents, NativeSidecars, Settings};
use weir_injector::yaml;
use weir_injector::{InjectOutcome, InjectRequest, inject};

/// A cluster: its objects, and how it responds.
#[derive(Clone)]
pub(crate) struct Fixture {
    /// Objects, each with its resource.
    pub(crate) objects: Vec<(String, Value)>,
    /// Responses of pods, by `NAMESPACE/POD:PORT/PATH`.
    pub(crate) reports: BTreeMap<String, (u16, String)>,
    /// Error returned for the dry-run pod; without one, the pod is injected.
    pub(crate) dry_run: Option<(u16, String)>,
    /// Prefixes of the paths that are forbidden.
    pub(crate) forbidden: Vec<&'static str>,
    pub(crate) version: &'static str,
    /// A pod that is listed, but deleted afterwards.
    pub(crate) deleted_pod: Option<&'static str>,
}

/// A CA.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// Creates a CA that expires on a date.
    pub(crate) fn new(until: (i32, u8, u8)) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        let key = KeyPair::generate().expect("randomness");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Returns the certificate as in a `caBundle` or a Secret.
    pub(crate) fn encoded(&self) -> String {
        STANDARD.encode(self.pem())
    }

    /// Issues a certificate, as in a Secret.
    pub(crate) fn leaf(&self, name: &str, until: (i32, u8, u8)) -> String {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        let key = KeyPair::generate().expect("randomness");
        STANDARD.encode(params.signed_by(&key, &self.0).expect("a certificate").pem())
    }
}

/// Returns the plural of a kind.
fn resource(kind: &str) -> String {
    match kind {
        _ if kind.ends_with("Policy") => kind.to_lowercase().replace("policy", "policies"),
        _ => format!("{}s", kind.to_lowercase()),
    }
}

/// Reads a file below `manifests/`.
fn manifest_text(path: &str) -> String {
    let mut directories =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|directory| directory.join("manifests"));
    let manifests = directories.find(|directory| directory.is_dir()).expect("the manifests");
    std::fs::read_to_string(manifests.join(path)).expect("a manifest")
}

pub(super) fn manifest(path: &str) -> Vec<Value> {
    manifest_text(path).split("\n---\n").map(|document| yaml::from_str(document).expect("YAML")).collect()
}

/// Creates a running pod of a workload.
pub(crate) fn pod_of(workload: &Value, name: &str, node: &str) -> Value {
    let mut pod = workload["spec"]["template"].clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["namespace"] = workload["metadata"]["namespace"].clone();
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z".into();
    pod["spec"]["nodeName"] = node.into();
    pod["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    pod
}

fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
        "spec": {},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "images": [{"names": ["something"]}],
            "nodeInfo": {
                "kubeletVersion": "v1.33.1", "containerRuntimeVersion": "containerd://1.7.24", "kernelVersion": "6.1.0-18-cloud-amd64",
                "operatingSystem": "linux", "osImage": "Debian GNU/Linux 12", "architecture": "amd64",
            },
        },
    })
}

pub(crate) fn namespace(name: &str, labels: &Value) -> Value {
    let mut all = json!({"kubernetes.io/metadata.name": name});
    json_patch::merge(&mut all, labels);
    let metadata = json!({"name": name, "labels": all, "creationTimestamp": "2026-01-01T00:00:00Z"});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata, "status": {"phase": "Active"}})
}

/// Creates a running pod of a ReplicaSet, without a sidecar.
pub(crate) fn plain_pod(namespace: &str, owner: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "generateName": format!("{owner}-"), "labels": {"app": owner},
            "creationTimestamp": "2026-03-01T00:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": format!("uid-{owner}"), "controller": true}],
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "app", "image": "nginx", "ports": [{"containerPort": 80}]}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

impl Fixture {
    /// Returns a cluster without faults.
    pub(crate) fn healthy() -> Self {
        static HEALTHY: OnceLock<Fixture> = OnceLock::new();
        HEALTHY.get_or_init(Self::create).clone()
    }

    fn create() -> Self {
        let mut fixture = Self {
            objects: Vec::new(),
            reports: BTreeMap::new(),
            dry_run: None,
            forbidden: Vec::new(),
            version: "v1.33.1",
            deleted_pod: None,
        };
        for (name, labels) in [
            ("default", json!({})),
            ("kube-system", json!({})),
            ("istio-system", json!({})),
            ("plain", json!({})),
            ("secure", json!({"istio.io/rev": "default", "pod-security.kubernetes.io/enforce": "restricted"})),
            ("shop", json!({"istio-injection": "enabled", "pod-security.kubernetes.io/enforce": "baseline"})),
        ] {
            fixture.add(namespace(name, &labels));
        }
        for name in ["node-1", "node-2", "node-3"] {
            fixture.add(node(name));
        }
        for path in ["namespace", "rbac", "deployment", "pod-disruption-budget", "service", "webhook"] {
            fixture.add_all(manifest(&format!("base/{path}.yaml")));
        }
        fixture.add_all(manifest("components/network-policy/network-policy.yaml"));
        fixture.add_all(manifest("components/admission-policies/policies.yaml"));
        for path in ["namespace", "rbac", "daemonset"] {
            fixture.add_all(manifest(&format!("node/base/{path}.yaml")));
        }
        fixture.add(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "weir-webhook", "namespace": "weir-system"},
            "data": {"values": manifest_text("base/config/values.yaml"), "mesh": manifest_text("base/config/mesh.yaml")},
        }));
        fixture.add(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "weir-node", "namespace": "weir-node"},
            "data": {"CNI_NET_DIR": "/etc/cni/net.d", "REPAIR_ENABLED": "false"},
        }));
        let istiod = json!({"name": "istiod", "namespace": "istio-system"});
        fixture.add(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": istiod, "spec": {"ports": [{"port": 15012}]}}),
        );
        let containers = json!([{"name": "discovery", "image": "docker.io/istio/pilot:1.28.0"}]);
        fixture.add(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": istiod,
            "spec": {"template": {"spec": {"containers": containers}}}, "status": {"readyReplicas": 1},
        }));
        fixture.add_created_objects();
        fixture.add_users_objects();
        fixture
    }

    /// Adds what controllers and the webhook create.
    fn add_created_objects(&mut self) {
        let authority = Authority::new((2036, 1, 1));
        self.add(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "weir-webhook-ca", "namespace": "weir-system"},
            "data": {"current.crt": authority.encoded(), "ca.crt": authority.encoded(), "current.key": "c2VjcmV0"},
        }));
        for entry in self.entries() {
            entry["clientConfig"]["caBundle"] = authority.encoded().into();
        }
        self.configuration()["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z".into();
        self.deployment()["status"] = json!({"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2});
        let container = &mut self.deployment()["spec"]["template"]["spec"]["containers"][0];
        container["args"].as_array_mut().expect("args").push("--client-ca-file=/client-ca/ca.crt".into());
        let deployment = self.deployment().clone();
        for (number, node) in [(1, "node-1"), (2, "node-2")] {
            let name = format!("weir-webhook-{number}");
            self.add(pod_of(&deployment, &name, node));
            let conditions =
                json!([condition("shutdown", "ok", "Serving"), condition("settings", "ok", "ConfigurationLoaded")]);
            self.set_readiness("weir-system", &name, &conditions);
            let metrics = format!(
                "# TYPE weir_webhook_build info\nweir_webhook_build_info{{version=\"{}\"}} 1\nweir_webhook_certificate_expiry_timestamp_seconds 4000000000\n# EOF\n",
                env!("CARGO_PKG_VERSION")
            );
            self.set_metrics("weir-system", &name, &metrics);
        }
        let endpoint = |ip: &str| json!({"addresses": [ip], "conditions": {"ready": true}});
        self.add(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "weir-webhook-x", "namespace": "weir-system", "labels": {"kubernetes.io/service-name": "weir-webhook"}},
            "endpoints": [endpoint("10.0.0.1"), endpoint("10.0.0.2")], "ports": [{"name": "https", "port": 15017}],
        }));
        self.get("poddisruptionbudgets", "weir-system", "weir-webhook")["status"] =
            json!({"desiredHealthy": 1, "currentHealthy": 2, "disruptionsAllowed": 1, "expectedPods": 2});
        let agents = self.get("daemonsets", "weir-node", "weir-agent").clone();
        for number in 1..=3 {
            let name = format!("weir-agent-{number}");
            self.add(pod_of(&agents, &name, &format!("node-{number}")));
            self.set_readiness("weir-node", &name, &json!([condition("install", "ok", "Installed")]));
            let metrics = format!(
                "weir_agent_build_info{{version=\"{}\"}} 1\nweir_agent_meshed_pods{{state=\"ok\"}} 4\n# EOF\n",
                env!("CARGO_PKG_VERSION")
            );
            self.set_metrics("weir-node", &name, &metrics);
        }
    }

    fn add_users_objects(&mut self) {
        for name in ["web-5d4-a", "web-5d4-b"] {
            let pod = self.injected(&plain_pod("shop", "web-5d4", name));
            self.add(pod);
        }
        let mut refuses = plain_pod("shop", "job", "job-1");
        refuses["metadata"]["labels"]["sidecar.istio.io/inject"] = "false".into();
        self.add(refuses);
        self.add(plain_pod("plain", "other", "other-1"));
        self.add(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "shop", "name": "web", "labels": {"app": "web"}},
            "spec": {"template": {"metadata": {"labels": {"app": "web"}}}},
            "status": {"conditions": [{"type": "Available", "status": "True"}]},
        }));
    }

    /// Returns the settings in the ConfigMap, or the built-in ones.
    pub(crate) fn settings(&self) -> Settings {
        let map = self.find("configmaps", "weir-system", "weir-webhook");
        let document = |key: &str| -> Option<Value> { yaml::from_str(map?["data"][key].as_str()?).ok() };
        let (values, mesh) = (document("values"), document("mesh"));
        let documents = Documents { values: values.as_ref(), mesh: mesh.as_ref(), config: None };
        let built_in = || Settings::from_values_and_mesh(None, None).expect("settings");
        let mut settings = Settings::from_documents(documents).unwrap_or_else(|_| built_in());
        settings.native_sidecars = NativeSidecars::ByNodes;
        settings
    }

    /// Returns a pod as it is after admission.
    pub(crate) fn injected(&self, pod: &Value) -> Value {
        let request = InjectRequest { pod: pod.clone(), ..InjectRequest::default() };
        match inject(&request, &self.settings()) {
            Ok(InjectOutcome::Injected { pod, .. }) => pod,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn add(&mut self, object: Value) {
        let resource = resource(object["kind"].as_str().expect("a kind"));
        self.objects.push((resource, object));
    }

    pub(crate) fn add_all(&mut self, objects: Vec<Value>) {
        for object in objects {
            self.add(object);
        }
    }

    fn position(&self, resource: &str, namespace: &str, name: &str) -> Option<usize> {
        self.objects.iter().position(|(of, object)| {
            let metadata = &object["metadata"];
            of == resource
                && metadata["namespace"].as_str().unwrap_or_default() == namespace
                && metadata["name"] == name
        })
    }

    pub(crate) fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.position(resource, namespace, name).map(|at| &self.objects[at].1)
    }

    /// Returns an existing object for changes.
    pub(crate) fn get(&mut self, resource: &str, namespace: &str, name: &str) -> &mut Value {
        let at = self.position(resource, namespace, name).unwrap_or_else(|| panic!("no {resource} {namespace}/{name}"));
        &mut self.objects[at].1
    }

    pub(crate) fn remove(&mut self, resource: &str, namespace: &str, name: &str) {
        let at = self.position(resource, namespace, name).expect("an object");
        self.objects.remove(at);
    }

    pub(crate) fn deployment(&mut self) -> &mut Value {
        self.get("deployments", "weir-system", "weir-webhook")
    }

    pub(crate) fn configuration(&mut self) -> &mut Value {
        self.get("mutatingwebhookconfigurations", "", "weir-sidecar-injector")
    }

    /// Returns the entries of the webhook configuration for changes.
    pub(crate) fn entries(&mut self) -> impl Iterator<Item = &mut Value> {
        self.configuration()["webhooks"].as_array_mut().expect("a list").iter_mut()
    }

    /// Makes the API server's call of the webhook for the dry-run pod fail.
    pub(crate) fn fail_webhook_call(&mut self, reason: &str) {
        let call = "Internal error occurred: failed calling webhook \"namespace.sidecar-injector.weir.dev\": failed to call webhook: Post \"https://weir-webhook.weir-system.svc:443/inject?timeout=5s\": ";
        self.dry_run = Some((500, format!("{call}{reason}")));
    }

    /// Sets the conditions of a pod of webhook or agent.
    pub(crate) fn set_readiness(&mut self, namespace: &str, pod: &str, conditions: &Value) {
        let is_failed = |condition: &Value| condition["status"] == "failed" && condition["impact"] == "blocking";
        let is_ready = !conditions.as_array().expect("a list").iter().any(is_failed);
        let port = if namespace == "weir-node" { 15033 } else { 15014 };
        let body = json!({"ready": is_ready, "conditions": conditions}).to_string();
        self.reports.insert(format!("{namespace}/{pod}:{port}/readyz"), (if is_ready { 200 } else { 503 }, body));
    }

    pub(crate) fn set_metrics(&mut self, namespace: &str, pod: &str, metrics: &str) {
        let port = if namespace == "weir-node" { 15034 } else { 15014 };
        self.reports.insert(format!("{namespace}/{pod}:{port}/metrics"), (200, metrics.to_owned()));
    }
}

/// Returns a blocking condition of `/readyz`.
pub(crate) fn condition(name: &str, status: &str, reason: &str) -> Value {
    json!({"name": name, "status": status, "impact": "blocking", "reason": reason, "message": format!("message of {name}")})
}
