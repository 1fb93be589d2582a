//! Certificates and caBundle, with an API server and real connections.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weir_apiserver::kube_apiserver_or_skip;
use weir_apiserver::{ApiServer, FaultTarget, ServerFault};
use weir_webhook::run::Server;

use super::client::get;
use super::{TIMEOUT, start};

const CONFIGURATIONS: &str = "mutatingwebhookconfigurations";
const NAMESPACE: &str = "weir-system";
const CA: &str = "weir-webhook-ca";
const HOST: &str = "weir-webhook.weir-system.svc";

/// An API server with the webhook's namespace, and a kubeconfig for it.
struct Cluster {
    api: ApiServer,
    dir: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Self {
        let api = ApiServer::cluster().unwrap();
        api.put("namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}));
        Self { api, dir: tempfile::tempdir().unwrap() }
    }

    fn configure(&self, name: &str, revision: &str) {
        self.api.put(CONFIGURATIONS, configuration(name, revision));
    }

    async fn replica(&self, name: &str, flags: &[&str]) -> Server {
        replica(&self.api.kubeconfig(self.dir.path()).unwrap(), name, flags).await
    }

    async fn replica_with_ca(&self, name: &str) -> Server {
        self.replica(name, &["--ca-secret", CA, "--ca-settle", "500ms"]).await
    }

    /// Returns the bundles of a configuration, one per entry.
    fn bundles(&self, name: &str) -> Vec<String> {
        let object = self.api.get(CONFIGURATIONS, "", name).unwrap_or_default();
        let entries = object["webhooks"].as_array().cloned().unwrap_or_default();
        let decoded =
            |entry: &Value| STANDARD.decode(entry["clientConfig"]["caBundle"].as_str().unwrap_or("")).unwrap();
        entries.iter().map(|entry| String::from_utf8(decoded(entry)).unwrap()).collect()
    }

    fn secret(&self) -> Option<Value> {
        self.api.get("secrets", NAMESPACE, CA).map(|secret| secret["data"].clone())
    }

    fn overwrite(&self, name: &str) {
        let mut object = self.api.get(CONFIGURATIONS, "", name).unwrap();
        for entry in object["webhooks"].as_array_mut().unwrap() {
            entry["clientConfig"]["caBundle"] = json!("");
        }
        self.api.put(CONFIGURATIONS, object);
    }
}

/// Returns a configuration as in the manifests, without a bundle.
fn configuration(name: &str, revision: &str) -> Value {
    let entry = |prefix: &str| {
        json!({
            "name": format!("{prefix}.sidecar-injector.weir.dev"), "admissionReviewVersions": ["v1"],
            "sideEffects": "None", "failurePolicy": "Fail",
            "clientConfig": {"service": {"name": "weir-webhook", "namespace": NAMESPACE, "path": "/inject"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name, "labels": {"weir.dev/rev": revision}},
        "webhooks": [entry("namespace"), entry("object")],
    })
}

async fn replica(kubeconfig: &Path, name: &str, flags: &[&str]) -> Server {
    let kubeconfig = kubeconfig.to_str().unwrap();
    let fixed = ["--namespace", NAMESPACE, "--pod-name", name, "--kubeconfig", kubeconfig];
    start(&[&fixed, flags].concat()).await
}

/// Waits until a condition holds.
#[track_caller]
fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let begun = Instant::now();
        while !holds().await {
            assert!(begun.elapsed() < 2 * TIMEOUT, "{place}: not in time: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn readiness(server: &Server) -> (bool, String) {
    let (status, detail) = get(server.http().unwrap(), "/readyz").await;
    (status == StatusCode::OK, detail)
}

async fn ready(server: &Server) {
    until("ready", || async { readiness(server).await.0 }).await;
}

fn connector(bundle: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(cert.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

async fn connect(server: &Server, connector: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(server.https()).await?;
    connector.connect(ServerName::try_from(HOST).unwrap(), tcp).await
}

/// Does a handshake as the API server does, trusting a bundle; returns the leaf.
async fn handshake(server: &Server, bundle: &str) -> std::io::Result<CertificateDer<'static>> {
    let stream = connect(server, &connector(bundle)).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned())
}

async fn stop(servers: impl IntoIterator<Item = Server>) {
    for server in servers {
        server.shutdown(std::future::ready(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_one_ca_and_write_every_bundle_of_their_revision() {
    let cluster = Cluster::start();
    cluster.configure("weir-sidecar-injector", "default");
    cluster.configure("weir-revision-tag-prod", "default");
    cluster.configure("weir-sidecar-injector-canary", "canary");
    let replicas = [cluster.replica_with_ca("w-1").await, cluster.replica_with_ca("w-2").await];
    for replica in &replicas {
        ready(replica).await;
        for name in ["weir-sidecar-injector", "weir-revision-tag-prod"] {
            let bundles = cluster.bundles(name);
            assert_eq!((bundles.len(), &bundles[0]), (2, &bundles[1]));
            handshake(replica, &bundles[0]).await.expect("the bundle verifies the leaf of each replica");
        }
    }
    assert_eq!(cluster.bundles("weir-sidecar-injector-canary"), ["", ""], "another revision's object is unchanged");
    let data = cluster.secret().unwrap();
    let keys: Vec<&String> = data.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["ca.crt", "current.crt", "current.key", "state"]);
    let lease = cluster.api.get("leases", NAMESPACE, CA).unwrap();
    assert!(["w-1", "w-2"].contains(&lease["spec"]["holderIdentity"].as_str().unwrap()), "{lease}");
    stop(replicas).await;
    let lease = cluster.api.get("leases", NAMESPACE, CA).unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "", "released at shutdown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unready_until_the_bundle_was_right_once() {
    let cluster = Cluster::start();
    cluster.configure("weir-sidecar-injector", "default");
    cluster.api.inject_fault(FaultTarget::Method("PATCH"), ServerFault::Status(403), usize::MAX);
    let replica = cluster.replica_with_ca("w-1").await;
    until("the rejection is reported", || async {
        let (ready, detail) = readiness(&replica).await;
        assert!(!ready, "{detail}");
        detail.contains(
            "[-]ca-bundle: caBundle of weir-sidecar-injector, webhook namespace.sidecar-injector.weir.dev, does not verify",
        ) && detail.contains("cannot write it:")
            && detail.contains("(403)")
    })
    .await;
    cluster.api.clear_faults();
    ready(&replica).await;

    let right = cluster.bundles("weir-sidecar-injector");
    cluster.overwrite("weir-sidecar-injector");
    until("it is restored", || async {
        assert!(readiness(&replica).await.0, "ready with any bundle");
        cluster.bundles("weir-sidecar-injector") == right
    })
    .await;
    stop([replica]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_configuration_is_reported_and_not_recreated() {
    let cluster = Cluster::start();
    cluster.configure("weir-sidecar-injector", "default");
    let replica = cluster.replica_with_ca("w-1").await;
    ready(&replica).await;
    cluster.api.remove(CONFIGURATIONS, "", "weir-sidecar-injector").unwrap();
    until("it is reported", || async {
        let (ready, detail) = readiness(&replica).await;
        ready && detail.contains("no MutatingWebhookConfiguration is labelled weir.dev/rev=default")
    })
    .await;
    assert!(cluster.api.list(CONFIGURATIONS).is_empty());
    stop([replica]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_or_corrupted_ca_is_restored_from_memory() {
    let cluster = Cluster::start();
    cluster.configure("weir-sidecar-injector", "default");
    let replicas = [cluster.replica_with_ca("w-1").await, cluster.replica_with_ca("w-2").await];
    for replica in &replicas {
        ready(replica).await;
    }
    let first = cluster.secret().unwrap();
    cluster.api.remove("secrets", NAMESPACE, CA).unwrap();
    until("it is restored", || async { cluster.secret().as_ref() == Some(&first) }).await;

    let mut corrupted = cluster.api.get("secrets", NAMESPACE, CA).unwrap();
    corrupted["data"]["current.key"] = json!(STANDARD.encode("garbage"));
    cluster.api.put("secrets", corrupted);
    until("it is restored", || async { cluster.secret().as_ref() == Some(&first) }).await;
    stop(replicas).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrupted_ca_without_memory_blocks_until_deleted() {
    let cluster = Cluster::start();
    let data = json!({"current.crt": STANDARD.encode("garbage"), "current.key": STANDARD.encode("garbage")});
    let metadata = json!({"name": CA, "namespace": NAMESPACE});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data});
    cluster.api.put("secrets", secret);
    let replica = cluster.replica_with_ca("w-1").await;
    until("the reason is reported", || async {
        let (ready, detail) = readiness(&replica).await;
        !ready
            && detail.contains("current.crt, current.key: unusable certificate")
            && detail.contains("delete the Secret")
    })
    .await;
    assert_eq!(cluster.secret(), Some(data), "unchanged");
    cluster.api.remove("secrets", NAMESPACE, CA).unwrap();
    ready(&replica).await;
    stop([replica]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ca_rotation_under_load_fails_no_handshake() {
    let cluster = Arc::new(Cluster::start());
    cluster.configure("weir-sidecar-injector", "default");
    let flags = ["--ca-secret", CA, "--ca-settle", "1s", "--leaf-lifetime", "4s", "--ca-lifetime", "8760h"];
    let replicas = Arc::new([cluster.replica("w-1", &flags).await, cluster.replica("w-2", &flags).await]);
    for replica in &*replicas {
        ready(replica).await;
    }
    let first = cluster.secret().unwrap();
    let (done, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|number: usize| {
            let (cluster, replicas, done, count) =
                (Arc::clone(&cluster), Arc::clone(&replicas), Arc::clone(&done), Arc::clone(&count));
            tokio::spawn(async move {
                let mut leaves = std::collections::BTreeSet::new();
                while !done.load(Ordering::Relaxed) {
                    // As the API server does: with the current bundle, and any replica.
                    let bundle = cluster.bundles("weir-sidecar-injector").remove(0);
                    let replica = &replicas[number % 2];
                    let leaf = handshake(replica, &bundle).await.unwrap_or_else(|error| {
                        panic!("a handshake failed: {error}; the Secret is {:?}", cluster.secret())
                    });
                    leaves.insert(leaf.as_ref().to_vec());
                    count.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                leaves.len()
            })
        })
        .collect();

    let mut secret = cluster.api.get("secrets", NAMESPACE, CA).unwrap();
    secret["metadata"]["annotations"] = json!({"weir.dev/rotate-ca": "1"});
    cluster.api.put("secrets", secret);
    let mut phases = Vec::new();
    until("the rotation ends", || {
        let data = cluster.secret().unwrap();
        let phase =
            ["next.crt", "previous.crt"].into_iter().find(|key| data.get(key).is_some()).unwrap_or("current.crt");
        if phases.last() != Some(&phase) {
            phases.push(phase);
        }
        let ended = phase == "current.crt" && data["current.crt"] != first["current.crt"];
        std::future::ready(ended)
    })
    .await;
    let phases: Vec<_> = phases.into_iter().filter(|phase| *phase != "current.crt").collect();
    assert_eq!(phases, ["next.crt", "previous.crt"]);
    until("the old CA is out of the bundle", || async {
        cluster.bundles("weir-sidecar-injector").iter().all(|bundle| bundle.matches("BEGIN CERT").count() == 1)
    })
    .await;
    done.store(true, Ordering::Relaxed);
    for worker in load {
        assert!(worker.await.expect("no handshake failed") >= 3, "leaf after leaf was served");
    }
    assert!(count.load(Ordering::Relaxed) > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ca_is_rotated_before_it_expires() {
    let cluster = Cluster::start();
    cluster.configure("weir-sidecar-injector", "default");
    let flags = ["--ca-secret", CA, "--ca-settle", "200ms", "--leaf-lifetime", "2s", "--ca-lifetime", "20s"];
    let replica = cluster.replica("w-1", &flags).await;
    ready(&replica).await;
    let current = || cluster.secret().unwrap()["current.crt"].clone();
    let first = current();
    until("another CA signs", || async {
        handshake(&replica, &cluster.bundles("weir-sidecar-injector").remove(0)).await.expect("the bundle verifies");
        current() != first
    })
    .await;
    handshake(&replica, &cluster.bundles("weir-sidecar-injector").remove(0)).await.expect("the bundle verifies");
    stop([replica]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaf_is_renewed_while_the_api_server_is_away() {
    let cluster = Cluster::start();
    cluster.configure("weir-sidecar-injector", "default");
    let replica = cluster.replica("w-1", &["--ca-secret", CA, "--leaf-lifetime", "3s"]).await;
    ready(&replica).await;
    let bundle = cluster.bundles("weir-sidecar-injector").remove(0);
    cluster.api.stop_listening();
    let first = handshake(&replica, &bundle).await.unwrap();
    until("another leaf", || async { handshake(&replica, &bundle).await.unwrap() != first }).await;
    let (ready, detail) = readiness(&replica).await;
    assert!(ready && detail.contains("[!]ca: ") && detail.contains("still serving"), "{detail}");
    cluster.api.start_listening().unwrap();
    until("all is well", || async { readiness(&replica).await.1.contains("[+]ca: ") }).await;
    stop([replica]).await;
}

/// Sends a request on a connection of its own; an error if the server closes the connection.
async fn ask(server: &Server, connector: &TlsConnector) -> std::io::Result<(HandshakeKind, String)> {
    let mut stream = connect(server, connector).await?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok((stream.get_ref().1.handshake_kind().unwrap(), answer))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_survive_a_new_leaf() {
    let cluster = Cluster::start();
    cluster.configure("weir-sidecar-injector", "default");
    let replica = cluster.replica("w-1", &["--ca-secret", CA, "--leaf-lifetime", "6s"]).await;
    ready(&replica).await;
    let bundle = cluster.bundles("weir-sidecar-injector").remove(0);
    let client = connector(&bundle);
    assert_eq!(ask(&replica, &client).await.unwrap().0, HandshakeKind::Full);
    assert_eq!(ask(&replica, &client).await.unwrap().0, HandshakeKind::Resumed);
    // By the metric: handshakes would evict the session from the server's cache.
    let expiry = async || {
        let text = super::metrics(&replica).await;
        text.lines().find(|line| line.starts_with("weir_webhook_certificate_expiry")).map(str::to_owned).unwrap()
    };
    let first = expiry().await;
    until("another leaf", || async { expiry().await != first }).await;
    let (kind, answer) = ask(&replica, &client).await.unwrap();
    assert_eq!(kind, HandshakeKind::Resumed);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stop([replica]).await;
}

/// Returns a client with a certificate of `ca`, which trusts `bundle`.
fn client_of(ca: &CertifiedIssuer<'_, KeyPair>, name: &str, bundle: &str) -> TlsConnector {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, ca).unwrap().der().clone();
    let mut config = ClientConfig::clone(connector(bundle).config());
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let certified = Arc::new(rustls::sign::CertifiedKey::new(vec![cert], key));
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
    TlsConnector::from(Arc::new(config))
}

fn ca_of_clients() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_authenticated_by_ca_and_name() {
    let dir = tempfile::tempdir().unwrap();
    let (own, file) = (dir.path().join("own.pem"), dir.path().join("clients.pem"));
    let (old, new) = (ca_of_clients(), ca_of_clients());
    std::fs::write(&file, old.pem()).unwrap();
    let flags = ["--client-ca-file", file.to_str().unwrap(), "--client-name", "kube-apiserver", "--dns", HOST];
    let server = start(&[&flags[..], &["--ca-out", own.to_str().unwrap()]].concat()).await;
    let bundle = std::fs::read_to_string(&own).unwrap();
    let answered =
        async |client: &TlsConnector| ask(&server, client).await.is_ok_and(|(_, text)| text.contains(" 200 "));
    let api = client_of(&old, "kube-apiserver", &bundle);
    assert!(answered(&api).await);
    assert!(!answered(&connector(&bundle)).await, "without a certificate");
    assert!(!answered(&client_of(&old, "somebody", &bundle)).await, "with another name");
    assert!(!answered(&client_of(&new, "kube-apiserver", &bundle)).await, "of another CA");
    assert!(readiness(&server).await.0, "probes on the plain port need none");

    std::fs::write(&file, new.pem()).unwrap();
    let after = client_of(&new, "kube-apiserver", &bundle);
    until("the new CA is used", || answered(&after)).await;
    assert!(!answered(&api).await, "not even by resuming a session");
    std::fs::write(&file, "garbage").unwrap();
    until("the bad file is reported", || async {
        readiness(&server).await.1.contains("[!]client-ca: using the last good version")
    })
    .await;
    assert!(answered(&after).await);
    stop([server]).await;
}

/// Field ownership and validation are certain only with a real API server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_api_server_shows_ca_bundle_as_the_only_owned_field() {
    use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
    use k8s_openapi::api::core::v1::{Namespace, Secret};
    use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
    use kube::config::{KubeConfigOptions, Kubeconfig};
    use kube::{Api, Client, Config};

    let Some(real) = kube_apiserver_or_skip() else { return };
    let config = Kubeconfig::read_from(real.kubeconfig()).unwrap();
    let client =
        Client::try_from(Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap()).unwrap();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let name = "weir-sidecar-injector";
    // As a GitOps tool does.
    let apply = async |object: Value| {
        configurations.patch(name, &PatchParams::apply("gitops").force(), &Patch::Apply(object)).await.unwrap()
    };
    apply(configuration(name, "default")).await;
    let replicas = [
        replica(real.kubeconfig(), "w-1", &["--ca-secret", CA, "--ca-settle", "1s", "--ca-retire-after", "2s"]).await,
        replica(real.kubeconfig(), "w-2", &["--ca-secret", CA, "--ca-settle", "1s", "--ca-retire-after", "2s"]).await,
    ];
    for replica in &replicas {
        ready(replica).await;
    }
    let bundle = async || {
        let object = configurations.get(name).await.unwrap();
        let entries = object.webhooks.unwrap();
        let all: Vec<_> =
            entries.into_iter().map(|entry| entry.client_config.ca_bundle.unwrap_or_default().0).collect();
        String::from_utf8(all[0].clone()).unwrap()
    };
    let first = bundle().await;
    handshake(&replicas[0], &first).await.expect("the bundle verifies the leaf");

    // Applied again without a bundle, it stays; with another one, it is restored.
    apply(configuration(name, "default")).await;
    assert_eq!(bundle().await, first);
    let mut wrong = configuration(name, "default");
    wrong["webhooks"][0]["clientConfig"]["caBundle"] = json!("Cg==");
    apply(wrong).await;
    until("it is restored", || async { bundle().await == first }).await;
    let object = configurations.get(name).await.unwrap();
    let ours = object
        .metadata
        .managed_fields
        .unwrap()
        .into_iter()
        .find(|entry| entry.manager.as_deref() == Some("weir-webhook"));
    let entry = |key: &str| format!("k:{{\"name\":\"{key}.sidecar-injector.weir.dev\"}}");
    let field = json!({".": {}, "f:name": {}, "f:clientConfig": {"f:caBundle": {}}});
    assert_eq!(
        ours.unwrap().fields_v1.unwrap().0,
        json!({"f:webhooks": {entry("namespace"): field, entry("object"): field}}),
        "only that field"
    );

    let before = secrets.get(CA).await.unwrap().data;
    secrets.delete(CA, &DeleteParams::default()).await.unwrap();
    until("it is restored", || async {
        secrets.get_opt(CA).await.unwrap().is_some_and(|secret| secret.data == before)
    })
    .await;

    let ask = json!({"metadata": {"annotations": {"weir.dev/rotate-ca": "1"}}});
    secrets.patch(CA, &PatchParams::default(), &Patch::Merge(ask)).await.unwrap();
    let other = |now: &str| now.matches("BEGIN CERT").count() == 1 && now != first;
    until("the CA is another one", || async { other(&bundle().await) }).await;
    handshake(&replicas[1], &bundle().await).await.expect("the bundle verifies the leaf");
    for replica in &replicas {
        let (ready, detail) = readiness(replica).await;
        assert!(ready && detail.contains("[+]ca: phase"), "{detail}");
    }

    configurations.delete(name, &DeleteParams::default()).await.unwrap();
    until("it is reported", || async { readiness(&replicas[0]).await.1.contains("no API server calls this webhook") })
        .await;
    assert!(configurations.get_opt(name).await.unwrap().is_none());
    stop(replicas).await;
}
