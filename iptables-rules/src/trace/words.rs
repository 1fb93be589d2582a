//! Reasons of rules in words.

use crate::names::{annotation, variable};
use crate::ruleset::Reason;

impl Reason {
    /// Why a rule is there, as a clause without a stop.
    pub const fn explain(self) -> &'static str {
        match self {
            Self::ExcludedInterface => "traffic of an excluded interface is left alone",
            Self::ReroutedInterface => "what comes in by a rerouted interface counts as outbound",
            Self::DropInvalid => "packets of no known connection are dropped",
            Self::Tunnel => "the mesh's tunnel port is never captured",
            Self::Redirect => "this chain ends in the proxy",
            Self::Hook => "this is where packets enter the chains of the mesh",
            Self::ExcludedInboundPort => "an excluded inbound port",
            Self::InboundPort => "an included inbound port",
            Self::Inbound => "all other inbound traffic is captured",
            Self::ExcludedOutboundPort => "an excluded outbound port",
            Self::Passthrough => "the proxy hands an inbound connection on to the application",
            Self::ProxyToSelf => "the proxy calls its own pod: that is inbound traffic",
            Self::AppLoopback => "the application talks to its own pod",
            Self::ProxyTraffic => "traffic of the proxy itself, which must not come back to it",
            Self::OwnerGroup => "the group of the sender is not captured",
            Self::Dns => "DNS requests go to the agent, and those of the proxy to the real server",
            Self::LoopbackDestination => "loopback addresses are not captured",
            Self::ExcludedOutboundCidr => "an excluded destination",
            Self::OutboundPort => "an included outbound port",
            Self::OutboundCidr => "an included destination",
            Self::Outbound => "all other outbound traffic is captured",
            Self::Tproxy => "keeps a transparent connection with the proxy that took it",
        }
    }

    /// The annotation or variable that asks for the rule; `None` where it is always there.
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
