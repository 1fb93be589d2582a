//! Reads `CaptureAssertion` objects, with every error at once.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use iptables_rules::CaptureConfig;
use iptables_rules::compare::Direction;
use iptables_rules::compare::assertion::{Assertion, Must, Quantifier};
use iptables_rules::names::port;
use iptables_rules::restore::RestoreFamily;
use serde_json::{Map, Value};

use super::fields::Fields;
use crate::pod_capture::SharedIds;
use crate::selector::Selector;

const API_VERSION: &str = "weir.dev/v1alpha1";
const KIND: &str = "CaptureAssertion";
/// Most assertions of one policy.
pub const MAX_ASSERTIONS: usize = 200;
/// Most rules of one assertion.
const MAX_RULES: usize = 100;

/// What follows for a pod that is created against an assertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Its author gets a warning.
    Warn,
    /// It is denied.
    Deny,
}

impl Action {
    /// Returns the name in policies and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warn => "warn",
            Self::Deny => "deny",
        }
    }
}

/// A `CaptureAssertion`: rules for the workloads that it selects.
#[derive(Debug, Clone)]
pub struct CaptureAssertion {
    /// `metadata.name`.
    pub name: String,
    /// What the webhook does about a pod that breaks it.
    pub action: Action,
    namespaces: Selector,
    pods: Selector,
    /// At least one.
    pub rules: Vec<AssertionRule>,
}

/// A rule of a `CaptureAssertion`.
#[derive(Debug, Clone)]
pub struct AssertionRule {
    /// Its name, or its number.
    pub name: String,
    /// Whether it is also about the proxy's own connections and ports.
    includes_proxy: bool,
    assertion: Assertion,
}

/// What tells the connections of a pod's proxy from those of its application.
#[derive(Debug, Clone)]
pub struct ProxyTraits<'a> {
    /// Users that the proxy alone has.
    uids: Vec<u32>,
    /// Groups that the proxy alone has.
    gids: Vec<u32>,
    /// Port on which it gets tunnelled connections.
    tunnel_port: u16,
    /// Families of the pod's addresses; both before it has some.
    families: &'a [RestoreFamily],
}

impl<'a> ProxyTraits<'a> {
    /// Takes the traits from the configuration of a pod, and the families of its addresses; both before it has some. A connection of a
    /// user or group in `shared` may be the application's.
    pub fn new(config: &CaptureConfig, shared: &SharedIds, families: &'a [RestoreFamily]) -> Self {
        let own = |ids: &[u32], shared: &[u32]| ids.iter().copied().filter(|id| !shared.contains(id)).collect();
        Self {
            uids: own(&config.proxy_uids, &shared.uids),
            gids: own(&config.proxy_gids, &shared.gids),
            tunnel_port: config.tunnel_port,
            families,
        }
    }
}

impl CaptureAssertion {
    /// Reads an object of a policy; of a `List`, all its items. `null` is nothing.
    ///
    /// # Errors
    /// Everything that is wrong with it, with the paths.
    pub fn read_all(object: &Value) -> Result<Vec<Self>, Vec<String>> {
        let (mut all, mut faults) = (Vec::new(), Vec::new());
        match object {
            Value::Null => {}
            Value::Object(list) if list.get("kind").is_some_and(|kind| kind == "List") => {
                let items = list.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                for (number, item) in items.iter().enumerate() {
                    let mut of_item = Vec::new();
                    all.extend(read(item, &mut of_item));
                    faults.extend(of_item.iter().map(|fault| format!("items[{number}]: {fault}")));
                }
            }
            object => all.extend(read(object, &mut faults)),
        }
        if all.len() > MAX_ASSERTIONS {
            faults.push(format!("{} {KIND} objects; at most {MAX_ASSERTIONS} are allowed", all.len()));
        }
        if faults.is_empty() { Ok(all) } else { Err(faults) }
    }

    /// Returns whether the assertion selects a pod by its labels; `None` if the labels of its namespace are needed and unknown.
    pub fn selects(&self, labels: &Map<String, Value>, namespace: Option<&Map<String, Value>>) -> Option<bool> {
        if !self.pods.matches(Some(labels)) {
            return Some(false);
        }
        match namespace {
            _ if self.namespaces.is_empty() => Some(true),
            Some(labels) => Some(self.namespaces.matches(Some(labels))),
            None => None,
        }
    }
}

