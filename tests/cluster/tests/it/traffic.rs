//! Routing, faults, mutual TLS and egress: what Istio's objects say happens to captured connections.

use std::time::Instant;

use crate::mesh::shared_or_skip;
use crate::scenario::{Scenario, assert_share, client, count, is_from_the_mesh};

/// The only response, for loads that must be answered alike.
#[track_caller]
fn only(responses: &crate::scenario::Responses) -> &str {
    assert_eq!(responses.len(), 1, "{responses:?}");
    responses.keys().next().unwrap()
}

#[test]
fn weights_split_requests() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "weights");
    mesh.route(
        "  - route: [{destination: {host: web, subset: v1}, weight: 80}, {destination: {host: web, subset: v2}, weight: 20}]",
    );
    let responses = mesh.load(&["-n", "500", "-c", "4", "http://web/"]);
    assert_eq!(count(&responses, "200 v1") + count(&responses, "200 v2"), 500, "{responses:?}");
    assert_share(count(&responses, "200 v1"), 500, 0.8);
}

#[test]
fn header_decides_about_the_subset() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "header");
    mesh.route(
        "  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: web, subset: v2}}]
  - route: [{destination: {host: web, subset: v1}}]",
    );
    assert_eq!(only(&mesh.load(&["-n", "20", "-H", "end-user: jason", "http://web/"])), "200 v2");
    assert_eq!(only(&mesh.load(&["-n", "20", "http://web/"])), "200 v1");
}

#[test]
fn faults_delay_and_abort_requests() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "faults");
    mesh.route(
        "  - match: [{uri: {prefix: /late}}]
    fault: {delay: {percentage: {value: 100}, fixedDelay: 2s}}
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /delay}}]
    timeout: 0.5s
    route: [{destination: {host: web, subset: v1}}]
  - fault: {abort: {percentage: {value: 50}, httpStatus: 555}}
    route: [{destination: {host: web, subset: v2}}]",
    );
    let started = Instant::now();
    assert_eq!(only(&mesh.load(&["-n", "3", "http://web/late"])), "200 v1");
    assert!(started.elapsed().as_secs() >= 6, "three requests of two seconds took {:?}", started.elapsed());
    assert!(only(&mesh.load(&["-n", "3", "http://web/delay/5000"])).starts_with("504 "), "the timeout is 0.5 s");
    let responses = mesh.load(&["-n", "200", "-c", "4", "http://web/"]);
    let aborted: usize = responses.iter().filter(|(text, _)| text.starts_with("555")).map(|(_, count)| count).sum();
    assert_eq!(aborted + count(&responses, "200 v2"), 200, "{responses:?}");
    assert_share(aborted, 200, 0.5);
}

#[test]
fn failed_requests_are_retried() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "retries");
    mesh.route(
        "  - match: [{headers: {retry: {exact: \"no\"}}}]
    retries: {attempts: 0}
    route: [{destination: {host: web, subset: v1}}]
  - retries: {attempts: 3, perTryTimeout: 2s, retryOn: 5xx}
    route: [{destination: {host: web, subset: v2}}]",
    );
    let attempts = |version: &str| {
        only(&mesh.app(&format!("deploy/web-{version}"), &["load", "http://127.0.0.1:8080/requests"])).to_owned()
    };
    assert!(only(&mesh.load(&["-H", "retry: no", "http://web/status/503"])).starts_with("503"));
    assert_eq!(attempts("v1"), "200 1", "one attempt");
    assert!(only(&mesh.load(&["http://web/status/503"])).starts_with("503"));
    assert_eq!(attempts("v2"), "200 4", "one attempt and three retries");
}

#[test]
fn mirrored_requests_reach_the_other_subset() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "mirror");
    mesh.route("  - route: [{destination: {host: web, subset: v1}}]\n    mirror: {host: web, subset: v2}\n    mirrorPercentage: {value: 100}");
    assert_eq!(only(&mesh.load(&["-n", "50", "http://web/"])), "200 v1");
    mesh.wait_for("deploy/web-v2", &["http://127.0.0.1:8080/requests"], "v2 has seen 50 requests", |got| {
        got == "200 50"
    });
}

