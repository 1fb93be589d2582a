//! Bookinfo, with its traces and metrics.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use weir_cluster::Cluster;
use weir_cluster::images::APP;
use weir_cluster::plan::{CONTROL, CONTROL_IP, Tools};

use crate::mesh::shared_or_skip;
use crate::scenario::{Scenario, WEB, client, count, deployment, is_from_the_mesh};

/// Starts bookinfo with its usual versions, and a client. `pod` is more of the metadata of the services' pods.
fn bookinfo(mesh: &Scenario, pod: &str) {
    let manifest = include_str!("../../../../manifests/examples/bookinfo.yaml");
    let template = "\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n";
    assert!(manifest.contains(template), "the manifest is written in another way");
    mesh.apply(&manifest.replace(template, &format!("\n      {pod}{template}")));
    mesh.wait_for_rollouts();
}

/// Bookinfo's page.
pub(crate) const PAGE: &str = "http://productpage:9080/";
/// Its texts, by the version of reviews.
pub(crate) const PAGES: [&str; 3] = [
    "200 productpage-v1 [details-v1] [reviews-v1]",
    "200 productpage-v1 [details-v1] [reviews-v2 [ratings-v1]]",
    "200 productpage-v1 [details-v1] [reviews-v3 [ratings-v1]]",
];

#[test]
fn bookinfo_answers_through_its_sidecars() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::new(cluster, "bookinfo");
    // So that a hop outside of the mesh is refused.
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}",
    );
    bookinfo(&mesh, "");
    mesh.wait_for("deploy/client", &[PAGE], "the page answers", |got| PAGES.contains(&got));
    let responses = mesh.load(&["-n", "150", "-c", "2", PAGE]);
    assert!(PAGES.iter().all(|page| count(&responses, page) > 0), "every version is seen: {responses:?}");
    assert_eq!(PAGES.iter().map(|page| count(&responses, page)).sum::<usize>(), 150, "{responses:?}");
    for (from, to) in [
        ("client", "productpage"),
        ("productpage-v1", "details"),
        ("productpage-v1", "reviews"),
        ("reviews-v2", "ratings"),
    ] {
        let url = format!("http://{to}:9080/headers");
        let headers = mesh.app(&format!("deploy/{from}"), &["load", &url]);
        assert!(headers.keys().all(|got| is_from_the_mesh(got)), "{from} to {to}: {headers:?}");
    }
    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}}]",
    );
    // The route is that of productpage's proxy.
    let started = Instant::now();
    while count(&mesh.load(&["-n", "30", PAGE]), PAGES[0]) < 30 {
        assert!(started.elapsed().as_secs() < 60, "the proxy does not get the route");
    }
    assert_eq!(count(&mesh.load(&["-n", "30", "-H", "end-user: jason", PAGE]), PAGES[1]), 30);
}

#[test]
fn spans_of_a_request_have_one_trace() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::new(cluster, "traces");
    mesh.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: zipkin, labels: {{app: zipkin, sidecar.istio.io/inject: \"false\"}}}}
spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: app, image: {APP}, args: [collect], readinessProbe: {{httpGet: {{path: /healthz, port: 9411}}, periodSeconds: 1}}}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: zipkin}}
spec: {{selector: {{app: zipkin}}, ports: [{{name: http, port: 9411}}]}}"
    ));
    mesh.wait_for_pod("zipkin");
    bookinfo(
        &mesh,
        &format!(
            "annotations: {{proxy.istio.io/config: \"{{tracing: {{sampling: 100, zipkin: {{address: zipkin.{}:9411}}}}}}\"}}",
            mesh.namespace
        ),
    );
    // Those of all versions of reviews.
    let expected = ["details", "productpage", "ratings", "reviews"];
    // With a first half that is not zero, which Envoy would leave out.
    let trace = format!("77e14000{:024x}", std::process::id());
    let headers = [&format!("x-b3-traceid: {trace}"), "x-b3-spanid: 00000000000000aa", "x-b3-sampled: 1"];
    let started = Instant::now();
    loop {
        let headers = headers.iter().flat_map(|header| ["-H", header]);
        mesh.load(&[&["-n", "6"][..], &headers.collect::<Vec<_>>(), &[PAGE]].concat());
        let spans = mesh.app("pod/zipkin", &["load", &format!("http://127.0.0.1:9411/trace/{trace}")]);
        let has = |name: &str, kind: &str| {
            spans.keys().any(|text| text.contains(&format!("{name}.{} {kind}", mesh.namespace)))
        };
        if expected.iter().all(|name| has(name, "SERVER")) && has("productpage", "CLIENT") && has("reviews", "CLIENT") {
            break;
        }
        assert!(started.elapsed() < Duration::from_mins(1), "{spans:?}");
    }
}

