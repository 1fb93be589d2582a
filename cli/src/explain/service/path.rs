//! Follows a connection from a pod to a Service: name, endpoints, policies, and the rules of both pods.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use iptables_rules::names::PROXY_ID;
use iptables_rules::trace::{ConntrackState, Disposition, Owner, Packet, PacketOrigin, Transport};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Map, Value};

use super::policies::{PolicyDestination, PolicyDirection, PolicyPod, SelectingPolicy, selecting};
use crate::explain::packet::{PacketQuery, Sender};
use crate::explain::sentences::describe_fate;
use crate::manifest::namespaces::NamespaceLabels;
use crate::rules::running::RunningPod;

/// User of the application, if nothing says otherwise; any but the proxy's gives the same.
const APPLICATION: u32 = 1000;
const CLIENT_PORT: u16 = 40_000;
/// Endpoints that are followed; the rest is counted.
const MAX_ENDPOINTS: usize = 100;

/// Everything that the path depends on.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) from: RunningPod,
    pub(super) service: Value,
    /// Port of the Service.
    pub(super) port: u16,
    pub(super) slices: Vec<Value>,
    /// Pods of the Service's namespace.
    pub(super) pods: Vec<Value>,
    pub(super) policies: Vec<NetworkPolicy>,
    pub(super) namespaces: NamespaceLabels,
}

/// The way of a connection.
#[derive(Debug)]
pub(in crate::explain) struct ServicePath {
    pub(super) from: String,
    pub(super) service: String,
    /// DNS name and what it resolves to.
    pub(super) name: String,
    /// Namespace and name of the sending pod.
    pub(super) from_pod: (String, String),
    /// Address that the application connects to: the Service, or the first endpoint of a headless one.
    pub(super) destination: SocketAddr,
    pub(super) is_headless: bool,
    /// Fate of the application's packet, by the rules of the sending pod.
    pub(super) leaves: Leg,
    pub(super) endpoints: Vec<EndpointPath>,
    /// Endpoints that are not listed.
    pub(super) more_endpoints: usize,
}

/// The way to one endpoint.
#[derive(Debug)]
pub(super) struct EndpointPath {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) pod: Option<String>,
    /// Namespace and name of that pod.
    pub(super) pod_name: Option<(String, String)>,
    pub(super) is_ready: bool,
    /// Packet of the sending pod's proxy to the endpoint, if the application's packet is captured.
    pub(super) forwarded: Option<Leg>,
    pub(super) policies: Vec<(PolicyDirection, Vec<SelectingPolicy>)>,
    /// Fate of the packet that arrives; `None` if no pod of the cluster has the address.
    pub(super) arrives: Option<Leg>,
}

/// A packet and its fate by the rules of one pod.
#[derive(Debug)]
pub(super) struct Leg {
    pub(super) origin: String,
    pub(super) sentence: String,
    pub(super) is_captured: bool,
    /// True if TPROXY captures it, which translates no address.
    pub(super) is_tproxied: bool,
}

impl EndpointPath {
    /// Returns whether the NetworkPolicies let the connection pass.
    pub(super) fn is_allowed(&self) -> bool {
        self.policies
            .iter()
            .all(|(_, policies)| policies.is_empty() || policies.iter().any(|policy| policy.allowed_by.is_some()))
    }
}

