//! Kinds of pods: each starts, is captured and reaches the service `web`.

use std::time::Instant;

use weir_cluster::images::APP;

use crate::mesh::shared_or_skip;
use crate::scenario::{Scenario, count, is_from_the_mesh};

/// A pod of the server, with more metadata and more of its specification (YAML in braces, without the braces).
fn pod(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}, {metadata}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: app, image: {APP}, args: [serve], ports: [{{containerPort: 8080}}], readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}}}]
  {spec}"
    )
}

/// An init container that sends a request, as a user. Its failure keeps the pod from starting.
fn init_request(url: &str, user: u32) -> String {
    format!(
        "initContainers: [{{name: fetch, image: {APP}, args: [load, -n, \"3\", \"{url}\"], securityContext: {{runAsUser: {user}}}}}]"
    )
}

impl Scenario {
    fn jsonpath(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={path}")])
    }

    /// Applies a manifest; returns whether that succeeded, and what `kubectl` printed on standard error.
    fn try_apply(&self, manifest: &str) -> (bool, String) {
        let mut kubectl = std::process::Command::new(self.cluster.kubectl_path());
        kubectl.args(["--namespace", &self.namespace, "apply", "-f", "-"]).env("KUBECONFIG", self.cluster.kubeconfig());
        let output =
            weir_lab::process::run(&mut kubectl, manifest.as_bytes(), std::time::Duration::from_mins(1)).unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Asserts that a pod reaches `web` through its proxy.
    fn assert_meshed(&self, pod: &str) {
        self.wait_for(pod, &["http://web/headers"], "the request is from the mesh", is_from_the_mesh);
    }
}

#[test]
fn native_sidecar_serves_init_containers() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "native");
    mesh.apply(&pod("native", "", &init_request("http://web/headers", 1000)));
    mesh.wait_for_pod("native");
    let log = mesh.kubectl(&["logs", "native", "-c", "fetch"]);
    assert!(crate::scenario::parse(&log).keys().all(|response| is_from_the_mesh(response)), "{log}");
    let policy = mesh.jsonpath("pod/native", "{.spec.initContainers[?(@.name=='istio-proxy')].restartPolicy}");
    assert_eq!(policy, "Always");
    mesh.assert_meshed("pod/native");
}

#[test]
fn ordinary_sidecar_starts_after_init_containers() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "ordinary");
    // As the proxy's user, which is not captured: there is no proxy yet.
    let init = init_request("http://outside.test:8088/", 1337);
    mesh.apply(&pod("ordinary", "annotations: {sidecar.istio.io/nativeSidecar: \"false\"}", &init));
    mesh.wait_for_pod("ordinary");
    assert_eq!(mesh.kubectl(&["logs", "ordinary", "-c", "fetch"]).trim(), "3\t200 outside");
    let containers = mesh.jsonpath("pod/ordinary", "{.spec.containers[*].name}");
    assert!(containers.contains("istio-proxy"), "{containers}");
    mesh.assert_meshed("pod/ordinary");
}

#[test]
fn job_completes_with_its_sidecar() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "job");
    mesh.apply(&format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: once}}
