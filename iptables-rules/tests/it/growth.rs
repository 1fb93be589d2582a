//! Values of a pod's author take time in proportion to their length: reading, planning, comparing, printing.

use std::collections::BTreeMap;

use iptables_rules::annotations::ProxySpec;
use iptables_rules::limits::{MAX_EXCLUDED_GROUPS, MAX_INTERFACES, MAX_PORTS, MAX_VALUE_BYTES};
use iptables_rules::names::annotation;
use iptables_rules::restore::parse::parse;
use iptables_rules::restore::{RestoreFamily, restore_text};
use iptables_rules::{CaptureConfig, plan};
use weir_lab::growth::Growth;

/// Annotation, number of elements, and the value with a number of elements.
type AnnotationCase = (&'static str, usize, fn(usize) -> String);

/// Name of the case, number of elements, and the capture annotation with a number of elements.
type CaptureCase<'a> = (&'a str, usize, &'a dyn Fn(usize) -> String);

/// Operation on a value.
type Work = fn(&str);

/// Networks, and ports, as many as one annotation may list beside what is excluded anyway.
const NETWORKS: usize = 9000;
const PORTS: usize = MAX_PORTS - 8;

fn list(count: usize, item: impl Fn(usize) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(",")
}

fn cidr(number: usize) -> String {
    format!("{}.{}.{}.0/24", 11 + number / 65_536, number / 256 % 256, number % 256)
}

#[test]
fn annotations_take_linear_time() {
    let read = |name: &'static str, value: &String| {
        let annotations = BTreeMap::from([(name.to_owned(), value.clone())]);
        if let Ok(config) = CaptureConfig::from_annotations(&annotations, &ProxySpec::default()) {
            let rules = plan(&config).unwrap();
            assert_eq!(plan(&config).unwrap(), rules);
            for family in RestoreFamily::ALL {
                parse(&restore_text(&rules, family));
            }
            let text = config.to_capture_annotation();
            if text.len() <= MAX_VALUE_BYTES {
                assert!(CaptureConfig::from_capture_annotation(&text).is_ok_and(|again| again == config));
            }
        }
    };
    let cases: [AnnotationCase; 12] = [
        (annotation::INCLUDE_OUTBOUND_IP_RANGES, NETWORKS, |n| list(n, cidr)),
        (annotation::EXCLUDE_OUTBOUND_IP_RANGES, NETWORKS, |n| list(n, cidr)),
        (annotation::EXCLUDE_OUTBOUND_IP_RANGES, NETWORKS, |n| list(n, |_| "10.0.0.0/8".to_owned())),
        (annotation::EXCLUDE_OUTBOUND_IP_RANGES, NETWORKS, |n| list(n, |n| format!("fd00::{n:x}/128"))),
        (annotation::INCLUDE_OUTBOUND_IP_RANGES, NETWORKS, |n| list(n, |n| format!("x{n}"))),
        (annotation::INCLUDE_INBOUND_PORTS, PORTS, |n| list(n, |n| (n + 1).to_string())),
        (annotation::EXCLUDE_INBOUND_PORTS, PORTS, |n| list(n, |n| (n + 1).to_string())),
        (annotation::INCLUDE_OUTBOUND_PORTS, PORTS, |n| list(n, |n| (n + 1).to_string())),
        (annotation::EXCLUDE_OUTBOUND_PORTS, PORTS, |n| list(n, |_| "9".to_owned())),
        (annotation::EXCLUDE_INTERFACES, MAX_INTERFACES, |n| list(n, |n| format!("e{n}"))),
        (annotation::REROUTE_VIRTUAL_INTERFACES, MAX_INTERFACES, |n| list(n, |n| format!("e{n}"))),
        (annotation::INCLUDE_OUTBOUND_IP_RANGES, MAX_VALUE_BYTES, |n| ",".repeat(n)),
    ];
    let mut growth = Growth::default();
    for (name, size, value) in cases {
        growth.check(&format!("{name}={}", &value(1)), size, value, |value| read(name, value));
    }
    growth.assert_linear();
}

#[test]
fn capture_annotations_take_linear_time() {
    let read: Work = |value| {
        if let Ok(config) = CaptureConfig::from_capture_annotation(value) {
            let _ = plan(&config);
        }
    };
    let quoted = |count, item: fn(usize) -> String| list(count, |number| format!("\"{}\"", item(number)));
    let cases: [CaptureCase<'_>; 7] = [
        ("networks", 8000, &|n| format!("{{\"v\":1,\"outboundCidrs\":[{}]}}", quoted(n, cidr))),
        ("excluded networks", 8000, &|n| format!("{{\"v\":1,\"outboundCidrsExclude\":[{}]}}", quoted(n, cidr))),
        ("equal networks", 8000, &|n| {
            format!("{{\"v\":1,\"outboundCidrs\":[{}]}}", quoted(n, |_| "10.0.0.0/8".to_owned()))
        }),
        ("groups", MAX_EXCLUDED_GROUPS, &|n| {
            format!("{{\"v\":1,\"ownerGroups\":{{\"allBut\":[{}]}}}}", list(n, |n| n.to_string()))
        }),
        ("optional fields", 12_000, &|n| format!("{{\"v\":1,{}}}", list(n, |n| format!("\"?{n}\":1")))),
        ("unknown fields", 12_000, &|n| format!("{{\"v\":1,{}}}", list(n, |n| format!("\"{n}\":1")))),
        ("values of an unknown field", 120_000, &|n| format!("{{\"v\":1,\"?x\":[{}]}}", list(n / 2, |_| "1".into()))),
    ];
    let mut growth = Growth::default();
    for (what, size, value) in cases {
        growth.check(what, size, value, |value| read(value));
    }
    growth.assert_linear();
}