impl ServicePath {
    /// Follows the connection.
    ///
    /// # Errors
    /// The Service has no such port, or leads out of the cluster.
    pub(super) fn of(snapshot: &Snapshot) -> Result<Self, String> {
        let Snapshot { from, service, port, .. } = snapshot;
        let text = |pointer: &str| service.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let title = format!("Service {namespace}/{name}:{port}");
        if text("/spec/type") == "ExternalName" {
            return Err(format!("{title} stands for {}, which is outside of the cluster", text("/spec/externalName")));
        }
        let ports = service.pointer("/spec/ports").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let Some(service_port) = ports.iter().find(|one| one["port"] == u64::from(*port)) else {
            let known: Vec<String> = ports.iter().map(|one| one["port"].to_string()).collect();
            return Err(format!("{title}: the Service has no such port; ports: {}", known.join(", ")));
        };
        let protocol = service_port["protocol"].as_str().unwrap_or("TCP");
        if protocol != "TCP" {
            return Err(format!("{title} is a port of {protocol}; connections of TCP are explained"));
        }
        let all = endpoints(&snapshot.slices, service_port["name"].as_str().unwrap_or_default());
        let cluster_ip: Option<IpAddr> = text("/spec/clusterIP").parse().ok();
        let dns = format!("{name}.{namespace}.svc.cluster.local");
        let (dns, destination, destination_port) = match (cluster_ip, all.first()) {
            (Some(ip), _) => (format!("{dns} is {ip}"), ip, *port),
            (None, Some(first)) => {
                (format!("{dns} is headless: it resolves to the addresses of its pods"), first.address, first.port)
            }
            (None, None) => {
                return Err(format!("{title} is headless and has no endpoints, so its name does not resolve"));
            }
        };
        let application = Owner { uid: APPLICATION, gid: APPLICATION };
        let leaves = outbound(from, application, (destination, destination_port), Sender::App);
        let more_endpoints = all.len().saturating_sub(MAX_ENDPOINTS);
        let pods: HashMap<IpAddr, &Value> =
            snapshot.pods.iter().flat_map(|pod| addresses(pod).map(move |ip| (ip, pod))).collect();
        let endpoints = all.iter().take(MAX_ENDPOINTS);
        let endpoints =
            endpoints.map(|endpoint| snapshot.follow(endpoint, pods.get(&endpoint.address).copied(), &leaves));
        let endpoints = endpoints.collect();
        Ok(Self {
            from: from.title(),
            from_pod: (from.namespace.clone(), from.name.clone()),
            destination: (destination, destination_port).into(),
            is_headless: cluster_ip.is_none(),
            service: title,
            name: dns,
            leaves,
            endpoints,
            more_endpoints,
        })
    }
}

struct Endpoint {
    address: IpAddr,
    port: u16,
    is_ready: bool,
}

/// Returns the endpoints of a port, ready ones first, each once.
fn endpoints(slices: &[Value], port_name: &str) -> Vec<Endpoint> {
    let mut found: Vec<Endpoint> = Vec::new();
    for slice in slices {
        let ports = slice["ports"].as_array().into_iter().flatten();
        let mut ports = ports.filter(|port| port["name"].as_str().unwrap_or_default() == port_name);
        let Some(port) = ports.find_map(|port| u16::try_from(port["port"].as_u64()?).ok()) else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            // Absent means ready (EndpointSlice API).
            let is_ready = endpoint.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true);
            let addresses = endpoint["addresses"].as_array().into_iter().flatten();
            for address in addresses.filter_map(|address| address.as_str()?.parse().ok()) {
                if found.iter().all(|known| (known.address, known.port) != (address, port)) {
                    found.push(Endpoint { address, port, is_ready });
                }
            }
        }
    }
    found.sort_by_key(|endpoint| (!endpoint.is_ready, endpoint.address));
    found
}

fn addresses(pod: &Value) -> impl Iterator<Item = IpAddr> {
    let addresses = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
    let has_own = pod["spec"]["hostNetwork"] != true;
    addresses.filter_map(|ip| ip["ip"].as_str()?.parse().ok()).filter(move |_| has_own)
}

