//! Resolves the flags about the cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ca::{self, CaLifetimes, CaOptions};
use super::ca_bundle::CaBundleMode;
use super::settings_watch::WatchConfig;
use crate::args::{ClusterArgs, ServeArgs};
use crate::certs::{CA_FILE, check_names};

/// File in which the kubelet writes the namespace of a pod.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
/// Name of the host, which in a pod is the pod's.
const HOSTNAME_FILE: &str = "/proc/sys/kernel/hostname";

/// Settings of the controllers.
#[derive(Debug)]
pub struct ControllerConfig {
    /// `None` for the cluster that the process runs in.
    pub(super) kubeconfig: Option<PathBuf>,
    /// Namespace of the webhook.
    pub(crate) namespace: String,
    /// Name of this replica.
    pub(super) pod_name: String,
    /// Revision of our objects; `default` for none.
    pub(super) revision: String,
    /// Interval at which files, and objects that are not watched, are read.
    pub(super) poll_interval: Duration,
    /// The built-in CA.
    pub(super) ca: Option<CaOptions>,
    /// Reaction to a wrong `caBundle`.
    pub(super) ca_bundle_mode: Option<CaBundleMode>,
    /// The CA of certificate files.
    pub(super) ca_file: Option<PathBuf>,
    /// Objects that are watched for the injector settings.
    pub(crate) watch: Option<WatchConfig>,
}

/// Error of flags about the cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControllerConfigError {
    /// The namespace is neither configured nor found.
    #[error(
        "cannot determine the webhook's namespace: {NAMESPACE_FILE} does not exist; set --namespace or POD_NAMESPACE"
    )]
    UnknownNamespace,
    /// There is no CA to write into `caBundle`.
    #[error("--patch-ca-bundle requires --ca-secret, or --ca-cert-file with certificate files")]
    MissingCa,
    /// A CA is given, but `caBundle` is not written.
    #[error("--ca-cert-file requires --patch-ca-bundle")]
    UnusedCaFile,
    /// A name is not valid in a certificate.
    #[error(transparent)]
    InvalidDnsName(#[from] DnsNameError),
    /// Lifetimes contradict each other.
    #[error("--leaf-lifetime {leaf:?} must be at least 2s and --ca-lifetime {ca:?} at least three times that")]
    InconsistentLifetimes {
        /// Lifetime of a leaf.
        leaf: Duration,
        /// Lifetime of the CA.
        ca: Duration,
    },
}

/// Error of an invalid name, as text: errors of certificates cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DnsNameError(String);

impl ControllerConfig {
    /// Resolves the flags; `None` if none of them needs the API server.
    ///
    /// # Errors
    /// See [`ControllerConfigError`].
    pub fn resolve(args: &ServeArgs) -> Result<Option<Self>, ControllerConfigError> {
        let flags = &args.cluster;
        let ca_bundle_mode = match flags.patch_ca_bundle {
            Some(true) => Some(CaBundleMode::Patch),
            // With the built-in CA, a wrong caBundle is worth reporting in any case.
            Some(false) => flags.ca_secret.is_some().then_some(CaBundleMode::Verify),
            None if flags.verify_ca_bundle => Some(CaBundleMode::Verify),
            None => flags.ca_secret.is_some().then_some(CaBundleMode::Patch),
        };
        let patches = ca_bundle_mode == Some(CaBundleMode::Patch);
        let ca_file = match (&flags.ca_cert_file, &args.cert_dir, &flags.ca_secret) {
            (Some(_), _, _) if !patches => return Err(ControllerConfigError::UnusedCaFile),
            (Some(file), _, _) => Some(file.clone()),
            (None, Some(dir), None) if patches => Some(dir.join(CA_FILE)),
            (None, None, None) if patches => return Err(ControllerConfigError::MissingCa),
            (None, _, _) => None,
        };
        // The namespace alone is in the environment of every pod.
        if ca_bundle_mode.is_none() && flags.ca_secret.is_none() && !flags.watches_settings() {
            return Ok(None);
        }
        let namespace = non_empty(flags.namespace.as_deref())
            .or_else(|| read(Path::new(NAMESPACE_FILE)))
            .ok_or(ControllerConfigError::UnknownNamespace)?;
        let ca = flags.ca_secret.as_ref().map(|secret| ca_options(args, secret, &namespace)).transpose()?;
        let pod_name = non_empty(flags.pod_name.as_deref())
            .or_else(|| read(Path::new(HOSTNAME_FILE)))
            .unwrap_or_else(|| format!("process-{}", std::process::id()));
        Ok(Some(Self {
            kubeconfig: flags.kubeconfig.clone(),
            namespace,
            pod_name,
            revision: non_empty(Some(&args.revision)).unwrap_or_else(|| "default".to_owned()),
            poll_interval: args.reload_interval(),
            ca,
            ca_bundle_mode,
            ca_file,
            watch: None,
        }))
    }
}

