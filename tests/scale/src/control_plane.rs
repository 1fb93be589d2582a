//! The API server, with a log of the requests of agents.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use weir_apiserver::{ExtraFlags, KubeApiserver, kubeconfig};

use crate::api::Api;
use crate::install::AGENT_NAMESPACE;

const START_TIMEOUT: Duration = Duration::from_mins(2);
/// Requests of agents are logged, all others are not.
const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\n\
    rules: [{level: Metadata, users: ['system:serviceaccount:weir-node:weir-agent']}, {level: None}]\n";

/// A running API server. Stops when dropped.
pub(crate) struct ControlPlane {
    /// Its processes.
    pub(crate) server: KubeApiserver,
    /// A client of an administrator.
    pub(crate) api: Api,
    audit_log: PathBuf,
    dir: PathBuf,
}

impl ControlPlane {
    /// Starts it; `dir` is for files.
    pub(crate) async fn start(assets: &Path, dir: &Path) -> anyhow::Result<Self> {
        let (policy, audit_log) = (dir.join("audit.yaml"), dir.join("audit.log"));
        fs::write(&policy, AUDIT_POLICY)?;
        let flags = [
            // The network namespace has no default route, by which the server would choose one.
            "--advertise-address=10.77.255.1".to_owned(),
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", audit_log.display()),
        ];
        // 150,000 versions of pods within the five minutes between two compactions.
        let etcd = ["--quota-backend-bytes=8589934592".to_owned()];
        let server = KubeApiserver::start_with(assets, START_TIMEOUT, ExtraFlags { server: &flags, etcd: &etcd })?;
        let api = Api::new(server.kubeconfig()).await?;
        Ok(Self { server, api, audit_log, dir: dir.to_owned() })
    }

    /// Writes a kubeconfig of a service account, for this server or a relay to it.
    pub(crate) async fn account_kubeconfig(
        &self,
        name: &str,
        namespace: &str,
        account: &str,
        url: &str,
    ) -> anyhow::Result<PathBuf> {
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "expirationSeconds": 86400 } });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let token = self.api.post(&path, &request).await?;
        let file = self.dir.join(format!("{name}.kubeconfig"));
        kubeconfig(&file, url, Some(self.server.ca()), token["status"]["token"].as_str())?;
        Ok(file)
    }

    /// Returns the numbers of requests of all agents so far, by verb and resource.
    pub(crate) fn agent_requests(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut counts = BTreeMap::new();
        for line in fs::read_to_string(&self.audit_log)?.lines() {
            // The last line may not be complete.
            let Ok(AuditEvent { stage, verb, object_ref }) = serde_json::from_str(line) else { continue };
            // A watch is logged when it starts and when it ends.
            if stage == if verb == "watch" { "ResponseStarted" } else { "ResponseComplete" } {
                *counts.entry(format!("{verb} {}", object_ref.resource)).or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// Creates a namespace with its default account, which controllers would create.
    pub(crate) async fn create_namespace(&self, namespace: &serde_json::Value) -> anyhow::Result<()> {
        self.api.post("/api/v1/namespaces", namespace).await?;
        let name = namespace["metadata"]["name"].as_str().unwrap_or(AGENT_NAMESPACE);
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
        self.api.post(&format!("/api/v1/namespaces/{name}/serviceaccounts"), &account).await?;
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuditEvent {
    stage: String,
    verb: String,
    #[serde(default)]
    object_ref: ObjectRef,
}

#[derive(Default, Deserialize)]
struct ObjectRef {
    resource: String,
}
