//! Compares this engine with Go's on edits of the templates that Istio has released: each line removed, and each word changed, one at a
//! time.
//!
//! `WEIR_EDITS=1` compares all of them; by default it is every 97th.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gotmpl::Value as Data;
use serde_json::{Value, json};

use super::go::{GoEngine, number_from_env};
use super::{CustomTemplate, RenderOptions, rendered_yaml};
use crate::context::InjectContext;
use crate::overrides::StoredOverrides;
use crate::settings::{Documents, GATEWAY_CONTROLLER_TEMPLATES, NativeSidecars, Settings};
use crate::template_data::estimated_concurrency;
use crate::workload::workload_of_pod;
use crate::{InjectRequest, template_data, yaml};

/// A context in which a template is rendered, with its number in the Go program.
struct Context {
    data: Data,
    options: RenderOptions,
    number: usize,
}

/// The pods of the contexts: one with hardly any settings, one with many.
fn pods() -> [Value; 2] {
    let plain = json!({
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "image": "nginx", "ports": [{"containerPort": 80, "name": "http"}]}]},
    });
    let annotated = json!({
        "metadata": {"generateName": "api-7d-", "namespace": "shop",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "api-7d", "controller": true}],
            "labels": {"app.kubernetes.io/name": "api", "version": "v2", "pod-template-hash": "7d", "topology.istio.io/network": "n1",
                "security.istio.io/tlsMode": "disabled"},
            "annotations": {
                "sidecar.istio.io/proxyCPU": "50m", "sidecar.istio.io/proxyMemoryLimit": "1Gi", "sidecar.istio.io/logLevel": "debug",
                "sidecar.istio.io/bootstrapOverride": "custom", "sidecar.istio.io/componentLogLevel": "rbac:debug",
                "sidecar.istio.io/interceptionMode": "TPROXY", "status.sidecar.istio.io/port": "15999",
                "sidecar.istio.io/userVolume": "{\"v\":{\"emptyDir\":{}}}", "sidecar.istio.io/userVolumeMount": "{\"v\":{\"mountPath\":\"/v\"}}",
                "traffic.sidecar.istio.io/includeInboundPorts": "80,90", "traffic.sidecar.istio.io/excludeInboundPorts": "1, 2",
                "traffic.sidecar.istio.io/includeOutboundPorts": "443", "traffic.sidecar.istio.io/excludeOutboundPorts": "22",
                "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8", "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16",
                "traffic.sidecar.istio.io/excludeInterfaces": "net1", "istio.io/reroute-virtual-interfaces": "net2",
                "readiness.status.sidecar.istio.io/initialDelaySeconds": "3", "sidecar.istio.io/agentLogLevel": "default:debug",
                "k8s.v1.cni.cncf.io/networks": "[{\"name\": \"a\"}]", "sidecar.istio.io/capNetBindService": "true",
                "kubectl.kubernetes.io/default-container": "api"}},
        "spec": {"serviceAccountName": "robot", "securityContext": {"fsGroup": 7},
            "containers": [
                {"name": "api", "image": "api:1", "ports": [{"containerPort": 8080}, {"containerPort": 53, "protocol": "UDP", "name": "dns"}],
                    "env": [{"name": "A", "value": "x"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
                {"name": "istio-proxy", "image": "auto", "ports": [{"containerPort": 9000}],
                    "lifecycle": {"preStop": {"exec": {"command": ["sleep", "1"]}}}}]},
    });
    [plain, annotated]
}

/// Values of a second context, which turn on what the first one leaves off.
fn rich_values() -> Value {
    json!({
        "global": {
            "logAsJson": true, "imagePullPolicy": "Always", "imagePullSecrets": ["one"], "network": "net", "meshID": "m", "mountMtlsCerts": true,
            "caName": "GkeWorkloadCertificate", "caAddress": "ca:1", "sts": {"servicePort": 1}, "istiod": {"enableAnalysis": true},
            "proxy": {"privileged": true, "tracer": "lightstep", "lifecycle": {"postStart": {"exec": {"command": ["true"]}}},
                "holdApplicationUntilProxyStarts": true, "outlierLogPath": "/o", "seccompProfile": {"type": "RuntimeDefault"},
                "includeOutboundPorts": "1", "excludeOutboundPorts": "2", "startupProbe": {"enabled": true, "failureThreshold": 600}},
            "proxy_init": {"forceApplyIptables": true}, "nativeNftables": true, "trustBundleName": "bundle",
        },
        "pilot": {"cni": {"enabled": true, "provider": "multus"}, "env": {"ENABLE_CLUSTER_TRUST_BUNDLE_API": "true"}},
        "istio_cni": {"enabled": true, "chained": false, "provider": "multus"},
        "gateways": {"securityContext": {"runAsUser": 0}},
        "revision": "canary",
    })
}

