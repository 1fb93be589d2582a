//! Parses the environment of a call: `CNI_COMMAND` and the other parameters of the CNI specification (section 2), and `CNI_ARGS`.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::CniError;
use weir_protocol::version::Verb;

/// Parameters of a call, validated as far as the verb needs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `CNI_COMMAND`.
    pub verb: Verb,
    /// `CNI_CONTAINERID`, the id of the sandbox; empty for verbs without one.
    pub container_id: String,
    /// `CNI_NETNS`; `None` for verbs without one, and on DEL once the namespace is gone.
    pub netns: Option<PathBuf>,
    /// The pod, from `CNI_ARGS`.
    pub pod: PodArgs,
}

/// The pod that `CNI_ARGS` names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodArgs {
    /// `K8S_POD_NAMESPACE`; empty where it is absent.
    pub namespace: String,
    /// `K8S_POD_NAME`; empty where it is absent.
    pub name: String,
    /// `K8S_POD_UID`; empty where it is absent.
    pub uid: String,
}

impl PodArgs {
    /// Returns whether the call is about a pod of Kubernetes. Podman passes a name, but no namespace.
    pub fn is_kubernetes(&self) -> bool {
        !self.namespace.is_empty() && !self.name.is_empty()
    }

    /// Returns `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Function that returns the value of an environment variable.
pub type EnvLookup<'a> = dyn Fn(&str) -> Option<OsString> + 'a;

/// Keys of `CNI_ARGS` that container runtimes send.
const POD_ARGS: [&str; 4] = ["K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID"];

impl Request {
    /// Parses and validates the environment.
    ///
    /// # Errors
    /// [`CniError::InvalidEnvironment`] with every variable that is missing or invalid.
    pub fn from_env(lookup: &EnvLookup<'_>) -> Result<Self, CniError> {
        let mut faults = Vec::new();
        let mut read = |name: &str| match lookup(name).map(OsString::into_string) {
            None => String::new(),
            Some(Ok(value)) => value,
            Some(Err(_)) => {
                faults.push(format!("{name} is not UTF-8"));
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
            faults.push(match command.as_str() {
                "" => "CNI_COMMAND is missing".to_owned(),
                other => format!("CNI_COMMAND '{other}' is unknown"),
            });
        }
        let mut pod = PodArgs::default();
        if matches!(verb, Some(Verb::Add | Verb::Del | Verb::Check)) {
            check_container_id(&container_id, &mut faults);
            check_interface(&interface, &mut faults);
            if netns.is_none() && verb != Some(Verb::Del) {
                faults.push("CNI_NETNS is missing".to_owned());
            }
            pod = parse_args(&args, &mut faults);
        }
        match verb {
            Some(verb) if faults.is_empty() => Ok(Self { verb, container_id, netns, pod }),
            _ => Err(CniError::InvalidEnvironment(faults)),
        }
    }
}

/// Checks a container id by the specification: a letter or digit, then letters, digits, `_`, `.`, `-`.
fn check_container_id(id: &str, faults: &mut Vec<String>) {
    let mut chars = id.chars();
    match chars.next() {
        None => faults.push("CNI_CONTAINERID is missing".to_owned()),
        Some(first) => {
            if !first.is_ascii_alphanumeric()
                || !chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
            {
                faults.push(format!(
                    "CNI_CONTAINERID '{id}' is not a letter or digit followed by letters, digits, '_', '.', '-'"
                ));
            }
        }
    }
}

/// Checks an interface name by the kernel's rule (`dev_valid_name`, `net/core/dev.c`).
fn check_interface(name: &str, faults: &mut Vec<String>) {
    if name.is_empty() {
        faults.push("CNI_IFNAME is missing".to_owned());
    } else if name.len() > 15
        || matches!(name, "." | "..")
        || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
    {
        faults.push(format!("CNI_IFNAME '{name}' is not a valid interface name"));
    }
}

/// Parses `K=V;K=V`, in any order. Unknown keys need `IgnoreUnknown=1`, as in the reference library.
fn parse_args(args: &str, faults: &mut Vec<String>) -> PodArgs {
    let mut pod = PodArgs::default();
    let mut ignore_unknown = false;
    let mut unknown = Vec::new();
    for pair in args.split(';').filter(|_| !args.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            faults.push(format!("CNI_ARGS: '{pair}' is not KEY=VALUE"));
            continue;
        };
        match (key, value) {
            ("K8S_POD_NAMESPACE", _) => value.clone_into(&mut pod.namespace),
            ("K8S_POD_NAME", _) => value.clone_into(&mut pod.name),
            ("K8S_POD_UID", _) => value.clone_into(&mut pod.uid),
            ("IgnoreUnknown", "1" | "true" | "TRUE" | "True") => ignore_unknown = true,
            ("IgnoreUnknown", "0" | "false" | "FALSE" | "False") => ignore_unknown = false,
            ("IgnoreUnknown", _) => {
                faults.push(format!("CNI_ARGS: IgnoreUnknown '{value}' is not 0, 1, true or false"));
            }
            _ if POD_ARGS.contains(&key) => {}
            _ => unknown.push(key),
        }
    }
    if !ignore_unknown {
        faults.extend(unknown.iter().map(|key| format!("CNI_ARGS: unknown key '{key}' without IgnoreUnknown=1")));
    }
    pod
}

#[cfg(test)]
mod tests;
