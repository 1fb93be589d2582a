//! One namespace of a real cluster, as a migration observes and changes it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use weir_injector::workload::workload_of_pod;

use super::current::Origin;
use super::drive::World;
use super::object::{annotation, container, is_live, labels, name};
use super::plan::{RESTARTABLE, restart_reasons};
use super::prometheus::Prometheus;
use super::record::{InjectionLabels, MIGRATION, Phase, Record};
use super::step::{Goal, NamespaceView, PodView, WorkloadView};
use crate::agent;
use crate::cluster::Cluster;
use crate::console::print_line;
use crate::failure::Failure;
use crate::objects::{DAEMON_SET, DEPLOYMENT, NAMESPACE, ObjectRef, POD, ResourceKind, STATEFUL_SET};
use crate::rollout;
use crate::rules::subject::INIT;

/// Field manager of labels and records.
const FIELD_MANAGER: &str = "weir-migrate";
/// Annotation by which `kubectl rollout restart` replaces pods.
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Attempts to observe a namespace.
const ATTEMPTS: u32 = 10;

pub(super) struct ClusterNamespace<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
    /// Namespace of the node agents.
    node_namespace: &'a str,
    prometheus: Option<&'a Prometheus>,
    started: Instant,
    /// Version of the namespace that was observed.
    version: Value,
    /// Pods, by uid, whose agents have found their rules in place.
    in_place: HashSet<String>,
    /// Answers of the nodes' agents since the observation began.
    answers: HashMap<String, AgentAnswer>,
}

/// State of the rules of this namespace's pods by their names, `None` if they are in place; or the reason for no answer.
type AgentAnswer = Result<HashMap<String, Option<String>>, String>;

impl<'a> ClusterNamespace<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        namespace: &'a str,
        node_namespace: &'a str,
        prometheus: Option<&'a Prometheus>,
    ) -> Self {
        let (started, version) = (Instant::now(), Value::Null);
        let (in_place, answers) = (HashSet::new(), HashMap::new());
        Self { cluster, namespace, node_namespace, prometheus, started, version, in_place, answers }
    }

    async fn try_observe(&mut self, goal: Goal) -> Result<NamespaceView, Failure> {
        self.answers.clear();
        let what = ObjectRef::new(NAMESPACE, "", self.namespace);
        let found = self.cluster.object(&what).await?;
        let object = found.ok_or_else(|| Failure::findings(vec![format!("{what} was deleted")]))?;
        self.version = object["metadata"]["resourceVersion"].clone();
        let mut view = NamespaceView {
            labels: InjectionLabels::of(&labels(&object)),
            record: Record::of_namespace(&object).map_err(|error| Failure::findings(vec![error]))?,
            workloads: Vec::new(),
        };
        let mut controllers = Vec::new();
        for kind in [DEPLOYMENT, DAEMON_SET, STATEFUL_SET] {
            let mut found = self.cluster.objects(kind, self.namespace, "").await?;
            found.sort_by(|a, b| name(a).cmp(name(b)));
            controllers.extend(found.into_iter().map(|object| (kind, object)));
        }
        // After the status of their controllers: of a complete rollout, these are the new ones.
        let pods = self.cluster.objects(POD, self.namespace, "").await?;
        for (kind, object) in &controllers {
            if restart_reasons(kind.name, Some(object)).is_empty() {
                let own = pods.iter().filter(|pod| is_live(pod) && is_of(pod, kind.name, name(object)));
                let own: Vec<&Value> = own.collect();
                view.workloads.push(self.workload(*kind, object, &own, view.record.as_ref(), goal).await?);
            }
        }
        Ok(view)
    }

    async fn workload(
        &mut self,
        kind: ResourceKind,
        object: &Value,
        pods: &[&Value],
        record: Option<&Record>,
        goal: Goal,
    ) -> Result<WorkloadView, Failure> {
        let marker = annotation(object, MIGRATION).map(str::to_owned);
        let rollout = rollout::missing(object);
        let is_marked = marker.is_some() && record.is_some();
        let what = ObjectRef::new(kind, self.namespace, name(object));
        let broken = match &rollout {
            Some(_) if is_marked => rollout::final_problems(self.cluster, &what, object).await,
            _ => Vec::new(),
        };
        let is_moved = record.is_some_and(|record| marker.as_ref() == Some(&record.marker(Phase::Moving)));
        let mut view = WorkloadView {
            name: format!("{}/{}", kind.name, name(object)),
            unavailable: rollout::unavailable(object),
            marker,
            broken,
            pods: Vec::new(),
            rollout,
        };
        for pod in pods {
            let origin = Origin::of(pod);
            // An init container has installed its rules, or it would not run.
            let is_captured_by_node = origin == Some(Origin::Weir) && container(pod, INIT).is_none();
            let has_to_ask = goal == Goal::Move && is_moved && view.rollout.is_none() && is_captured_by_node;
            let rules = if has_to_ask { self.rules(pod).await } else { None };
            view.pods.push(PodView { name: name(pod).to_owned(), origin, rules });
        }
        Ok(view)
    }

    /// Returns what the agent of a pod's node says against its rules.
    async fn rules(&mut self, pod: &Value) -> Option<String> {
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        if self.in_place.contains(uid) {
            return None;
        }
        let Some(node) = pod["spec"]["nodeName"].as_str() else { return Some("on no node yet".to_owned()) };
        if !self.answers.contains_key(node) {
            let answer = self.ask(node).await;
            self.answers.insert(node.to_owned(), answer);
        }
        match self.answers.get(node)? {
            Err(why) => Some(why.clone()),
            Ok(pods) => match pods.get(name(pod)) {
                Some(None) => {
                    self.in_place.insert(uid.to_owned());
                    None
                }
                Some(Some(why)) => Some(why.clone()),
                None => Some("its node's agent does not know it yet".to_owned()),
            },
        }
    }

    async fn ask(&self, node: &str) -> AgentAnswer {
        let answers = agent::ask(self.cluster, self.node_namespace, Some(node)).await;
        let answers = answers.map_err(|failure| failure.to_string().trim().trim_start_matches("weir: ").to_owned())?;
        let pods = answers.into_iter().flat_map(|(answer, _)| answer.pods);
        let own = pods.filter(|pod| pod.namespace == self.namespace);
        Ok(own
            .map(|pod| {
                let why = [std::slice::from_ref(&pod.state), &pod.detail[..]].concat().join(", ");
                (pod.name, (pod.state != "ok").then(|| format!("its node's agent reports: {why}")))
            })
            .collect())
    }
}

