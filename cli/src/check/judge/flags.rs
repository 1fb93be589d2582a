//! The flags that a Deployment gives the webhook, without the webhook's own parser: it may be of another version.

use std::collections::BTreeMap;

use serde_json::Value;

/// Arguments and environment of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    args: Vec<String>,
    env: BTreeMap<String, String>,
}

/// Those of the webhook's container.
pub(crate) fn flags(workload: &Value) -> Flags {
    let containers = workload["spec"]["template"]["spec"]["containers"].as_array().map_or(&[][..], Vec::as_slice);
    let named = containers.iter().find(|container| container["name"] == "weir-webhook");
    let Some(container) = named.or(containers.first()) else { return Flags::default() };
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let env = container["env"].as_array().into_iter().flatten();
    let env = env.filter_map(|item| Some((item["name"].as_str()?.to_owned(), item["value"].as_str()?.to_owned())));
    Flags { args: [texts(&container["command"]), texts(&container["args"])].concat(), env: env.collect() }
}

impl Flags {
    /// The value of `--name`, else of the variable of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.args.iter().enumerate().filter_map(|(at, arg)| {
            let rest = arg.strip_prefix("--")?.strip_prefix(name)?;
            match rest.strip_prefix('=') {
                Some(value) => Some(value),
                None if rest.is_empty() => {
                    self.args.get(at + 1).map(String::as_str).filter(|next| !next.starts_with("--"))
                }
                None => None,
            }
        });
        let variable = || self.env.get(&format!("WEIR_{}", name.to_uppercase().replace('-', "_"))).map(String::as_str);
        values.next_back().or_else(variable).filter(|value| !value.is_empty())
    }

    /// Whether a switch is on; `default` where nobody says.
    pub(crate) fn on(&self, name: &str, default: bool) -> bool {
        let bare = self.args.iter().any(|arg| arg.strip_prefix("--") == Some(name));
        match self.get(name) {
            Some("true") => true,
            Some("false") => false,
            _ => bare || default,
        }
    }

    /// Whether a list, separated by commas, has a word.
    pub(crate) fn lists(&self, name: &str, word: &str) -> bool {
        self.get(name).is_some_and(|list| list.split(',').any(|item| item.trim() == word))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_a_container_is_told() {
        let container = json!({
            "name": "weir-webhook",
            "args": ["--values=/etc/v", "--ca-secret", "mine", "--patch-ca-bundle", "--watch=nodes, namespaces"],
            "env": [{"name": "WEIR_REVISION", "value": "r1"}, {"name": "POD_NAMESPACE", "valueFrom": {}}],
        });
        let flags = flags(&json!({"spec": {"template": {"spec": {"containers": [{"name": "other"}, container]}}}}));
        assert_eq!(flags.get("values"), Some("/etc/v"));
        assert_eq!(flags.get("ca-secret"), Some("mine"));
        assert_eq!(flags.get("revision"), Some("r1"));
        assert_eq!(flags.get("patch-ca-bundle"), None);
        assert!(flags.on("patch-ca-bundle", false) && flags.on("other", true) && !flags.on("value", false));
        assert!(flags.lists("watch", "namespaces") && !flags.lists("watch", "name"));
    }
}
