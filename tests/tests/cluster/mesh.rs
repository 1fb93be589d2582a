//! The webhook in a cluster: the manifests applied with kubectl, replicas running, the endpoints of its Service kept.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::cluster::{Cluster, until};
use super::kubectl::Kubectl;
use super::replica::Replica;

pub(crate) const NAMESPACE: &str = "weir-system";
pub(crate) const SERVICE: &str = "weir-webhook";
pub(crate) const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/weir-sidecar-injector";

/// See the module. Everything ends with the value.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) cluster: Cluster,
    pub(crate) kubectl: Kubectl,
    replicas: Arc<Mutex<Vec<Replica>>>,
    over: Arc<AtomicBool>,
    endpoints: Option<JoinHandle<()>>,
    /// What was applied.
    folder: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mesh {
    /// Applies an overlay of the manifests and starts two replicas; `None` where there is no kubectl.
    pub(crate) fn install(cluster: &Cluster, overlay: &str) -> Option<Self> {
        Self::install_with(cluster, overlay, &[])
    }

    /// The same with further arguments of the webhook.
    pub(crate) fn install_with(cluster: &Cluster, overlay: &str, args: &[&str]) -> Option<Self> {
        let kubectl = Kubectl::or_skip(cluster.kubeconfig())?;
        let dir = tempfile::tempdir().unwrap();
        let manifests = dir.path().join("manifests");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
        assert!(Command::new("cp").arg("-r").args([&source, &manifests]).status().unwrap().success());
        if overlay == "overlays/own-certificate" {
            own_certificate(&manifests);
        }
        let folder = manifests.join(overlay);
        apply(&kubectl, &folder);
        let deployment = cluster.get(&format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{SERVICE}")).good();
        let replicas: Vec<Replica> = (0..deployment["spec"]["replicas"].as_u64().unwrap())
            .map(|number| {
                let mut replica =
                    Replica::of(cluster, &deployment, &format!("{SERVICE}-{number}"), dir.path()).with(args);
                replica.start();
                replica
            })
            .collect();
        let replicas = Arc::new(Mutex::new(replicas));
        let over = Arc::new(AtomicBool::new(false));
        let endpoints = thread::spawn({
            let (cluster, replicas, over) = (cluster.clone(), Arc::clone(&replicas), Arc::clone(&over));
            move || keep_endpoints(&cluster, &replicas, &over)
        });
        let cluster = cluster.clone();
        Some(Self { cluster, kubectl, replicas, over, endpoints: Some(endpoints), folder, _dir: dir })
    }

    pub(crate) fn replicas(&self) -> MutexGuard<'_, Vec<Replica>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies the manifests again.
    #[track_caller]
    pub(crate) fn apply(&self) {
        apply(&self.kubectl, &self.folder);
    }

    /// Until all replicas are ready, and the API server reaches one.
    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        self.replicas().iter_mut().for_each(Replica::wait_ready);
        self.wait_admitting();
    }

    /// Until the API server gets an answer from the webhook.
    #[track_caller]
    pub(crate) fn wait_admitting(&self) {
        let probe = super::workload::pod("probe");
        self.cluster.ensure_namespace("probe", &serde_json::json!({"istio-injection": "enabled"}));
        until("the webhook is asked", || {
            let said = self.cluster.post("/api/v1/namespaces/probe/pods?dryRun=All", &probe);
            if super::workload::injected(&said.body) { Ok(()) } else { Err(format!("{} {}", said.code, said.body)) }
        });
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
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
fn apply(kubectl: &Kubectl, folder: &Path) {
    kubectl.ok(&["apply", "--server-side", "--validate=false", "-k", folder.to_str().unwrap()], "");
}

/// What kubelets and the controller of endpoints do: probe, and tell the API server who is ready.
fn keep_endpoints(cluster: &Cluster, replicas: &Mutex<Vec<Replica>>, over: &AtomicBool) {
    let mut told: Option<Vec<SocketAddr>> = None;
    while !over.load(Ordering::Relaxed) {
        let ready: Vec<SocketAddr> = {
            let replicas = replicas.lock().unwrap_or_else(PoisonError::into_inner);
            replicas.iter().filter(|replica| replica.ready().is_ok()).map(|replica| replica.https).collect()
        };
        if told.as_ref() != Some(&ready) {
            cluster.route(NAMESPACE, SERVICE, 443, &ready);
            told = Some(ready);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Certificates for the overlay that wants them beside it.
fn own_certificate(manifests: &Path) {
    let made = Command::new(weir_tests::bin("weir-webhook"))
        .args(["certs", "--dns", "weir-webhook.weir-system.svc", "--out"])
        .arg(manifests.join("components/own-certificate/certs"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