spec: {{template: {{spec: {{restartPolicy: Never, containers: [{{name: app, image: {APP}, args: [load, \"http://web/headers\"]}}]}}}}}}"
    ));
    mesh.kubectl(&["wait", "job/once", "--for=condition=Complete", "--timeout=120s"]);
    let log = mesh.kubectl(&["logs", "job/once", "-c", "app"]);
    assert!(crate::scenario::parse(&log).keys().all(|response| is_from_the_mesh(response)), "{log}");
}

#[test]
fn cron_job_completes_with_its_sidecar() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "cron");
    mesh.apply(&format!(
        "apiVersion: batch/v1
kind: CronJob
metadata: {{name: often}}
spec:
  schedule: \"* * * * *\"
  jobTemplate: {{spec: {{template: {{metadata: {{labels: {{app: often}}}}, spec: {{restartPolicy: Never, containers: [{{name: app, image: {APP}, args: [load, \"http://web/headers\"]}}]}}}}}}}}"
    ));
    mesh.kubectl(&["wait", "cronjob/often", "--for=jsonpath={.status.lastSuccessfulTime}", "--timeout=150s"]);
    let log = mesh.kubectl(&["logs", "-l", "app=often", "-c", "app"]);
    let responses = crate::scenario::parse(&log);
    assert!(!responses.is_empty() && responses.keys().all(|response| is_from_the_mesh(response)), "{log}");
}

#[test]
fn pods_of_a_daemon_set_are_meshed_on_every_node() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "daemons");
    mesh.apply(&format!(
        "apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: everywhere}}
spec:
  selector: {{matchLabels: {{app: everywhere}}}}
  template:
    metadata: {{labels: {{app: everywhere}}}}
    spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: app, image: {APP}, args: [pause]}}]}}"
    ));
    mesh.kubectl(&["rollout", "status", "daemonset/everywhere", "--timeout=120s"]);
    let pods = mesh.kubectl(&["get", "pods", "-l", "app=everywhere", "-o", "name"]);
    assert_eq!(pods.lines().count(), weir_cluster::plan::NODES.len(), "{pods}");
    pods.lines().for_each(|pod| mesh.assert_meshed(pod));
}

#[test]
fn application_is_held_until_its_ordinary_sidecar_is_ready() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "hold");
    let annotations = "annotations: {sidecar.istio.io/nativeSidecar: \"false\", proxy.istio.io/config: 'holdApplicationUntilProxyStarts: true'}";
    // Its first request is sent once, right at its start.
    mesh.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: held, {annotations}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: app, image: {APP}, command: [sh, -c, \"/bin/app load http://web/headers; exec /bin/app pause\"]}}]"
    ));
    mesh.wait_for_pod("held");
    let names = mesh.jsonpath("pod/held", "{.spec.containers[*].name}");
    assert_eq!(names, "istio-proxy app");
    let log = mesh.kubectl(&["logs", "held", "-c", "app"]);
    let responses = crate::scenario::parse(&log);
    assert!(responses.len() == 1 && responses.keys().all(|response| is_from_the_mesh(response)), "{log}");
}

#[test]
fn pod_on_the_network_of_its_node_is_not_injected() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::new(cluster, "host-network");
    let manifest = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: host}}, spec: {{hostNetwork: true, terminationGracePeriodSeconds: 1, containers: [{{name: app, image: {APP}, args: [pause]}}]}}}}"
    );
    let (created, warning) = mesh.try_apply(&manifest);
    assert!(created && warning.contains("Warning:") && warning.contains("host network"), "{warning}");
    mesh.wait_for_pod("host");
    let names = mesh.jsonpath("pod/host", "{.spec.initContainers[*].name} {.spec.containers[*].name}");
    assert_eq!(names.trim(), "app");
}

#[test]
fn resources_of_a_pod_include_its_sidecar() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "pod-resources");
    let resources = "resources: {requests: {cpu: 50m, memory: 200Mi}, limits: {cpu: \"1\", memory: 600Mi}}";
    mesh.apply(&pod("whole", "", resources));
    mesh.wait_for_pod("whole");
    assert_eq!(mesh.jsonpath("pod/whole", "{.spec.resources.limits.memory}"), "600Mi");
    mesh.assert_meshed("pod/whole");
}

#[test]
fn pod_with_users_of_its_own_is_meshed_or_refused_by_its_node() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "users");
    mesh.apply(&pod("users", "", "hostUsers: false"));
    assert_eq!(
        mesh.jsonpath("pod/users", "{.spec.hostUsers} {.spec.initContainers[?(@.name=='istio-proxy')].name}"),
        "false istio-proxy"
    );
    let node = || mesh.jsonpath("pod/users", "{.spec.nodeName}");
    mesh.kubectl(&["wait", "pod/users", "--for=condition=PodScheduled", "--timeout=60s"]);
    let features = cluster
        .kubectl(&["get", "node", &node(), "-o", "jsonpath={.status.runtimeHandlers[*].features.userNamespaces}"], "")
        .unwrap();
    if features.contains("true") {
        mesh.wait_for_pod("users");
        return mesh.assert_meshed("pod/users");
    }
    let started = Instant::now();
    loop {
        let events = mesh.kubectl(&["get", "events", "--field-selector", "involvedObject.name=users"]);
        if events.contains("runtime does not support user namespaces") {
            break;
        }
        assert!(started.elapsed().as_secs() < 60, "{events}");
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
}

#[test]
fn pods_of_a_stateful_set_have_names() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "stateful");
    mesh.apply(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: db}}
spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{name: http, port: 8080}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  serviceName: db
  replicas: 2
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: app, image: {APP}, args: [serve, --version, db], ports: [{{containerPort: 8080}}]}}]"
    ));
    mesh.kubectl(&["rollout", "status", "statefulset/db", "--timeout=120s"]);
    for number in 0..2 {
        mesh.wait_for("deploy/client", &[&format!("http://db-{number}.db:8080/")], "the pod answers", |got| {
            got == "200 db"
        });
    }
    mesh.assert_meshed("pod/db-1");
}

#[test]
fn tproxy_keeps_the_address_of_the_client() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "tproxy");
    mesh.apply(&pod("tproxy", "annotations: {sidecar.istio.io/interceptionMode: TPROXY}", ""));
    mesh.wait_for_pod("tproxy");
    mesh.assert_meshed("pod/tproxy");
    let address = mesh.jsonpath("pod/tproxy", "{.status.podIP}");
    mesh.wait_for("deploy/client", &[&format!("http://{address}:8080/")], "the pod answers", |got| got == "200 v1");
}

#[test]
fn dns_capture_resolves_names_of_service_entries() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "dns");
    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: registered}
spec: {hosts: [registered.example], addresses: [192.0.2.77], exportTo: [\".\"], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, location: MESH_EXTERNAL, endpoints: [{address: 172.31.77.2, ports: {http: 8088}}]}",
    );
    let capture = "annotations: {proxy.istio.io/config: 'proxyMetadata: {ISTIO_META_DNS_CAPTURE: \"true\"}'}";
    mesh.apply(&pod("dns", capture, ""));
    mesh.wait_for_pod("dns");
    mesh.wait_for("pod/dns", &["http://registered.example/"], "the name is resolved by the proxy", |got| {
        got == "200 outside"
    });
    let addresses = mesh.app("pod/dns", &["resolve", "registered.example"]);
    assert!(addresses.contains_key("192.0.2.77"), "{addresses:?}");
}

#[test]
fn ipv6_service_is_captured() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "ipv6");
    mesh.apply(
        "apiVersion: v1
kind: Service
metadata: {name: six}
spec: {ipFamilies: [IPv6], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}",
    );
    let address = mesh.jsonpath("service/six", "{.spec.clusterIP}");
    assert!(address.contains(':'), "{address}");
    for url in ["http://six/headers".to_owned(), format!("http://[{address}]/headers")] {
        mesh.wait_for(
            "deploy/client",
            &[&url],
            "the service answers, and the request is from the mesh",
            is_from_the_mesh,
        );
    }
}

#[test]
fn probes_of_every_kind_pass_under_strict_mutual_tls() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::new(cluster, "probes");
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}",
    );
    let probes = "{periodSeconds: 1, failureThreshold: 3";
    mesh.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: probes}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: {APP}
    args: [serve]
    ports: [{{containerPort: 8080, name: http}}]
    startupProbe: {probes}, tcpSocket: {{port: 9000}}}}
    readinessProbe: {probes}, httpGet: {{path: /healthz, port: http}}}}
    livenessProbe: {probes}, exec: {{command: [wget, -qO-, \"http://127.0.0.1:8080/healthz\"]}}}}"
    ));
    mesh.wait_for_pod("probes");
    // Longer than three failures in a row take.
    std::thread::sleep(std::time::Duration::from_secs(6));
    let path = "{.status.containerStatuses[?(@.name=='app')]['ready','restartCount']}";
    assert_eq!(mesh.jsonpath("pod/probes", path), "true 0");
}

#[test]
fn pod_with_an_invalid_annotation_is_denied() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::new(cluster, "denied");
    let annotations = "annotations: {traffic.sidecar.istio.io/includeInboundPorts: abc}";
    let (created, denial) = mesh.try_apply(&pod("bad", annotations, ""));
    assert!(!created && denial.contains("includeInboundPorts") && denial.contains("abc"), "{denial}");
}

#[test]
fn exec_logs_and_port_forward_work() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "exec");
    for (container, user) in [("app", "uid=1000"), ("istio-proxy", "uid=1337")] {
        let id = mesh.kubectl(&["exec", "deploy/web-v1", "-c", container, "--", "id"]);
        assert!(id.starts_with(user), "{id}");
    }
    assert!(!mesh.kubectl(&["logs", "deploy/web-v1", "-c", "istio-proxy", "--tail=3"]).is_empty());
    let responses = mesh.load(&["http://web/"]);
    assert_eq!(count(&responses, "200 v1") + count(&responses, "200 v2"), 1, "{responses:?}");
}