impl AssertionRule {
    /// Returns the rule for a pod: without the connections of its proxy, unless those are included, and for the families that it has.
    pub fn for_pod(&self, proxy: &ProxyTraits<'_>) -> Assertion {
        let mut assertion = self.assertion.clone();
        assertion.families.retain(|family| proxy.families.contains(family));
        if !self.includes_proxy {
            let own = match assertion.direction {
                Direction::Outbound => vec![port::STATUS],
                Direction::Inbound => vec![proxy.tunnel_port, port::STATUS, port::HEALTH, port::METRICS],
            };
            let is_named = |own: &u16| assertion.ports.only.contains(&(*own..=*own));
            let own: Vec<_> = own.into_iter().filter(|own| !is_named(own)).map(|own| own..=own).collect();
            assertion.ports.except.extend(own);
            assertion.uids.except.extend(proxy.uids.iter().map(|id| *id..=*id));
            assertion.gids.except.extend(proxy.gids.iter().map(|id| *id..=*id));
        }
        assertion
    }

    /// Returns a sentence about the rule.
    pub(super) fn sentence(&self, text: &str) -> String {
        format!("{}: {text}", self.name)
    }
}

fn read(value: &Value, faults: &mut Vec<String>) -> Option<CaptureAssertion> {
    let object = Fields::of(value, "", &["apiVersion", "kind", "metadata", "spec"], faults)?;
    for (key, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        if object.get(key) != Some(&Value::from(wanted)) {
            let found = object.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string);
            faults.push(format!("{key} must be {wanted}, found {found}"));
        }
    }
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        faults.push("metadata.name is missing".to_owned());
    }
    let Some(spec) = object.get("spec") else {
        faults.push("spec is missing".to_owned());
        return None;
    };
    let spec = Fields::of(spec, "spec", &["namespaceSelector", "selector", "action", "rules"], faults)?;
    let actions = [Action::Warn, Action::Deny].map(|action| (action.name(), action));
    let action = spec.choice("action", Some(Action::Warn), &actions, faults);
    let mut selector = |key: &str| {
        let value = spec.get(key).unwrap_or(&Value::Null);
        Selector::parse(value).map_err(|error| faults.push(format!("spec.{key}: {error}"))).ok()
    };
    let (namespaces, pods) = (selector("namespaceSelector"), selector("selector"));
    let rules = spec.list("rules", MAX_RULES, faults);
    if rules.is_empty() {
        faults.push("spec.rules is missing or empty".to_owned());
    }
    let rules: Vec<_> = (0..).zip(rules).filter_map(|(number, rule)| read_rule(rule, number, faults)).collect();
    Some(CaptureAssertion { name: name.to_owned(), action: action?, namespaces: namespaces?, pods: pods?, rules })
}

const RULE_KEYS: [&str; 15] = [
    "name",
    "direction",
    "protocols",
    "ipFamilies",
    "cidrs",
    "exceptCIDRs",
    "ports",
    "exceptPorts",
    "uids",
    "exceptUIDs",
    "gids",
    "exceptGIDs",
    "must",
    "scope",
    "includeProxy",
];

fn read_rule(value: &Value, number: usize, faults: &mut Vec<String>) -> Option<AssertionRule> {
    let path = format!("spec.rules[{number}]");
    let fields = Fields::of(value, &path, &RULE_KEYS, faults)?;
    let direction =
        fields.choice("direction", None, &[("outbound", Direction::Outbound), ("inbound", Direction::Inbound)], faults);
    let must = [("captured", Must::BeCaptured), ("bypassed", Must::Bypass), ("dropped", Must::BeDropped)];
    let must = fields.choice("must", None, &must, faults);
    let quantifiers = [("every", Quantifier::Every), ("some", Quantifier::Some)];
    let quantifier = fields.choice("scope", Some(Quantifier::Every), &quantifiers, faults);
    let peers = fields.selection(["cidrs", "exceptCIDRs"], network, faults);
    let ports = fields.selection(["ports", "exceptPorts"], range, faults);
    let uids = fields.selection(["uids", "exceptUIDs"], range, faults);
    let gids = fields.selection(["gids", "exceptGIDs"], range, faults);
    let families = or(fields.parsed("ipFamilies", family, faults), &RestoreFamily::ALL);
    let protocols = or(fields.parsed("protocols", protocol, faults), &[6]);
    if direction == Some(Direction::Inbound) {
        for key in ["uids", "exceptUIDs", "gids", "exceptGIDs"].iter().filter(|key| fields.get(key).is_some()) {
            faults.push(format!("{path}.{key} is for outbound connections: those from outside have no known user"));
        }
    }
    let cidrs = &peers.only;
    for (position, net) in cidrs.iter().enumerate() {
        let family = if net.addr().is_ipv4() { RestoreFamily::V4 } else { RestoreFamily::V6 };
        if !families.contains(&family) {
            faults.push(format!("{path}.cidrs[{position}]: {net} is of no family of ipFamilies"));
        }
    }
    let includes_proxy = fields.flag("includeProxy", faults);
    let name = match fields.get("name") {
        Some(Value::String(name)) => name.clone(),
        found => {
            faults.extend(found.map(|found| format!("{path}.name must be a string, found {found}")));
            format!("rule {}", number + 1)
        }
    };
    let (direction, must, quantifier) = (direction?, must?, quantifier?);
    let assertion = Assertion { direction, families, protocols, peers, ports, uids, gids, must, quantifier };
    Some(AssertionRule { name, includes_proxy, assertion })
}

