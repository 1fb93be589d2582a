//! `weir explain --from-pod --to-service`.

use serde_json::{Value, json};
use weir_apiserver::ApiServer;

use crate::run::{Run, serve, weir};

struct Cluster {
    server: ApiServer,
    directory: tempfile::TempDir,
}

impl Cluster {
    /// A meshed client and a Service with a meshed pod, one without rules and one that is not ready.
    fn new() -> Self {
        let server = ApiServer::cluster().unwrap();
        let named = |kind: &str, api: &str, namespace: &str, name: &str| {
            let mut metadata = json!({"name": name, "namespace": namespace});
            if namespace.is_empty() {
                metadata = json!({"name": name, "labels": {"team": name}});
            }
            json!({"apiVersion": api, "kind": kind, "metadata": metadata})
        };
        for name in ["shop", "data"] {
            server.put("namespaces", named("Namespace", "v1", "", name));
        }
        let pod = |namespace: &str, name: &str, ip: &str, annotations: Value| {
            let mut pod = named("Pod", "v1", namespace, name);
            pod["metadata"]["labels"] = json!({"app": name.split('-').next()});
            pod["metadata"]["annotations"] = annotations;
            let port = json!({"name": "mysql", "containerPort": 3306});
            let node = format!("node-of-{name}");
            let app = json!({"name": "app", "image": "app", "ports": [port]});
            pod["spec"] = json!({"nodeName": node, "containers": [app, {"name": "istio-proxy", "image": "proxy"}]});
            pod["status"] = json!({"phase": "Running", "podIPs": [{"ip": ip}]});
            pod
        };
        let meshed = json!({"sidecar.istio.io/status": "{}"});
        server.put("pods", pod("shop", "web-0", "10.0.0.1", meshed.clone()));
        server.put("pods", pod("data", "db-0", "10.0.0.7", meshed));
        server.put("pods", pod("data", "db-1", "10.0.0.8", json!({})));
        let mut service = named("Service", "v1", "data", "db");
        let port = json!({"name": "tcp", "port": 5000, "targetPort": "mysql", "protocol": "TCP"});
        service["spec"] = json!({"clusterIP": "10.96.0.20", "ports": [port]});
        server.put("services", service);
        let mut slice = named("EndpointSlice", "discovery.k8s.io/v1", "data", "db-abc");
        slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "db"});
        slice["addressType"] = "IPv4".into();
        slice["ports"] = json!([{"name": "tcp", "port": 3306, "protocol": "TCP"}]);
        slice["endpoints"] = json!([
            {"addresses": ["10.0.0.9"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.8"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.7"]},
        ]);
        server.put("endpointslices", slice);
        Self { server, directory: tempfile::tempdir().unwrap() }
    }

    fn policy(&self, namespace: &str, name: &str, spec: &Value) {
        let metadata = json!({"name": name, "namespace": namespace});
        let policy =
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec});
        self.server.put("networkpolicies", policy);
    }

    fn explain(&self, service: &str, args: &[&str]) -> Run {
        let kubeconfig = self.server.kubeconfig(self.directory.path()).unwrap();
        let fixed = ["explain", "--from-pod", "shop/web-0", "--to-service", service, "--kubeconfig"];
        weir(&[&fixed[..], &[kubeconfig.to_str().unwrap()], args].concat(), "")
    }
}

