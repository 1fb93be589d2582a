//! Flags that a Deployment passes to the webhook. The webhook's own parser is not used: the webhook may be of another version.

use crate::snapshot::own::Controller;

/// Arguments and environment of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Flags {
    /// Returns the flags of the container `weir-webhook`, else of the first container.
    pub(crate) fn of_webhook(deployment: &Controller) -> Self {
        let containers = &deployment.spec.template.spec.containers;
        let named = containers.iter().find(|container| container.name == "weir-webhook");
        let Some(container) = named.or(containers.first()) else { return Self::default() };
        let env = container.env.iter().filter_map(|variable| Some((variable.name.clone(), variable.value.clone()?)));
        Self { args: [&container.command[..], &container.args].concat(), env: env.collect() }
    }

    /// Returns the value of `--name`, else of the environment variable of that flag. An empty value counts as unset.
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
        let variable = || {
            let wanted = format!("WEIR_{}", name.to_uppercase().replace('-', "_"));
            self.env.iter().rfind(|(name, _)| *name == wanted).map(|(_, value)| value.as_str())
        };
        values.next_back().or_else(variable).filter(|value| !value.is_empty())
    }

    /// Returns whether a boolean flag is set, or is `default` when it is not given.
    pub(crate) fn is_on(&self, name: &str, default: bool) -> bool {
        let bare = self.args.iter().any(|arg| arg.strip_prefix("--") == Some(name));
        match self.get(name) {
            Some("true") => true,
            Some("false") => false,
            _ => bare || default,
        }
    }

    /// Returns whether a comma-separated list flag contains an item.
    pub(crate) fn contains(&self, name: &str, item: &str) -> bool {
        self.get(name).is_some_and(|list| list.split(',').any(|listed| listed.trim() == item))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_arguments_and_environment() {
        let container = json!({
            "name": "weir-webhook",
            "args": ["--values=/etc/v", "--ca-secret", "mine", "--patch-ca-bundle", "--watch=nodes, namespaces"],
            "env": [{"name": "WEIR_REVISION", "value": "r1"}, {"name": "POD_NAMESPACE", "valueFrom": {}}],
        });
        let template = json!({"spec": {"containers": [{"name": "other"}, container]}});
        let deployment: Controller =
            serde_json::from_value(json!({"metadata": {}, "spec": {"template": template}})).unwrap();
        let flags = Flags::of_webhook(&deployment);
        assert_eq!(flags.get("values"), Some("/etc/v"));
        assert_eq!(flags.get("ca-secret"), Some("mine"));
        assert_eq!(flags.get("revision"), Some("r1"));
        assert_eq!(flags.get("patch-ca-bundle"), None);
        assert!(flags.is_on("patch-ca-bundle", false) && flags.is_on("other", true) && !flags.is_on("value", false));
        assert!(flags.contains("watch", "namespaces") && !flags.contains("watch", "name"));
    }
}
