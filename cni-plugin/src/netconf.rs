//! The plugin's configuration as it comes on stdin: standard keys, our own keys, what the runtime adds.
//!
//! Only what nothing can be done without is an error here. What is wrong with our own keys is collected in [`NetConf::findings`]
//! and held against pods of the mesh alone: a pod that is not in the mesh passes whatever is broken.

use std::borrow::Cow;
use std::collections::BTreeMap;

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::failure::Failure;
use crate::log::Level;
use iptables_rules::backend::{Backend, Visibility};
use iptables_rules::text::shorten;
use weir_kernel::backend::Method;
use weir_protocol::agent::Agent;
use weir_protocol::entry::{CAPABILITY, DEFAULT_AGENT_TIMEOUT};
use weir_protocol::version::{CniVersion, Verb};

/// Our own keys.
const OWN_KEYS: [&str; 7] = [
    "exclude_namespaces",
    "plugin_log_level",
    "backend",
    "agent_socket",
    "agent_timeout_ms",
    "visibility",
    "standalone",
];
/// Keys of the specification and of the reference library that may stand in any plugin's configuration.
const STANDARD_KEYS: [&str; 8] =
    ["cniVersion", "name", "type", "args", "capabilities", "runtimeConfig", "prevResult", "ipMasq"];
/// Standard keys that have no meaning for a chained plugin, but that configuration generators write.
const IDLE_KEYS: [&str; 2] = ["ipam", "dns"];
/// Longest `agent_timeout_ms`: runtimes give up on a sandbox after some minutes, and the kubelet tries again anyway.
const AGENT_TIMEOUT_MAX: u64 = 60_000;
/// Key in which a runtime lists the attachments that there are (CNI specification 1.1.0, GC).
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// Keys of the specification's own name space: `cni.dev/valid-attachments` and what is still to come.
const SPEC_PREFIX: &str = "cni.dev/";

/// The configuration of one call.
#[derive(Debug)]
pub struct NetConf<'a> {
    /// Version of the configuration and of the answer.
    pub version: CniVersion,
    /// What the plugins before us made, as text, so that nothing of it is lost.
    pub prev_result: Option<&'a RawValue>,
    /// Namespaces that are left alone.
    pub exclude_namespaces: Vec<String>,
    /// What is logged.
    pub log_level: Level,
    /// How rules get into the kernel.
    pub backend: Backend,
    /// Who is meant to see them.
    pub visibility: Visibility,
    /// The node agent, where the entry names one.
    pub agent: Option<Agent>,
    /// Whether it is a network of its own, that a meta plugin (Multus) calls beside the pod's: without plugins before us, and their result.
    pub standalone: bool,
    /// What is wrong with keys that only a pod of the mesh needs, one line each.
    pub findings: Vec<String>,
    capabilities: Option<&'a RawValue>,
    runtime_config: Option<&'a RawValue>,
    valid_attachments: Option<&'a RawValue>,
}

/// One element of `cni.dev/valid-attachments`.
#[derive(Debug, Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

/// Annotations as the runtime passed them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodAnnotations {
    /// All annotations of the pod; containerd passes `null` or an empty object for a pod without any.
    Passed(BTreeMap<String, String>),
    /// The entry declares the capability, but the runtime does not know it.
    NotPassed,
    /// The entry does not declare the capability.
    NotDeclared,
}

/// Keys in the order of the text; values as text.
type Keys<'a> = BTreeMap<String, &'a RawValue>;

