//! The plan of a migration: a pure function of the cluster's objects.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};
use weir_injector::Workload;
use weir_injector::selection::{InjectorRevision, Labels, Selection};
use weir_injector::settings::{Documents, NativeSidecars, ProxyConfigResources, Settings, set_cni_mode};
use weir_injector::workload::workload_of_pod;
use weir_injector::yaml;

use super::assess::{Assessment, Assessor, Subjects, Verdict};
use super::current::Origin;
use super::injector::{Injector, Vendor, moved_labels};
use super::inventory::{self, CniPlugin, ControlPlane, INJECTOR_MAP, InjectorConfig, Objects, OptIn};
use super::object::{annotation, is_live, label, labels, name, namespace};
use super::record::Record;
use crate::manifest::pods;
use crate::revisions::DEFAULT;

/// Kinds whose pods a restart replaces.
pub(super) const RESTARTABLE: [&str; 3] = ["Deployment", "DaemonSet", "StatefulSet"];

/// Everything that a migration concerns.
#[derive(Debug)]
pub(super) struct Plan {
    /// Revision of Weir that namespaces move to.
    pub(super) revision: String,
    /// True if that revision is installed.
    pub(super) is_installed: bool,
    pub(super) control_planes: Vec<ControlPlane>,
    pub(super) injectors: Vec<Injector>,
    pub(super) configs: Vec<InjectorConfig>,
    pub(super) cni_plugins: Vec<CniPlugin>,
    pub(super) namespaces: Vec<NamespacePlan>,
}

/// A namespace that has to do with the mesh.
#[derive(Debug)]
pub(super) struct NamespacePlan {
    pub(super) name: String,
    pub(super) opt_in: OptIn,
    /// Progress of its migration.
    pub(super) record: Option<Record>,
    /// Reasons for which a person has to act before it can move.
    pub(super) reasons: Vec<String>,
    pub(super) workloads: Vec<WorkloadPlan>,
    /// Workloads without a sidecar.
    pub(super) outside: usize,
}

/// A workload with pods in the mesh.
#[derive(Debug)]
pub(super) struct WorkloadPlan {
    /// For example `Deployment`; `Pod` for a pod without a controller.
    pub(super) kind: String,
    pub(super) name: String,
    /// Number of its pods with a sidecar.
    pub(super) pods: usize,
    pub(super) origin: Origin,
    pub(super) assessment: Assessment,
    /// States of its pods by the agents of their nodes, if they were asked.
    pub(super) live: BTreeMap<String, usize>,
}

impl WorkloadPlan {
    /// Returns whether it moves without a person.
    pub(super) fn is_ready(&self) -> bool {
        self.assessment.verdict.is_safe() && self.assessment.reasons.is_empty()
    }
}

impl Plan {
    /// Makes the plan; limited to these namespaces, if any. `live` has the states of pods by `NAMESPACE/NAME`.
    pub(super) fn of(objects: &Objects, revision: &str, only: &[String], live: &HashMap<String, String>) -> Self {
        let injectors = inventory::injectors(&objects.configurations);
        let (settings, configs) = read_configs(objects, revision);
        let mut pods: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for pod in objects.pods.iter().filter(|pod| is_live(pod)) {
            pods.entry(namespace(pod)).or_default().push(pod);
        }
        let mut assessor = Assessor::new(&objects.dns_servers);
        let wanted = |object: &&Value| only.is_empty() || only.iter().any(|wanted| wanted == name(object));
        let mut namespaces = Vec::new();
        for object in objects.namespaces.iter().filter(wanted) {
            let pods = pods.get(name(object)).map_or(&[][..], Vec::as_slice);
            let context = Context { objects, injectors: &injectors, settings: &settings, revision, live };
            let plan = context.namespace(object, pods, &mut assessor);
            let concerns = plan.record.is_some()
                || !matches!(plan.opt_in, OptIn::None | OptIn::OptedOut)
                || !plan.workloads.is_empty();
            if concerns || !only.is_empty() {
                namespaces.push(plan);
            }
        }
        namespaces.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            revision: revision.to_owned(),
            is_installed: inventory::weir_revisions(&objects.configurations).iter().any(|found| found == revision),
            control_planes: inventory::control_planes(objects),
            injectors,
            configs,
            cni_plugins: inventory::cni_plugins(objects),
            namespaces,
        }
    }

    /// Returns all workloads, with their namespaces.
    pub(super) fn workloads(&self) -> impl Iterator<Item = (&NamespacePlan, &WorkloadPlan)> {
        self.namespaces
            .iter()
            .flat_map(|namespace| namespace.workloads.iter().map(move |workload| (namespace, workload)))
    }
}

/// Settings of the injectors, by revision.
type SettingsByRevision = HashMap<String, Settings>;

