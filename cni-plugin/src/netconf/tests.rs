use proptest::prelude::*;

use super::*;

fn add(text: &str) -> Result<NetConf<'_>, CniError> {
    NetConf::parse(text.as_bytes(), Verb::Add)
}

#[test]
fn a_complete_configuration_parses() {
    let conf = add(r#"{"cniVersion":"1.0.0","name":"n","type":"weir-cni","ipam":{},"dns":{},"args":{"cni":1},
        "capabilities":{"io.kubernetes.cri.pod-annotations":true},"exclude_namespaces":["kube-system"],"plugin_log_level":"debug","backend":"iptables","visibility":"iptables",
        "cni.dev/valid-attachments":[],
        "runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a":"b"},"cgroupPath":"/x"},"prevResult":{"ips":[]}}"#)
    .unwrap();
    assert_eq!(conf.version, CniVersion::V1_0_0);
    assert_eq!(conf.exclude_namespaces, ["kube-system"]);
    assert_eq!(conf.log_level, LogLevel::Debug);
    assert_eq!(conf.backend, Backend::Iptables);
    assert_eq!(conf.visibility, Visibility::Iptables);
    assert_eq!(conf.key_errors, Vec::<String>::new());
    assert_eq!(conf.previous_result().unwrap(), r#"{"ips":[]}"#);
    let expected = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    assert_eq!(conf.annotations().unwrap(), PodAnnotations::Passed(expected));
}