impl<'a> NetConf<'a> {
    /// Reads the configuration.
    ///
    /// # Errors
    /// [`Failure::Decode`] where it is no JSON object, [`Failure::Version`] and [`Failure::Verb`] where the version does not fit.
    pub fn parse(stdin: &'a [u8], verb: Verb) -> Result<Self, Failure> {
        let text = std::str::from_utf8(stdin).map_err(|error| Failure::Decode(format!("not UTF-8: {error}")))?;
        if text.trim_ascii().is_empty() {
            return Err(Failure::Decode("stdin is empty".to_owned()));
        }
        let keys: Keys<'a> = serde_json::from_str(text).map_err(|error| Failure::Decode(error.to_string()))?;

        let version = match keys.get("cniVersion") {
            None => return Err(Failure::Version(None)),
            Some(raw) => {
                let name: String = serde_json::from_str(raw.get())
                    .map_err(|_| Failure::Decode(format!("cniVersion {} is not a string", shorten(raw.get()))))?;
                CniVersion::parse(&name).ok_or(Failure::Version(Some(name)))?
            }
        };
        if version < verb.since() {
            return Err(Failure::Verb { verb, version });
        }

        let mut findings = Vec::new();
        let exclude_namespaces = own_key(&keys, "exclude_namespaces", "a list of strings", &mut findings);
        let log_level = choice(&keys, "plugin_log_level", &Level::NAMES, Level::parse, &mut findings);
        let backend = choice(&keys, "backend", &Backend::NAMES, Backend::parse, &mut findings);
        let visibility = choice(&keys, "visibility", &Visibility::NAMES, Visibility::parse, &mut findings);
        let agent = agent(&keys, &mut findings);
        let standalone = own_key(&keys, "standalone", "true or false", &mut findings);
        for key in keys.keys() {
            let known = OWN_KEYS.contains(&key.as_str())
                || STANDARD_KEYS.contains(&key.as_str())
                || IDLE_KEYS.contains(&key.as_str())
                || key.starts_with(SPEC_PREFIX);
            if !known {
                findings.push(format!("key '{}' is unknown (own keys: {})", shorten(key), OWN_KEYS.join(", ")));
            }
        }
        let present = |key| keys.get(key).copied().filter(|raw: &&RawValue| raw.get() != "null");
        Ok(Self {
            version,
            prev_result: present("prevResult"),
            exclude_namespaces: exclude_namespaces.unwrap_or_default(),
            log_level,
            backend,
            visibility,
            agent,
            standalone: standalone.unwrap_or_default(),
            findings,
            capabilities: keys.get("capabilities").copied(),
            runtime_config: present("runtimeConfig"),
            valid_attachments: present(VALID_ATTACHMENTS),
        })
    }

    /// The result of the plugins before us, as text. A network of its own has none, and adds nothing to what there is.
    ///
    /// # Errors
    /// [`Failure::Config`] where there is none although it is needed, or where it is no object.
    pub fn previous_result(&self) -> Result<Cow<'a, str>, Failure> {
        match self.prev_result {
            None if self.standalone => Ok(Cow::Owned(format!("{{\"cniVersion\":\"{}\"}}", self.version))),
            None => Err(Failure::Config(vec![
                "key prevResult is missing: weir-cni is a chained plugin and cannot be the first of the list"
                    .to_owned(),
            ])),
            Some(raw) if !raw.get().starts_with('{') => {
                Err(Failure::Config(vec![format!("key prevResult: {} is not an object", shorten(raw.get()))]))
            }
            Some(raw) => Ok(Cow::Borrowed(raw.get())),
        }
    }

    /// The pod's annotations.
    ///
    /// # Errors
    /// [`Failure::Config`] where they are no object of strings.
    pub fn annotations(&self) -> Result<PodAnnotations, Failure> {
        let wrong = |key: &str, reason: String| Failure::Config(vec![format!("key {key}: {reason}")]);
        let passed = match self.runtime_config {
            None => None,
            Some(raw) => serde_json::from_str::<Keys<'a>>(raw.get())
                .map_err(|error| wrong("runtimeConfig", error.to_string()))?
                .get(CAPABILITY)
                .copied(),
        };
        if let Some(raw) = passed {
            let annotations: Option<BTreeMap<String, String>> = serde_json::from_str(raw.get())
                .map_err(|error| wrong(&format!("runtimeConfig.\"{CAPABILITY}\""), error.to_string()))?;
            return Ok(PodAnnotations::Passed(annotations.unwrap_or_default()));
        }
        let declared = match self.capabilities {
            None => false,
            Some(raw) => serde_json::from_str::<Option<BTreeMap<String, bool>>>(raw.get())
                .map_err(|error| wrong("capabilities", error.to_string()))?
                .is_some_and(|capabilities| capabilities.get(CAPABILITY) == Some(&true)),
        };
        Ok(if declared { PodAnnotations::NotPassed } else { PodAnnotations::NotDeclared })
    }

    /// GC: ids of the sandboxes that there are; `None` where the runtime lists none, or nothing that could be read.
    pub fn valid_sandboxes(&self) -> Option<Vec<String>> {
        let attachments: Vec<Attachment> = serde_json::from_str(self.valid_attachments?.get()).ok()?;
        Some(attachments.into_iter().map(|attachment| attachment.container_id).collect())
    }

    /// Backend and visibility in one.
    pub fn method(&self) -> Method {
        Method { backend: self.backend, visibility: self.visibility, variant: None }
    }

    /// [`findings`](Self::findings) as an error.
    ///
    /// # Errors
    /// [`Failure::Config`] with all of them.
    pub fn require_sound(&self) -> Result<(), Failure> {
        if self.findings.is_empty() { Ok(()) } else { Err(Failure::Config(self.findings.clone())) }
    }
}