/// Reads every ConfigMap of an injector as Weir would with `config.from: istio`.
fn read_configs(objects: &Objects, revision: &str) -> (SettingsByRevision, Vec<InjectorConfig>) {
    let mut settings = HashMap::new();
    let mut configs = Vec::new();
    let is_injectors = |map: &&Value| of_revision(name(map), INJECTOR_MAP).is_some();
    for map in objects.config_maps.iter().filter(is_injectors) {
        let of = of_revision(name(map), INJECTOR_MAP).unwrap_or(DEFAULT).to_owned();
        let mesh = objects.config_maps.iter().find(|other| {
            namespace(other) == namespace(map) && of_revision(name(other), "istio").is_some_and(|mesh| mesh == of)
        });
        let mut config = InjectorConfig {
            name: name(map).to_owned(),
            revision: of.clone(),
            version: "unknown".to_owned(),
            templates: Vec::new(),
            errors: Vec::new(),
        };
        match parse_config(map, mesh, objects, revision, &mut config) {
            Ok(found) => _ = settings.insert(of, found),
            Err(errors) => config.errors = errors,
        }
        configs.push(config);
    }
    (settings, configs)
}

/// Returns the revision in the name of a ConfigMap.
fn of_revision<'a>(name: &'a str, base: &str) -> Option<&'a str> {
    match name.strip_prefix(base)? {
        "" => Some(DEFAULT),
        rest => rest.strip_prefix('-').filter(|rest| {
            base != "istio" || !rest.starts_with("sidecar-") && !rest.starts_with("cni-") && !rest.starts_with("ca-")
        }),
    }
}

fn parse_config(
    map: &Value,
    mesh: Option<&Value>,
    objects: &Objects,
    revision: &str,
    config: &mut InjectorConfig,
) -> Result<Settings, Vec<String>> {
    let document = |map: Option<&Value>, key: &str| match map.and_then(|map| map["data"][key].as_str()) {
        None => Ok(None),
        Some(text) => yaml::from_str(text).map(Some).map_err(|error| vec![format!("key {key}: {error}")]),
    };
    let (mut values, text, mesh) =
        (document(Some(map), "values")?, document(Some(map), "config")?, document(mesh, "mesh")?);
    if let Some(values) = &mut values {
        let tag = &values["global"]["tag"];
        config.version = tag.as_str().map_or_else(|| tag.to_string(), str::to_owned);
        set_cni_mode(values, true);
    }
    let names = text.as_ref().and_then(|text| text["templates"].as_object());
    config.templates = names.into_iter().flat_map(Map::keys).cloned().collect();
    let documents = Documents { values: values.as_ref(), mesh: mesh.as_ref(), config: text.as_ref() };
    let mut settings = Settings::from_documents(documents)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    settings.revision = if revision == DEFAULT { String::new() } else { revision.to_owned() };
    settings.native_sidecars = NativeSidecars::ByNodes;
    settings.nodes = inventory::kubelets(&objects.nodes).into_iter().collect();
    settings.proxy_configs = ProxyConfigResources::from_objects(&objects.proxy_configs)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    Ok(settings)
}

struct Context<'a> {
    objects: &'a Objects,
    injectors: &'a [Injector],
    settings: &'a SettingsByRevision,
    revision: &'a str,
    live: &'a HashMap<String, String>,
}