/// A Prometheus on the machine of the control plane, with the jobs of Istio's documentation. It ends with the value.
struct Prometheus(Child);

impl Prometheus {
    fn start(cluster: &Cluster, dir: &std::path::Path, namespace: &str) -> Self {
        let job = |name: &str, rules: &str| {
            format!(
                "
- job_name: {name}
  kubernetes_sd_configs: [{{role: pod, kubeconfig_file: {}, namespaces: {{names: [{namespace}]}}}}]
  relabel_configs:
  - {{source_labels: [__meta_kubernetes_pod_label_app], target_label: app}}{rules}",
                cluster.kubeconfig().display()
            )
        };
        let annotated = job(
            "kubernetes-pods",
            "
  - {source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_scrape], action: keep, regex: true}
  - {source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_path], target_label: __metrics_path__}
  - {source_labels: [__meta_kubernetes_pod_ip, __meta_kubernetes_pod_annotation_prometheus_io_port], regex: '(.+);(.+)', replacement: '$1:$2', target_label: __address__}",
        );
        let envoy = job(
            "envoy-stats",
            "
  - {source_labels: [__meta_kubernetes_pod_container_port_name], action: keep, regex: '.*-envoy-prom'}
  - {target_label: __metrics_path__, replacement: /stats/prometheus}",
        );
        let config = dir.join("prometheus.yml");
        let text = format!("global: {{scrape_interval: 1s}}\nscrape_configs:{annotated}{envoy}\n");
        std::fs::write(&config, text).unwrap();
        let netns = cluster.machine(CONTROL).netns().unwrap();
        // Without a process namespace, so that it is this child that ends.
        let child = std::process::Command::new("nsenter")
            .arg(format!("--net={}", netns.display()))
            .arg(Tools::of_checkout().path("prometheus/usr/bin/prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg("--web.listen-address=:9090")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits until a query has a result, and returns it.
    fn wait_for(query: &str) -> String {
        let started = Instant::now();
        loop {
            let url = format!("http://{}:9090/api/v1/query", CONTROL_IP.0);
            let answer =
                ureq::get(url).query("query", query).call().map(|mut answer| answer.body_mut().read_to_string());
            match answer {
                Ok(Ok(text)) if text.contains("\"value\"") => return text,
                other => assert!(started.elapsed() < Duration::from_mins(1), "{query}: {other:?}"),
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn prometheus_scrapes_the_merged_metrics_and_those_of_envoy() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::new(cluster, "metrics");
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}",
    );
    let annotations =
        "annotations: {prometheus.io/scrape: \"true\", prometheus.io/port: \"8080\", prometheus.io/path: /metrics}";
    let service = WEB.replace("web", "shop");
    mesh.apply(&[deployment("shop", "v1", annotations), service, client("client", "")].join("\n---\n"));
    mesh.wait_for_rollouts();
    mesh.wait_for("deploy/client", &["http://shop/"], "the server answers", |got| got == "200 v1");
    let dir = tempfile::tempdir().unwrap();
    let _prometheus = Prometheus::start(cluster, dir.path(), &mesh.namespace);
    let of = |job: &str, metric: &str| Prometheus::wait_for(&format!("{metric}{{job=\"{job}\",app=\"shop\"}} > 0"));
    let merged = of("kubernetes-pods", "app_requests_total");
    assert!(merged.contains(":15020\""), "the application's metrics come through the agent: {merged}");
    of("kubernetes-pods", "envoy_cluster_upstream_rq_total");
    of("kubernetes-pods", "istio_agent_process_virtual_memory_bytes");
    let envoy = of("envoy-stats", "envoy_cluster_upstream_rq_total");
    assert!(envoy.contains(":15090\""), "{envoy}");
}
