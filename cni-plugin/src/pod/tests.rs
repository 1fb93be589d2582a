use std::collections::BTreeMap;

use proptest::prelude::*;

use iptables_rules::config::{InterceptionMode, Ipv6Policy};
use iptables_rules::names::annotation;

use weir_protocol::decision::{DISABLE_ENVOY, ProxyFacts, SpecFacts};
use weir_protocol::decision::{OVERRIDES, PROXY_CONFIG, TEMPLATES};

use super::*;
use iptables_rules::{CaptureConfig, plan};
use weir_protocol::decision::ConfigSource;
use weir_protocol::version::Verb;

const SIDECAR: &str =
    r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"],"volumes":[],"revision":"default"}"#;

fn pod(namespace: &str) -> PodArgs {
    PodArgs { namespace: namespace.to_owned(), name: "web".to_owned(), uid: "1-2-3".to_owned() }
}

/// Plans a pod of namespace `shop` with these annotations, under a configuration with `extra` keys.
fn plan_with(extra: &str, annotations: &[(&str, &str)]) -> Result<PodPlan, CniError> {
    let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
    let text = serde_json::json!({ CAPABILITY: annotations });
    let text = format!(r#"{{"cniVersion":"1.0.0","runtimeConfig":{text}{extra}}}"#);
    plan_pod(&pod("shop"), &NetConf::parse(text.as_bytes(), Verb::Add).unwrap(), no_agent)
}

/// Stands for an agent that must not be asked.
fn no_agent() -> Result<PodAnswer, AgentError> {
    panic!("the agent was asked")
}

fn skip_of(annotations: &[(&str, &str)]) -> SkipReason {
    match plan_with("", annotations) {
        Ok(PodPlan::Skip(reason)) => reason,
        other => panic!("not skipped: {other:?}"),
    }
}

fn source_of(annotations: &[(&str, &str)]) -> ConfigSource {
    match plan_with("", annotations) {
        Ok(PodPlan::Capture { source, .. }) => source,
        other => panic!("not captured: {other:?}"),
    }
}

#[test]
fn pods_outside_the_mesh_are_skipped() {
    let conf = NetConf::parse(br#"{"cniVersion":"1.0.0","exclude_namespaces":["kube-system"]}"#, Verb::Add).unwrap();
    assert_eq!(plan_pod(&PodArgs::default(), &conf, no_agent).unwrap(), PodPlan::Skip(SkipReason::NotKubernetes));
    assert_eq!(plan_pod(&pod("kube-system"), &conf, no_agent).unwrap(), PodPlan::Skip(SkipReason::ExcludedNamespace));
    assert_eq!(skip_of(&[]), SkipReason::NotInjected);
    assert_eq!(skip_of(&[("istio.io/rev", "default"), ("x", "y")]), SkipReason::NotInjected);
}

#[test]
fn containers_in_the_status_annotation_decide() {
    let skip = |record| skip_of(&[(annotation::STATUS, record)]);
    assert_eq!(skip(r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"#), SkipReason::InitContainer);
    assert_eq!(skip(r#"{"initContainers":["istio-init","istio-proxy"],"containers":null}"#), SkipReason::InitContainer);
    assert_eq!(skip(r#"{"initContainers":["grpc-bootstrap-init"],"containers":null}"#), SkipReason::NoProxy);
    assert_eq!(skip(r#"{"initContainers":null,"containers":null}"#), SkipReason::NoProxy);
    for record in
        [SIDECAR, r#"{"initContainers":["istio-validation","istio-proxy"],"containers":null}"#, "", "true", "{}", "[1]"]
    {
        assert_eq!(source_of(&[(annotation::STATUS, record)]), ConfigSource::IstioAnnotations, "{record}");
    }
}

#[test]
fn an_injected_pod_without_its_record_waits() {
    let capture = CaptureConfig::default().to_capture_annotation();
    for (status, part) in [
        (None, "sidecar.istio.io/status is missing, but there is weir.dev/capture"),
        (Some(r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"#), "names the container istio-init"),
        (Some(r#"{"containers":[]}"#), "names no container istio-proxy"),
    ] {
        let mut annotations = vec![(annotation::CAPTURE, capture.as_str())];
        annotations.extend(status.map(|status| (annotation::STATUS, status)));
        // With an agent, too: it is not asked.
        for extra in ["", r#","agent_socket":"/run/a.sock""#] {
            let failure = plan_with(extra, &annotations).unwrap_err();
            assert_eq!(failure.code(), 11);
            assert!(failure.to_string().contains(part), "{failure}");
        }
    }
}

#[test]
fn templates_of_other_proxies_are_skipped() {
    let with = |templates| plan_with("", &[(annotation::STATUS, SIDECAR), (TEMPLATES, templates)]).unwrap();
    for name in ["gateway", "grpc-agent", "mine, gateway"] {
        assert!(matches!(with(name), PodPlan::Skip(SkipReason::NotSidecarTemplate(_))), "{name}");
    }
    for name in ["sidecar", "sidecar,mine", "mine", ""] {
        assert!(matches!(with(name), PodPlan::Capture { .. }), "{name}");
    }
}

#[test]
fn inject_annotation_is_parsed_like_go() {
    for (value, off) in [("false", true), ("F", true), ("0", true), ("no", false), ("true", false), ("", false)] {
        let plan = plan_with("", &[(annotation::STATUS, SIDECAR), (annotation::INJECT, value)]).unwrap();
        assert_eq!(plan == PodPlan::Skip(SkipReason::InjectionOff), off, "{value}");
    }
}

#[test]
fn capture_annotation_takes_precedence_over_hints() {
    let capture = CaptureConfig::default().to_capture_annotation();
    let annotations = [
        (annotation::STATUS, SIDECAR),
        (annotation::CAPTURE, capture.as_str()),
        (annotation::INJECT, "false"),
        (OVERRIDES, "runAsUser"),
    ];
    assert_eq!(source_of(&annotations), ConfigSource::CaptureAnnotation);
}

#[test]
fn interception_mode_none_is_skipped() {
    assert_eq!(
        skip_of(&[(annotation::STATUS, SIDECAR), (annotation::INTERCEPTION_MODE, "NONE")]),
        SkipReason::ModeNone
    );
    let config = CaptureConfig { mode: InterceptionMode::None, ..CaptureConfig::default() };
    assert_eq!(
        skip_of(&[(annotation::STATUS, SIDECAR), (annotation::CAPTURE, &config.to_capture_annotation())]),
        SkipReason::ModeNone
    );
}

#[test]
fn all_invalid_annotations_are_reported() {
    let failure = plan_with(
        "",
        &[
            (annotation::STATUS, SIDECAR),
            (annotation::EXCLUDE_INBOUND_PORTS, "80x"),
            (annotation::INTERCEPTION_MODE, "SIDEWAYS"),
        ],
    )
    .unwrap_err();
    assert_eq!(failure.code(), 100);
    let text = failure.to_string();
    assert!(text.contains("shop/web") && text.contains("80x") && text.contains("SIDEWAYS"), "{text}");
    let failure = plan_with("", &[(annotation::STATUS, SIDECAR), (annotation::CAPTURE, "{\"v\":")]).unwrap_err();
    assert_eq!(failure.code(), 100);
    assert!(failure.to_string().contains("weir.dev/capture"), "{failure}");
}

#[test]
fn hints_of_the_spec_need_an_agent() {
    for (key, value, hint) in [
        (PROXY_CONFIG, "proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: \"true\"\n", "ISTIO_META_DNS_CAPTURE"),
        (OVERRIDES, r#"{"containers":[{"name":"istio-proxy","securityContext":{"runAsUser":1500}}]}"#, "runAsUser"),
    ] {
        let failure = plan_with("", &[(annotation::STATUS, SIDECAR), (key, value)]).unwrap_err();
        assert_eq!(failure.code(), 11);
        assert!(failure.to_string().contains(&format!("{key} sets {hint}")), "{failure}");
    }
    assert_eq!(
        source_of(&[(annotation::STATUS, SIDECAR), (PROXY_CONFIG, "concurrency: 2")]),
        ConfigSource::IstioAnnotations
    );
}

#[test]
fn an_invalid_configuration_fails_meshed_pods_only() {
    let broken = r#","exclude_namespace":["a"],"plugin_log_level":7"#;
    assert_eq!(plan_with(broken, &[]).unwrap(), PodPlan::Skip(SkipReason::NotInjected));
    let failure = plan_with(broken, &[(annotation::STATUS, SIDECAR)]).unwrap_err();
    assert_eq!(failure.code(), 7);
    assert!(failure.to_string().contains("exclude_namespace") && failure.to_string().contains("plugin_log_level"));
}

proptest! {
    /// Any annotations give a plan, or an error with one of our codes and a message of limited size.
    #[test]
    fn any_annotations_give_a_plan_or_an_error(
        values in prop::collection::btree_map(
            prop::sample::select(vec![
                annotation::CAPTURE, annotation::IPV6, annotation::INJECT, annotation::INTERCEPTION_MODE, TEMPLATES, PROXY_CONFIG,
                OVERRIDES, annotation::EXCLUDE_INBOUND_PORTS, annotation::INCLUDE_OUTBOUND_IP_RANGES, annotation::EXCLUDE_INTERFACES,
            ]),
            prop_oneof![".{0,40}", r#"[\[\]{}":,a-z0-9*./-]{0,40}"#],
            0..6,
        ),
        status in prop_oneof![Just(SIDECAR.to_owned()), ".{0,40}", r#"[\[\]{}":,a-z-]{0,40}"#],
    ) {
        let mut annotations: Vec<(&str, &str)> = values.iter().map(|(key, value)| (*key, value.as_str())).collect();
        annotations.push((annotation::STATUS, &status));
        if let Err(failure) = plan_with("", &annotations) {
            prop_assert!(matches!(failure.code(), 11 | 100 | 101), "{failure}");
            prop_assert!(failure.message().len() < 5000);
        }
    }
}

#[test]
fn missing_annotations_name_entry_or_runtime() {
    let error_of = |text: &str| {
        plan_pod(&pod("shop"), &NetConf::parse(text.as_bytes(), Verb::Add).unwrap(), no_agent).unwrap_err()
    };
    let failure = error_of(r#"{"cniVersion":"1.0.0","type":"weir-cni"}"#);
    assert_eq!(failure.code(), 7);
    assert!(failure.to_string().contains("key capabilities"), "{failure}");
    let failure = error_of(r#"{"cniVersion":"1.0.0","capabilities":{"io.kubernetes.cri.pod-annotations":true}}"#);
    assert_eq!(failure.code(), 11);
    assert!(failure.details().contains("exclude_namespaces"), "{}", failure.details());
}

const AGENT: &str = r#","agent_socket":"/run/agent.sock""#;

/// Plans a pod with an agent that gives this answer; also returns whether it was asked. Without `annotations` the runtime passes none.
fn plan_with_agent(
    annotations: Option<&[(&str, &str)]>,
    answer: Result<PodAnswer, AgentError>,
) -> (Result<PodPlan, CniError>, bool) {
    let runtime = annotations.map(|annotations| {
        let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
        format!(r#","runtimeConfig":{}"#, serde_json::json!({ CAPABILITY: annotations }))
    });
    let text = format!(r#"{{"cniVersion":"1.0.0"{}{AGENT}}}"#, runtime.unwrap_or_default());
    let conf = NetConf::parse(text.as_bytes(), Verb::Add).unwrap();
    let mut asked = false;
    let plan = plan_pod(&pod("shop"), &conf, || {
        asked = true;
        answer
    });
    (plan, asked)
}

fn down() -> Result<PodAnswer, AgentError> {
    Err(AgentError::TimedOut(std::time::Duration::from_secs(2)))
}

#[test]
fn the_agent_is_asked_only_when_annotations_do_not_decide() {
    let capture = CaptureConfig::default().to_capture_annotation();
    let bad = (annotation::EXCLUDE_INBOUND_PORTS, "80x");
    for (annotations, asked) in [
        (Some(&[][..]), false),
        (Some(&[(annotation::STATUS, SIDECAR), (annotation::CAPTURE, &capture)]), false),
        (Some(&[(annotation::STATUS, SIDECAR), (annotation::CAPTURE, "{")]), false),
        (Some(&[(annotation::STATUS, r#"{"initContainers":["istio-init"]}"#)]), false),
        (Some(&[(annotation::STATUS, SIDECAR), (TEMPLATES, "gateway")]), false),
        (Some(&[(annotation::STATUS, SIDECAR), (annotation::INJECT, "false")]), false),
        (Some(&[(annotation::STATUS, SIDECAR)]), true),
        (Some(&[(annotation::STATUS, SIDECAR), bad]), true),
        (Some(&[(annotation::STATUS, SIDECAR), (PROXY_CONFIG, "ISTIO_META_DNS_CAPTURE")]), true),
        (None, true),
    ] {
        assert_eq!(plan_with_agent(annotations, down()).1, asked, "{annotations:?}");
    }
}

#[test]
fn the_agents_answer_decides() {
    let meshed = Some(&[(annotation::STATUS, SIDECAR)][..]);
    let config = CaptureConfig { proxy_uids: vec![1500], ..CaptureConfig::default() };
    for annotations in [meshed, None] {
        let capture = Ok(PodAnswer::Capture { capture: config.to_capture_annotation() });
        let (rules, config) = (plan(&config).unwrap(), Box::new(config.clone()));
        let expected = PodPlan::Capture { rules, config, source: ConfigSource::Agent };
        assert_eq!(plan_with_agent(annotations, capture).0.unwrap(), expected);
        let skip = plan_with_agent(annotations, Ok(PodAnswer::Skip { reason: "a gateway".to_owned() })).0.unwrap();
        assert_eq!(skip, PodPlan::Skip(SkipReason::ReportedByAgent("a gateway".to_owned())));
        let refuse = plan_with_agent(annotations, Ok(PodAnswer::Refuse { findings: vec!["port 80x".to_owned()] })).0;
        let refuse = refuse.unwrap_err();
        assert_eq!(refuse.code(), 100);
        assert!(refuse.to_string().contains("port 80x"), "{refuse}");
        let nonsense = plan_with_agent(annotations, Ok(PodAnswer::Capture { capture: "{}".to_owned() })).0.unwrap_err();
        assert_eq!(nonsense.code(), 100);
    }
}

#[test]
fn without_an_answer_of_the_agent_the_pod_fails() {
    let meshed = Some(&[(annotation::STATUS, SIDECAR)][..]);
    for (annotations, text) in [(meshed, "only its spec says what to capture"), (None, "passed no pod annotations")] {
        for answer in [down(), Ok(PodAnswer::Unknown { reason: "no such pod".to_owned() })] {
            let reason = if answer.is_ok() { "no such pod" } else { "did not answer within 2000 ms" };
            let failure = plan_with_agent(annotations, answer).0.unwrap_err();
            assert_eq!(failure.code(), 11);
            let said = failure.to_string();
            assert!(said.contains("shop/web") && said.contains(text) && said.contains(reason), "{said}");
            assert!(failure.details().contains("weir-agent"), "{}", failure.details());
        }
    }
}

#[test]
fn with_the_spec_the_spec_decides() {
    use iptables_rules::annotations::ProxySpec;
    use iptables_rules::config::DnsCapture;

    let annotations = |extra: &[(&str, &str)]| -> BTreeMap<String, String> {
        let all = extra.iter().chain([(annotation::STATUS, SIDECAR)].iter());
        all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let with = |role: Option<&str>, env: &[(&str, &str)]| {
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let spec = Ok(ProxySpec { uid: Some(1500), gid: None, env, is_known: true });
        SpecFacts { proxy: Some(ProxyFacts { role: role.map(str::to_owned), spec }), ..SpecFacts::default() }
    };
    let skip = |spec: &SpecFacts| match decide_capture(&annotations(&[]), Some(spec)) {
        CaptureDecision::Skip(reason) => reason,
        other => panic!("not skipped: {other:?}"),
    };
    assert_eq!(skip(&SpecFacts::default()), SkipReason::NoProxy);
    assert_eq!(skip(&SpecFacts { istio_init: true, ..with(None, &[]) }), SkipReason::InitContainer);
    assert_eq!(skip(&with(Some("router"), &[])), SkipReason::NotSidecarRole("router".to_owned()));
    assert_eq!(skip(&with(Some("sidecar"), &[(DISABLE_ENVOY, "true")])), SkipReason::EnvoyDisabled);
    let off = SpecFacts { inject_label: Some("false".to_owned()), ..with(None, &[]) };
    assert_eq!(skip(&off), SkipReason::InjectionOff);

    // With the spec, hints in annotations do not matter.
    let hinted = annotations(&[(PROXY_CONFIG, "ISTIO_META_DNS_CAPTURE"), (annotation::INJECT, "false")]);
    let spec = SpecFacts {
        inject_label: Some("true".to_owned()),
        ..with(Some("sidecar"), &[("ISTIO_META_DNS_CAPTURE", "true")])
    };
    match decide_capture(&hinted, Some(&spec)) {
        CaptureDecision::Capture(config, ConfigSource::Specification) => {
            assert_eq!((&*config.proxy_uids, &config.dns), (&[1500][..], &DnsCapture::All));
        }
        other => panic!("not captured: {other:?}"),
    }
    let bad = ProxyFacts { role: None, spec: Err(vec!["runAsUser -1".to_owned()]) };
    let bad = decide_capture(&annotations(&[]), Some(&SpecFacts { proxy: Some(bad), ..SpecFacts::default() }));
    assert_eq!(bad, CaptureDecision::InvalidSpec(vec!["runAsUser -1".to_owned()]));
}

#[test]
fn addresses_decide_about_ipv6_where_the_proxy_accepts_one_family() {
    let status = (annotation::STATUS, SIDECAR);
    let policy = |capture: &str, result: &str| {
        let extra = format!(r#","prevResult":{result}"#);
        match plan_with(&extra, &[status, (annotation::CAPTURE, capture)]) {
            Ok(PodPlan::Capture { config, rules, .. }) => {
                assert_eq!(rules, plan(&config).unwrap());
                config.ipv6
            }
            other => panic!("not captured: {other:?}"),
        }
    };
    let (auto, v4, v6) = (r#"{"v":1,"?ipv6Auto":true}"#, r#"{"address":"10.1.0.2/24"}"#, r#"{"address":"fd00::2/64"}"#);
    let ips = |ips: &[&str]| format!(r#"{{"ips":[{}]}}"#, ips.join(","));
    assert_eq!(policy(auto, &ips(&[v4, v6])), Ipv6Policy::Leave);
    assert_eq!(policy(auto, r#"{"ip4":{"ip":"10.1.0.2/24"},"ip6":{"ip":"fd00::2/64"}}"#), Ipv6Policy::Leave);
    assert_eq!(policy(auto, &ips(&[v6])), Ipv6Policy::Capture);
    assert_eq!(policy(auto, &ips(&[v4])), Ipv6Policy::Capture);
    assert_eq!(policy(auto, &ips(&[])), Ipv6Policy::Capture, "the addresses are not known");
    assert_eq!(policy(auto, r#"{"ips":[{"address":7},{}]}"#), Ipv6Policy::Capture);
    assert_eq!(policy(r#"{"v":1}"#, &ips(&[v4, v6])), Ipv6Policy::Capture);
    assert_eq!(policy(r#"{"v":1,"ipv6":"leave"}"#, &ips(&[v6])), Ipv6Policy::Leave);
}
