//! Failures in a cluster under load. In every case no pod is lost or admitted without its sidecar, and the cluster recovers by itself; the
//! recovery time is printed.
//!
//! `WEIR_STORM_PODS` (200) is the number of pods that are created at once.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_apiserver::{FaultTarget, ServerFault};
use weir_tests::wait_until;

use super::api_server::{Cluster, on_both};
use super::load::{Load, Tally, storm};
use super::mesh::{CONFIGURATION, Mesh, NAMESPACE, SERVICE};
use super::workload::{is_injected, pod};

pub(crate) const SHOP: &str = "/api/v1/namespaces/shop/pods?dryRun=All";
/// The user of the webhook.
const WEBHOOK_USER: &str = "system:serviceaccount:weir-system:weir-webhook";

/// Reads a number from an environment variable.
pub(crate) fn scale(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a number")))
}

on_both!(killed_replica_recovers, pods_wait_while_all_replicas_are_down);

/// Installs two replicas and creates a meshed namespace.
fn mesh(cluster: &Cluster, args: &[&str]) -> Option<Mesh> {
    let mesh = Mesh::install_with(cluster, "", args)?;
    mesh.wait_ready();
    cluster.create_namespace("shop", &json!({"istio-injection": "enabled"}));
    Some(mesh)
}

pub(crate) fn report(what: &str, tally: &Tally, recovered: Duration) {
    eprintln!("{what}: recovered after {recovered:.1?}; {tally}");
    tally.assert_no_bypass();
}

fn killed_replica_recovers(cluster: &Cluster) {
    let Some(mesh) = mesh(cluster, &[]) else { return };
    let load = Load::start(&mesh.cluster, "shop", 8);
    load.wait(100);
    let killed = Instant::now();
    mesh.replicas()[0].kill();
    load.wait(100);
    mesh.replicas()[0].start();
    wait_until("the replica is ready again", || mesh.replicas()[0].probe());
    let back = killed.elapsed();
    load.wait(100);
    let tally = load.stop();
    report("one replica killed", &tally, tally.recovery_time(killed));
    eprintln!("  the replica was ready again {back:.1?} after it was killed");
    // Only requests in progress, and those sent before its endpoint was removed, may fail.
    assert!(tally.failures.keys().all(|text| text.starts_with("500 ") || text.contains("EOF")), "{tally}");
}

fn pods_wait_while_all_replicas_are_down(cluster: &Cluster) {
    let Some(mesh) = mesh(cluster, &[]) else { return };
    let load = Load::start(&mesh.cluster, "shop", 4);
    load.wait(50);
    mesh.replicas().iter_mut().for_each(super::replica::Replica::kill);
    let refused = wait_until("the webhook cannot be reached", || {
        let response = mesh.cluster.post(SHOP, &pod("web"));
        if response.code == 500 { Ok(response) } else { Err(response.body.to_string()) }
    });
    assert!(refused.message().starts_with("Internal error occurred: failed calling webhook"), "{}", refused.body);
    mesh.cluster.create_namespace("plain", &json!({}));
    assert_eq!(
        mesh.cluster.post("/api/v1/namespaces/plain/pods", &pod("web")).code,
        201,
        "other pods are not affected"
    );
    let started = Instant::now();
    mesh.replicas().iter_mut().for_each(super::replica::Replica::start);
    load.wait(50);
    let tally = load.stop();
    report("all replicas killed", &tally, tally.recovery_time(started));
}

#[test]
fn invalid_configuration_keeps_the_last_valid_one() {
    let Some(mesh) = mesh(&Cluster::fake(), &["--reload-interval=100ms"]) else { return };
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{SERVICE}");
    let good = mesh.cluster.get(&path).expect_ok()["data"]["values"].as_str().unwrap().to_owned();
    let write = |values: &str| {
        mesh.cluster.merge_patch(&path, &json!({"data": {"values": values}})).expect_ok();
        mesh.replicas().iter().for_each(|replica| replica.update_volumes(&mesh.cluster));
    };
    let load = Load::start(&mesh.cluster, "shop", 4);
    load.wait(50);
    write("global: [this, is, not, what, it, was]\n");
    wait_until("/readyz reports the error", || {
        let shown = weir_lab::http::get(mesh.replicas()[0].http, "/readyz").map_err(|error| error.to_string())?.body;
        if shown.contains("global") { Ok(()) } else { Err(shown) }
    });
    load.wait(100);
    let fixed = Instant::now();
    write(&good.replace("tag: ", "tag: fixed-"));
    let proxy = |pod: &Value| pod.to_string().contains("proxyv2:fixed-");
    wait_until("both replicas have the new values", || {
        // Replicas are called in turn.
        let both = (0..4).all(|_| proxy(&mesh.cluster.post(SHOP, &pod("web")).body));
        if both { Ok(()) } else { Err("old values".to_owned()) }
    });
    eprintln!("fixed configuration in use after {:.1?}", fixed.elapsed());
    let tally = load.stop();
    report("invalid configuration", &tally, Duration::ZERO);
    assert_eq!(tally.failed(), 0, "the last valid one stays in use: {tally}");
}

