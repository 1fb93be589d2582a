//! Reads the workloads of manifests, and the labels of their namespaces.

use std::net::{Ipv4Addr, Ipv6Addr};

use iptables_rules::config::Ipv6Policy;
use iptables_rules::restore::RestoreFamily;
use iptables_rules::{CaptureConfig, RuleSet, plan};
use serde_json::{Map, Value};
use weir_injector::pod_capture::SharedIds;

use crate::failure::{Failure, join};
use crate::files::InputFile;
use crate::manifest::namespaces::{self, NamespaceLabels};
use crate::manifest::stream::{self, Document};
use crate::rules::planned::{self, Planned};
use crate::rules::subject::{Capture, INIT, Subject};
use crate::settings::InjectorArgs;

/// The label that the API server gives to every namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Workloads, and what is known about their namespaces.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    pub(super) all: Vec<Workload>,
    pub(super) namespaces: NamespaceLabels,
    /// Parts that could not be read; one sentence each.
    pub(super) notes: Vec<String>,
}

/// A workload or a pod, with its rules.
#[derive(Debug, Clone)]
pub(super) struct Workload {
    pub(super) name: String,
    /// Empty if it is unknown.
    pub(super) namespace: String,
    /// Labels of its pods.
    pub(super) labels: Map<String, Value>,
    /// Source of the rules, or why there are none.
    pub(super) origin: String,
    /// No rules if it is not injected.
    pub(super) rules: RuleSet,
    /// The default configuration if it has no rules.
    pub(super) config: CaptureConfig,
    /// Ids of the proxy that other containers have too.
    pub(super) shared_ids: SharedIds,
    /// Families of its addresses; both before it has some.
    pub(super) families: Vec<RestoreFamily>,
    /// Whether IPv6 would not be captured if the pods got addresses of both families, which is not known yet.
    pub(super) assumes_one_family: bool,
    pub(super) reroute_annotation: &'static str,
    /// File and line.
    pub(super) place: Option<(String, usize)>,
    /// Report of the node's agent about the rules in the kernel.
    pub(super) evidence: Evidence,
}

/// Report about the rules in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Evidence {
    /// Not asked for, or the pod has no rules to be found.
    None,
    /// The agent of this node found the rules in place.
    InPlace { node: String },
    /// The agent found something else, or nobody can know them; the reason.
    NotInPlace(String),
    /// No agent reported about the pod.
    Missing,
}

impl Evidence {
    /// Returns the evidence of a pod whose rules `istio-init` installs, which its author may have written.
    pub(super) fn of_init_container() -> Self {
        Self::NotInPlace(format!("the plugin skips the pod, because it has an init container {INIT}"))
    }
}

impl Workload {
    /// Takes a workload whose pods do not exist yet; `dual_stack` gives them addresses of both families.
    fn planned(planned: Planned, dual_stack: bool) -> Self {
        let Planned { subject, mut rules } = planned;
        let Subject { name, namespace, labels, capture, reroute_annotation, line: _, pod: _ } = subject;
        let origin = capture.to_string();
        let (mut config, evidence, shared_ids) = match capture {
            Capture::Configured { config, init_container, shared_ids, .. } => {
                let evidence = if init_container { Evidence::of_init_container() } else { Evidence::None };
                (*config, evidence, shared_ids)
            }
            Capture::NotInjected(_) | Capture::Skipped(_) => {
                (CaptureConfig::default(), Evidence::None, SharedIds::default())
            }
        };
        if dual_stack && rules.is_some() {
            config.ipv6 = config.ipv6.for_addresses(&[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
            // It was planned with more rules before.
            rules = plan(&config).ok().or(rules);
        }
        Self {
            name,
            namespace,
            labels,
            origin,
            assumes_one_family: rules.is_some() && config.ipv6 == Ipv6Policy::Auto,
            rules: rules.unwrap_or_default(),
            config,
            shared_ids,
            families: RestoreFamily::ALL.to_vec(),
            reroute_annotation,
            place: None,
            evidence,
        }
    }
}

impl Workloads {
    /// Returns the labels of a workload's namespace; `None` if they are unknown.
    pub(super) fn namespace_labels(&self, workload: &Workload) -> Option<&Map<String, Value>> {
        self.namespaces.get(&workload.namespace)
    }

    /// Adds the labels that every namespace has.
    pub(super) fn complete_labels(&mut self) {
        for (name, labels) in &mut self.namespaces {
            labels.insert(NAME_LABEL.to_owned(), name.as_str().into());
        }
    }
}

/// Reads manifests; `namespace` is for objects without one, and `dual_stack` says that pods get addresses of both families.
///
/// # Errors
/// Everything that is wrong with the files and the settings.
pub(super) fn load(
    files: &[String],
    namespace: &str,
    dual_stack: bool,
    injector: &InjectorArgs,
) -> Result<Workloads, Failure> {
    let settings = injector.load()?;
    let mut all = Ok(Workloads::default());
    for file in files {
        let input = InputFile::from(file.as_str());
        let read = input.read().map_err(Failure::from).and_then(|text| {
            let planned = planned::of_manifest(&text, settings.clone());
            let planned = planned.map_err(|findings| Failure::findings_in(&input.name(), &findings))?;
            Ok((text, planned))
        });
        all = join(all, read).map(|(mut all, (text, planned))| {
            let documents = stream::split(&text).unwrap_or_default();
            for value in documents.iter().filter_map(|document| Document::parse(document).ok()) {
                namespaces::collect(&value, &mut all.namespaces);
            }
            all.all.extend(planned.into_iter().map(|planned| {
                let line = planned.subject.line;
                let mut workload = Workload::planned(planned, dual_stack);
                if workload.namespace.is_empty() {
                    namespace.clone_into(&mut workload.namespace);
                }
                Workload { place: Some((input.name(), line)), ..workload }
            }));
            all
        });
    }
    let mut workloads = all?;
    workloads.complete_labels();
    if workloads.all.is_empty() {
        workloads.notes.push(format!("{}: no pods found", files.join(", ")));
    }
    Ok(workloads)
}
