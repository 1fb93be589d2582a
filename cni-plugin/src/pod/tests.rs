use std::collections::BTreeMap;

use proptest::prelude::*;

use iptables_rules::config::InterceptionMode;
use iptables_rules::names::annotation;

use weir_protocol::decision::{DISABLE_ENVOY, ProxyFacts, SpecFacts};
use weir_protocol::decision::{OVERRIDES, PROXY_CONFIG, TEMPLATES};

use super::*;
use weir_protocol::version::Verb;

const SIDECAR: &str =
    r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"],"volumes":[],"revision":"default"}"#;

fn pod(namespace: &str) -> PodArgs {
    PodArgs { namespace: namespace.to_owned(), name: "web".to_owned(), uid: "1-2-3".to_owned() }
}

/// Judges a pod of namespace `shop` with these annotations under a configuration with `extra` keys.
fn judge_with(extra: &str, annotations: &[(&str, &str)]) -> Result<Verdict, Failure> {
    let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
    let text = serde_json::json!({ CAPABILITY: annotations });
    let text = format!(r#"{{"cniVersion":"1.0.0","runtimeConfig":{text}{extra}}}"#);
    judge(&pod("shop"), &NetConf::parse(text.as_bytes(), Verb::Add).unwrap(), nobody)
}

/// In place of an agent that must not be asked.
fn nobody() -> Result<Answer, AskError> {
    panic!("the agent was asked")
}

fn skip_of(annotations: &[(&str, &str)]) -> SkipReason {
    match judge_with("", annotations) {
        Ok(Verdict::Skip(reason)) => reason,
        other => panic!("not skipped: {other:?}"),
    }
}

fn source_of(annotations: &[(&str, &str)]) -> Source {
    match judge_with("", annotations) {
        Ok(Verdict::Capture { source, .. }) => source,
        other => panic!("not captured: {other:?}"),
    }
}

#[test]
fn leaves_alone_what_is_not_in_the_mesh() {
    let conf = NetConf::parse(br#"{"cniVersion":"1.0.0","exclude_namespaces":["kube-system"]}"#, Verb::Add).unwrap();
    assert_eq!(judge(&PodArgs::default(), &conf, nobody).unwrap(), Verdict::Skip(SkipReason::NotKubernetes));
    assert_eq!(judge(&pod("kube-system"), &conf, nobody).unwrap(), Verdict::Skip(SkipReason::ExcludedNamespace));
    assert_eq!(skip_of(&[]), SkipReason::NotInjected);
    assert_eq!(skip_of(&[("weir.dev/capture", "{}"), ("x", "y")]), SkipReason::NotInjected);
}

#[test]
fn reads_the_record_of_the_injection() {
    let skip = |record| skip_of(&[(annotation::STATUS, record)]);
    assert_eq!(skip(r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"#), SkipReason::InitContainer);
    assert_eq!(skip(r#"{"initContainers":["istio-init","istio-proxy"],"containers":null}"#), SkipReason::InitContainer);
    assert_eq!(skip(r#"{"initContainers":["grpc-bootstrap-init"],"containers":null}"#), SkipReason::NoProxy);
    assert_eq!(skip(r#"{"initContainers":null,"containers":null}"#), SkipReason::NoProxy);
    for record in
        [SIDECAR, r#"{"initContainers":["istio-validation","istio-proxy"],"containers":null}"#, "", "true", "{}", "[1]"]
    {
        assert_eq!(source_of(&[(annotation::STATUS, record)]), Source::IstioAnnotations, "{record}");
    }
}

#[test]
fn knows_proxies_that_are_no_sidecars_by_their_template() {
    let with = |templates| judge_with("", &[(annotation::STATUS, SIDECAR), (TEMPLATES, templates)]).unwrap();
    for name in ["gateway", "grpc-agent", "mine, gateway"] {
        assert!(matches!(with(name), Verdict::Skip(SkipReason::OtherTemplate(_))), "{name}");
    }
    for name in ["sidecar", "sidecar,mine", "mine", ""] {
        assert!(matches!(with(name), Verdict::Capture { .. }), "{name}");
    }
}

#[test]
fn honours_injection_switched_off_as_go_reads_it() {
    for (value, off) in [("false", true), ("F", true), ("0", true), ("no", false), ("true", false), ("", false)] {
        let verdict = judge_with("", &[(annotation::STATUS, SIDECAR), (annotation::INJECT, value)]).unwrap();
        assert_eq!(verdict == Verdict::Skip(SkipReason::InjectionOff), off, "{value}");
    }
}

#[test]
fn capture_annotation_outweighs_what_only_its_writer_could_know() {
    let capture = CaptureConfig::default().to_capture_annotation();
    let annotations = [
        (annotation::STATUS, SIDECAR),
        (annotation::CAPTURE, capture.as_str()),
        (annotation::INJECT, "false"),
        (OVERRIDES, "runAsUser"),
    ];
    assert_eq!(source_of(&annotations), Source::CaptureAnnotation);
}

#[test]
fn skips_mode_none() {
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
fn refuses_annotations_that_cannot_be_taken_all_at_once() {
    let failure = judge_with(
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
    let failure = judge_with("", &[(annotation::STATUS, SIDECAR), (annotation::CAPTURE, "{\"v\":")]).unwrap_err();
    assert_eq!(failure.code(), 100);
    assert!(failure.to_string().contains("weir.dev/capture"), "{failure}");
}

#[test]
fn refuses_to_guess_what_only_the_specification_says() {
    for (key, value, hint) in [
        (PROXY_CONFIG, "proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: \"true\"\n", "ISTIO_META_DNS_CAPTURE"),
        (OVERRIDES, r#"{"containers":[{"name":"istio-proxy","securityContext":{"runAsUser":1500}}]}"#, "runAsUser"),
    ] {
        let failure = judge_with("", &[(annotation::STATUS, SIDECAR), (key, value)]).unwrap_err();
        assert_eq!(failure.code(), 11);
        assert!(failure.to_string().contains(&format!("{key} sets {hint}")), "{failure}");
    }
    assert_eq!(source_of(&[(annotation::STATUS, SIDECAR), (PROXY_CONFIG, "concurrency: 2")]), Source::IstioAnnotations);
}

#[test]
fn holds_a_broken_configuration_against_the_mesh_alone() {
    let broken = r#","exclude_namespace":["a"],"plugin_log_level":7"#;
    assert_eq!(judge_with(broken, &[]).unwrap(), Verdict::Skip(SkipReason::NotInjected));
    let failure = judge_with(broken, &[(annotation::STATUS, SIDECAR)]).unwrap_err();
    assert_eq!(failure.code(), 7);
    assert!(failure.to_string().contains("exclude_namespace") && failure.to_string().contains("plugin_log_level"));
}

proptest! {
    /// Whatever an author writes: a decision or an error with one of our codes, and a text of bounded size.
    #[test]
    fn never_panics_on_annotations(
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
        if let Err(failure) = judge_with("", &annotations) {
            prop_assert!(matches!(failure.code(), 11 | 100 | 101), "{failure}");
            prop_assert!(failure.message().len() < 5000);
        }
    }
}

#[test]
fn says_which_side_keeps_the_annotations_back() {
    let judge_text =
        |text: &str| judge(&pod("shop"), &NetConf::parse(text.as_bytes(), Verb::Add).unwrap(), nobody).unwrap_err();
    let failure = judge_text(r#"{"cniVersion":"1.0.0","type":"weir-cni"}"#);
    assert_eq!(failure.code(), 7);
    assert!(failure.to_string().contains("key capabilities"), "{failure}");
    let failure = judge_text(r#"{"cniVersion":"1.0.0","capabilities":{"io.kubernetes.cri.pod-annotations":true}}"#);
    assert_eq!(failure.code(), 11);
    assert!(failure.advice().contains("exclude_namespaces"), "{}", failure.advice());
}

const AGENT: &str = r#","agent_socket":"/run/agent.sock""#;

/// Judges with an agent that says this, and tells whether it was asked. `None` for `annotations`: the runtime passes none.
fn judge_asking(
    annotations: Option<&[(&str, &str)]>,
    answer: Result<Answer, AskError>,
) -> (Result<Verdict, Failure>, bool) {
    let runtime = annotations.map(|annotations| {
        let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
        format!(r#","runtimeConfig":{}"#, serde_json::json!({ CAPABILITY: annotations }))
    });
    let text = format!(r#"{{"cniVersion":"1.0.0"{}{AGENT}}}"#, runtime.unwrap_or_default());
    let conf = NetConf::parse(text.as_bytes(), Verb::Add).unwrap();
    let mut asked = false;
    let verdict = judge(&pod("shop"), &conf, || {
        asked = true;
        answer
    });
    (verdict, asked)
}

fn down() -> Result<Answer, AskError> {
    Err(AskError::Slow(std::time::Duration::from_secs(2)))
}

#[test]
fn asks_the_agent_only_about_what_annotations_do_not_say() {
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
        assert_eq!(judge_asking(annotations, down()).1, asked, "{annotations:?}");
    }
}

#[test]
fn does_what_the_agent_says() {
    let meshed = Some(&[(annotation::STATUS, SIDECAR)][..]);
    let config = CaptureConfig { proxy_uids: vec![1500], ..CaptureConfig::default() };
    for annotations in [meshed, None] {
        let capture = Ok(Answer::Capture { capture: config.to_capture_annotation() });
        let expected = Verdict::Capture { rules: plan(&config).unwrap(), source: Source::Agent };
        assert_eq!(judge_asking(annotations, capture).0.unwrap(), expected);
        let skip = judge_asking(annotations, Ok(Answer::Skip { reason: "a gateway".to_owned() })).0.unwrap();
        assert_eq!(skip, Verdict::Skip(SkipReason::Agent("a gateway".to_owned())));
        let refuse = judge_asking(annotations, Ok(Answer::Refuse { findings: vec!["port 80x".to_owned()] })).0;
        let refuse = refuse.unwrap_err();
        assert_eq!(refuse.code(), 100);
        assert!(refuse.to_string().contains("port 80x"), "{refuse}");
        let nonsense = judge_asking(annotations, Ok(Answer::Capture { capture: "{}".to_owned() })).0.unwrap_err();
        assert_eq!(nonsense.code(), 100);
    }
}

#[test]
fn holds_a_pod_back_that_only_the_agent_could_tell_about() {
    let meshed = Some(&[(annotation::STATUS, SIDECAR)][..]);
    for (annotations, text) in [(meshed, "stands in its specification"), (None, "passed no pod annotations")] {
        for answer in [down(), Ok(Answer::Unknown { reason: "no such pod".to_owned() })] {
            let reason = if answer.is_ok() { "no such pod" } else { "did not answer within 2000 ms" };
            let failure = judge_asking(annotations, answer).0.unwrap_err();
            assert_eq!(failure.code(), 11);
            let said = failure.to_string();
            assert!(said.contains("shop/web") && said.contains(text) && said.contains(reason), "{said}");
            assert!(failure.advice().contains("weir-agent"), "{}", failure.advice());
        }
    }
}

#[test]
fn decides_by_the_specification_where_it_is_known() {
    use iptables_rules::annotations::ProxySpec;
    use iptables_rules::config::DnsCapture;

    let annotations = |extra: &[(&str, &str)]| -> BTreeMap<String, String> {
        let all = extra.iter().chain([(annotation::STATUS, SIDECAR)].iter());
        all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let with = |role: Option<&str>, env: &[(&str, &str)]| {
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let spec = Ok(ProxySpec { uid: Some(1500), gid: None, env });
        SpecFacts { proxy: Some(ProxyFacts { role: role.map(str::to_owned), spec }), ..SpecFacts::default() }
    };
    let skip = |spec: &SpecFacts| match decide(&annotations(&[]), Some(spec)) {
        Decision::Skip(reason) => reason,
        other => panic!("not skipped: {other:?}"),
    };
    assert_eq!(skip(&SpecFacts::default()), SkipReason::NoProxy);
    assert_eq!(skip(&SpecFacts { istio_init: true, ..with(None, &[]) }), SkipReason::InitContainer);
    assert_eq!(skip(&with(Some("router"), &[])), SkipReason::OtherRole("router".to_owned()));
    assert_eq!(skip(&with(Some("sidecar"), &[(DISABLE_ENVOY, "true")])), SkipReason::EnvoyDisabled);
    let off = SpecFacts { inject_label: Some("false".to_owned()), ..with(None, &[]) };
    assert_eq!(skip(&off), SkipReason::InjectionOff);

    // What made the plugin ask is no riddle any more.
    let hinted = annotations(&[(PROXY_CONFIG, "ISTIO_META_DNS_CAPTURE"), (annotation::INJECT, "false")]);
    let spec = SpecFacts {
        inject_label: Some("true".to_owned()),
        ..with(Some("sidecar"), &[("ISTIO_META_DNS_CAPTURE", "true")])
    };
    match decide(&hinted, Some(&spec)) {
        Decision::Capture(config, Source::Specification) => {
            assert_eq!((&*config.proxy_uids, &config.dns), (&[1500][..], &DnsCapture::All));
        }
        other => panic!("not captured: {other:?}"),
    }
    let bad = ProxyFacts { role: None, spec: Err(vec!["runAsUser -1".to_owned()]) };
    let bad = decide(&annotations(&[]), Some(&SpecFacts { proxy: Some(bad), ..SpecFacts::default() }));
    assert_eq!(bad, Decision::BadSpec(vec!["runAsUser -1".to_owned()]));
}
