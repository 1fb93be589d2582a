//! The object or collection that the path of a request names.

use super::resources::Resource;
use super::store::Store;

/// An object, or a collection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// `pods`, `nodes`, ...
    pub(super) resource: String,
    /// Empty for cluster-scoped resources and for all namespaces.
    pub(super) namespace: String,
    /// Empty for a collection.
    pub(super) name: String,
    /// `status`, `proxy` or empty.
    pub(super) subresource: String,
    /// The path after `proxy`, with its leading `/`.
    pub(super) rest: String,
    /// `v1` or `group/version`.
    pub(super) api_version: String,
}

impl Target {
    /// Parses `/api/v1/...` and `/apis/GROUP/VERSION/...`, then `namespaces/NAMESPACE/` or nothing, then `RESOURCE[/NAME[/SUBRESOURCE]]`.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (api_version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ((*version).to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            // `namespaces/NAME` and `namespaces/NAME/status` are the object itself.
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest != ["status"] => (*namespace, rest),
            rest => ("", rest),
        };
        let mut behind = String::new();
        let (resource, name, subresource) = match rest {
            [resource, name, "proxy", path @ ..] => {
                behind = format!("/{}", path.join("/"));
                (*resource, *name, "proxy")
            }
            [resource] => (*resource, "", ""),
            [resource, name] => (*resource, *name, ""),
            [resource, name, subresource] => (*resource, *name, *subresource),
            _ => return None,
        };
        let [resource, namespace, name, subresource] = [resource, namespace, name, subresource].map(str::to_owned);
        Some(Self { resource, namespace, name, subresource, rest: behind, api_version })
    }

    /// Returns the kind of the objects; for an unknown resource it is derived from the name.
    pub(super) fn kind(&self, store: &Store) -> String {
        if let Some(found) = Resource::find(store, &self.api_version, &self.resource) {
            return found.kind;
        }
        let mut letters = self.resource.strip_suffix('s').unwrap_or(&self.resource).chars();
        letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
    }

    /// Returns the API group, empty for the core group.
    pub(super) fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_paths_are_parsed() {
        for (path, expected) in [
            ("/api/v1/pods", Some(["v1", "", "pods", "", ""])),
            ("/api/v1/nodes/n1", Some(["v1", "", "nodes", "n1", ""])),
            ("/api/v1/namespaces", Some(["v1", "", "namespaces", "", ""])),
            ("/api/v1/namespaces/shop", Some(["v1", "", "namespaces", "shop", ""])),
            ("/api/v1/namespaces/shop/pods", Some(["v1", "shop", "pods", "", ""])),
            ("/api/v1/namespaces/shop/pods/web/status", Some(["v1", "shop", "pods", "web", "status"])),
            ("/apis/events.k8s.io/v1/namespaces/shop/events", Some(["events.k8s.io/v1", "shop", "events", "", ""])),
            ("/metrics", None),
            ("/api/v1/pods/a/b/c", None),
        ] {
            let target = Target::parse(path);
            let found =
                target.as_ref().map(|t| [&*t.api_version, &*t.namespace, &*t.resource, &*t.name, &*t.subresource]);
            assert_eq!(found, expected, "{path}");
        }
        let kind = |path| Target::parse(path).unwrap().kind(&Store::default());
        assert_eq!(kind("/api/v1/configmaps"), "ConfigMap");
        assert_eq!(kind("/apis/example.org/v1/widgets"), "Widget");
        let proxied = Target::parse("/api/v1/namespaces/a/services/https:web:443/proxy/x/y").unwrap();
        assert_eq!((&*proxied.name, &*proxied.subresource, &*proxied.rest), ("https:web:443", "proxy", "/x/y"));
    }
}
