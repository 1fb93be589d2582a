//! Reads a cluster into a [`Snapshot`].
//!
//! ```text
//! version ─▶ objects of the cluster, of our namespaces, rights ─▶ pods (page by page), what our pods say, pods on trial ─▶ Snapshot
//!              all at once, within a bound of requests                 what is kept of them depends on the objects
//! ```

pub(crate) mod probe;
pub(crate) mod read;
mod rights;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use weir_injector::inject::selection::{INJECTION, REVISION};

use self::read::{Ask, Reader};
use super::snapshot::{Home, Interest, Keeper, Places, Report, Snapshot};
use crate::failure::Failure;

/// Bound of one request. The trial pod waits for webhooks, each of which may take up to 30 s.
const PATIENCE: Duration = Duration::from_secs(35);

/// What is to be looked at.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// Where things are.
    pub(crate) places: Places,
    /// Workloads of this namespace alone.
    pub(crate) namespace: Option<String>,
    /// Before an installation: of this revision.
    pub(crate) before: Option<String>,
    /// Whether pods are created on trial, and where; nowhere in particular if it is empty.
    pub(crate) probe: Option<String>,
    /// How long our own pods are waited for, all together.
    pub(crate) reports: Duration,
}

/// Reads everything that the scope asks for.
///
/// # Errors
/// The cluster is not reached at all, or does not know the user.
pub(crate) async fn gather<A: Ask>(api: &A, scope: &Scope) -> Result<Snapshot, Failure> {
    let reader = Reader::new(api, PATIENCE);
    let version = match reader.ask("GET", "/version", None).await {
        Ok(answer) if answer.code == 200 => serde_json::from_str(&answer.text).unwrap_or(Value::Null),
        Ok(answer) if answer.code == 401 => return Err(unknown_user(&answer.text)),
        Ok(answer) => {
            reader.note("the version of the API server", format!("{}: {}", answer.code, answer.text.trim()));
            Value::Null
        }
        Err(why) => return Err(Failure::usage(format!("the cluster is not reached: {why}"))),
    };
    let configurations = reader
        .list("MutatingWebhookConfigurations", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations")
        .await;
    // `/version` is open to anybody in many clusters; this is not.
    if configurations.is_none() {
        let refused = reader.ask("GET", "/api/v1/namespaces?limit=1", None).await;
        if let Ok(answer) = refused
            && answer.code == 401
        {
            return Err(unknown_user(&answer.text));
        }
    }
    let places = &scope.places;
    let after = scope.before.is_none();
    let istio_services = format!("/api/v1/namespaces/{}/services", places.istio);
    let (namespaces, nodes, istio_services) = tokio::join!(
        reader.list("namespaces", "/api/v1/namespaces"),
        nodes(&reader),
        reader.list("services of the control plane", &istio_services),
    );
    let mut snapshot = Snapshot {
        places: places.clone(),
        now: Timestamp::now().as_second(),
        before: scope.before.clone(),
        version,
        unread: Vec::new(),
        configurations,
        namespaces,
        nodes,
        proxy_configs: None,
        istio_services,
        weir: Home::default(),
        node: Home::default(),
        config_maps: None,
        secrets: None,
        rights: None,
        workloads: None,
        refusals: None,
        pods: None,
        reports: BTreeMap::new(),
        probes: Vec::new(),
        denied: Vec::new(),
    };
    if after {
        after_installation(&reader, scope, &mut snapshot).await;
    } else {
        snapshot.denied = rights::denied(&reader, places).await;
    }
    snapshot.unread = reader.into_unread();
    Ok(snapshot)
}

fn unknown_user(text: &str) -> Failure {
    Failure::usage(format!(
        "the cluster does not know you (401 {}); log in again, or choose another --context",
        text.chars().take(200).collect::<String>()
    ))
}

async fn after_installation<A: Ask>(reader: &Reader<'_, A>, scope: &Scope, snapshot: &mut Snapshot) {
    let places = &scope.places;
    let (weir, node, config_maps, rights, workloads, refusals, proxy_configs) = tokio::join!(
        home(reader, &places.weir, "deployments"),
        home(reader, &places.node, "daemonsets"),
        config_maps(reader, places),
        rights::of_our_accounts(reader, places),
        workloads(reader, scope),
        refusals(reader, scope),
        reader.list_if_known("ProxyConfigs", "/apis/networking.istio.io/v1beta1/proxyconfigs"),
    );
    (snapshot.weir, snapshot.node, snapshot.config_maps, snapshot.rights) = (weir, node, config_maps, rights);
    (snapshot.workloads, snapshot.refusals, snapshot.proxy_configs) = (workloads, refusals, proxy_configs);
    let interest = Interest { namespaces: meshed(snapshot) };
    let probes = async {
        match &scope.probe {
            Some(wanted) => probe::create(reader, snapshot, wanted, scope.namespace.as_deref()).await,
            None => Vec::new(),
        }
    };
    let (pods, reports, probes, secrets) = tokio::join!(
        pods(reader, scope, &interest),
        reports(reader, scope, snapshot),
        probes,
        secrets(reader, snapshot),
    );
    (snapshot.pods, snapshot.reports, snapshot.probes, snapshot.secrets) = (pods, reports, probes, secrets);
}

/// Nodes have long lists of images, which nobody here needs.
async fn nodes<A: Ask>(reader: &Reader<'_, A>) -> Option<Vec<Value>> {
    let mut all = Vec::new();
    let complete = reader.pages("nodes", "/api/v1/nodes", |node| {
        let (metadata, spec, status) = (&node["metadata"], &node["spec"], &node["status"]);
        let ready = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        let ready: Vec<&Value> = ready.iter().filter(|condition| condition["type"] == "Ready").collect();
        all.push(json!({
            "metadata": {
                "name": metadata["name"], "labels": metadata["labels"], "creationTimestamp": metadata["creationTimestamp"],
            },
            "spec": {"taints": spec["taints"], "unschedulable": spec["unschedulable"]},
            "status": {"nodeInfo": status["nodeInfo"], "conditions": ready},
        }));
    });
    complete.await.then_some(all)
}

async fn home<A: Ask>(reader: &Reader<'_, A>, namespace: &str, controllers: &str) -> Home {
    let list = async |group: &str, resource: &str| {
        let what = format!("{resource} of {namespace}");
        reader.list(&what, &format!("/{group}/namespaces/{namespace}/{resource}")).await
    };
    let serves = controllers == "deployments";
    // The agents are called by nobody.
    let serving = async |group: &str, resource: &str| if serves { list(group, resource).await } else { None };
    let (controllers, pods, services, slices, policies, budgets) = tokio::join!(
        list("apis/apps/v1", controllers),
        our_pods(reader, namespace),
        serving("api/v1", "services"),
        serving("apis/discovery.k8s.io/v1", "endpointslices"),
        serving("apis/networking.k8s.io/v1", "networkpolicies"),
        serving("apis/policy/v1", "poddisruptionbudgets"),
    );
    Home { controllers, pods, services, slices, policies, budgets }
}

/// Pods of ours: an agent is on every node, so that all of them whole would be the most of what is kept.
async fn our_pods<A: Ask>(reader: &Reader<'_, A>, namespace: &str) -> Option<Vec<Value>> {
    let mut all = Vec::new();
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let what = format!("pods of {namespace}");
    let complete = reader.pages(&what, &path, |pod| {
        let (metadata, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
        let containers = spec["containers"].as_array().map_or(&[][..], Vec::as_slice);
        let containers: Vec<Value> = containers
            .iter()
            .map(|container| json!({"name": container["name"], "ports": container["ports"]}))
            .collect();
        all.push(json!({
            "metadata": {
                "namespace": namespace, "name": metadata["name"], "labels": metadata["labels"],
                "creationTimestamp": metadata["creationTimestamp"], "deletionTimestamp": metadata["deletionTimestamp"],
            },
            "spec": {"nodeName": spec["nodeName"], "containers": containers},
            "status": {
                "phase": status["phase"], "conditions": status["conditions"],
                "initContainerStatuses": status["initContainerStatuses"], "containerStatuses": status["containerStatuses"],
            },
        }));
    });
    complete.await.then_some(all)
}

/// Those with configuration in them.
async fn config_maps<A: Ask>(reader: &Reader<'_, A>, places: &Places) -> Option<Vec<Value>> {
    let mut all = Vec::new();
    let mut complete = true;
    let mut namespaces = vec![places.weir.as_str(), places.node.as_str(), places.istio.as_str()];
    namespaces.dedup();
    for namespace in namespaces {
        let what = format!("configmaps of {namespace}");
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let of_agents = namespace == places.node;
        let read = reader.pages(&what, &path, |mut map| {
            let keys = ["values", "config", "mesh"];
            if of_agents || keys.iter().any(|key| map["data"].get(*key).is_some()) {
                drop_managed_fields(&mut map);
                all.push(map);
            }
        });
        complete &= read.await;
    }
    complete.then_some(all)
}

fn drop_managed_fields(object: &mut Value) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
}

/// The public halves of what the webhook's Secrets hold.
async fn secrets<A: Ask>(reader: &Reader<'_, A>, snapshot: &Snapshot) -> Option<Vec<Value>> {
    let namespace = &snapshot.places.weir;
    let mut names = HashSet::new();
    for deployment in snapshot.weir.controllers.iter().flatten() {
        let pod = &deployment["spec"]["template"]["spec"];
        let volumes = pod["volumes"].as_array().map_or(&[][..], Vec::as_slice);
        names.extend(volumes.iter().filter_map(|volume| volume["secret"]["secretName"].as_str()).map(str::to_owned));
        names.extend(super::judge::flags(deployment).get("ca-secret").map(str::to_owned));
    }
    let wanted = names.iter().map(async |name| {
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
        let mut secret = reader.get(&format!("Secret {namespace}/{name} (its certificates)"), &path).await?;
        if let Some(data) = secret["data"].as_object_mut() {
            data.retain(|key, _| !key.contains("key"));
        }
        drop_managed_fields(&mut secret);
        Some(secret)
    });
    Some(join_all(wanted).await.into_iter().flatten().collect())
}

/// Workloads that say something about injection, or get no pods.
async fn workloads<A: Ask>(reader: &Reader<'_, A>, scope: &Scope) -> Option<Vec<Value>> {
    let kinds = [("deployments", "Deployment"), ("statefulsets", "StatefulSet"), ("daemonsets", "DaemonSet")];
    let lists = kinds.map(async |(resource, kind)| {
        let mut kept = Vec::new();
        let path = format!("/apis/apps/v1{}/{resource}", within(scope));
        let complete = reader.pages(resource, &path, |object| kept.extend(workload(kind, &object)));
        complete.await.then_some(kept)
    });
    let lists: Option<Vec<Vec<Value>>> = join_all(lists).await.into_iter().collect();
    lists.map(|lists| lists.into_iter().flatten().collect())
}

/// The path to objects of the namespace that is asked for, or of all.
fn within(scope: &Scope) -> String {
    scope.namespace.as_ref().map_or_else(String::new, |namespace| format!("/namespaces/{namespace}"))
}

fn workload(kind: &str, object: &Value) -> Option<Value> {
    let (metadata, template) = (&object["metadata"], &object["spec"]["template"]["metadata"]);
    let inject = "sidecar.istio.io/inject";
    let says = [&metadata["labels"], &metadata["annotations"], &template["labels"], &template["annotations"]]
        .iter()
        .any(|map| map.get(inject).is_some() || map.get(INJECTION).is_some());
    let conditions = object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let fails: Vec<&Value> = conditions
        .iter()
        .filter(|condition| condition["type"] == "ReplicaFailure" && condition["status"] == "True")
        .collect();
    (says || !fails.is_empty()).then(|| {
        json!({
            "kind": kind,
            "metadata": {
                "namespace": metadata["namespace"], "name": metadata["name"], "labels": metadata["labels"],
                "annotations": {inject: metadata["annotations"][inject]},
            },
            "template": {"labels": template["labels"], "annotations": {inject: template["annotations"][inject]}},
            "failures": fails,
        })
    })
}

/// What controllers other than Deployments say about pods that they could not make.
async fn refusals<A: Ask>(reader: &Reader<'_, A>, scope: &Scope) -> Option<Vec<Value>> {
    let mut all = Vec::new();
    let path = format!("/api/v1{}/events?fieldSelector=reason%3DFailedCreate", within(scope));
    let complete = reader.pages("events", &path, |event| {
        if event["reason"] == "FailedCreate" {
            let fields = ["involvedObject", "message", "lastTimestamp", "eventTime", "series"];
            all.push(fields.into_iter().map(|field| (field.to_owned(), event[field].clone())).collect());
        }
    });
    complete.await.then_some(all)
}

/// Namespaces of which every pod may be injected; `None` where those without labels are.
fn meshed(snapshot: &Snapshot) -> Option<HashSet<String>> {
    let by_default = snapshot.configurations.iter().flatten().any(|configuration| {
        let entries = configuration["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
        entries
            .iter()
            .any(|entry| entry["name"].as_str().is_some_and(|name| name.starts_with("auto.sidecar-injector.")))
    });
    let namespaces = snapshot.namespaces.as_ref().filter(|_| !by_default)?;
    let labelled = namespaces.iter().filter(|namespace| {
        [INJECTION, REVISION].iter().any(|label| namespace["metadata"]["labels"].get(*label).is_some())
    });
    Some(labelled.filter_map(|namespace| namespace["metadata"]["name"].as_str()).map(str::to_owned).collect())
}

async fn pods<A: Ask>(reader: &Reader<'_, A>, scope: &Scope, interest: &Interest) -> Option<Vec<super::snapshot::Pod>> {
    let mut keeper = Keeper::default();
    let what = scope
        .namespace
        .as_ref()
        .map_or("pods of all namespaces (-n NAME looks at one)".to_owned(), |namespace| format!("pods of {namespace}"));
    let path = format!("/api/v1{}/pods", within(scope));
    let complete = reader.pages(&what, &path, |pod| keeper.look(&pod, interest));
    complete.await.then(|| keeper.into_pods())
}

/// Metrics that are looked at.
const METRICS: [&str; 4] = [
    "weir_agent_meshed_pods",
    "weir_agent_build_info",
    "weir_webhook_build_info",
    "weir_webhook_certificate_expiry_timestamp_seconds",
];

/// What the pods of webhook and agents say. Who does not answer in time is left out.
async fn reports<A: Ask>(reader: &Reader<'_, A>, scope: &Scope, snapshot: &Snapshot) -> BTreeMap<String, Report> {
    let reports = RefCell::new(BTreeMap::<String, Report>::new());
    let asked = |namespace: &'_ str, home: &Home, health: (&'static str, u64), monitoring: (&'static str, u64)| {
        let running = home.pods.iter().flatten().filter(|pod| pod["status"]["phase"] == "Running");
        let wanted = running.filter_map(|pod| {
            let name = pod["metadata"]["name"].as_str()?.to_owned();
            Some((namespace.to_owned(), name, port(pod, health), port(pod, monitoring)))
        });
        wanted.collect::<Vec<_>>()
    };
    let webhook = asked(&scope.places.weir, &snapshot.weir, ("http", 15014), ("http", 15014));
    let agents = asked(&scope.places.node, &snapshot.node, ("health", 8000), ("http-metrics", 15014));
    let all = webhook.into_iter().chain(agents).map(async |(namespace, pod, health, monitoring)| {
        let (ready, metrics) = tokio::join!(
            reader.of_pod(&namespace, &pod, health, "readyz"),
            reader.of_pod(&namespace, &pod, monitoring, "metrics"),
        );
        let metrics = metrics.map(|answer| {
            let lines = answer.text.lines().filter(|line| METRICS.iter().any(|name| line.starts_with(name)));
            lines.fold(String::new(), |text, line| text + line + "\n")
        });
        reports.borrow_mut().insert(pod, Report { ready: ready.map(|answer| answer.text), metrics });
    });
    if tokio::time::timeout(scope.reports, join_all(all)).await.is_err() {
        let seconds = scope.reports.as_secs();
        reader.note("some of the agents and replicas themselves", format!("no answer in {seconds} s (--timeout)"));
    }
    reports.into_inner()
}

/// The number of a port of a pod, by name.
fn port(pod: &Value, (name, default): (&str, u64)) -> u64 {
    let containers = pod["spec"]["containers"].as_array().map_or(&[][..], Vec::as_slice);
    let mut ports = containers.iter().flat_map(|container| container["ports"].as_array().into_iter().flatten());
    ports.find(|port| port["name"] == name).and_then(|port| port["containerPort"].as_u64()).unwrap_or(default)
}