#[test]
fn malformed_configurations_are_rejected() {
    for (text, code, part) in [
        ("", 6, "stdin is empty"),
        (" \n", 6, "stdin is empty"),
        ("{", 6, "EOF"),
        ("[]", 6, "invalid type"),
        (r#"{"cniVersion":"1.0.0"} x"#, 6, "trailing"),
        (r#"{"cniVersion":1}"#, 6, "cniVersion 1 is not a string"),
        ("{}", 1, "cniVersion is missing"),
        (r#"{"cniVersion":"0.2.0"}"#, 1, "cniVersion is '0.2.0'"),
        (r#"{"cniVersion":"9.9.9"}"#, 1, "cniVersion is '9.9.9'"),
    ] {
        let failure = add(text).unwrap_err();
        assert_eq!(failure.code(), code, "{text}");
        assert!(failure.to_string().contains(part), "{text}: {failure}");
    }
    assert_eq!(NetConf::parse(b"\xff{}", Verb::Add).unwrap_err().code(), 6);
}

#[test]
fn verbs_of_later_versions_are_rejected() {
    for (verb, version, good) in [
        (Verb::Check, "0.3.1", false),
        (Verb::Check, "0.4.0", true),
        (Verb::Status, "1.0.0", false),
        (Verb::Gc, "1.0.0", false),
        (Verb::Gc, "1.1.0", true),
    ] {
        let text = format!(r#"{{"cniVersion":"{version}"}}"#);
        let result = NetConf::parse(text.as_bytes(), verb);
        assert_eq!(result.is_ok(), good, "{verb:?} {version}");
        if let Err(failure) = result {
            assert_eq!(failure.code(), 1);
        }
    }
}

#[test]
fn errors_in_own_keys_are_collected() {
    let conf =
        add(r#"{"cniVersion":"1.0.0","exclude_namespaces":"kube-system","plugin_log_level":"loud","exclude_namespace":[],"backend":7,"visibility":"legacy"}"#)
            .unwrap();
    assert_eq!(
        conf.key_errors,
        [
            r#"key exclude_namespaces: "kube-system" is not a list of strings"#,
            "key plugin_log_level: 'loud' must be one of debug, info, warn, error, none",
            "key backend: 7 is not a string",
            "key visibility: 'legacy' must be one of nft, iptables",
            "key 'exclude_namespace' is unknown (own keys: exclude_namespaces, plugin_log_level, backend, agent_socket, agent_timeout_ms, visibility, standalone)",
        ]
    );
    assert_eq!(conf.require_valid().unwrap_err().code(), 7);
}

#[test]
fn agent_socket_and_timeout_are_validated() {
    let agent_of = |rest: &str| {
        let text = format!(r#"{{"cniVersion":"1.0.0"{rest}}}"#);
        let conf = add(&text).unwrap();
        (
            conf.agent.map(|agent| (agent.socket.display().to_string(), agent.timeout.as_millis())),
            conf.key_errors.join("; "),
        )
    };
    let at = |millis| Some(("/run/a.sock".to_owned(), millis));
    assert_eq!(agent_of(""), (None, String::new()));
    assert_eq!(agent_of(r#","agent_socket":"","agent_timeout_ms":null"#), (None, String::new()));
    assert_eq!(agent_of(r#","agent_socket":"/run/a.sock""#), (at(2000), String::new()));
    assert_eq!(agent_of(r#","agent_socket":"/run/a.sock","agent_timeout_ms":1"#), (at(1), String::new()));
    let (agent, key_errors) = agent_of(r#","agent_socket":"a.sock","agent_timeout_ms":"2s""#);
    assert_eq!(agent, None);
    assert_eq!(
        key_errors,
        "key agent_timeout_ms: \"2s\" is not a number of milliseconds; key agent_socket: 'a.sock' is not an absolute path"
    );
    let (_, key_errors) = agent_of(r#","agent_socket":"/run/a.sock","agent_timeout_ms":0"#);
    assert_eq!(key_errors, "key agent_timeout_ms: 0 is out of range (1-60000)");
}

#[test]
fn valid_sandboxes_come_from_valid_attachments() {
    let valid = |list: &str| {
        let text = format!(r#"{{"cniVersion":"1.1.0","cni.dev/valid-attachments":{list}}}"#);
        NetConf::parse(text.as_bytes(), Verb::Gc).unwrap().valid_sandboxes()
    };
    assert_eq!(
        valid(r#"[{"containerID":"a","ifname":"eth0"},{"containerID":"b","ifname":"eth0"}]"#),
        Some(vec!["a".to_owned(), "b".to_owned()])
    );
    assert_eq!(valid("[]"), Some(Vec::new()));
    assert_eq!(valid("null"), None);
    assert_eq!(valid(r#"[{"ifname":"eth0"}]"#), None);
}

#[test]
fn no_annotations_differ_from_annotations_not_passed() {
    let with = |rest: &str| {
        let text = format!(r#"{{"cniVersion":"1.0.0"{rest}}}"#);
        add(&text).unwrap().annotations().map_err(|failure| (failure.code(), failure.to_string()))
    };
    let declared = r#","capabilities":{"io.kubernetes.cri.pod-annotations":true}"#;
    assert_eq!(with(""), Ok(PodAnnotations::NotDeclared));
    assert_eq!(with(r#","capabilities":{"portMappings":true}"#), Ok(PodAnnotations::NotDeclared));
    assert_eq!(with(declared), Ok(PodAnnotations::NotPassed));
    assert_eq!(with(&format!(r#"{declared},"runtimeConfig":{{"cgroupPath":"/"}}"#)), Ok(PodAnnotations::NotPassed));
    for nothing in ["null", "{}"] {
        assert_eq!(
            with(&format!(r#"{declared},"runtimeConfig":{{"{CAPABILITY}":{nothing}}}"#)),
            Ok(PodAnnotations::Passed(BTreeMap::new()))
        );
    }
    let (code, text) = with(&format!(r#","runtimeConfig":{{"{CAPABILITY}":{{"a":1}}}}"#)).unwrap_err();
    assert_eq!(code, 7);
    assert!(text.contains(CAPABILITY), "{text}");
}

#[test]
fn prev_result_must_be_an_object() {
    for (rest, part) in [
        ("", "prevResult is missing"),
        (r#","prevResult":null"#, "prevResult is missing"),
        (r#","prevResult":[1]"#, "[1] is not an object"),
    ] {
        let text = format!(r#"{{"cniVersion":"1.0.0"{rest}}}"#);
        let failure = add(&text).unwrap().previous_result().unwrap_err();
        assert_eq!(failure.code(), 7);
        assert!(failure.to_string().contains(part), "{failure}");
    }
    let alone = add(r#"{"cniVersion":"0.3.1","standalone":true}"#).unwrap();
    assert_eq!(alone.previous_result().unwrap(), r#"{"cniVersion":"0.3.1"}"#);
    let chained = add(r#"{"cniVersion":"0.3.1","standalone":true,"prevResult":{"ips":[]}}"#).unwrap();
    assert_eq!(chained.previous_result().unwrap(), r#"{"ips":[]}"#);
}

proptest! {
    #[test]
    fn never_panics(text in r#"[\[\]{}":,a-z0-9 \\.eE+-]{0,60}"#, bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let _ = add(&text);
        let _ = NetConf::parse(&bytes, Verb::Check);
    }
}

#[test]
fn a_written_entry_parses_to_its_settings() {
    let entry = weir_protocol::entry::PluginEntry {
        exclude_namespaces: vec!["kube-system".to_owned()],
        log_level: LogLevel::Debug,
        backend: Backend::Nft,
        visibility: Visibility::Iptables,
        ..weir_protocol::entry::PluginEntry::default()
    };
    let text = serde_json::to_string(&entry.to_standalone("weir-cni", CniVersion::V1_0_0)).unwrap();
    let conf = NetConf::parse(text.as_bytes(), Verb::Add).unwrap();
    assert_eq!(conf.key_errors, Vec::<String>::new());
    assert!(conf.standalone);
    assert_eq!(conf.exclude_namespaces, entry.exclude_namespaces);
    assert_eq!(conf.log_level, entry.log_level);
    assert_eq!(conf.backend, entry.backend);
    assert_eq!(conf.visibility, entry.visibility);
    assert_eq!(conf.agent, Some(AgentEndpoint { socket: entry.agent_socket, timeout: entry.agent_timeout }));
    assert_eq!(conf.annotations().unwrap(), PodAnnotations::NotPassed, "the capability is declared");
}
