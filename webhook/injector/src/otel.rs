//! OpenTelemetry's service attributes of a pod, the value of `OTEL_RESOURCE_ATTRIBUTES`.

/// The properties of a pod from which the semantic conventions derive a service's attributes.
pub(crate) struct ServiceAttributes<'a> {
    /// Namespace of the workload.
    pub(crate) namespace: &'a str,
    /// Looks up an annotation of the pod.
    pub(crate) annotated: &'a dyn Fn(&str) -> Option<String>,
    /// Label `app.kubernetes.io/version`.
    pub(crate) version_label: Option<String>,
    /// Name of the first container.
    pub(crate) first_container: Option<String>,
    /// Image of the container, if there is only one.
    pub(crate) only_image: Option<String>,
}

impl ServiceAttributes<'_> {
    /// Returns `service.namespace`, `service.version` and `service.instance.id`, as far as they are known.
    pub(crate) fn to_text(&self) -> String {
        let annotated = |name: &str| (self.annotated)(&format!("resource.opentelemetry.io/{name}"));
        let namespace = self.namespace;
        let version = annotated("service.version")
            .or_else(|| self.version_label.clone())
            .or_else(|| self.only_image.as_deref().and_then(image_version));
        let instance = annotated("service.instance.id")
            .or_else(|| Some(format!("{namespace}.$(POD_NAME).{}", self.first_container.as_deref()?)));
        let attributes = [
            ("service.namespace", annotated("service.namespace").or_else(|| Some(namespace.to_owned()))),
            ("service.version", version),
            ("service.instance.id", instance),
        ];
        let known =
            attributes.into_iter().filter_map(|(key, value)| Some((key, value.filter(|value| !value.is_empty())?)));
        known.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }
}

/// Returns `tag@digest` of an image reference, or the one of the two that it has.
fn image_version(image: &str) -> Option<String> {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    match (tag, digest) {
        (Some(tag), Some(digest)) => Some(format!("{tag}@{digest}")),
        (one, other) => one.or(other).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_port_is_not_an_image_version() {
        assert_eq!(image_version("r:5000/a/b:1.0"), Some("1.0".to_owned()));
        assert_eq!(image_version("r:5000/a/b"), None);
        assert_eq!(image_version("b@sha256:0f"), Some("sha256:0f".to_owned()));
        assert_eq!(image_version("b:1@sha256:0f"), Some("1@sha256:0f".to_owned()));
    }
}
