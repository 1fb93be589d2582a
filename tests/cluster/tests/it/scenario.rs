//! A namespace of a test, and what runs in it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weir_cluster::{Cluster, images};

/// Longest wait for a change of the mesh, or of pods, on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(2);

/// How often each response came.
pub(crate) type Responses = BTreeMap<String, usize>;

/// A namespace that opted in. It is deleted when the value is dropped, without a wait.
pub(crate) struct Scenario {
    pub(crate) cluster: &'static Cluster,
    pub(crate) namespace: String,
}

impl Scenario {
    /// Creates the namespace.
    pub(crate) fn new(cluster: &'static Cluster, name: &str) -> Self {
        let namespace = format!("{name}-{:x}", std::process::id());
        cluster
            .apply(&format!(
                "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, labels: {{istio-injection: enabled}}}}}}"
            ))
            .unwrap();
        Self { cluster, namespace }
    }

    /// Creates the namespace with two versions of the service `web`, and a client, all injected and ready.
    pub(crate) fn with_web(cluster: &'static Cluster, name: &str) -> Self {
        let this = Self::new(cluster, name);
        this.apply(
            &[&deployment("web", "v1", ""), &deployment("web", "v2", ""), &client("client", ""), WEB].join("\n---\n"),
        );
        this.wait_for_rollouts();
        this
    }

    /// Applies manifests in the namespace.
    pub(crate) fn apply(&self, manifests: &str) -> String {
        self.kubectl_with(&["apply", "-f", "-"], manifests)
    }

    /// Runs `kubectl` in the namespace.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.kubectl_with(args, "")
    }

    /// Runs `kubectl` in the namespace with `input`.
    pub(crate) fn kubectl_with(&self, args: &[&str], input: &str) -> String {
        self.try_kubectl(args, input).unwrap_or_else(|error| panic!("{error:#}\n{}", self.describe()))
    }

    fn try_kubectl(&self, args: &[&str], input: &str) -> anyhow::Result<String> {
        self.cluster.kubectl(&[&["--namespace", &self.namespace], args].concat(), input)
    }

    /// Waits until every Deployment is ready.
    pub(crate) fn wait_for_rollouts(&self) {
        self.kubectl(&["wait", "deployment", "--all", "--for=condition=Available", "--timeout=120s"]);
    }

    /// Waits until a pod is ready.
    pub(crate) fn wait_for_pod(&self, name: &str) {
        self.kubectl(&["wait", &format!("pod/{name}"), "--for=condition=Ready", "--timeout=120s"]);
    }

    /// Runs the app in a pod (`deploy/client`, `pod/NAME`) and counts what it reports.
    pub(crate) fn app(&self, pod: &str, args: &[&str]) -> Responses {
        self.try_app(pod, args).unwrap_or_else(|error| panic!("{error:#}\n{}", self.describe()))
    }

    fn try_app(&self, pod: &str, args: &[&str]) -> anyhow::Result<Responses> {
        let text = self.try_kubectl(&[&["exec", pod, "-c", "app", "--", "/bin/app"], args].concat(), "")?;
        Ok(parse(&text))
    }

    /// Sends requests from the client.
    pub(crate) fn load(&self, args: &[&str]) -> Responses {
        self.app("deploy/client", &[&["load"], args].concat())
    }

    /// Waits until one request of a pod has a response that fulfils a condition.
    #[track_caller]
    pub(crate) fn wait_for(&self, pod: &str, args: &[&str], what: &str, is_fulfilled: impl Fn(&str) -> bool) {
        let started = Instant::now();
        loop {
            let last = self.try_app(pod, &[&["load"], args].concat());
            if last.as_ref().is_ok_and(|responses| responses.keys().any(|response| is_fulfilled(response))) {
                return;
            }
            assert!(started.elapsed() < TIMEOUT, "{what}: {last:?}\n{}", self.describe());
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// Applies a VirtualService of `web` with these routes (YAML, indented by two spaces), with both versions as subsets, and waits until
    /// the client's proxy has it: it answers `/configured` itself.
    pub(crate) fn route(&self, routes: &str) {
        self.apply(&format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\nspec: {{host: web, subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]}}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: [web]\n  http:\n  - match: [{{uri: {{exact: /configured}}}}]\n    directResponse: {{status: 299}}\n{routes}"
        ));
        self.wait_for("deploy/client", &["http://web/configured"], "the proxy has the VirtualService", |got| {
            got.starts_with("299")
        });
    }

    /// Describes what runs in the namespace, for messages.
    pub(crate) fn describe(&self) -> String {
        let parts = [&["get", "pods", "-o", "wide"][..], &["get", "events", "--sort-by=.lastTimestamp"]];
        let texts = parts.map(|args| self.try_kubectl(args, "").unwrap_or_else(|error| format!("{error:#}")));
        let events: Vec<&str> = texts[1].lines().collect();
        format!("{}\n{}", texts[0], events[events.len().saturating_sub(20)..].join("\n"))
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        // With WEIR_CLUSTER_KEEP, a failed scenario can be looked at.
        if std::env::var_os("WEIR_CLUSTER_KEEP").is_none() {
            let _ = self.cluster.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"], "");
        }
    }
}