impl Snapshot {
    fn follow(&self, endpoint: &Endpoint, pod: Option<&Value>, leaves: &Leg) -> EndpointPath {
        let Endpoint { address, port, is_ready } = *endpoint;
        let proxy = |ids: &[u32]| ids.first().copied().unwrap_or(PROXY_ID);
        let owner = Owner { uid: proxy(&self.from.config.proxy_uids), gid: proxy(&self.from.config.proxy_gids) };
        let forwarded = leaves.is_captured.then(|| outbound(&self.from, owner, (address, port), Sender::Proxy));
        let running = pod.map(RunningPod::of);
        let none = Map::new();
        let end = |pod: &'_ RunningPod, address: IpAddr| PolicyEnd {
            namespace: pod.namespace.clone(),
            labels: pod.labels.clone(),
            address,
        };
        let from = end(&self.from, source(&self.from, address));
        let to = match &running {
            Some(pod) => end(pod, address),
            None => PolicyEnd { namespace: String::new(), labels: none, address },
        };
        let names = pod.map(|pod| port_names(pod, port)).unwrap_or_default();
        let destination = PolicyDestination { port, names };
        let mut policies = Vec::new();
        if !self.from.has_host_network {
            let ends = (&from.view(&self.namespaces), &to.view(&self.namespaces));
            policies.push((
                PolicyDirection::Egress,
                selecting(&self.policies, PolicyDirection::Egress, ends, &destination),
            ));
        }
        if running.as_ref().is_some_and(|pod| !pod.has_host_network) {
            let ends = (&to.view(&self.namespaces), &from.view(&self.namespaces));
            policies.push((
                PolicyDirection::Ingress,
                selecting(&self.policies, PolicyDirection::Ingress, ends, &destination),
            ));
        }
        let arrives = running.as_ref().map(|pod| inbound(pod, from.address, (address, port)));
        let pod_name = running.as_ref().map(|pod| (pod.namespace.clone(), pod.name.clone()));
        let pod = running.map(|pod| pod.title());
        EndpointPath { address, port, pod, pod_name, is_ready, forwarded, policies, arrives }
    }
}

struct PolicyEnd {
    namespace: String,
    labels: Map<String, Value>,
    address: IpAddr,
}

impl PolicyEnd {
    fn view<'a>(&'a self, namespaces: &'a NamespaceLabels) -> PolicyPod<'a> {
        PolicyPod {
            namespace: &self.namespace,
            labels: &self.labels,
            namespace_labels: namespaces.get(&self.namespace),
            address: self.address,
        }
    }
}

fn port_names(pod: &Value, port: u16) -> Vec<String> {
    let lists = ["containers", "initContainers"].into_iter().filter_map(|key| pod["spec"][key].as_array());
    let ports = lists.flatten().filter_map(|container| container["ports"].as_array()).flatten();
    let named = ports.filter(|one| one["containerPort"] == u64::from(port));
    named.filter_map(|one| one["name"].as_str().map(str::to_owned)).collect()
}

/// Returns the address of a pod in the family of another one.
fn source(pod: &RunningPod, other: IpAddr) -> IpAddr {
    let own = pod.addresses.iter().find(|address| address.is_ipv4() == other.is_ipv4());
    own.copied().unwrap_or(if other.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() })
}

fn outbound(pod: &RunningPod, owner: Owner, (destination, destination_port): (IpAddr, u16), sender: Sender) -> Leg {
    let interface = if pod.addresses.contains(&destination) { "lo" } else { "eth0" };
    let origin = PacketOrigin::Sent { interface: interface.to_owned(), owner: Some(owner) };
    leg(pod, packet(origin, (source(pod, destination), CLIENT_PORT), (destination, destination_port)), sender)
}

fn inbound(pod: &RunningPod, from: IpAddr, to: (IpAddr, u16)) -> Leg {
    let origin = PacketOrigin::Received { interface: "eth0".to_owned() };
    leg(pod, packet(origin, (from, CLIENT_PORT), to), Sender::Outside)
}

fn packet(
    origin: PacketOrigin,
    (source, source_port): (IpAddr, u16),
    (destination, destination_port): (IpAddr, u16),
) -> Packet {
    Packet {
        origin,
        transport: Transport::Tcp,
        source,
        source_port,
        destination,
        destination_port,
        mark: 0,
        connection_mark: 0,
        state: ConntrackState::New,
    }
}

fn leg(pod: &RunningPod, packet: Packet, sender: Sender) -> Leg {
    let trace = pod.rules.trace(&packet);
    let query = PacketQuery { packet, sender, assumptions: Vec::new() };
    Leg {
        origin: pod.origin.clone(),
        sentence: describe_fate(&query, &trace),
        is_captured: matches!(trace.disposition, Disposition::Redirected { .. } | Disposition::Tproxied { .. }),
        is_tproxied: matches!(trace.disposition, Disposition::Tproxied { .. }),
    }
}