/// A released version: its templates for pods, and documents of one of its cases.
struct Release {
    name: String,
    texts: Vec<(String, String)>,
    values: Value,
    mesh: Value,
}

impl Release {
    /// Reads all releases; without them the test is [skipped](weir_lab::skip_or_fail).
    fn load_all() -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance/releases");
        let mut directories: Vec<PathBuf> =
            std::fs::read_dir(&root).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        directories.sort();
        if directories.is_empty() {
            weir_lab::skip_or_fail(format_args!("no conformance data at {}", root.display()));
        }
        directories.iter().map(|directory| Self::load(directory)).collect()
    }

    fn load(directory: &Path) -> Self {
        let read = |file: &str| yaml::from_str(&std::fs::read_to_string(directory.join(file)).unwrap()).unwrap();
        let cases = read("cases.json");
        let document = |kind: &str| read(&format!("documents/{}", cases[0][kind].as_str().unwrap()));
        let config: Value = document("template");
        let texts = config["templates"].as_object().unwrap().iter();
        let for_pods = texts.filter(|(name, _)| !GATEWAY_CONTROLLER_TEMPLATES.contains(&name.as_str()));
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        Self {
            name,
            texts: for_pods.map(|(name, text)| (name.clone(), text.as_str().unwrap().to_owned())).collect(),
            values: document("values"),
            mesh: document("mesh"),
        }
    }

    /// Returns the contexts in which its templates are rendered, and sends them to Go.
    fn contexts(&self, go: &mut GoEngine, stored: &mut usize) -> Vec<Context> {
        let [plain, annotated] = pods();
        let mut rich = self.values.clone();
        json_patch::merge(&mut rich, &rich_values());
        let mut rich_mesh = self.mesh.clone();
        json_patch::merge(&mut rich_mesh, &rich_mesh_changes());
        let mut contexts = Vec::new();
        for (pod, values, mesh, native) in [
            (&plain, &self.values, &self.mesh, NativeSidecars::Off),
            (&annotated, &self.values, &self.mesh, NativeSidecars::On),
            (&plain, &rich, &rich_mesh, NativeSidecars::On),
            (&annotated, &rich, &rich_mesh, NativeSidecars::Off),
        ] {
            // A template makes the settings keep their data for templates.
            let config = json!({"templates": {"any": "{}"}});
            let documents = Documents { values: Some(values), mesh: Some(mesh), config: Some(&config) };
            let mut settings = Settings::from_documents(documents).unwrap();
            settings.native_sidecars = native;
            let (data, request) = context(pod, &settings, values, mesh);
            go.render(&json!({"store": request})).unwrap();
            let options = RenderOptions {
                native_sidecars: native == NativeSidecars::On,
                before_1_22: settings.release.is_before(22),
            };
            contexts.push(Context { data, options, number: *stored });
            *stored += 1;
        }
        contexts
    }
}

fn rich_mesh_changes() -> Value {
    json!({
        "trustDomain": "td", "inboundTrafficPolicy": {"mode": "LOCALHOST"},
        "defaultConfig": {"proxyMetadata": {"B": "2", "A": "one \"q\"", "ISTIO_META_ENABLE_HBONE": "true"}, "concurrency": 3,
            "drainDuration": "90s", "interceptionMode": "TPROXY", "image": {"imageType": "distroless"},
            "tracing": {"zipkin": null, "tlsSettings": {"caCertificates": "/etc/ca/x.pem"}, "lightstep": {"address": "a:1", "accessToken": "t"}}},
    })
}

/// Returns a pod's data for this engine, and for Go.
fn context(pod: &Value, settings: &Settings, values: &Value, mesh: &Value) -> (Data, Value) {
    let request = InjectRequest { pod: pod.clone(), ..InjectRequest::default() };
    let (stored, config) = (StoredOverrides::default(), settings.mesh.default_config.clone());
    let workload = workload_of_pod(pod, None);
    let context = InjectContext::new(&request, pod, settings, &stored, config, workload);
    let shared = settings.injection.templates.shared_data().unwrap();
    let workload = &context.workload;
    let mut mesh_config = settings.mesh.effective_fields(Some(mesh));
    let proxy_config = Value::Object(context.proxy_config.fields().clone());
    mesh_config.insert("defaultConfig".to_owned(), proxy_config.clone());
    let localhost = settings.mesh.inbound_localhost;
    let for_go = json!({
        "typeMeta": {"apiVersion": workload.api_version, "kind": workload.kind},
        "deploymentMeta": {"name": workload.name, "namespace": workload.namespace},
        "metadata": pod["metadata"], "spec": pod["spec"], "values": values,
        "proxyConfig": proxy_config, "meshConfig": mesh_config,
        "revision": settings.revision, "proxyImage": context.proxy_image(), "proxyInitImage": context.init_image(),
        "proxyUID": context.uid, "proxyGID": context.gid, "nativeSidecars": context.native,
        "inboundTrafficPolicyMode": if localhost { "localhost" } else { "passthrough" },
        "compliancePolicy": settings.compliance_policy, "estimatedConcurrency": estimated_concurrency(&context),
    });
    (template_data::for_pod(&context, pod, shared), for_go)
}

