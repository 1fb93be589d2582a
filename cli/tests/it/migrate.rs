//! `weir migrate` against an API server, with a controller that replaces pods as Deployments do.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_apiserver::ApiServer;
use weir_injector::selection::InjectorRevision;
use weir_injector::selection::configurations::WebhookOptions;
use weir_injector::settings::{Documents, Settings};
use weir_injector::{InjectOutcome, InjectRequest, inject};

use crate::run::{Run, weir};

const DEPLOYMENTS: [&str; 3] = ["cart", "front", "pay"];
/// Time of a replacement.
const TICK: Duration = Duration::from_millis(150);

/// A mesh of Istio with Weir beside it.
struct Mesh {
    server: Arc<ApiServer>,
    kubeconfig: String,
    stop: Arc<AtomicBool>,
    /// True if Weir's webhook is broken, so that new pods get no sidecar.
    is_broken: Arc<AtomicBool>,
    controller: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Mesh {
    fn new() -> Self {
        let server = Arc::new(ApiServer::start().unwrap());
        let values = Settings::builtin_values().to_string();
        let map =
            |name: &str, data: Value| json!({"metadata": {"name": name, "namespace": "istio-system"}, "data": data});
        let namespace = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
        server.put("namespaces", namespace("shop", json!({"istio-injection": "enabled", "team": "a"})));
        server.put("namespaces", namespace("other", json!({})));
        server.put("configmaps", map("istio-sidecar-injector", json!({"values": values, "config": "{}"})));
        server.put("configmaps", map("istio", json!({"mesh": "{}"})));
        server.put("mutatingwebhookconfigurations", istio_configuration());
        let revision = InjectorRevision { revision: "weir".to_owned(), ..InjectorRevision::default() };
        for configuration in revision.webhook_configurations(&WebhookOptions::default()) {
            server.put("mutatingwebhookconfigurations", configuration);
        }
        let ready = json!({"desiredNumberScheduled": 1, "updatedNumberScheduled": 1, "numberAvailable": 1});
        let daemon_set = |namespace: &str, name: &str, labels: Value| json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name, "namespace": namespace, "labels": labels}, "status": ready});
        server.put("daemonsets", daemon_set("istio-system", "istio-cni-node", json!({"k8s-app": "istio-cni-node"})));
        server.put("daemonsets", daemon_set("weir-node", "weir-agent", json!({})));
        let agent = json!({"metadata": {"name": "weir-agent-1", "namespace": "weir-node", "labels": {"app.kubernetes.io/name": "weir-agent"}},
            "spec": {"nodeName": "node-1", "containers": []}});
        server.put("pods", agent);
        server.set_pod_address("weir-node", "weir-agent-1", 15034, serve_agent(Arc::clone(&server)));
        for name in DEPLOYMENTS {
            server.put("deployments", deployment(name));
        }
        let (stop, is_broken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let controller = {
            let (server, stop, is_broken) = (Arc::clone(&server), Arc::clone(&stop), Arc::clone(&is_broken));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    replace_pods(&server, is_broken.load(Ordering::Relaxed));
                    thread::sleep(TICK);
                }
            })
        };
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = server.kubeconfig(folder.path()).unwrap().to_str().unwrap().to_owned();
        let mesh = Self { server, kubeconfig, stop, is_broken, controller: Some(controller), _folder: folder };
        mesh.wait("pods of Istio", |mesh| mesh.injectors() == ["istio"; 3]);
        mesh
    }

    fn migrate(&self, args: &[&str]) -> Run {
        weir(&[&["migrate"], args, &["--kubeconfig", &self.kubeconfig]].concat(), "")
    }

    fn done(&self, args: &[&str]) -> String {
        let run = self.migrate(args);
        assert_eq!(run.code, 0, "{args:?}: {}{}", run.stdout, run.stderr);
        run.stdout
    }

    fn labels(&self) -> Value {
        self.server.get("namespaces", "", "shop").unwrap()["metadata"]["labels"].clone()
    }

    fn record(&self) -> Option<Value> {
        let namespace = self.server.get("namespaces", "", "shop").unwrap();
        namespace["metadata"]["annotations"]["weir.dev/migration"]
            .as_str()
            .map(|text| serde_json::from_str(text).unwrap())
    }

    /// Returns the injector of every pod of the namespace.
    fn injectors(&self) -> Vec<&'static str> {
        let pods = self.server.list("pods").into_iter().filter(|pod| pod["metadata"]["namespace"] == "shop");
        pods.map(|pod| {
            let annotations = &pod["metadata"]["annotations"];
            match (annotations.get("sidecar.istio.io/status"), annotations.get("weir.dev/capture")) {
                (Some(_), Some(_)) => "weir",
                (Some(_), None) => "istio",
                _ => "none",
            }
        })
        .collect()
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !is_so(self) {
            assert!(started.elapsed() < Duration::from_mins(1), "{what}: {:?}", self.injectors());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns how often each Deployment was restarted.
    fn restarts(&self) -> Vec<u64> {
        let generation = |name| {
            self.server.get("deployments", "shop", name).unwrap()["metadata"]["generation"].as_u64().unwrap_or(0)
        };
        DEPLOYMENTS.map(generation).to_vec()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.controller.take() {
            let _ = thread.join();
        }
    }
}