fn or<T: Clone>(values: Vec<T>, default: &[T]) -> Vec<T> {
    if values.is_empty() { default.to_vec() } else { values }
}

fn network(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| format!("{text:?} is not a network such as 10.0.0.0/8"))
}

fn family(text: &str) -> Result<RestoreFamily, String> {
    match text {
        "IPv4" => Ok(RestoreFamily::V4),
        "IPv6" => Ok(RestoreFamily::V6),
        _ => Err(format!("{text:?} is not IPv4 or IPv6")),
    }
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "TCP" => Ok(6),
        "UDP" => Ok(17),
        _ => text.parse().map_err(|_| format!("{text:?} is not TCP, UDP or a protocol number (0-255)")),
    }
}

fn range<T: FromStr + PartialOrd + Copy + Display + Bounded>(text: &str) -> Result<RangeInclusive<T>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse::<T>(), last.trim().parse::<T>()) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        _ => Err(format!("{text:?} is not a number from 0 to {} or a range such as 8000-8099", T::LAST)),
    }
}

/// Numbers with a largest value, for messages.
trait Bounded: Sized {
    const LAST: Self;
}

impl Bounded for u16 {
    const LAST: Self = Self::MAX;
}

impl Bounded for u32 {
    const LAST: Self = Self::MAX;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    fn parse(text: &str) -> Result<Vec<CaptureAssertion>, Vec<String>> {
        CaptureAssertion::read_all(&yaml::from_str(text).unwrap())
    }

    #[test]
    fn every_fault_of_a_policy_is_reported() {
        let policy = "\
apiVersion: weir.dev/v1
kind: CaptureAssertion
spec:
  action: block
  selector: {matchLabels: {app: 7}}
  rules:
  - direction: sideways
    must: captured
    prots: [80]
    ports: [http, 90-80]
    cidrs: [10.0.0.0/33]
  - direction: inbound
    uids: [1000]
    ipFamilies: [IPv4]
    cidrs: ['2001:db8::/32']
    includeProxy: maybe
";
        let faults = parse(policy).unwrap_err();
        let wanted = [
            "apiVersion must be weir.dev/v1alpha1, found \"weir.dev/v1\"",
            "metadata.name is missing",
            "spec.action must be warn or deny, found \"block\"",
            "spec.selector: matchLabels.app",
            "spec.rules[0].prots is unknown; known: name, direction",
            "spec.rules[0].direction must be outbound or inbound, found \"sideways\"",
            "spec.rules[0].cidrs[0]: \"10.0.0.0/33\" is not a network",
            "spec.rules[0].ports[0]: \"http\" is not a number from 0 to 65535",
            "spec.rules[0].ports[1]: \"90-80\" is not a number",
            "spec.rules[1].must must be captured or bypassed or dropped, found nothing",
            "spec.rules[1].uids is for outbound connections",
            "spec.rules[1].cidrs[0]: 2001:db8::/32 is of no family of ipFamilies",
            "spec.rules[1].includeProxy must be true or false",
        ];
        for fault in wanted {
            let found = faults.iter().any(|found| found.starts_with(fault));
            assert!(found, "{fault}: {faults:#?}");
        }
        assert_eq!(faults.len(), wanted.len(), "{faults:#?}");
    }

    #[test]
    fn other_objects_and_long_lists_are_rejected() {
        assert!(parse("[1]\n").unwrap_err()[0].contains("the document must be an object"));
        assert!(parse("kind: Pod\n").unwrap_err().iter().any(|fault| fault.contains("found \"Pod\"")));
        let ports: Vec<String> = (0..=1000).map(|port| port.to_string()).collect();
        let policy = format!(
            "{{apiVersion: weir.dev/v1alpha1, kind: CaptureAssertion, metadata: {{name: a}}, spec: {{rules: [{{direction: outbound, must: captured, ports: [{}]}}]}}}}",
            ports.join(",")
        );
        assert!(parse(&policy).unwrap_err()[0].contains("ports has 1001 elements; at most 1000 are allowed"));
        let list = parse("{kind: List, items: [{kind: Pod}]}").unwrap_err();
        assert!(list.iter().all(|fault| fault.starts_with("items[0]: ")), "{list:?}");
    }
}