#[test]
fn webhook_serves_while_it_cannot_reach_the_api_server() {
    let Some(mesh) = mesh(&Cluster::fake(), &[]) else { return };
    let server = mesh.cluster.fake_server().unwrap();
    let load = Load::start(&mesh.cluster, "shop", 4);
    load.wait(50);
    for fault in [ServerFault::Status(503), ServerFault::Hang] {
        server.inject_fault(FaultTarget::User(WEBHOOK_USER), fault, usize::MAX);
        server.drop_watches();
        load.wait(100);
        for replica in mesh.replicas().iter() {
            assert_eq!(replica.probe(), Ok(()), "it serves its cached state");
        }
        server.clear_faults();
        server.drop_watches();
        load.wait(50);
    }
    let tally = load.stop();
    report("API server unavailable for the webhook", &tally, Duration::ZERO);
    assert_eq!(tally.failed(), 0, "{tally}");
}

#[test]
fn replica_restarted_without_the_api_server_recovers() {
    let Some(mesh) = mesh(&Cluster::fake(), &[]) else { return };
    let server = mesh.cluster.fake_server().unwrap();
    let load = Load::start(&mesh.cluster, "shop", 4);
    load.wait(50);
    server.stop_listening();
    mesh.replicas()[0].kill();
    mesh.replicas()[0].start();
    wait_until("the restarted replica is up", || {
        let response = weir_lab::http::get(mesh.replicas()[0].http, "/readyz").map_err(|error| error.to_string())?;
        assert_ne!(response.status, 200, "it has no state without the API server");
        Ok(())
    });
    let back = Instant::now();
    server.start_listening().unwrap();
    load.wait(50);
    let tally = load.stop();
    mesh.wait_ready();
    report("API server down", &tally, tally.recovery_time(back));
}

#[test]
fn many_pods_can_be_created_at_once() {
    let Some(mesh) = mesh(&Cluster::fake(), &[]) else { return };
    let pods = usize::try_from(scale("WEIR_STORM_PODS", 200)).unwrap();
    let begun = Instant::now();
    let tally = storm(&mesh.cluster, "shop", 64, pods);
    let took = begun.elapsed();
    report(&format!("{pods} pods at once, in {took:.1?}"), &tally, Duration::ZERO);
    let stored = mesh.cluster.fake_server().unwrap().list("pods");
    assert_eq!(stored.iter().filter(|pod| is_injected(pod)).count(), pods);
    let memory: Vec<u64> = mesh.replicas().iter().map(super::replica::Replica::memory).collect();
    eprintln!("  memory of the replicas: {memory:?} KiB");
    assert!(memory.iter().all(|kib| *kib < 256 << 10), "below the limit of the Deployment: {memory:?}");
}

#[test]
fn hostile_clients_do_not_delay_others() {
    let Some(mesh) = mesh(&Cluster::fake(), &[]) else { return };
    let replicas: Vec<SocketAddr> = mesh.replicas().iter().map(|replica| replica.https).collect();
    let load = Load::start(&mesh.cluster, "shop", 4);
    load.wait(50);
    // Connections that send nothing, or one byte at a time.
    let mut slow: Vec<TcpStream> = (0..200).map(|number| TcpStream::connect(replicas[number % 2]).unwrap()).collect();
    for _ in 0..3 {
        for stream in &mut slow {
            let _ = stream.write_all(b"\x16");
        }
        for &replica in &replicas {
            for garbage in [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], &[0xff; 4096], b"\x16\x03\x01\x40\x00hello"] {
                let mut stream = TcpStream::connect(replica).unwrap();
                let _ = stream.write_all(garbage);
                stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                let _ = stream.read(&mut [0; 64]);
            }
        }
        load.wait(50);
    }
    // A review of 10 MiB, sent past the API server, which would limit it.
    let bundle = mesh.cluster.get(CONFIGURATION).expect_ok()["webhooks"][0]["clientConfig"]["caBundle"]
        .as_str()
        .unwrap()
        .to_owned();
    for &replica in &replicas {
        assert_eq!(post_10_mib(replica, &bundle), 413);
    }
    load.wait(100);
    let tally = load.stop();
    report("hostile clients", &tally, Duration::ZERO);
    assert_eq!(tally.failed(), 0, "{tally}");
}

/// Posts a body of 10 MiB to a replica and returns the status of the response.
fn post_10_mib(replica: SocketAddr, bundle: &str) -> u16 {
    use base64::Engine as _;
    let pem = base64::engine::general_purpose::STANDARD.decode(bundle).unwrap();
    let root = ureq::tls::Certificate::from_pem(&pem).unwrap();
    let tls = ureq::tls::TlsConfig::builder()
        .root_certs(ureq::tls::RootCerts::new_with_certs(&[root]))
        .unversioned_rustls_crypto_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder().tls_config(tls).http_status_as_error(false).build();
    let agent =
        ureq::Agent::with_parts(config, ureq::unversioned::transport::DefaultConnector::default(), Fixed(replica));
    let url = format!("https://{SERVICE}.{NAMESPACE}.svc:{}/inject", replica.port());
    let sent = agent.post(url).content_type("application/json").send(&vec![b' '; 10 << 20][..]);
    sent.unwrap().status().as_u16()
}

/// Resolves every name to one address.
#[derive(Debug)]
struct Fixed(SocketAddr);

impl ureq::unversioned::resolver::Resolver for Fixed {
    fn resolve(
        &self,
        _: &axum::http::Uri,
        _: &ureq::config::Config,
        _: ureq::unversioned::transport::NextTimeout,
    ) -> Result<ureq::unversioned::resolver::ResolvedSocketAddrs, ureq::Error> {
        let mut found = self.empty();
        found.push(self.0);
        Ok(found)
    }
}
