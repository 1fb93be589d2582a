//! The webhook in a cluster: manifests applied with kubectl, replicas running, endpoints of its Service updated.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use weir_tests::wait_until;

use super::api_server::Cluster;
use super::kubectl::Kubectl;
use super::replica::Replica;

pub(crate) const NAMESPACE: &str = "weir-system";
pub(crate) const SERVICE: &str = "weir-webhook";
pub(crate) const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/weir-sidecar-injector";

/// An installed webhook with its replicas. Stops when dropped.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) cluster: Cluster,
    pub(crate) kubectl: Kubectl,
    replicas: Arc<Mutex<Vec<Replica>>>,
    stopped: Arc<AtomicBool>,
    endpoints: Option<JoinHandle<()>>,
    /// The applied overlay.
    overlay: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mesh {
    /// Applies an overlay of the manifests and starts two replicas; `None` without kubectl.
    pub(crate) fn install(cluster: &Cluster, overlay: &str) -> Option<Self> {
        Self::install_with(cluster, overlay, &[])
    }

    /// Like [`install`](Self::install), with further arguments of the webhook.
    pub(crate) fn install_with(cluster: &Cluster, overlay: &str, args: &[&str]) -> Option<Self> {
        let kubectl = Kubectl::new_or_skip(cluster.kubeconfig())?;
        let dir = tempfile::tempdir().unwrap();
        let manifests = dir.path().join("manifests");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
        assert!(Command::new("cp").arg("-r").args([&source, &manifests]).status().unwrap().success());
        if overlay == "overlays/own-certificate" {
            create_certificates(&manifests);
        }
        let overlay = manifests.join(overlay);
        apply(&kubectl, &overlay);
        let deployment =
            cluster.get(&format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{SERVICE}")).expect_ok();
        let replicas: Vec<Replica> = (0..deployment["spec"]["replicas"].as_u64().unwrap())
            .map(|number| {
                let mut replica =
                    Replica::new(cluster, &deployment, &format!("{SERVICE}-{number}"), dir.path()).with_args(args);
                replica.start();
                replica
            })
            .collect();
        let replicas = Arc::new(Mutex::new(replicas));
        let stopped = Arc::new(AtomicBool::new(false));
        let endpoints = thread::spawn({
            let (cluster, replicas, stopped) = (cluster.clone(), Arc::clone(&replicas), Arc::clone(&stopped));
            move || update_endpoints(&cluster, &replicas, &stopped)
        });
        let cluster = cluster.clone();
        Some(Self { cluster, kubectl, replicas, stopped, endpoints: Some(endpoints), overlay, _dir: dir })
    }

    pub(crate) fn replicas(&self) -> MutexGuard<'_, Vec<Replica>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies the manifests again.
    #[track_caller]
    pub(crate) fn apply(&self) {
        apply(&self.kubectl, &self.overlay);
    }

    /// Waits until all replicas are ready and the API server reaches one.
    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        self.replicas().iter_mut().for_each(Replica::wait_ready);
        self.wait_admitting();
    }

    /// Waits until the API server gets a response from the webhook.
    #[track_caller]
    pub(crate) fn wait_admitting(&self) {
        let probe = super::workload::pod("probe");
        self.cluster.ensure_namespace("probe", &serde_json::json!({"istio-injection": "enabled"}));
        wait_until("the webhook is called", || {
            let response = self.cluster.post("/api/v1/namespaces/probe/pods?dryRun=All", &probe);
            if super::workload::is_injected(&response.body) {
                Ok(())
            } else {
                Err(format!("{} {}", response.code, response.body))
            }
        });
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(endpoints) = self.endpoints.take() {
            let _ = endpoints.join();
        }
        if thread::panicking() {
            for replica in self.replicas().iter() {
                eprintln!("--- {}\n{}", replica.name, replica.log());
            }
        }
    }
}

#[track_caller]
fn apply(kubectl: &Kubectl, dir: &Path) {
    kubectl.ok(&["apply", "--server-side", "--validate=false", "-k", dir.to_str().unwrap()], "");
}

/// Probes the replicas and updates the endpoints, as kubelets and the endpoint controller do.
fn update_endpoints(cluster: &Cluster, replicas: &Mutex<Vec<Replica>>, stopped: &AtomicBool) {
    let mut current: Option<Vec<SocketAddr>> = None;
    while !stopped.load(Ordering::Relaxed) {
        let ready: Vec<SocketAddr> = {
            let replicas = replicas.lock().unwrap_or_else(PoisonError::into_inner);
            replicas.iter().filter(|replica| replica.probe().is_ok()).map(|replica| replica.https).collect()
        };
        if current.as_ref() != Some(&ready) {
            cluster.set_endpoints(NAMESPACE, SERVICE, 443, &ready);
            current = Some(ready);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Creates the certificates that the overlay `own-certificate` expects in its directory.
fn create_certificates(manifests: &Path) {
    let output = Command::new(weir_tests::bin("weir-webhook"))
        .args(["certs", "--dns", "weir-webhook.weir-system.svc", "--out"])
        .arg(manifests.join("components/own-certificate/certs"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