#[test]
fn connection_is_followed_through_both_pods_and_their_policies() {
    let cluster = Cluster::new();
    let from_shop =
        json!({"from": [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}], "ports": [{"port": "mysql"}]});
    cluster.policy("data", "db", &json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [from_shop]}));
    let run = cluster.explain("data/db:5000", &["-o", "json"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let path: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(path["name"], "db.data.svc.cluster.local is 10.96.0.20");
    assert_eq!(path["leaves"]["captured"], true);
    assert!(path["leaves"]["sentence"].as_str().unwrap().contains("original destination 10.96.0.20:5000"), "{path:#}");
    let of = |key: &str| -> Vec<Value> {
        path["endpoints"].as_array().unwrap().iter().map(|endpoint| endpoint[key].clone()).collect()
    };
    assert_eq!(of("address"), ["10.0.0.7", "10.0.0.8", "10.0.0.9"]);
    assert_eq!(of("ready"), [true, true, false]);
    let arrives = |index: usize| &path["endpoints"][index]["arrives"]["captured"];
    assert_eq!([arrives(0), arrives(1), arrives(2)], [&json!(true), &json!(false), &Value::Null]);
    let forwarded = &path["endpoints"][0]["forwarded"];
    assert_eq!(forwarded["captured"], false, "the proxy's own traffic leaves: {forwarded:#}");
    let ingress = &path["endpoints"][0]["policies"][1];
    assert_eq!(
        ingress,
        &json!({"direction": "ingress", "selecting": [{"namespace": "data", "name": "db", "allowedByRule": 1}]})
    );

    cluster.policy("shop", "quiet", &json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    let run = cluster.explain("data/db:5000", &[]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for line in [
        "  egress: denied, by NetworkPolicy shop/quiet, no rule of which allows it\n",
        "  ingress: allowed by NetworkPolicy data/db (rule 1)\n",
        "endpoint 10.0.0.9:3306, no pod of the namespace (not ready)\n",
        "=> captured at Pod \"shop/web-0\"; captured at 0 of 0 endpoints that are ready and allowed\n",
    ] {
        assert!(run.stdout.contains(line), "{line}: {}", run.stdout);
    }
}

#[test]
fn what_is_missing_is_named() {
    let cluster = Cluster::new();
    for (service, code, reason) in [
        ("data/db:80", 1, "the Service has no such port; ports: 5000"),
        ("data/none:80", 1, "Service data/none not found"),
        ("db:80", 2, "write NAMESPACE/NAME and NAMESPACE/NAME:PORT"),
        ("data/db:0", 2, "write NAMESPACE/NAME and NAMESPACE/NAME:PORT"),
    ] {
        let run = cluster.explain(service, &[]);
        assert_eq!(run.code, code, "{service}: {}", run.stderr);
        assert!(run.stderr.contains(reason), "{service}: {}", run.stderr);
    }
    assert_eq!(cluster.explain("data/db:5000", &["-o", "svg"]).code, 2);
}

/// The agents of both pods say what they have seen; what is not predicted fails.
#[test]
fn observed_connections_are_compared_with_the_prediction() {
    let cluster = Cluster::new();
    let agent = |of: &str, connections: &[[&str; 3]]| {
        let pod = format!("agent-of-{of}");
        let name = of.split_once('/').unwrap().1;
        let mut object =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "weir-node", "name": pod}});
        object["metadata"]["labels"] = json!({"app.kubernetes.io/name": "weir-agent"});
        object["metadata"]["name"] = format!("agent-of-{name}").into();
        object["spec"] =
            json!({"nodeName": format!("node-of-{name}"), "containers": [{"name": "agent", "image": "agent"}]});
        cluster.server.put("pods", object);
        let connections: Vec<Value> = connections
            .iter()
            .map(|[source, destination, reply]| json!({"protocol": 6, "source": source, "destination": destination, "replySource": reply}))
            .collect();
        let body = json!({"connections": connections, "truncated": false}).to_string();
        let address = serve(&format!("/connections/{of}/2"), body);
        cluster.server.set_pod_address("weir-node", &format!("agent-of-{name}"), 15034, address);
    };
    let client = ["10.0.0.1:4000", "10.96.0.20:5000", "127.0.0.1:15001"];
    agent("shop/web-0", &[client, ["10.0.0.1:4001", "10.0.0.7:3306", "10.0.0.7:3306"]]);
    agent(
        "data/db-0",
        &[["10.0.0.1:4001", "10.0.0.7:3306", "10.0.0.7:15006"], ["127.0.0.6:9", "10.0.0.7:3306", "10.0.0.7:3306"]],
    );
    agent("data/db-1", &[]);
    let run = cluster.explain("data/db:5000", &["--observe", "2s"]);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    assert!(run.stderr.contains("observing 3 pods for 2 s; connect now"), "{}", run.stderr);
    let observed = "\nobserved for 2 s\n  Pod \"shop/web-0\" to 10.96.0.20:5000: 1 captured on port 15001, as predicted\n  \
                    Pod \"data/db-0\" to 10.0.0.7:3306: 1 captured on port 15006, as predicted\n  \
                    Pod \"data/db-1\" to 10.0.0.8:3306: no connection\n";
    assert!(run.stdout.ends_with(observed), "{}", run.stdout);

    agent("data/db-0", &[["10.0.0.1:4001", "10.0.0.7:3306", "10.0.0.7:3306"]]);
    let run = cluster.explain("data/db:5000", &["--observe", "2s", "-o", "json"]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    let observed: Value = serde_json::from_str(&run.stdout).unwrap();
    let verdicts: Vec<&Value> =
        observed["observed"]["pods"].as_array().unwrap().iter().map(|pod| &pod["verdict"]).collect();
    assert_eq!(verdicts, ["as-predicted", "different", "unseen"]);
    assert_eq!(cluster.explain("data/db:5000", &["--observe", "2m"]).code, 2);
}
