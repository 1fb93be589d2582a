//! The release of Istio that the documents belong to.

use serde_json::Value;

/// Releases of Istio 1.x whose documents are supported, see docs/compatibility.md.
const OLDEST: u32 = 17;
const NEWEST: u32 = 31;
/// First release whose configuration has templates by name.
const FIRST_WITH_TEMPLATES: u32 = 8;

/// A release of Istio 1.x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Release {
    /// Minor version, for example 28; unknown counts as the newest.
    minor: Option<u32>,
}

impl Release {
    /// Reads the release from `global.tag`. For a tag without a version (`latest`, a digest), keys that only older charts have decide.
    pub(super) fn of(tag: &str, values: &Value) -> Self {
        let before_1_22 = values.get("istio_cni").is_some() && values.pointer("/pilot/cni").is_none();
        Self { minor: minor_of(tag).or(before_1_22.then_some(21)) }
    }

    /// Reads the release from the image tag of a container; `None` for a tag without a version, or no tag.
    pub(crate) fn of_container(container: &Value) -> Option<Self> {
        Self::of_image(container["image"].as_str()?)
    }

    /// Reads the release from the tag of an image; `None` for a tag without a version, or no tag.
    pub fn of_image(image: &str) -> Option<Self> {
        let name = image.split('@').next()?.rsplit('/').next()?;
        let (_, tag) = name.split_once(':')?;
        Some(Self { minor: Some(minor_of(tag)?) })
    }

    /// Returns why an installation of this release is not supported, as a clause about it; `None` if it is, or the release is unknown.
    pub fn unsupported_reason(self) -> Option<String> {
        match self.minor? {
            minor if minor < FIRST_WITH_TEMPLATES => {
                Some(format!("is older than 1.{FIRST_WITH_TEMPLATES}: its injector configuration is rejected"))
            }
            minor if minor < OLDEST => Some(format!("is older than 1.{OLDEST}, the oldest supported release")),
            minor if minor > NEWEST => Some(format!("is newer than 1.{NEWEST}, the newest release that is known")),
            _ => None,
        }
    }

    /// Returns whether the release is known to be before 1.`minor`.
    pub(crate) fn is_before(self, minor: u32) -> bool {
        self.minor.is_some_and(|known| known < minor)
    }
}

/// Returns the minor version in an image tag: `1.28.3`, `1.20-alpha.1a2b3c-distroless`, `v1.24.0`.
fn minor_of(tag: &str) -> Option<u32> {
    let rest = tag.strip_prefix('v').unwrap_or(tag).strip_prefix("1.")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (minor, after) = rest.split_at(end);
    (after.is_empty() || after.starts_with(['.', '-'])).then(|| minor.parse().ok())?
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tag_has_the_minor_version() {
        for (tag, minor) in [
            ("1.28.3", Some(28)),
            ("v1.24.0", Some(24)),
            ("1.20-alpha.1a2b3c-distroless", Some(20)),
            ("1.31", Some(31)),
            ("latest", None),
            ("1.x", None),
            ("1.", None),
            ("2.1.0", None),
        ] {
            assert_eq!(minor_of(tag), minor, "{tag}");
        }
    }

    #[test]
    fn image_has_the_release_in_its_tag() {
        let of = |image: &str| Release::of_container(&json!({"image": image}));
        assert!(of("host:5000/istio/proxyv2:1.24.6-distroless@sha256:00").unwrap().is_before(25));
        assert!(!of("proxyv2:1.25.0").unwrap().is_before(25));
        for image in ["host:5000/proxyv2", "proxyv2@sha256:1.2", "proxyv2:latest", ""] {
            assert_eq!(of(image), None, "{image}");
        }
    }

    #[test]
    fn releases_that_nobody_tests_are_unsupported() {
        let reason = |tag: &str| Release::of(tag, &json!({})).unsupported_reason();
        for tag in ["1.17.0", "1.31-alpha.0", "latest"] {
            assert_eq!(reason(tag), None, "{tag}");
        }
        assert!(reason("1.7.4").unwrap().contains("is rejected"));
        assert!(reason("1.16.7").unwrap().contains("older than 1.17"));
        assert!(reason("1.32.0").unwrap().contains("newer than 1.31"));
    }

    #[test]
    fn keys_of_older_charts_count_without_a_version_in_the_tag() {
        let old = json!({"istio_cni": {"enabled": false}});
        assert!(Release::of("latest", &old).is_before(22));
        assert!(!Release::of("1.24.1", &old).is_before(22), "the tag counts");
        assert!(!Release::of("latest", &json!({"pilot": {"cni": {}}})).is_before(22));
    }
}
