//! From the flags about the cluster to what the parts need.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bundle::Mode;
use super::ca::{self, Times};
use super::configuration::Wanted;
use crate::args::{ClusterArgs, ServeArgs};
use crate::server::certs::{CA_FILE, check_names};

/// Where the kubelet tells a pod its namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
/// Where the kernel tells the host's name, which in a pod is the pod's.
const HOSTNAME_FILE: &str = "/proc/sys/kernel/hostname";

/// What of the cluster is used, and from where.
#[derive(Debug)]
pub struct Settings {
    /// `None`: the cluster that this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// The webhook's own namespace.
    pub namespace: String,
    /// Name of this replica.
    pub replica: String,
    /// Revision of the objects that are ours; `default` for none.
    pub revision: String,
    /// How often files, and what is not watched, are looked at.
    pub interval: Duration,
    /// The built-in CA.
    pub ca: Option<ca::Options>,
    /// What is done about `caBundle`.
    pub bundle: Option<Mode>,
    /// The CA of certificate files.
    pub ca_file: Option<PathBuf>,
    /// What is followed to make settings of it.
    pub followed: Option<Wanted>,
}

/// Flags that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Neither told nor found.
    #[error("the webhook's namespace is not known: {NAMESPACE_FILE} is not there; give --namespace or POD_NAMESPACE")]
    Namespace,
    /// A bundle of unknown content.
    #[error("--patch-ca-bundle needs to know the CA: give --ca-secret, or --ca-cert-file beside the certificate files")]
    NoCa,
    /// Nothing to put it into.
    #[error("--ca-cert-file is of no use without --patch-ca-bundle")]
    UnusedCa,
    /// Names of no use.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// Times that contradict each other.
    #[error("--leaf-lifetime {leaf:?} has to be at least 2s, and --ca-lifetime {ca:?} at least three times as long")]
    Lifetimes {
        /// Of a leaf.
        leaf: Duration,
        /// Of the CA.
        ca: Duration,
    },
}

/// A name that cannot be used, as text: errors of certificates cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NamesError(String);

impl Settings {
    /// What the flags ask for; `None` where nothing asks for the cluster.
    ///
    /// # Errors
    /// Flags that cannot be followed.
    pub fn resolve(args: &ServeArgs) -> Result<Option<Self>, SettingsError> {
        let flags = &args.cluster;
        let bundle = match flags.patch_ca_bundle {
            Some(true) => Some(Mode::Patch),
            // Whoever has a CA of ours wants to know whether the bundle fits, too.
            Some(false) => flags.ca_secret.is_some().then_some(Mode::Verify),
            None if flags.verify_ca_bundle => Some(Mode::Verify),
            None => flags.ca_secret.is_some().then_some(Mode::Patch),
        };
        let patches = bundle == Some(Mode::Patch);
        let ca_file = match (&flags.ca_cert_file, &args.cert_dir, &flags.ca_secret) {
            (Some(_), _, _) if !patches => return Err(SettingsError::UnusedCa),
            (Some(file), _, _) => Some(file.clone()),
            (None, Some(dir), None) if patches => Some(dir.join(CA_FILE)),
            (None, None, None) if patches => return Err(SettingsError::NoCa),
            (None, _, _) => None,
        };
        // The namespace alone is in the environment of every pod and asks for nothing.
        if bundle.is_none() && flags.ca_secret.is_none() && !flags.follows() {
            return Ok(None);
        }
        let namespace = given(flags.namespace.as_deref())
            .or_else(|| read(Path::new(NAMESPACE_FILE)))
            .ok_or(SettingsError::Namespace)?;
        let ca = flags.ca_secret.as_ref().map(|secret| ca_options(args, secret, &namespace)).transpose()?;
        let replica = given(flags.pod_name.as_deref())
            .or_else(|| read(Path::new(HOSTNAME_FILE)))
            .unwrap_or_else(|| format!("process-{}", std::process::id()));
        let revision = given(Some(&args.revision)).unwrap_or_else(|| "default".to_owned());
        let (kubeconfig, interval) = (flags.kubeconfig.clone(), args.reload_interval());
        Ok(Some(Self { kubeconfig, namespace, replica, revision, interval, ca, bundle, ca_file, followed: None }))
    }
}