/// One of our own keys; `null` is absent, a wrong type is a finding.
fn own_key<T: for<'de> Deserialize<'de>>(
    keys: &Keys<'_>,
    key: &str,
    wanted: &str,
    findings: &mut Vec<String>,
) -> Option<T> {
    let raw = keys.get(key)?;
    serde_json::from_str::<Option<T>>(raw.get()).unwrap_or_else(|_| {
        findings.push(format!("key {key}: {} is not {wanted}", shorten(raw.get())));
        None
    })
}

/// One of our own keys that names one of a few things; absent, `null` and empty are the default.
fn choice<T: Default>(
    keys: &Keys<'_>,
    key: &str,
    names: &[&str],
    parse: fn(&str) -> Option<T>,
    findings: &mut Vec<String>,
) -> T {
    match own_key::<String>(keys, key, "a string", findings).as_deref() {
        None | Some("") => T::default(),
        Some(name) => parse(name).unwrap_or_else(|| {
            findings.push(format!("key {key}: '{name}' is none of {}", names.join(", ")));
            T::default()
        }),
    }
}

/// The agent: there is one where `agent_socket` names its socket.
fn agent(keys: &Keys<'_>, findings: &mut Vec<String>) -> Option<Agent> {
    let socket = own_key::<String>(keys, "agent_socket", "a string", findings).filter(|path| !path.is_empty());
    let millis = own_key::<u64>(keys, "agent_timeout_ms", "a number of milliseconds", findings);
    if let Some(millis) = millis.filter(|millis| !(1..=AGENT_TIMEOUT_MAX).contains(millis)) {
        findings.push(format!("key agent_timeout_ms: {millis} is not from 1 to {AGENT_TIMEOUT_MAX}"));
    }
    let socket = PathBuf::from(socket?);
    if !socket.is_absolute() {
        findings.push(format!("key agent_socket: '{}' is no absolute path", shorten(&socket.to_string_lossy())));
        return None;
    }
    let timeout =
        millis.map_or(DEFAULT_AGENT_TIMEOUT, |millis| Duration::from_millis(millis.clamp(1, AGENT_TIMEOUT_MAX)));
    Some(Agent { socket, timeout })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn add(text: &str) -> Result<NetConf<'_>, Failure> {
        NetConf::parse(text.as_bytes(), Verb::Add)
    }

    #[test]
    fn reads_a_complete_configuration() {
        let conf = add(r#"{"cniVersion":"1.0.0","name":"n","type":"weir-cni","ipam":{},"dns":{},"args":{"cni":1},
            "capabilities":{"io.kubernetes.cri.pod-annotations":true},"exclude_namespaces":["kube-system"],"plugin_log_level":"debug","backend":"iptables","visibility":"iptables",
            "cni.dev/valid-attachments":[],
            "runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a":"b"},"cgroupPath":"/x"},"prevResult":{"ips":[]}}"#)
        .unwrap();
        assert_eq!(conf.version, CniVersion::V1_0_0);
        assert_eq!(conf.exclude_namespaces, ["kube-system"]);
        assert_eq!(conf.log_level, Level::Debug);
        assert_eq!(conf.backend, Backend::Iptables);
        assert_eq!(conf.visibility, Visibility::Iptables);
        assert_eq!(conf.findings, Vec::<String>::new());
        assert_eq!(conf.previous_result().unwrap(), r#"{"ips":[]}"#);
        let expected = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert_eq!(conf.annotations().unwrap(), PodAnnotations::Passed(expected));
    }

    #[test]
    fn says_why_a_text_is_no_configuration() {
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
    fn refuses_verbs_that_the_version_does_not_know() {
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
    fn collects_what_is_wrong_with_own_keys() {
        let conf =
            add(r#"{"cniVersion":"1.0.0","exclude_namespaces":"kube-system","plugin_log_level":"loud","exclude_namespace":[],"backend":7,"visibility":"legacy"}"#)
                .unwrap();
        assert_eq!(
            conf.findings,
            [
                r#"key exclude_namespaces: "kube-system" is not a list of strings"#,
                "key plugin_log_level: 'loud' is none of debug, info, warn, error, none",
                "key backend: 7 is not a string",
                "key visibility: 'legacy' is none of nft, iptables",
                "key 'exclude_namespace' is unknown (own keys: exclude_namespaces, plugin_log_level, backend, agent_socket, agent_timeout_ms, visibility, standalone)",
            ]
        );
        assert_eq!(conf.require_sound().unwrap_err().code(), 7);
    }

    #[test]
    fn an_agent_is_there_where_the_entry_names_it() {
        let agent_of = |rest: &str| {
            let text = format!(r#"{{"cniVersion":"1.0.0"{rest}}}"#);
            let conf = add(&text).unwrap();
            (
                conf.agent.map(|agent| (agent.socket.display().to_string(), agent.timeout.as_millis())),
                conf.findings.join("; "),
            )
        };
        let at = |millis| Some(("/run/a.sock".to_owned(), millis));
        assert_eq!(agent_of(""), (None, String::new()));
        assert_eq!(agent_of(r#","agent_socket":"","agent_timeout_ms":null"#), (None, String::new()));
        assert_eq!(agent_of(r#","agent_socket":"/run/a.sock""#), (at(2000), String::new()));
        assert_eq!(agent_of(r#","agent_socket":"/run/a.sock","agent_timeout_ms":1"#), (at(1), String::new()));
        let (agent, findings) = agent_of(r#","agent_socket":"a.sock","agent_timeout_ms":"2s""#);
        assert_eq!(agent, None);
        assert_eq!(
            findings,
            "key agent_timeout_ms: \"2s\" is not a number of milliseconds; key agent_socket: 'a.sock' is no absolute path"
        );
        let (_, findings) = agent_of(r#","agent_socket":"/run/a.sock","agent_timeout_ms":0"#);
        assert_eq!(findings, "key agent_timeout_ms: 0 is not from 1 to 60000");
    }

    #[test]
    fn reads_which_sandboxes_there_are() {
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
    fn tells_no_annotations_from_none_passed() {
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
    fn needs_a_previous_result_that_is_an_object() {
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
    fn the_plugin_reads_what_is_written() {
        let entry = weir_protocol::entry::PluginEntry {
            exclude_namespaces: vec!["kube-system".to_owned()],
            log_level: Level::Debug,
            backend: Backend::Nft,
            visibility: Visibility::Iptables,
            ..weir_protocol::entry::PluginEntry::default()
        };
        let text = serde_json::to_string(&entry.to_standalone("weir-cni", CniVersion::V1_0_0)).unwrap();
        let conf = NetConf::parse(text.as_bytes(), Verb::Add).unwrap();
        assert_eq!(conf.findings, Vec::<String>::new());
        assert!(conf.standalone);
        assert_eq!(conf.exclude_namespaces, entry.exclude_namespaces);
        assert_eq!(conf.log_level, entry.log_level);
        assert_eq!(conf.backend, entry.backend);
        assert_eq!(conf.visibility, entry.visibility);
        assert_eq!(conf.agent, Some(Agent { socket: entry.agent_socket, timeout: entry.agent_timeout }));
        assert_eq!(conf.annotations().unwrap(), PodAnnotations::NotPassed, "the capability is declared");
    }
}