#[test]
fn weights_split_tcp_connections() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "tcp");
    mesh.route("  - route: [{destination: {host: web}}]");
    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  tcp:
  - match: [{port: 9000}]
    route: [{destination: {host: web, subset: v1, port: {number: 9000}}, weight: 100}]",
    );
    let all_v1 = || count(&mesh.app("deploy/client", &["tcp", "-n", "20", "web:9000"]), "v1 hello") == 20;
    let started = Instant::now();
    while !all_v1() {
        assert!(started.elapsed().as_secs() < 60, "the proxy does not get the TCP route");
    }
    mesh.kubectl(&[
        "patch",
        "virtualservice",
        "web",
        "--type=json",
        "-p",
        r#"[{"op": "replace", "path": "/spec/tcp/0/route", "value": [
            {"destination": {"host": "web", "subset": "v1", "port": {"number": 9000}}, "weight": 80},
            {"destination": {"host": "web", "subset": "v2", "port": {"number": 9000}}, "weight": 20}]}]"#,
    ]);
    let started = Instant::now();
    while all_v1() {
        assert!(started.elapsed().as_secs() < 60, "the proxy does not get the new weights");
    }
    let responses = mesh.app("deploy/client", &["tcp", "-n", "300", "web:9000"]);
    assert_eq!(count(&responses, "v1 hello") + count(&responses, "v2 hello"), 300, "{responses:?}");
    assert_share(count(&responses, "v1 hello"), 300, 0.8);
}

#[test]
fn strict_mutual_tls_refuses_plaintext() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "strict");
    mesh.apply(&client("plain", "annotations: {sidecar.istio.io/inject: \"false\"}"));
    mesh.wait_for_rollouts();
    let url = format!("http://web.{}/", mesh.namespace);
    mesh.wait_for("deploy/plain", &[&url], "plaintext is accepted before", |got| got.starts_with("200"));
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}",
    );
    mesh.wait_for("deploy/plain", &[&url], "plaintext is refused", |got| got.starts_with("error"));
    let refused = mesh.app("deploy/plain", &["load", "-n", "20", &url]);
    assert!(refused.keys().all(|response| response.starts_with("error")), "{refused:?}");
    let responses = mesh.load(&["-n", "20", "-c", "2", &url]);
    assert_eq!(count(&responses, "200 v1") + count(&responses, "200 v2"), 20, "{responses:?}");
    let headers = mesh.load(&["-n", "20", &format!("{url}headers")]);
    let identity = format!("uri=spiffe://cluster.local/ns/{}/sa/default", mesh.namespace).to_lowercase();
    assert!(headers.keys().all(|got| is_from_the_mesh(got) && got.to_lowercase().contains(&identity)), "{headers:?}");
    let allow = |account: &str| {
        mesh.apply(&format!(
            "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: callers}}
spec: {{action: ALLOW, rules: [{{from: [{{source: {{principals: [cluster.local/ns/{}/sa/{account}]}}}}]}}]}}",
            mesh.namespace
        ));
    };
    allow("another");
    mesh.wait_for("deploy/client", &[&url], "the client is not the allowed one", |got| !got.starts_with("200"));
    allow("default");
    mesh.wait_for("deploy/client", &[&url], "the client is the allowed one", |got| got.starts_with("200"));
    // Probes of the kubelet, which has no certificate, still succeed.
    mesh.kubectl(&["rollout", "restart", "deployment/web-v1"]);
    mesh.kubectl(&["rollout", "status", "deployment/web-v1", "--timeout=120s"]);
}

#[test]
fn registry_only_blocks_what_is_not_registered() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "egress");
    let (outside, blocked) = ("http://outside.test:8088/", "http://blocked.test:8088/");
    assert_eq!(only(&mesh.load(&["-n", "3", outside])), "200 outside");
    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default}
spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: [\"*/*\"]}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside}
spec: {hosts: [outside.test], exportTo: [\".\"], ports: [{number: 8088, name: http, protocol: HTTP}], resolution: DNS, location: MESH_EXTERNAL}",
    );
    mesh.wait_for("deploy/client", &[blocked], "the other name is blocked", |got| !got.starts_with("200"));
    mesh.wait_for("deploy/client", &[outside], "the registered name is reached", |got| got == "200 outside");
    assert_eq!(only(&mesh.load(&["-n", "10", outside])), "200 outside");
    assert!(mesh.load(&["-n", "10", blocked]).keys().all(|response| !response.starts_with("200")));
}

#[test]
fn circuit_breaker_rejects_requests_beyond_its_limit() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "breaker");
    let load = ["-n", "100", "-c", "10", "http://web/delay/20"];
    let before = mesh.load(&load);
    assert!(before.keys().all(|response| response.starts_with("200 v")), "{before:?}");
    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec: {host: web, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}}}",
    );
    let started = Instant::now();
    loop {
        let responses = mesh.load(&load);
        let starts = |prefix: &str| responses.keys().any(|response| response.starts_with(prefix));
        if starts("503 ") && starts("200 v") {
            break;
        }
        assert!(started.elapsed().as_secs() < 60, "{responses:?}");
    }
}

/// A gateway by its template, with a Service.
fn gateway(name: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{istio: {name}}}}}
  template:
    metadata:
      labels: {{istio: {name}, sidecar.istio.io/inject: \"true\"}}
      annotations: {{inject.istio.io/templates: gateway}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: istio-proxy, image: auto, imagePullPolicy: IfNotPresent}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{istio: {name}}}, ports: [{{name: http2, port: 80, targetPort: 8080}}]}}"
    )
}

#[test]
fn ingress_gateway_routes_by_host() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "gateway");
    mesh.apply(&client("plain", "annotations: {sidecar.istio.io/inject: \"false\"}"));
    mesh.apply(&gateway("ingress"));
    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: ingress}
spec: {selector: {istio: ingress}, servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: [shop.test]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ingress}
spec: {hosts: [shop.test], gateways: [ingress], http: [{route: [{destination: {host: web, port: {number: 80}}}]}]}",
    );
    mesh.wait_for_rollouts();
    let (known, unknown) =
        (["-H", "host: shop.test", "http://ingress/"], ["-H", "host: other.test", "http://ingress/"]);
    mesh.wait_for("deploy/plain", &known, "the gateway routes the host", |got| got.starts_with("200 v"));
    assert!(only(&mesh.app("deploy/plain", &[&["load"], &unknown[..]].concat())).starts_with("404"));
}

/// Returns the address of a pod with a label.
fn pod_ip(mesh: &Scenario, label: &str) -> String {
    mesh.kubectl(&["get", "pods", "-l", label, "-o", "jsonpath={.items[0].status.podIP}"])
}

#[test]
fn egress_gateway_sends_what_leaves_the_mesh() {
    let Some((cluster, _lock)) = shared_or_skip() else { return };
    let mesh = Scenario::with_web(cluster, "egress-gateway");
    let url = "http://outside.test:8088/client";
    assert_eq!(only(&mesh.load(&[url])), format!("200 {}", pod_ip(&mesh, "app=client")), "directly");
    mesh.apply(&gateway("egress"));
    mesh.wait_for_rollouts();
    mesh.apply(&format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: outside}}
spec: {{hosts: [outside.test], exportTo: [\".\"], ports: [{{number: 8088, name: http, protocol: HTTP}}], resolution: DNS, location: MESH_EXTERNAL}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: egress}}
spec: {{selector: {{istio: egress}}, servers: [{{port: {{number: 8080, name: http, protocol: HTTP}}, hosts: [outside.test]}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: outside}}
spec:
  hosts: [outside.test]
  exportTo: [\".\"]
  gateways: [mesh, egress]
  http:
  - match: [{{gateways: [mesh], port: 8088}}]
    route: [{{destination: {{host: egress.{}.svc.cluster.local, port: {{number: 80}}}}}}]
  - match: [{{gateways: [egress], port: 8080}}]
    route: [{{destination: {{host: outside.test, port: {{number: 8088}}}}}}]",
        mesh.namespace
    ));
    let through = format!("200 {}", pod_ip(&mesh, "istio=egress"));
    mesh.wait_for("deploy/client", &[url], "the request comes from the gateway", |got| got == through);
    assert_eq!(count(&mesh.load(&["-n", "50", "-c", "2", url]), &through), 50);
}
