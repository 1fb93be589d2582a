//! The environment of a call: `CNI_COMMAND` and its companions (CNI specification, section 2, "Parameters"), and `CNI_ARGS`.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::failure::Failure;
use weir_protocol::version::Verb;

/// What the environment says, checked as far as the verb needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub verb: Verb,
    /// Id of the sandbox; empty for verbs without one.
    pub container_id: String,
    /// Path of the network namespace; `None` on DEL once it is gone, and for verbs without one.
    pub netns: Option<PathBuf>,
    /// Which pod it is.
    pub pod: PodArgs,
}

/// What `CNI_ARGS` says about the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodArgs {
    /// `K8S_POD_NAMESPACE`, empty where there is none.
    pub namespace: String,
    /// `K8S_POD_NAME`, empty where there is none.
    pub name: String,
    /// `K8S_POD_UID`, empty where there is none.
    pub uid: String,
}

impl PodArgs {
    /// Whether a kubelet is behind the call. Podman passes a name, but no namespace.
    pub fn is_kubernetes(&self) -> bool {
        !self.namespace.is_empty() && !self.name.is_empty()
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Reads one variable of the environment.
pub type Lookup<'a> = dyn Fn(&str) -> Option<OsString> + 'a;

/// Keys of `CNI_ARGS` that a kubelet's runtime sends.
const POD_ARGS: [&str; 4] = ["K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID"];

impl Request {
    /// Reads and checks the environment.
    ///
    /// # Errors
    /// [`Failure::Environment`] with every variable that is missing or cannot be taken.
    pub fn from_env(lookup: &Lookup<'_>) -> Result<Self, Failure> {
        let mut findings = Vec::new();
        let mut read = |name: &str| match lookup(name).map(OsString::into_string) {
            None => String::new(),
            Some(Ok(value)) => value,
            Some(Err(_)) => {
                findings.push(format!("{name} is not UTF-8"));
                String::new()
            }
        };
        let command = read("CNI_COMMAND");
        let container_id = read("CNI_CONTAINERID");
        let interface = read("CNI_IFNAME");
        let args = read("CNI_ARGS");
        let netns = lookup("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);

        let verb = Verb::parse(&command);
        if verb.is_none() {
            findings.push(match command.as_str() {
                "" => "CNI_COMMAND is missing".to_owned(),
                other => format!("CNI_COMMAND '{other}' is unknown"),
            });
        }
        let mut pod = PodArgs::default();
        if matches!(verb, Some(Verb::Add | Verb::Del | Verb::Check)) {
            check_container_id(&container_id, &mut findings);
            check_interface(&interface, &mut findings);
            if netns.is_none() && verb != Some(Verb::Del) {
                findings.push("CNI_NETNS is missing".to_owned());
            }
            pod = parse_args(&args, &mut findings);
        }
        match verb {
            Some(verb) if findings.is_empty() => Ok(Self { verb, container_id, netns, pod }),
            _ => Err(Failure::Environment(findings)),
        }
    }
}

/// "A unique plaintext identifier": starts with a letter or digit, then letters, digits, `_`, `.`, `-`.
fn check_container_id(id: &str, findings: &mut Vec<String>) {
    let mut chars = id.chars();
    match chars.next() {
        None => findings.push("CNI_CONTAINERID is missing".to_owned()),
        Some(first) => {
            if !first.is_ascii_alphanumeric()
                || !chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
            {
                findings.push(format!(
                    "CNI_CONTAINERID '{id}' is not a letter or digit followed by letters, digits, '_', '.', '-'"
                ));
            }
        }
    }
}

/// The kernel's rule for names of interfaces (`dev_valid_name`, `net/core/dev.c`).
fn check_interface(name: &str, findings: &mut Vec<String>) {
    if name.is_empty() {
        findings.push("CNI_IFNAME is missing".to_owned());
    } else if name.len() > 15
        || matches!(name, "." | "..")
        || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
    {
        findings.push(format!("CNI_IFNAME '{name}' is no name of an interface"));
    }
}

/// `K=V;K=V`, in any order. Keys that we do not know need `IgnoreUnknown=1`, as in the reference library.
fn parse_args(args: &str, findings: &mut Vec<String>) -> PodArgs {
    let mut pod = PodArgs::default();
    let mut ignore_unknown = false;
    let mut unknown = Vec::new();
    for pair in args.split(';').filter(|_| !args.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            findings.push(format!("CNI_ARGS: '{pair}' is not KEY=VALUE"));
            continue;
        };
        match (key, value) {
            ("K8S_POD_NAMESPACE", _) => value.clone_into(&mut pod.namespace),
            ("K8S_POD_NAME", _) => value.clone_into(&mut pod.name),
            ("K8S_POD_UID", _) => value.clone_into(&mut pod.uid),
            ("IgnoreUnknown", "1" | "true" | "TRUE" | "True") => ignore_unknown = true,
            ("IgnoreUnknown", "0" | "false" | "FALSE" | "False") => ignore_unknown = false,
            ("IgnoreUnknown", _) => findings.push(format!("CNI_ARGS: IgnoreUnknown '{value}' is neither 1 nor 0")),
            _ if POD_ARGS.contains(&key) => {}
            _ => unknown.push(key),
        }
    }
    if !ignore_unknown {
        findings.extend(unknown.iter().map(|key| format!("CNI_ARGS: unknown key '{key}' without IgnoreUnknown=1")));
    }
    pod
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<Request, String> {
        let env: BTreeMap<&str, &str> = pairs.iter().copied().collect();
        Request::from_env(&|name| env.get(name).map(OsString::from)).map_err(|failure| {
            assert_eq!(failure.code(), 4);
            failure.to_string()
        })
    }

    const COMPLETE: [(&str, &str); 4] =
        [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/run/netns/a"), ("CNI_IFNAME", "eth0")];

    #[test]
    fn names_everything_that_is_missing() {
        assert_eq!(
            from(&[("CNI_COMMAND", "ADD")]).unwrap_err(),
            "bad environment: CNI_CONTAINERID is missing; CNI_IFNAME is missing; CNI_NETNS is missing"
        );
        assert_eq!(from(&[]).unwrap_err(), "bad environment: CNI_COMMAND is missing");
        assert_eq!(from(&[("CNI_COMMAND", "add")]).unwrap_err(), "bad environment: CNI_COMMAND 'add' is unknown");
    }

    #[test]
    fn del_does_not_need_a_namespace() {
        let mut env = COMPLETE;
        env[0].1 = "DEL";
        env[2].1 = "";
        assert_eq!(from(&env).unwrap().netns, None);
        env[0].1 = "CHECK";
        assert!(from(&env).unwrap_err().contains("CNI_NETNS is missing"));
    }

    #[test]
    fn verbs_without_a_container_need_only_their_name() {
        for verb in ["STATUS", "GC", "VERSION"] {
            assert!(from(&[("CNI_COMMAND", verb)]).is_ok(), "{verb}");
        }
    }

    #[test]
    fn reads_pod_arguments_in_any_order() {
        let mut env = COMPLETE.to_vec();
        for args in [
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=1-2",
            "K8S_POD_UID=1-2;K8S_POD_NAME=web-1;FOO=a=b;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop",
        ] {
            env.push(("CNI_ARGS", args));
            let pod = from(&env).unwrap().pod;
            assert_eq!(pod.full_name(), "shop/web-1");
            assert!(pod.is_kubernetes());
        }
        env.push(("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=podman-box"));
        assert!(!from(&env).unwrap().pod.is_kubernetes());
        env.push(("CNI_ARGS", ""));
        assert_eq!(from(&env).unwrap().pod, PodArgs::default());
    }

    #[test]
    fn refuses_pairs_without_a_value_and_unknown_keys() {
        let mut env = COMPLETE.to_vec();
        env.push(("CNI_ARGS", "K8S_POD_NAME;COLOR=red;IgnoreUnknown=maybe"));
        assert_eq!(
            from(&env).unwrap_err(),
            "bad environment: CNI_ARGS: 'K8S_POD_NAME' is not KEY=VALUE; CNI_ARGS: IgnoreUnknown 'maybe' is neither 1 nor 0; \
             CNI_ARGS: unknown key 'COLOR' without IgnoreUnknown=1"
        );
    }

    #[test]
    fn refuses_ids_and_interfaces_that_cannot_be() {
        for (name, value) in [
            ("CNI_CONTAINERID", "-x"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_IFNAME", "a b"),
            ("CNI_IFNAME", "eth0:1"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "sixteen-letters-"),
        ] {
            let mut env = COMPLETE.to_vec();
            env.push((name, value));
            assert!(from(&env).unwrap_err().contains(&format!("{name} '{value}'")));
        }
    }

    #[test]
    fn refuses_text_that_is_not_utf8() {
        let failure = Request::from_env(&|name| match name {
            "CNI_ARGS" => Some(OsString::from_vec(vec![0xff])),
            _ => COMPLETE.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)),
        });
        assert_eq!(failure.unwrap_err().to_string(), "bad environment: CNI_ARGS is not UTF-8");
    }

    proptest! {
        #[test]
        fn never_panics(args in ".{0,80}", id in ".{0,20}", interface in ".{0,20}") {
            let mut env = COMPLETE.to_vec();
            env.extend([("CNI_ARGS", args.as_str()), ("CNI_CONTAINERID", &id), ("CNI_IFNAME", &interface)]);
            let _ = from(&env);
        }
    }
}
