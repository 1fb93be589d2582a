//! gRPC without a sidecar's Envoy: the client and the server are configured through their agent.

use weir_cluster::plan::Tools;
use weir_tests::image::Image;

use crate::mesh::shared_or_skip;
use crate::scenario::{Scenario, assert_share, count, parse};

const IMAGE: &str = "weir.test/grpc:1";

/// A Deployment of the program with the gRPC template.
fn deployment(name: &str, version: &str, args: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}-{version}}}
spec:
  selector: {{matchLabels: {{app: {name}, version: {version}}}}}
  template:
    metadata:
      labels: {{app: {name}, version: {version}}}
      annotations: {{inject.istio.io/templates: grpc-agent}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: app, image: {IMAGE}, command: [{args}]}}]"
    )
}

#[test]
fn proxyless_grpc_is_routed_and_secured() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let program = Tools::of_checkout().path("grpc/grpc");
    if !program.is_file() {
        return weir_lab::skip_or_fail("no client of gRPC; `make cluster-tools` builds one");
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("grpc.tar");
    // A command that does nothing, for pods in which commands are run.
    let image = Image::default().file("/bin/busybox", "/bin/busybox").links(&["bin/sleep"], "/bin/busybox");
    image.file(&program, "/bin/grpc").user("1000:1000").write(IMAGE, &archive).unwrap();
    cluster.load(&[archive]).unwrap();
    let mesh = Scenario::new(cluster, "grpc");
    mesh.apply(
        &[
            &deployment("echo", "v1", "/bin/grpc, serve, v1"),
            &deployment("echo", "v2", "/bin/grpc, serve, v2"),
            &deployment("caller", "v1", "/bin/sleep, \"3600\""),
            "apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: echo}, ports: [{name: grpc, port: 8080}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec: {host: echo, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec: {hosts: [echo], http: [{route: [{destination: {host: echo, subset: v1}, weight: 80}, {destination: {host: echo, subset: v2}, weight: 20}]}]}",
        ]
        .join("\n---\n"),
    );
    mesh.wait_for_rollouts();
    let target = format!("xds:///echo.{}.svc.cluster.local:8080", mesh.namespace);
    let call =
        || parse(&mesh.kubectl(&["exec", "deploy/caller-v1", "-c", "app", "--", "/bin/grpc", "call", &target, "300"]));
    let from = |version: &str| format!("[{version}] [spiffe://cluster.local/ns/{}/sa/default]", mesh.namespace);
    let started = std::time::Instant::now();
    let responses = loop {
        let responses = call();
        if count(&responses, &from("v1")) + count(&responses, &from("v2")) == 300 {
            break responses;
        }
        assert!(started.elapsed().as_secs() < 90, "{responses:?}\n{}", mesh.describe());
    };
    assert_share(count(&responses, &from("v1")), 300, 0.8);
    let names = mesh.kubectl(&["get", "pods", "-l", "app=echo", "-o", "jsonpath={.items[0].metadata.annotations}"]);
    assert!(names.contains("grpc-agent"), "{names}");
}
