//! From the flags about the cluster to what the parts need.

use std::path::{Path, PathBuf};

use super::configuration::Wanted;
use crate::args::{ClusterArgs, ServeArgs};

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
    /// What is followed to make settings of it.
    pub followed: Option<Wanted>,
}

/// Flags that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Neither told nor found.
    #[error("the webhook's namespace is not known: {NAMESPACE_FILE} is not there; give --namespace or POD_NAMESPACE")]
    Namespace,
}

impl Settings {
    /// What the flags ask for; `None` where nothing asks for the cluster.
    ///
    /// # Errors
    /// Flags that cannot be followed.
    pub fn resolve(args: &ServeArgs) -> Result<Option<Self>, SettingsError> {
        let ClusterArgs { kubeconfig, namespace, pod_name, .. } = &args.cluster;
        // A namespace alone is in the environment of every pod and asks for nothing.
        if kubeconfig.is_none() && !args.cluster.follows() {
            return Ok(None);
        }
        let namespace =
            given(namespace.as_deref()).or_else(|| read(Path::new(NAMESPACE_FILE))).ok_or(SettingsError::Namespace)?;
        let replica = given(pod_name.as_deref())
            .or_else(|| read(Path::new(HOSTNAME_FILE)))
            .unwrap_or_else(|| format!("process-{}", std::process::id()));
        Ok(Some(Self { kubeconfig: kubeconfig.clone(), namespace, replica, followed: None }))
    }
}

fn given(text: Option<&str>) -> Option<String> {
    text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn read(path: &Path) -> Option<String> {
    given(std::fs::read_to_string(path).ok().as_deref())
}