fn istio_configuration() -> Value {
    let entries = InjectorRevision::default().webhook_entries().into_iter().map(|entry| {
        json!({
            "name": entry.name,
            "namespaceSelector": entry.namespace_selector,
            "objectSelector": entry.object_selector,
            "clientConfig": {"service": {"name": "istiod", "namespace": "istio-system", "path": "/inject"}},
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "failurePolicy": "Ignore",
        })
    });
    json!({
        "metadata": {"name": "istio-sidecar-injector", "labels": {"istio.io/rev": "default"}},
        "webhooks": entries.collect::<Value>(),
    })
}

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": "shop", "generation": 1},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "app", "image": "nginx"}]}},
        },
    })
}

/// Takes one step: the pod of a new generation is created, and then the old one ends.
fn replace_pods(server: &ApiServer, is_broken: bool) {
    let labels = server.get("namespaces", "", "shop").unwrap_or_default()["metadata"]["labels"].clone();
    for mut deployment in server.list("deployments") {
        let name = deployment["metadata"]["name"].as_str().unwrap().to_owned();
        let generation = deployment["metadata"]["generation"].clone();
        let pod_name = format!("{name}-{generation}-x");
        let is_there = server.get("pods", "shop", &pod_name).is_some();
        if is_there {
            for old in server.list("pods").into_iter().filter(|pod| pod["metadata"]["labels"]["app"] == *name) {
                if old["metadata"]["name"] != *pod_name {
                    server.remove("pods", "shop", old["metadata"]["name"].as_str().unwrap());
                }
            }
        } else {
            server.put("pods", pod(&deployment, &generation, &labels, is_broken));
        }
        let updated = i64::from(is_there);
        let status = json!({"observedGeneration": generation, "replicas": 1, "updatedReplicas": updated, "availableReplicas": 1});
        if deployment["status"] != status {
            deployment["status"] = status;
            // Unless it was restarted meanwhile.
            if server.get("deployments", "shop", &name).is_some_and(|now| now["metadata"]["generation"] == generation) {
                server.put("deployments", deployment);
            }
        }
    }
}

/// Returns the pod of a Deployment, as the injector that the labels select makes it.
fn pod(deployment: &Value, generation: &Value, labels: &Value, is_broken: bool) -> Value {
    let name = deployment["metadata"]["name"].as_str().unwrap();
    let mut pod = deployment["spec"]["template"].clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    let metadata = &mut pod["metadata"];
    metadata["name"] = format!("{name}-{generation}-x").into();
    metadata["generateName"] = format!("{name}-{generation}-").into();
    metadata["namespace"] = "shop".into();
    metadata["labels"]["pod-template-hash"] = generation.to_string().into();
    metadata["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{name}-{generation}"), "controller": true}]);
    let is_weir = labels["istio.io/rev"] == "weir";
    if !(is_weir && is_broken) {
        let settings = Settings::from_documents(Documents::default()).unwrap();
        let request = InjectRequest { pod, namespace: Some("shop".to_owned()), ..InjectRequest::default() };
        let InjectOutcome::Injected { pod: injected, .. } = inject(&request, &settings).unwrap() else {
            panic!("skipped")
        };
        pod = injected;
        if !is_weir {
            let annotations = pod["metadata"]["annotations"].as_object_mut().unwrap();
            annotations.retain(|name, _| !name.starts_with("weir.dev/"));
        }
    }
    pod["spec"]["nodeName"] = "node-1".into();
    pod["status"] = json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}],
        "conditions": [{"type": "Ready", "status": "True"}]});
    pod
}

