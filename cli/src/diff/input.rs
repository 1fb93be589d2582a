//! Reads one side of a comparison: the rules of its pods, whatever they come from.

use std::path::Path;
use std::time::Duration;

use iptables_rules::RuleSet;
use iptables_rules::names::annotation;
use iptables_rules::restore::{RestoreFamily, parse};
use iptables_rules::trace::Chains;
use serde_json::Value;
use weir_kernel::netns_state::Ownership;
use weir_kernel::nft;

use crate::agent::AgentArgs;
use crate::explain::{netns, pod};
use crate::failure::{Failure, join};
use crate::files::InputFile;
use crate::manifest::stream::{self, Document};
use crate::objects::{ObjectRef, POD};
use crate::rules::planned::{self, Planned};
use crate::settings::InjectorArgs;

const CLUSTER_TIMEOUT: Duration = Duration::from_mins(1);

/// One side of a comparison.
#[derive(Debug)]
pub(super) struct Side {
    /// Name for messages.
    pub(super) name: String,
    /// Whether workloads are matched with the other side by name.
    pub(super) has_names: bool,
    pub(super) workloads: Vec<WorkloadRules>,
}

/// The rules of a pod, of the pods of a workload, or of a network namespace.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadRules {
    pub(crate) name: String,
    /// Source of the rules, or why there are none.
    pub(crate) origin: String,
    /// Chains for IPv4 and IPv6 packets.
    pub(crate) chains: [Chains; 2],
    /// Families whose chains are known.
    pub(crate) families: Vec<RestoreFamily>,
    /// Whether the routes that deliver marked packets locally are known.
    pub(crate) has_routing: bool,
    /// The rules, if they are planned.
    pub(crate) planned: Option<RuleSet>,
    /// Whether the rules were read from Weir's own table of nf_tables.
    pub(crate) is_programmed: bool,
    /// The annotation that sets rerouted interfaces.
    pub(crate) reroute_annotation: &'static str,
    /// File and line of the workload.
    pub(crate) place: Option<(String, usize)>,
    /// The injected pod; `None` where there is only a text or a network namespace.
    pub(crate) pod: Option<Value>,
}

impl WorkloadRules {
    /// Returns the chains of planned rules as Weir programs them in nf_tables, where packets that the kernel itself sends have no owner
    /// to compare; `None` without planned rules, or if nf_tables cannot express them.
    pub(super) fn programmed(&self) -> Option<[Chains; 2]> {
        let rules = self.planned.as_ref()?;
        let program = nft::program(rules).ok()?;
        let routing = || Chains { local_delivery: rules.routing.local_delivery, ..Chains::default() };
        Some(RestoreFamily::ALL.map(|family| nft::chains(&program, family.any_address()).merge(routing())))
    }

    pub(crate) fn planned(planned: Planned, file: Option<&str>) -> Self {
        let rules = planned.rules.unwrap_or_default();
        Self {
            name: planned.subject.name,
            origin: planned.subject.capture.to_string(),
            chains: RestoreFamily::ALL.map(|family| Chains::from_rule_set(&rules, family.any_address())),
            families: RestoreFamily::ALL.to_vec(),
            has_routing: true,
            planned: Some(rules),
            is_programmed: false,
            reroute_annotation: planned.subject.reroute_annotation,
            place: file.map(|file| (file.to_owned(), planned.subject.line)),
            pod: planned.subject.pod,
        }
    }
}

/// Reads a file: a manifest, annotations, or a text of iptables-save.
///
/// # Errors
/// Everything that is wrong with the file and the settings.
pub(super) fn file(name: &str, injector: &InjectorArgs) -> Result<Side, Failure> {
    let input = InputFile::from(name);
    text(input.name(), &input.read()?, injector)
}

