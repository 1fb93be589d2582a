//! Descriptions of the reasons of rules.

use crate::names::{annotation, variable};
use crate::ruleset::RuleReason;

impl RuleReason {
    /// Describes the reason in a phrase.
    pub const fn description(self) -> &'static str {
        match self {
            Self::ExcludedInterface => "an excluded interface",
            Self::ReroutedInterface => "traffic from a rerouted interface is treated as outbound",
            Self::DropInvalid => "invalid packets are dropped",
            Self::Tunnel => "the mesh's tunnel port is never captured",
            Self::Redirect => "redirect to the proxy",
            Self::Hook => "hook into the capture chains",
            Self::ExcludedInboundPort => "an excluded inbound port",
            Self::InboundPort => "an included inbound port",
            Self::Inbound => "all other inbound traffic is captured",
            Self::ExcludedOutboundPort => "an excluded outbound port",
            Self::Passthrough => "inbound connection from the proxy to the application",
            Self::ProxyToSelf => "the proxy calls its own pod: inbound traffic",
            Self::AppLoopback => "the application calls its own pod",
            Self::ProxyTraffic => "the proxy's own traffic; must not loop",
            Self::OwnerGroup => "the group of the sender is not captured",
            Self::Dns => "DNS requests go to the Istio agent, those of the proxy to the DNS server",
            Self::LoopbackDestination => "loopback addresses are not captured",
            Self::ExcludedOutboundCidr => "an excluded destination",
            Self::OutboundPort => "an included outbound port",
            Self::OutboundCidr => "an included destination",
            Self::Outbound => "all other outbound traffic is captured",
            Self::Tproxy => "keeps a transparent connection with the proxy",
        }
    }

    /// Returns the annotation or variable that configures the rule; `None` if the rule always exists.
    pub const fn setting(self) -> Option<&'static str> {
        Some(match self {
            Self::ExcludedInterface => annotation::EXCLUDE_INTERFACES,
            Self::ReroutedInterface => annotation::REROUTE_VIRTUAL_INTERFACES,
            Self::DropInvalid => variable::INVALID_DROP,
            Self::ExcludedInboundPort => annotation::EXCLUDE_INBOUND_PORTS,
            Self::InboundPort | Self::Inbound => annotation::INCLUDE_INBOUND_PORTS,
            Self::ExcludedOutboundPort => annotation::EXCLUDE_OUTBOUND_PORTS,
            Self::OwnerGroup => variable::OWNER_GROUPS,
            Self::Dns => variable::DNS_CAPTURE,
            Self::LoopbackDestination => variable::LOOPBACK_CIDR,
            Self::ExcludedOutboundCidr => annotation::EXCLUDE_OUTBOUND_IP_RANGES,
            Self::OutboundPort => annotation::INCLUDE_OUTBOUND_PORTS,
            Self::OutboundCidr | Self::Outbound => annotation::INCLUDE_OUTBOUND_IP_RANGES,
            Self::Tproxy => annotation::INTERCEPTION_MODE,
            Self::Tunnel
            | Self::Redirect
            | Self::Hook
            | Self::Passthrough
            | Self::ProxyToSelf
            | Self::AppLoopback
            | Self::ProxyTraffic => return None,
        })
    }
}