impl Context<'_> {
    fn namespace(&self, object: &Value, pods: &[&Value], assessor: &mut Assessor<'_>) -> NamespacePlan {
        let mut by_workload: BTreeMap<(String, String), Vec<&Value>> = BTreeMap::new();
        for pod in pods {
            let of = workload_of_pod(pod, None);
            by_workload.entry((of.kind, of.name)).or_default().push(pod);
        }
        let has_mesh_pods = pods.iter().any(|pod| Origin::of(pod).is_some());
        let opt_in = inventory::opt_in(object, self.injectors, has_mesh_pods);
        let mut reasons = self.namespace_reasons(object, &opt_in);
        let record = Record::of_namespace(object).unwrap_or_else(|error| {
            reasons.push(error);
            None
        });
        let mut plan =
            NamespacePlan { name: name(object).to_owned(), record, reasons, opt_in, workloads: Vec::new(), outside: 0 };
        for ((kind, workload), pods) in by_workload {
            // The least migrated pod stands for its workload.
            let meshed = pods.iter().filter_map(|pod| Some((Origin::of(pod)?, *pod)));
            match meshed.clone().min_by_key(|(origin, _)| *origin) {
                None => plan.outside += 1,
                Some((origin, pod)) => {
                    let count = meshed.count();
                    let mut found = self.workload(object, (kind, workload), pod, assessor);
                    (found.origin, found.pods) = (origin, count);
                    for pod in &pods {
                        if let Some(state) = self.live.get(&format!("{}/{}", namespace(pod), name(pod))) {
                            *found.live.entry(state.clone()).or_default() += 1;
                        }
                    }
                    plan.workloads.push(found);
                }
            }
        }
        plan
    }

    fn namespace_reasons(&self, object: &Value, opt_in: &OptIn) -> Vec<String> {
        let mut reasons = Vec::new();
        match opt_in {
            OptIn::Pods => reasons.push(format!(
                "its pods are in the mesh by their own labels: a label of the namespace would inject all others, too; set istio.io/rev={} on \
                 the pod templates",
                self.revision
            )),
            OptIn::Nobody(by) => reasons.push(format!("no injector selects {by}: new pods get no sidecar now")),
            _ => {}
        }
        if label(object, "istio.io/dataplane-mode") == Some("ambient") && matches!(opt_in, OptIn::Istio(_)) {
            reasons.push("it has the label of ambient mode as well".to_owned());
        }
        reasons
    }

    fn workload(
        &self,
        namespace_object: &Value,
        (kind, workload): (String, String),
        pod: &Value,
        assessor: &mut Assessor<'_>,
    ) -> WorkloadPlan {
        let in_namespace = name(namespace_object);
        let controller =
            self.objects.controllers.iter().find(|object| {
                object["kind"] == *kind && name(object) == workload && namespace(object) == in_namespace
            });
        let settings = self.settings_for(namespace_object, pod);
        let subjects = subjects(controller, pod, in_namespace);
        let mut assessment = assessor.assess(&subjects, settings);
        if assessment.verdict != Verdict::Done {
            assessment.reasons.extend(restart_reasons(&kind, controller));
            assessment.reasons.extend(self.selection_reason(namespace_object, &subjects.template));
            if pod["spec"]["hostNetwork"] == true {
                assessment
                    .reasons
                    .push("hostNetwork: its traffic is not captured, and Weir injects no such pod".to_owned());
            }
        }
        WorkloadPlan { kind, name: workload, pods: 0, origin: Origin::Weir, assessment, live: BTreeMap::new() }
    }

    /// Returns the settings of the injector that a pod has its sidecar from: of the revision that it names, else of the one that selects it.
    fn settings_for(&self, namespace: &Value, pod: &Value) -> Option<&Settings> {
        let status =
            annotation(pod, iptables_rules::names::annotation::STATUS).and_then(|text| yaml::from_str(text).ok());
        let of_pod = status
            .as_ref()
            .and_then(|status: &Value| status["revision"].as_str())
            .filter(|revision| !revision.is_empty());
        let selecting = self
            .injectors
            .iter()
            .find(|injector| injector.vendor == Vendor::Istio && injector.selects(&labels(namespace), &labels(pod)));
        let revisions = [of_pod, selecting.map(|injector| injector.revision.as_str()), Some(DEFAULT)];
        let known = revisions.into_iter().flatten().find_map(|revision| self.settings.get(revision));
        // With one control plane there is no doubt.
        known.or_else(|| if self.settings.len() == 1 { self.settings.values().next() } else { None })
    }

    /// Returns why Weir's webhook would not be called for pods of a template after the move.
    fn selection_reason(&self, namespace: &Value, template: &Value) -> Option<String> {
        let revision = InjectorRevision { revision: self.revision.to_owned(), ..InjectorRevision::default() };
        let moved = moved_labels(&labels(namespace), self.revision);
        let selected = revision.select(Labels { namespace: &moved, pod: &labels(template) }, name(namespace));
        match selected {
            Selection::Selected => None,
            Selection::NotSelected { reason, .. } => Some(format!("a new pod would get no sidecar: {reason}")),
        }
    }
}

/// Returns the pod that a controller would create; of a pod without a known controller, the pod as it was before its injection.
fn subjects<'a>(controller: Option<&Value>, pod: &'a Value, namespace: &'a str) -> Subjects<'a> {
    let is_template = controller.is_some();
    let of_controller = controller.and_then(|controller| {
        let mut object = controller.clone();
        let request = pods::find(&mut object).ok()?.first()?.request().ok()?;
        Some((request.pod, request.workload))
    });
    let (template, workload) = of_controller.unwrap_or_else(|| {
        let mut plain = pod.clone();
        plain["status"] = json!({});
        let workload: Workload = workload_of_pod(pod, None);
        (plain, Some(workload).filter(|workload| workload.kind != "Pod"))
    });
    Subjects { template, is_template, workload, namespace, pod }
}

/// Returns why restarting a workload does not replace its pods.
pub(super) fn restart_reasons(kind: &str, controller: Option<&Value>) -> Vec<String> {
    let Some(controller) = controller else {
        return vec![match kind {
            "Pod" => "it has no controller: delete and create it to move it".to_owned(),
            _ if RESTARTABLE.contains(&kind) => "its controller was not found".to_owned(),
            _ => format!("its controller is a {kind}, which weir migrate does not restart"),
        }];
    };
    let strategy = controller.pointer("/spec/updateStrategy/type").and_then(Value::as_str);
    match kind {
        "Job" | "CronJob" => vec!["a Job is not restarted: its next pods move".to_owned()],
        _ if !RESTARTABLE.contains(&kind) => vec![format!("a {kind} is not restarted")],
        _ if controller.pointer("/spec/paused") == Some(&Value::Bool(true)) => {
            vec!["its rollout is paused: kubectl rollout resume".to_owned()]
        }
        _ if controller
            .pointer("/spec/updateStrategy/rollingUpdate/partition")
            .and_then(Value::as_u64)
            .is_some_and(|partition| partition > 0) =>
        {
            vec!["its update strategy has a partition: set it to 0 to move all pods".to_owned()]
        }
        _ if strategy == Some("OnDelete") => {
            vec!["its update strategy is OnDelete: delete its pods one by one to move them".to_owned()]
        }
        _ => Vec::new(),
    }
}