fn ca_options(args: &ServeArgs, secret: &str, namespace: &str) -> Result<CaOptions, ControllerConfigError> {
    let ClusterArgs { service, leaf_lifetime: leaf, ca_lifetime: ca, ca_settle: settle, ca_retire_after, .. } =
        &args.cluster;
    if *leaf < Duration::from_secs(2) || *ca < *leaf * 3 {
        return Err(ControllerConfigError::InconsistentLifetimes { leaf: *leaf, ca: *ca });
    }
    let service = non_empty(service.as_deref()).unwrap_or_else(|| match non_empty(Some(&args.revision)) {
        None => "weir-webhook".to_owned(),
        Some(revision) => format!("weir-webhook-{revision}"),
    });
    let mut names = ca::service_dns_names(&service, namespace);
    names.extend(args.dns.iter().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
    let names = check_names(&names).map_err(|error| DnsNameError(error.to_string()))?;
    let lifetimes = CaLifetimes { ca: *ca, leaf: *leaf, settle: *settle, retire: ca_retire_after.unwrap_or(*leaf) };
    Ok(CaOptions { secret: secret.to_owned(), names, lifetimes, poll_interval: args.reload_interval() })
}

fn non_empty(text: Option<&str>) -> Option<String> {
    text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn read(path: &Path) -> Option<String> {
    non_empty(std::fs::read_to_string(path).ok().as_deref())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    fn resolve(flags: &[&str]) -> Result<Option<ControllerConfig>, ControllerConfigError> {
        let base = ["weir-webhook", "--namespace", "mesh", "--pod-name", "w-1"];
        ControllerConfig::resolve(&Cli::try_parse_from(base.iter().chain(flags)).unwrap().serve)
    }

    #[test]
    fn flags_without_use_of_the_api_server_need_no_controller() {
        for flags in [&[][..], &["--kubeconfig", "/k"], &["--cert-dir", "/c"], &["--patch-ca-bundle=false"]] {
            assert!(resolve(flags).unwrap().is_none(), "{flags:?}");
        }
    }

    #[test]
    fn built_in_ca_patches_the_bundle_by_default() {
        let config =
            resolve(&["--ca-secret", "ca", "--revision", "canary", "--dns", "mesh.example.org"]).unwrap().unwrap();
        let ca = config.ca.unwrap();
        assert_eq!(
            ca.names,
            [
                "weir-webhook-canary",
                "weir-webhook-canary.mesh",
                "weir-webhook-canary.mesh.svc",
                "weir-webhook-canary.mesh.svc.cluster.local",
                "mesh.example.org"
            ]
        );
        assert_eq!((config.ca_bundle_mode, config.ca_file), (Some(CaBundleMode::Patch), None));
        assert_eq!((config.revision.as_str(), ca.lifetimes.retire), ("canary", ca.lifetimes.leaf));
        let config = resolve(&["--ca-secret", "ca", "--patch-ca-bundle=false"]).unwrap().unwrap();
        assert_eq!((config.ca_bundle_mode, config.revision.as_str()), (Some(CaBundleMode::Verify), "default"));
    }

    #[test]
    fn ca_of_certificate_files_is_named_or_beside_them() {
        let files = ["--tls-cert-file", "/c", "--tls-key-file", "/k"];
        let with = |more: &[&str]| resolve(&[&files[..], more].concat());
        assert_eq!(with(&["--patch-ca-bundle"]).unwrap_err(), ControllerConfigError::MissingCa);
        assert_eq!(with(&["--ca-cert-file", "/ca"]).unwrap_err(), ControllerConfigError::UnusedCaFile);
        let config = with(&["--patch-ca-bundle", "--ca-cert-file", "/ca"]).unwrap().unwrap();
        assert_eq!((config.ca_file, config.ca_bundle_mode), (Some(PathBuf::from("/ca")), Some(CaBundleMode::Patch)));
        let config = resolve(&["--cert-dir", "/d", "--patch-ca-bundle"]).unwrap().unwrap();
        assert_eq!(config.ca_file, Some(PathBuf::from("/d/ca.crt")));
        let config = with(&["--verify-ca-bundle"]).unwrap().unwrap();
        assert_eq!((config.ca_file, config.ca_bundle_mode), (None, Some(CaBundleMode::Verify)));
    }

    #[test]
    fn contradicting_flags_are_rejected() {
        let short = ["--ca-secret", "ca", "--leaf-lifetime", "24h", "--ca-lifetime", "48h"];
        assert!(matches!(resolve(&short), Err(ControllerConfigError::InconsistentLifetimes { .. })));
        let names = ["--ca-secret", "ca", "--service", "not a name"];
        assert!(resolve(&names).unwrap_err().to_string().contains("\"not a name\""));
        for both in [["--ca-secret=ca", "--cert-dir=/d"], ["--verify-ca-bundle", "--patch-ca-bundle"]] {
            assert!(Cli::try_parse_from(["weir-webhook"].iter().chain(&both)).is_err(), "{both:?}");
        }
    }
}
