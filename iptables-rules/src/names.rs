//! Names that users and other components see: annotations, ports, marks, addresses, chains. All are Istio's, for compatibility, except
//! `weir.dev/*` and the comment `weir`.

/// Annotations of a pod.
pub mod annotation {
    /// Effective capture configuration, written by the Weir webhook and read by the plugin: compact JSON, versioned.
    pub const CAPTURE: &str = "weir.dev/capture";
    /// Capture of the pod's IPv6 traffic: `auto` (default), `capture` or `leave`.
    pub const IPV6: &str = "weir.dev/ipv6";
    /// Record of an injection, written by Istio's and our injector; its presence means "in the mesh".
    pub const STATUS: &str = "sidecar.istio.io/status";
    /// Whether to inject (deprecated as an annotation; the label of the same name is preferred).
    pub const INJECT: &str = "sidecar.istio.io/inject";
    /// `REDIRECT`, `TPROXY` or `NONE`.
    pub const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
    /// `*` or CIDRs whose outbound traffic is captured.
    pub const INCLUDE_OUTBOUND_IP_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
    /// CIDRs whose outbound traffic bypasses the proxy.
    pub const EXCLUDE_OUTBOUND_IP_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    /// `*` or ports whose inbound traffic is captured; empty captures none.
    pub const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
    /// Inbound ports that bypass the proxy.
    pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
    /// Outbound ports that are captured for every destination.
    pub const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
    /// Outbound ports that bypass the proxy.
    pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
    /// Interfaces whose traffic bypasses the proxy in both directions.
    pub const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
    /// Interfaces whose inbound traffic is treated as outbound (virtual machines).
    pub const REROUTE_VIRTUAL_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
    /// Deprecated name of [`REROUTE_VIRTUAL_INTERFACES`], ignored where that one is set.
    pub const KUBEVIRT_INTERFACES: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
}

/// Environment variables of the proxy container that configure the capture.
pub mod variable {
    /// Whether DNS requests of the application go to the Istio agent.
    pub const DNS_CAPTURE: &str = "ISTIO_META_DNS_CAPTURE";
    /// Whether packets in the conntrack state INVALID are dropped.
    pub const INVALID_DROP: &str = "INVALID_DROP";
    /// Whether the proxy serves both address families.
    pub const DUAL_STACK: &str = "ISTIO_DUAL_STACK";
    /// `*` or groups whose outbound traffic is captured.
    pub const OWNER_GROUPS: &str = "ISTIO_OUTBOUND_OWNER_GROUPS";
    /// Groups whose outbound traffic bypasses the proxy.
    pub const OWNER_GROUPS_EXCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE";
    /// IPv4 addresses that count as "this pod".
    pub const LOOPBACK_CIDR: &str = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR";
}

/// TCP and UDP ports of the Istio data plane.
pub mod port {
    /// Outbound traffic of the application is redirected here.
    pub const OUTBOUND: u16 = 15001;
    /// Inbound traffic of the pod is redirected here.
    pub const INBOUND: u16 = 15006;
    /// HBONE tunnel, never captured.
    pub const TUNNEL: u16 = 15008;
    /// Merged metrics and probes of the Istio agent.
    pub const STATUS: u16 = 15020;
    /// Health of the proxy.
    pub const HEALTH: u16 = 15021;
    /// DNS requests go to this port (RFC 1035, 4.2).
    pub const DNS_REQUEST: u16 = 53;
    /// DNS proxy of the Istio agent.
    pub const DNS: u16 = 15053;
    /// Metrics of Envoy.
    pub const METRICS: u16 = 15090;
}

/// Default uid and gid of the proxy.
pub const PROXY_ID: u32 = 1337;
/// Mark set on captured inbound packets in TPROXY mode.
pub const TPROXY_MARK: u32 = 1337;
/// Mark set on packets of the proxy to the pod itself in TPROXY mode.
pub const TPROXY_OUTBOUND_MARK: u32 = 1338;
/// Routing table that delivers marked packets locally in TPROXY mode.
pub const TPROXY_ROUTE_TABLE: u32 = 133;

/// Comment that marks our rules in built-in chains.
pub const OWNER_COMMENT: &str = "weir";

/// Name of the loopback interface.
pub const LOOPBACK_INTERFACE: &str = "lo";
/// Conntrack zone of DNS between the proxy and the DNS server.
pub const DNS_ZONE_UPSTREAM: u16 = 1;
/// Conntrack zone of DNS between the application and the Istio agent.
pub const DNS_ZONE_APPLICATION: u16 = 2;

/// Addresses, apart from the pod's own.
pub mod address {
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// Source address of the inbound IPv4 connections that the proxy makes to the application.
    pub const PASSTHROUGH_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
    /// The same for IPv6. Unlike 127.0.0.6 it has to be added to `lo`.
    pub const PASSTHROUGH_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
}

/// Chains, by Istio's names; [`REROUTE`](chain::REROUTE) is ours, in Istio's style.
pub mod chain {
    /// Built-in chain of received packets.
    pub const PREROUTING: &str = "PREROUTING";
    /// Built-in chain of packets that the pod sends; not to be confused with [`OUTPUT`].
    pub const BUILTIN_OUTPUT: &str = "OUTPUT";
    /// All chains of the mesh.
    pub const ALL: [&str; 9] = [INBOUND, IN_REDIRECT, OUTPUT, REDIRECT, TPROXY, DIVERT, DROP, OUTPUT_DNS, REROUTE];

    /// Entry of inbound traffic.
    pub const INBOUND: &str = "ISTIO_INBOUND";
    /// Redirects to the inbound port of the proxy.
    pub const IN_REDIRECT: &str = "ISTIO_IN_REDIRECT";
    /// Entry of outbound traffic.
    pub const OUTPUT: &str = "ISTIO_OUTPUT";
    /// Redirects to the outbound port of the proxy.
    pub const REDIRECT: &str = "ISTIO_REDIRECT";
    /// Hands over to the inbound port of the proxy, addresses unchanged.
    pub const TPROXY: &str = "ISTIO_TPROXY";
    /// Marks and accepts packets of known connections.
    pub const DIVERT: &str = "ISTIO_DIVERT";
    /// Drops invalid packets.
    pub const DROP: &str = "ISTIO_DROP";
    /// DNS requests of the application.
    pub const OUTPUT_DNS: &str = "ISTIO_OUTPUT_DNS";
    /// Captured destinations of packets from rerouted interfaces, where there are many.
    pub const REROUTE: &str = "ISTIO_REROUTE";
}