/// Serves the list of pods as an agent does, all of them with their rules in place.
fn serve_agent(server: Arc<ApiServer>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let head = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            let _head: Vec<String> = head.collect();
            let pods = server.list("pods").into_iter().filter(|pod| pod["metadata"]["namespace"] == "shop");
            let pods = pods.map(|pod| {
                json!({"namespace": "shop", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"], "state": "ok", "repairs": 0})
            });
            let body = json!({"node": "node-1", "synced": true, "pods": pods.collect::<Value>()}).to_string();
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            let _ = stream.write_all(text.as_bytes());
        }
    });
    addr
}

/// Serves an error rate as Prometheus does; returns its URL.
fn serve_prometheus(rate: &'static str) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let head = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            let head: Vec<String> = head.collect();
            let is_query =
                head.first().is_some_and(|line| line.starts_with("GET /api/v1/query?") && line.contains("shop"));
            let body = if is_query {
                format!(
                    r#"{{"status":"success","data":{{"resultType":"vector","result":[{{"metric":{{}},"value":[1,"{rate}"]}}]}}}}"#
                )
            } else {
                r#"{"status":"error","error":"no query"}"#.to_owned()
            };
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            let _ = stream.write_all(text.as_bytes());
        }
    });
    url
}

#[test]
fn plan_proves_and_changes_nothing() {
    let mesh = Mesh::new();
    let before = mesh.server.requests().len();
    let text = mesh.done(&["plan", "--live"]);
    assert!(
        text.contains("namespace shop: istio-injection=enabled (Istio); 3 workloads with 3 pods in the mesh\n"),
        "{text}"
    );
    assert!(text.contains("  equal: 3 (istio-cni): Deployment/cart, Deployment/front, Deployment/pay\n"), "{text}");
    assert!(text.contains("    agents report: 3 pods ok\n") && text.ends_with("=> 1 namespaces: 3 equal\n"), "{text}");
    let document: Value = serde_json::from_str(&mesh.done(&["plan", "-n", "shop", "-o", "json"])).unwrap();
    assert_eq!(document["revision"], json!({"name": "weir", "installed": true}));
    assert_eq!(document.pointer("/namespaces/0/workloads/2/verdict"), Some(&json!("equal")));
    let writes = mesh.server.requests().split_off(before).into_iter().filter(|sent| !sent.starts_with("GET "));
    assert_eq!(writes.collect::<Vec<_>>(), [""; 0]);
    let missing = mesh.migrate(&["plan", "-n", "nosuch"]);
    assert!(missing.code == 1 && missing.stderr.contains("namespace nosuch not found"), "{}", missing.stderr);
}

#[test]
fn run_that_was_killed_is_resumed_and_finished() {
    let mesh = Mesh::new();
    let refused = mesh.migrate(&["finish", "-y"]);
    assert!(
        refused.code == 1 && refused.stderr.contains("namespace shop: istio-sidecar-injector selects its pods"),
        "{}",
        refused.stderr
    );
    let mut killed = Command::new(assert_cmd::cargo::cargo_bin!("weir"))
        .args(["migrate", "run", "-y", "--kubeconfig", &mesh.kubeconfig])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    mesh.wait("the first pod of Weir", |mesh| mesh.injectors().contains(&"weir"));
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(mesh.record().unwrap()["phase"], "moving");
    assert!(mesh.injectors().contains(&"istio"), "it was killed too late");

    let said = mesh.done(&["run", "-y"]);
    assert!(said.contains("(resuming: moving)") && said.contains("shop: moved\n"), "{said}");
    assert_eq!(mesh.injectors(), ["weir"; 3]);
    assert_eq!(mesh.labels(), json!({"istio.io/rev": "weir", "team": "a"}));
    assert_eq!(mesh.record().unwrap()["former"], json!({"istio-injection": "enabled"}));
    assert_eq!(mesh.restarts(), [2, 2, 2], "each is restarted once");
    assert!(mesh.done(&["run", "-y"]).contains("no namespace is injected by Istio"));

    let planned = mesh.done(&["finish", "--dry-run"]);
    assert!(planned.contains("remove daemonset.apps/istio-cni-node\n"), "{planned}");
    mesh.done(&["finish", "-y"]);
    assert!(mesh.server.get("mutatingwebhookconfigurations", "", "istio-sidecar-injector").is_none());
    assert!(mesh.server.get("daemonsets", "istio-system", "istio-cni-node").is_none());
    let gone = mesh.migrate(&["rollback", "-y"]);
    assert!(gone.code == 1 && gone.stderr.contains("no injector selects istio-injection=enabled"), "{}", gone.stderr);
    assert_eq!(mesh.injectors(), ["weir"; 3]);
}