/// Reads what the app reports: a number, a tab and a text on each line.
pub(crate) fn parse(text: &str) -> Responses {
    let parse =
        |line: &str| line.split_once('\t').and_then(|(count, text)| Some((text.to_owned(), count.parse().ok()?)));
    text.lines().filter_map(parse).collect()
}

/// A service for HTTP (80) and the echo (9000).
pub(crate) const WEB: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]}";

/// A Deployment of the server. `pod` is more of the pod's metadata, as in `annotations: {...}`.
pub(crate) fn deployment(name: &str, version: &str, pod: &str) -> String {
    let image = images::APP;
    let more = if pod.is_empty() { String::new() } else { format!("\n      {pod}") };
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}-{version}}}
spec:
  selector: {{matchLabels: {{app: {name}, version: {version}}}}}
  template:
    metadata:
      labels: {{app: {name}, version: {version}}}{more}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: app
        image: {image}
        args: [serve, --version, {version}]
        ports: [{{containerPort: 8080, name: http}}, {{containerPort: 9000}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}"
    )
}

/// A Deployment of a client, which sends what it is told. `metadata` is more of the pod's metadata.
pub(crate) fn client(name: &str, metadata: &str) -> String {
    let image = images::APP;
    let more = if metadata.is_empty() { String::new() } else { format!("\n      {metadata}") };
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata:
      labels: {{app: {name}}}{more}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: app, image: {image}, args: [pause]}}]"
    )
}

/// Returns whether the response of `/headers` shows that both pods are in the mesh: the server's proxy names the client by its certificate.
pub(crate) fn is_from_the_mesh(response: &str) -> bool {
    response.starts_with("200") && response.contains("x-forwarded-client-cert")
}

/// Returns the number of responses that are exactly `text`.
pub(crate) fn count(responses: &Responses, text: &str) -> usize {
    responses.get(text).copied().unwrap_or(0)
}

/// Asserts that `count` of `total` is what a binomial distribution with this probability gives, but for one run in a million.
#[track_caller]
pub(crate) fn assert_share(count: usize, total: usize, probability: f64) {
    // Five standard deviations of the normal approximation: 6e-7, both sides together.
    let (count, total) = (f64::from(u32::try_from(count).unwrap()), f64::from(u32::try_from(total).unwrap()));
    let deviation = (total * probability * (1.0 - probability)).sqrt();
    let expected = total * probability;
    assert!(
        (count - expected).abs() <= 5.0 * deviation,
        "{count} of {total}; expected {expected} within {}",
        5.0 * deviation
    );
}
