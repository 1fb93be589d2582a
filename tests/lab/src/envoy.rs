//! Static bootstrap of a real Envoy as sidecar: passthrough in both directions with counters, and the health ports.

use serde_json::{Value, json};

/// Port of Envoy's admin interface, on loopback only.
pub const ADMIN_PORT: u16 = 15000;

/// Ports that are never captured: agent, health, metrics.
pub const HEALTH_PORTS: [u16; 3] = [15020, 15021, 15090];

/// Counter of connections that came in through port 15006, as `/stats` names it.
pub const INBOUND_COUNTER: &str = "cluster.inbound.upstream_cx_total";

/// Counter of connections that went out through port 15001, as `/stats` names it.
pub const OUTBOUND_COUNTER: &str = "cluster.outbound.upstream_cx_total";

/// Returns the bootstrap as JSON. Envoy must run as uid 1337, which distinguishes its connections from those of the application.
///
/// Its connections to the application come from 127.0.0.6 or `::6`, as with Istio, which the rules rely on.
pub fn bootstrap() -> Value {
    let mut listeners = vec![passthrough("outbound", 15001), passthrough("inbound", 15006)];
    listeners.extend(HEALTH_PORTS.iter().map(|&port| health(port)));
    json!({
        "node": { "id": "sidecar", "cluster": "weir" },
        "admin": { "address": socket("127.0.0.1", ADMIN_PORT) },
        "static_resources": {
            "listeners": listeners,
            "clusters": [
                { "name": "outbound", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "2s" },
                {
                    "name": "inbound", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "2s",
                    "upstream_bind_config": {
                        "source_address": { "address": "127.0.0.6", "port_value": 0 },
                        "extra_source_addresses": [{ "address": { "address": "::6", "port_value": 0 } }],
                    },
                },
            ],
        },
    })
}

fn socket(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}

/// Returns a listener of both families that connects to the original destination.
fn passthrough(name: &str, port: u16) -> Value {
    json!({
        "name": name,
        "address": socket("0.0.0.0", port),
        "additional_addresses": [{ "address": socket("::", port) }],
        "listener_filters": [{
            "name": "envoy.filters.listener.original_dst",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst" },
        }],
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": name, "cluster": name,
            },
        }] }],
    })
}

fn health(port: u16) -> Value {
    json!({
        "name": format!("health-{port}"),
        "address": socket("0.0.0.0", port),
        "additional_addresses": [{ "address": socket("::", port) }],
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": format!("health-{port}"),
                "route_config": { "virtual_hosts": [{
                    "name": "any", "domains": ["*"],
                    "routes": [{ "match": { "prefix": "/" }, "direct_response": { "status": 200, "body": { "inline_string": format!("port={port}\n") } } }],
                }] },
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                }],
            },
        }] }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_the_rules_has_a_dual_stack_listener() {
        let bootstrap = bootstrap();
        let listeners = bootstrap["static_resources"]["listeners"].as_array().unwrap();
        let ports: Vec<u64> =
            listeners.iter().map(|l| l["address"]["socket_address"]["port_value"].as_u64().unwrap()).collect();
        assert_eq!(ports, [15001, 15006, 15020, 15021, 15090]);
        for listener in listeners {
            assert_eq!(listener["additional_addresses"][0]["address"]["socket_address"]["address"], "::");
        }
    }
}