/// Returns every edit of a text with a description: each line removed, and the last letter or digit of each word changed.
fn edits(text: &str) -> impl Iterator<Item = (String, String)> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let removed = (0..lines.len()).map(move |removed| {
        let kept = lines.iter().enumerate().filter(|(number, _)| *number != removed).map(|(_, line)| *line);
        (format!("without line {}: {:?}", removed + 1, lines[removed].trim()), kept.collect())
    });
    let ends_word = |at: usize, byte: u8| {
        byte.is_ascii_alphanumeric() && !text.as_bytes().get(at + 1).is_some_and(u8::is_ascii_alphanumeric)
    };
    let ends = text.bytes().enumerate().filter(move |(at, byte)| ends_word(*at, *byte));
    let changed = ends.map(move |(at, byte)| {
        let other = match byte {
            b'9' => b'0',
            b'z' | b'Z' => byte - 1,
            byte => byte + 1,
        };
        let line = text[..at].matches('\n').count();
        let edited = format!("{}{}{}", &text[..at], char::from(other), &text[at + 1..]);
        (format!("line {}, changed: {:?}", line + 1, edited.lines().nth(line).unwrap_or_default().trim()), edited)
    });
    removed.chain(changed)
}

/// Compares the results of one template text; returns a description of the first difference.
fn difference(go: &mut GoEngine, text: &str, contexts: &[Context]) -> Option<String> {
    let parsed = CustomTemplate::parse("t", text);
    for context in contexts {
        let env = json!({"ENABLE_NATIVE_SIDECARS": context.options.native_sidecars.to_string()});
        let want = go.render(&json!({"template": text, "context": context.number, "env": env, "before1_22": context.options.before_1_22}));
        let got = match &parsed {
            Ok(template) => template.render_text(&context.data, context.options).map_err(|error| error.to_string()),
            Err(errors) => Err(errors.join("; ")),
        };
        match (got, want) {
            (Ok(got), Ok(want)) if got == want => {
                let fast = rendered_yaml::parse(&got);
                if fast.is_some() && fast != yaml::from_str(&got).ok() {
                    return Some(format!("context {}: rendered_yaml differs from yaml", context.number));
                }
            }
            (Err(_), Err(_)) => {}
            (Ok(got), Ok(want)) => {
                let pairs = got.lines().zip(want.lines());
                let first = pairs.enumerate().find(|(_, (got, want))| got != want);
                return Some(format!("context {}: {first:?}", context.number));
            }
            (got, want) => {
                return Some(format!(
                    "context {}: {:?}, Go {:?}",
                    context.number,
                    got.map(|_| "text"),
                    want.map(|_| "text")
                ));
            }
        }
    }
    None
}

#[test]
fn edited_templates_have_the_output_of_go() {
    let Some(mut go) = GoEngine::start() else { return };
    let stride = usize::try_from(number_from_env("WEIR_EDITS", 97)).unwrap();
    let (mut stored, mut compared, mut different) = (0, 0, BTreeMap::new());
    for release in Release::load_all() {
        let contexts = release.contexts(&mut go, &mut stored);
        for (name, text) in &release.texts {
            let whole = [("unchanged".to_owned(), text.clone())];
            for (edit, edited) in whole.into_iter().chain(edits(text).step_by(stride)) {
                compared += 1;
                if let Some(difference) = difference(&mut go, &edited, &contexts) {
                    different.insert(format!("{} {name}, {edit}", release.name), difference);
                }
            }
        }
    }
    eprintln!("{compared} edits compared");
    let shown: Vec<String> =
        different.iter().take(40).map(|(edit, difference)| format!("{edit}\n  {difference}")).collect();
    assert!(different.is_empty(), "{} of {compared} differ\n{}", different.len(), shown.join("\n"));
}