#[test]
fn rollback_restores_labels_and_pods() {
    let mesh = Mesh::new();
    let url = serve_prometheus("0.001");
    mesh.done(&["run", "-y", "--batch", "3", "-n", "shop", "--prometheus", &url, "--observe", "1s"]);
    assert_eq!(mesh.injectors(), ["weir"; 3]);
    mesh.done(&["rollback", "-y"]);
    assert_eq!(mesh.injectors(), ["istio"; 3]);
    assert_eq!(mesh.labels(), json!({"istio-injection": "enabled", "team": "a"}));
    assert_eq!((mesh.record(), mesh.restarts()), (None, vec![3, 3, 3]));
}

#[test]
fn namespace_is_rolled_back_on_the_first_failure() {
    let mesh = Mesh::new();
    mesh.is_broken.store(true, Ordering::Relaxed);
    let run = mesh.migrate(&["run", "-y"]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stderr.contains("Weir has not injected it"), "{}", run.stderr);
    assert!(run.stderr.contains("namespace shop was rolled back to istio-injection=enabled"), "{}", run.stderr);
    assert_eq!((mesh.injectors(), mesh.record()), (vec!["istio"; 3], None));
    assert_eq!(mesh.restarts(), [3, 1, 1], "the others are not touched");
    // Nor is a mesh that fails already.
    let url = serve_prometheus("0.5");
    let refused = mesh.migrate(&["run", "-y", "--prometheus", &url]);
    assert!(refused.code == 1 && refused.stderr.contains("50.00 % of requests fail"), "{}", refused.stderr);
    assert_eq!((mesh.labels()["istio-injection"].as_str(), mesh.record()), (Some("enabled"), None));
}

/// The installation itself is part of the migration on a whole cluster.
#[test]
fn run_shows_the_installation_beside_istio_and_asks() {
    let mesh = Mesh::new();
    let run = |more: &[&str]| {
        let settings = ["run", "--revision", "new", "--set", "images.hub=r.example", "--set", "webhook.replicas=3"];
        mesh.migrate(&[&settings, more].concat())
    };
    let unconfirmed = run(&[]);
    assert!(unconfirmed.code == 2 && unconfirmed.stderr.contains("pass -y to confirm"), "{}", unconfirmed.stderr);
    let dry = run(&["--dry-run"]);
    assert_eq!(dry.code, 0, "{}{}", dry.stdout, dry.stderr);
    for part in ["weir-webhook-new", "server dry run: nothing was changed", "shop"] {
        assert!(dry.stdout.contains(part), "{part}: {}", dry.stdout);
    }
    assert_eq!(mesh.server.get("deployments", "weir-system", "weir-webhook-new"), None);
    let installed = mesh.migrate(&["run", "--dry-run", "--set", "webhook.replicas=3"]);
    assert!(installed.stdout.contains("revision weir is installed: --set"), "{}{}", installed.stdout, installed.stderr);
}

#[test]
fn run_needs_weir_and_a_person_for_changes() {
    let mesh = Mesh::new();
    let other = mesh.migrate(&["run", "-y", "--revision", "other"]);
    assert!(
        other.code == 1 && other.stderr.contains("revision other of Weir is not installed; --set images.hub="),
        "{}",
        other.stderr
    );
    let unnamed = mesh.migrate(&["run", "-y", "--revision", "other", "--set", "webhook.replicas=3"]);
    assert!(unnamed.code == 1 && unnamed.stderr.contains("images.hub: not set"), "{}", unnamed.stderr);
    let unconfirmed = mesh.migrate(&["run"]);
    assert!(unconfirmed.code == 2 && unconfirmed.stderr.contains("pass -y to confirm"), "{}", unconfirmed.stderr);
    // The rules of the pods are those of an annotation that the template does not have any more.
    for mut pod in mesh.server.list("pods").into_iter().filter(|pod| pod["metadata"]["namespace"] == "shop") {
        pod["metadata"]["annotations"]["traffic.sidecar.istio.io/includeOutboundPorts"] = "8125".into();
        pod["metadata"]["annotations"]["traffic.sidecar.istio.io/includeOutboundIPRanges"] = "".into();
        mesh.server.put("pods", pod);
    }
    let changed: BTreeMap<i32, String> = [&["run", "-y"][..], &["run", "--dry-run", "--accept-changes"]]
        .map(|args| mesh.migrate(args))
        .map(|run| (run.code, run.stdout + &run.stderr))
        .into();
    assert!(changed[&1].contains("--accept-changes moves it all the same"), "{changed:?}");
    assert!(changed[&0].ends_with("dry run: nothing was changed\n"), "{changed:?}");
    assert_eq!(mesh.injectors(), ["istio"; 3]);
}