fn ca_options(args: &ServeArgs, secret: &str, namespace: &str) -> Result<ca::Options, SettingsError> {
    let ClusterArgs { service, leaf_lifetime: leaf, ca_lifetime: ca, ca_settle: settle, ca_retire_after, .. } =
        &args.cluster;
    if *leaf < Duration::from_secs(2) || *ca < *leaf * 3 {
        return Err(SettingsError::Lifetimes { leaf: *leaf, ca: *ca });
    }
    let service = given(service.as_deref()).unwrap_or_else(|| match given(Some(&args.revision)) {
        None => "weir-webhook".to_owned(),
        Some(revision) => format!("weir-webhook-{revision}"),
    });
    let mut names = ca::names(&service, namespace);
    names.extend(args.dns.iter().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
    let names = check_names(&names).map_err(|error| NamesError(error.to_string()))?;
    let times = Times { ca: *ca, leaf: *leaf, settle: *settle, retire: ca_retire_after.unwrap_or(*leaf) };
    Ok(ca::Options { secret: secret.to_owned(), names, times, interval: args.reload_interval() })
}

fn given(text: Option<&str>) -> Option<String> {
    text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn read(path: &Path) -> Option<String> {
    given(std::fs::read_to_string(path).ok().as_deref())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    fn resolve(flags: &[&str]) -> Result<Option<Settings>, SettingsError> {
        let base = ["weir-webhook", "--namespace", "mesh", "--pod-name", "w-1"];
        Settings::resolve(&Cli::try_parse_from(base.iter().chain(flags)).unwrap().serve)
    }

    #[test]
    fn without_a_flag_that_needs_it_nobody_is_talked_to() {
        for flags in [&[][..], &["--kubeconfig", "/k"], &["--cert-dir", "/c"], &["--patch-ca-bundle=false"]] {
            assert!(resolve(flags).unwrap().is_none(), "{flags:?}");
        }
    }

    #[test]
    fn a_ca_of_our_own_keeps_the_bundle_right_unless_told_otherwise() {
        let found =
            resolve(&["--ca-secret", "ca", "--revision", "canary", "--dns", "mesh.example.org"]).unwrap().unwrap();
        let ca = found.ca.unwrap();
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
        assert_eq!((found.bundle, found.revision.as_str(), found.ca_file), (Some(Mode::Patch), "canary", None));
        assert_eq!(ca.times.retire, ca.times.leaf);
        let told = resolve(&["--ca-secret", "ca", "--patch-ca-bundle=false"]).unwrap().unwrap();
        assert_eq!((told.bundle, told.revision.as_str()), (Some(Mode::Verify), "default"));
    }

    #[test]
    fn the_bundle_of_files_is_named_or_beside_them() {
        let files = ["--tls-cert-file", "/c", "--tls-key-file", "/k"];
        let with = |more: &[&str]| resolve(&[&files[..], more].concat());
        assert_eq!(with(&["--patch-ca-bundle"]).unwrap_err(), SettingsError::NoCa);
        assert_eq!(with(&["--ca-cert-file", "/ca"]).unwrap_err(), SettingsError::UnusedCa);
        let found = with(&["--patch-ca-bundle", "--ca-cert-file", "/ca"]).unwrap().unwrap();
        assert_eq!((found.ca_file, found.bundle), (Some(PathBuf::from("/ca")), Some(Mode::Patch)));
        let found = resolve(&["--cert-dir", "/d", "--patch-ca-bundle"]).unwrap().unwrap();
        assert_eq!(found.ca_file, Some(PathBuf::from("/d/ca.crt")));
        let found = with(&["--verify-ca-bundle"]).unwrap().unwrap();
        assert_eq!((found.ca_file, found.bundle), (None, Some(Mode::Verify)));
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        let short = ["--ca-secret", "ca", "--leaf-lifetime", "24h", "--ca-lifetime", "48h"];
        assert!(matches!(resolve(&short), Err(SettingsError::Lifetimes { .. })));
        let names = ["--ca-secret", "ca", "--service", "not a name"];
        assert!(resolve(&names).unwrap_err().to_string().contains("\"not a name\""));
        for both in [["--ca-secret=ca", "--cert-dir=/d"], ["--verify-ca-bundle", "--patch-ca-bundle"]] {
            assert!(Cli::try_parse_from(["weir-webhook"].iter().chain(&both)).is_err(), "{both:?}");
        }
    }
}
