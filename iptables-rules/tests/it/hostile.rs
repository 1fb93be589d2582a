//! Annotations as long as Kubernetes allows them, written to be expensive: plans stay linear in their length, time and memory bounded.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use allocation_counter::measure;
use iptables_rules::annotations::ProxySpec;
use iptables_rules::limits::{MAX_CIDRS, MAX_INTERFACES, MAX_PORTS, MAX_RULES, MAX_VALUE_BYTES};
use iptables_rules::names::annotation;
use iptables_rules::plan::max_rule_count;
use iptables_rules::{CaptureConfig, plan};
use proptest::prelude::*;

/// Generous: ten times what a debug build takes on a busy machine.
const TIME: Duration = Duration::from_secs(10);
/// Bytes allocated at the same time. The plugin has 256 MiB, the node agent 128 MiB.
const MEMORY: u64 = 48 << 20;

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

fn cidrs(count: usize) -> String {
    list((0..count).map(|n| format!("{}.{}.{}.0/24", 11 + n / 65_536, n / 256 % 256, n % 256)))
}

fn interfaces(count: usize) -> String {
    list((0..count).map(|n| format!("e{n}")))
}

fn annotations<const N: usize>(entries: [(&str, String); N]) -> BTreeMap<String, String> {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn rerouted(interface_count: usize, cidr_count: usize) -> BTreeMap<String, String> {
    annotations([
        (annotation::REROUTE_VIRTUAL_INTERFACES, interfaces(interface_count)),
        (annotation::INCLUDE_OUTBOUND_IP_RANGES, cidrs(cidr_count)),
    ])
}

/// Parses and plans; returns the number of rules, or the refusals.
fn answer(annotations: &BTreeMap<String, String>) -> Result<usize, String> {
    let texts = |errors: Vec<String>| errors.join("\n");
    let config = CaptureConfig::from_annotations(annotations, &ProxySpec::default())
        .map_err(|errors| texts(errors.iter().map(ToString::to_string).collect()))?;
    answer_config(&config)
}

fn answer_config(config: &CaptureConfig) -> Result<usize, String> {
    let rules = plan(config).map_err(|errors| errors.iter().map(|e| e.to_string() + "\n").collect::<String>())?;
    for packet in ["10.0.0.1", "fd00::1"] {
        let _ = rules.trace(&iptables_rules::trace::Packet {
            origin: iptables_rules::trace::PacketOrigin::Received { interface: "e0".to_owned() },
            transport: iptables_rules::trace::Transport::Tcp,
            source: packet.parse().unwrap(),
            source_port: 1,
            destination: packet.parse().unwrap(),
            destination_port: 1,
            mark: 0,
            connection_mark: 0,
            state: iptables_rules::trace::ConntrackState::New,
        });
    }
    Ok(rules.rules.len())
}

/// Asserts that an answer is cheap, and returns it.
fn cheap<T>(answer: impl Fn() -> T) -> T {
    let (begun, mut result) = (Instant::now(), None);
    let allocated = measure(|| result = Some(answer()));
    assert!(begun.elapsed() < TIME, "took {:?}", begun.elapsed());
    assert!(allocated.bytes_max < MEMORY, "allocated {} bytes", allocated.bytes_max);
    result.unwrap()
}

#[test]
fn rerouted_interfaces_and_networks_are_no_product() {
    // The product would be 64 * 1,400 rules, from 20 KB.
    let hostile = rerouted(64, 1_400);
    let rules = cheap(|| answer(&hostile)).unwrap();
    assert!(rules < 64 * 2 + 1_400 * 2 + 100, "{rules} rules");
    // What one real interface gets is Istio's text, whatever its length.
    assert_eq!(answer(&rerouted(1, 5_000)).map(|rules| rules > 10_000), Ok(true));
}

#[test]
fn long_values_are_refused_by_name() {
    let refusal =
        |name: &'static str, value: String| cheap(|| answer(&annotations([(name, value.clone())]))).unwrap_err();
    let limit = "the limit is 131072";
    assert!(refusal(annotation::EXCLUDE_OUTBOUND_IP_RANGES, "1,".repeat(MAX_VALUE_BYTES)).ends_with(limit));
    let many = |count: usize, what| format!("lists {count} {what}; at most {} are allowed", count - 1);
    let interfaces = interfaces(MAX_INTERFACES + 1);
    for name in [annotation::EXCLUDE_INTERFACES, annotation::REROUTE_VIRTUAL_INTERFACES] {
        assert!(refusal(name, interfaces.clone()).contains(&format!("annotation '{name}': lists 65 interfaces")));
    }
    let ports = refusal(annotation::EXCLUDE_OUTBOUND_PORTS, list(0..=MAX_PORTS));
    assert!(ports.ends_with(&many(MAX_PORTS + 1, "ports")), "{ports}");
    let text = "1.1.1.1/8,".repeat(MAX_CIDRS + 1);
    let nets = refusal(annotation::INCLUDE_OUTBOUND_IP_RANGES, text);
    assert!(nets.ends_with(&many(MAX_CIDRS + 1, "CIDRs")), "{nets}");
    // As many faults as elements.
    cheap(|| answer(&annotations([(annotation::EXCLUDE_OUTBOUND_IP_RANGES, "x,".repeat(MAX_CIDRS))]))).unwrap_err();
}

#[test]
fn number_of_rules_is_limited() {
    let hostile = annotations([
        (annotation::REROUTE_VIRTUAL_INTERFACES, interfaces(64)),
        (annotation::INCLUDE_OUTBOUND_IP_RANGES, cidrs(8_500)),
        (annotation::EXCLUDE_OUTBOUND_IP_RANGES, list((0..5_000).map(|n| format!("fd00::{n:x}/128")))),
    ]);
    let refusal = cheap(|| answer(&hostile)).unwrap_err();
    assert!(refusal.contains("rules; at most 20000 are allowed"), "{refusal}");
}

#[test]
fn long_capture_annotations_are_answered() {
    let nets = (0..2_000).map(|n| format!("\"10.{}.{}.0/24\"", n / 256, n % 256)).collect::<Vec<_>>().join(",");
    let names = (0..64).map(|n| format!("\"e{n}\"")).collect::<Vec<_>>().join(",");
    let ids = list(0..64);
    let legal = format!(
        "{{\"v\":1,\"mode\":\"TPROXY\",\"outboundCidrs\":[{nets}],\"outboundCidrsExclude\":[{nets}],\"rerouteInterfaces\":[{names}],\
         \"excludeInterfaces\":[{names}],\"proxyUids\":[{ids}],\"proxyGids\":[{ids}],\"dns\":[\"10.0.0.1\"]}}"
    );
    let rules = cheap(|| answer_config(&CaptureConfig::from_capture_annotation(&legal).unwrap())).unwrap();
    assert!(rules < 8_000, "{rules} rules of {} bytes", legal.len());
    let repeat = |unit: &str, bytes: usize| unit.repeat(bytes / unit.len());
    for bytes in [20_000, 130_000, 131_000] {
        for value in [
            format!("{{\"v\":1,\"proxyUids\":[{}1]}}", repeat("1,", bytes)),
            format!("{{\"v\":1,\"rerouteInterfaces\":[{}\"e\"]}}", repeat("\"e\",", bytes)),
            format!("{{\"v\":1,\"outboundCidrs\":[{}\"x\"]}}", repeat("\"x\",", bytes)),
            format!("{{\"v\":1,{}\"dns\":\"all\"}}", repeat("\"a\":0,", bytes)),
            format!("{{\"v\":1,\"x\":{}", repeat("[", bytes)),
            format!("{{\"v\":1,\"?x\":[{}0]}}", repeat("{},", bytes)),
        ] {
            let _ = cheap(|| CaptureConfig::from_capture_annotation(&value));
        }
    }
}

#[test]
fn largest_accepted_pod_is_planned_at_once() {
    let mut config = CaptureConfig::from_annotations(&rerouted(64, 7_000), &ProxySpec::default()).unwrap();
    config.mode = iptables_rules::config::InterceptionMode::Tproxy;
    config.proxy_uids = (1..65).collect();
    config.proxy_gids = (1..65).collect();
    config.outbound_ports_exclude = (1..1_000).collect();
    assert!(max_rule_count(&config) > MAX_RULES * 3 / 4);
    let begun = Instant::now();
    let rules = cheap(|| answer_config(&config)).unwrap();
    println!("{rules} rules planned and traced in {:?}", begun.elapsed());
}

fn hostile() -> impl Strategy<Value = BTreeMap<String, String>> {
    let ports = || proptest::collection::hash_set(any::<u16>(), 0..60).prop_map(list);
    (0_usize..=64, 0_usize..=64, 0_usize..300, (ports(), ports(), ports()), any::<bool>()).prop_map(
        |(excluded, rerouted, nets, (inbound, included, excluded_ports), tproxy)| {
            annotations([
                (annotation::EXCLUDE_INTERFACES, interfaces(excluded)),
                (annotation::REROUTE_VIRTUAL_INTERFACES, interfaces(rerouted)),
                (annotation::INCLUDE_OUTBOUND_IP_RANGES, cidrs(nets)),
                (annotation::EXCLUDE_OUTBOUND_IP_RANGES, cidrs(nets)),
                (annotation::INCLUDE_INBOUND_PORTS, inbound),
                (annotation::INCLUDE_OUTBOUND_PORTS, included),
                (annotation::EXCLUDE_OUTBOUND_PORTS, excluded_ports),
                (annotation::INTERCEPTION_MODE, if tproxy { "TPROXY" } else { "REDIRECT" }.to_owned()),
            ])
        },
    )
}

proptest! {
    #[test]
    fn number_of_rules_is_linear_in_the_input(hostile in hostile()) {
        let bytes: usize = hostile.values().map(String::len).sum();
        let config = CaptureConfig::from_annotations(&hostile, &ProxySpec::default()).unwrap();
        let rules = plan(&config).unwrap().rules.len();
        prop_assert!(rules <= 100 + 2 * bytes, "{rules} rules of {bytes} bytes");
        prop_assert!(rules <= max_rule_count(&config));
    }
}