/// Reads one manifest with two configurations of the injector.
///
/// # Errors
/// As for [`file()`].
pub(super) fn with_both(name: &str, old: &InjectorArgs, new: &InjectorArgs) -> Result<(Side, Side), Failure> {
    let input = InputFile::from(name);
    let manifest = input.read()?;
    let (mut old, mut new) = join(text(input.name(), &manifest, old), text(input.name(), &manifest, new))?;
    for (side, which) in [(&mut old, "old"), (&mut new, "new")] {
        side.name = format!("{} with the {which} settings", side.name);
    }
    Ok((old, new))
}

fn text(name: String, text: &str, injector: &InjectorArgs) -> Result<Side, Failure> {
    let in_file = |messages: Vec<String>| Failure::findings_in(&name, &messages);
    if is_saved_rules(text) {
        return saved(&name, text).map_err(in_file);
    }
    let has_names = !is_annotations(text);
    let planned =
        if has_names { planned::of_manifest(text, injector.load()?) } else { planned::of_annotations(&name, text) };
    let planned = planned.map_err(in_file)?;
    if planned.is_empty() {
        // Taken for an empty manifest, such a file would look like one whose pods are gone.
        if !is_manifest(text) {
            return Err(in_file(vec!["neither a manifest, annotations nor a text of iptables-save".to_owned()]));
        }
        eprintln!("weir: {name}: no pods found");
    }
    let workloads = planned.into_iter().map(|planned| WorkloadRules::planned(planned, Some(&name))).collect();
    Ok(Side { name, has_names, workloads })
}

/// A text of iptables starts with a table, behind comments.
fn is_saved_rules(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.next().is_some_and(|line| line.starts_with('*'))
}

/// A manifest has objects only; comments may be all there is.
fn is_manifest(text: &str) -> bool {
    let documents = stream::split(text).unwrap_or_default();
    let mut values = documents.iter().map(|document| Document::parse(document).unwrap_or_default());
    values.all(|value| value.is_null() || value.is_object())
}

/// Annotations are one map that is no Kubernetes object.
fn is_annotations(text: &str) -> bool {
    let Ok(documents) = stream::split(text) else { return false };
    let [document] = documents[..] else { return false };
    let value = Document::parse(&document).unwrap_or_default();
    value.as_object().is_some_and(|map| !map.contains_key("kind") && !map.contains_key("apiVersion"))
}

/// Parses a text of iptables-save, of either family or both.
fn saved(name: &str, text: &str) -> Result<Side, Vec<String>> {
    let texts = by_family(text)?;
    let strays: Vec<String> = parse::parse(text)
        .strays
        .iter()
        .map(|line| format!("cannot parse {line:?} as a line of iptables-save"))
        .collect();
    if !strays.is_empty() {
        return Err(strays);
    }
    let families: Vec<_> = RestoreFamily::ALL.into_iter().zip(&texts).filter(|(_, text)| text.is_some()).collect();
    let families: Vec<_> = families.into_iter().map(|(family, _)| family).collect();
    let tools: Vec<_> = families.iter().map(|family| family.tool()).collect();
    let workload = WorkloadRules {
        name: name.to_owned(),
        origin: format!("rules of {}", tools.join(" and ")),
        chains: texts.map(|text| text.map(|text| Chains::from_iptables_save(&text)).unwrap_or_default()),
        families,
        has_routing: false,
        planned: None,
        is_programmed: false,
        reroute_annotation: annotation::REROUTE_VIRTUAL_INTERFACES,
        place: Some((name.to_owned(), 1)),
        pod: None,
    };
    Ok(Side { name: name.to_owned(), has_names: false, workloads: vec![workload] })
}