fn is_of(pod: &Value, kind: &str, controller: &str) -> bool {
    let workload = workload_of_pod(pod, None);
    workload.kind == kind && workload.name == controller
}

impl World for ClusterNamespace<'_> {
    async fn observe(&mut self, goal: Goal) -> Result<NamespaceView, Failure> {
        let mut attempt = 1;
        loop {
            match self.try_observe(goal).await {
                Err(_) if attempt < ATTEMPTS => attempt += 1,
                other => return other,
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn write(&mut self, record: Option<&Record>, labels: &InjectionLabels) -> Result<(), Failure> {
        let what = ObjectRef::new(NAMESPACE, "", self.namespace);
        let patch = json!({"metadata": {
            "resourceVersion": self.version,
            "labels": labels.patch(),
            "annotations": {MIGRATION: record.map(Record::to_text)},
        }});
        // If somebody has changed the namespace meanwhile, it is observed and decided again.
        self.cluster.merge(FIELD_MANAGER, &what, &patch).await.map(drop)
    }

    async fn restart(&mut self, workload: &str, marker: &str) -> Result<(), Failure> {
        let (kind, name) = workload.split_once('/').unwrap_or_default();
        let kinds = RESTARTABLE.into_iter().zip([DEPLOYMENT, DAEMON_SET, STATEFUL_SET]);
        let Some((_, kind)) = kinds.into_iter().find(|(known, _)| *known == kind) else { return Ok(()) };
        let patch = json!({
            "metadata": {"annotations": {MIGRATION: marker}},
            "spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: Timestamp::now().to_string()}}}},
        });
        self.cluster.merge(FIELD_MANAGER, &ObjectRef::new(kind, self.namespace, name), &patch).await.map(drop)
    }

    async fn error_rate(&mut self) -> Result<Option<f64>, String> {
        match self.prometheus {
            Some(prometheus) => prometheus.error_rate(self.namespace).await.map(Some),
            None => Ok(None),
        }
    }

    async fn pause(&mut self) {
        sleep(POLL_INTERVAL).await;
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn report(&mut self, text: &str) -> Result<(), Failure> {
        print_line(&format!("{}: {text}", self.namespace))
    }
}