/// Splits a text into those of IPv4 and IPv6, at the comments that name the program. Without such a comment, addresses show the family.
fn by_family(text: &str) -> Result<[Option<String>; 2], Vec<String>> {
    let has_v6_address = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        words.windows(2).any(|pair| matches!(pair, ["-s" | "-d", net] if net.contains(':')))
    };
    let mut family = usize::from(has_v6_address(text));
    let mut texts: [Option<String>; 2] = [None, None];
    let mut tables = Vec::new();
    let mut errors = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        match line.trim() {
            comment if comment.starts_with('#') => {
                if comment.contains("ip6tables") {
                    family = 1;
                } else if comment.contains("iptables") {
                    family = 0;
                }
            }
            table if table.starts_with('*') && tables.contains(&(family, table.to_owned())) => errors.push(format!(
                "line {number}: table {} comes again; put a comment with iptables-save or ip6tables-save before the rules of each family",
                table.trim_start_matches('*').trim()
            )),
            table if table.starts_with('*') => tables.push((family, table.to_owned())),
            _ => {}
        }
        if let Some(text) = texts.get_mut(family).filter(|_| !tables.is_empty()) {
            let text = text.get_or_insert_default();
            text.extend([line, "\n"]);
        }
    }
    if errors.is_empty() { Ok(texts) } else { Err(errors) }
}

/// Reads the rules in a network namespace.
///
/// # Errors
/// The namespace cannot be read completely.
pub(super) fn namespace(path: &Path) -> Result<Side, Failure> {
    let state = netns::inspect(path, None)?.state;
    let name = format!("network namespace {}", path.display());
    if !state.unreadable.is_empty() {
        let messages = state.unreadable.iter().map(|what| format!("{name}: cannot read {what}")).collect();
        return Err(Failure::usage_all(messages));
    }
    let origin = match state.ownership() {
        Ownership::None => "no capture rules in the kernel",
        Ownership::Foreign => "foreign rules in the kernel",
        _ => "the rules in the kernel",
    };
    let workload = WorkloadRules {
        name: name.clone(),
        origin: origin.to_owned(),
        chains: netns::chains_of_both_families(&state),
        families: RestoreFamily::ALL.to_vec(),
        has_routing: true,
        planned: None,
        is_programmed: matches!(state.ownership(), Ownership::Ours | Ownership::OursDrifted),
        reroute_annotation: annotation::REROUTE_VIRTUAL_INTERFACES,
        place: None,
        pod: None,
    };
    Ok(Side { name, has_names: false, workloads: vec![workload] })
}

/// Reads a pod of the cluster. Its rules are those that it should have, if its node's agent finds them in place.
///
/// # Errors
/// The cluster or the agent cannot be asked, or the rules are not in place.
pub(super) fn pod(
    pod: &str,
    default_namespace: &str,
    agent: &AgentArgs,
    injector: &InjectorArgs,
) -> Result<Side, Failure> {
    let (namespace, name) = pod::parse_name(pod, default_namespace);
    let listing = agent.fetch_for_pod(injector.connection(), namespace, name)?;
    let wanted = format!("{namespace}/{name}");
    let found = pod::find(&listing, &wanted).map_err(|message| Failure::findings(vec![message]))?;
    if found.state != "ok" {
        let detail: Vec<String> = found.detail.iter().map(|line| format!(": {line}")).collect();
        return Err(Failure::findings(vec![format!(
            "pod {wanted}: its rules are not those that it should have ({}{}); compare with --netns on node {}",
            found.state,
            detail.concat(),
            listing.node
        )]));
    }
    let object = injector.connection().run(CLUSTER_TIMEOUT, async |cluster| {
        let object = cluster.object(&ObjectRef::new(POD, namespace, name)).await?;
        object.ok_or_else(|| Failure::findings(vec![format!("{cluster}: pod {wanted} not found")]))
    })?;
    let planned = planned::of_manifest(&object.to_string(), injector.load()?)
        .map_err(|messages| Failure::findings_in(&format!("pod {wanted}"), &messages))?;
    let workloads = planned.into_iter().map(|planned| WorkloadRules::planned(planned, None)).collect();
    Ok(Side { name: format!("pod {wanted}"), has_names: false, workloads })
}
