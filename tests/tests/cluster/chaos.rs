//! What can go wrong in a cluster, under load. In every case: no pod is lost, none gets in without its sidecar, and afterwards all is well
//! again by itself; how long that took is printed.
//!
//! `WEIR_STORM_PODS` (200) makes the storm larger.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_apiserver::{Trouble, When};

use super::cluster::{Cluster, on_both, until};
use super::load::{Load, Tally, storm};
use super::mesh::{CONFIGURATION, Mesh, NAMESPACE, SERVICE};
use super::workload::{injected, pod};

pub(crate) const SHOP: &str = "/api/v1/namespaces/shop/pods?dryRun=All";
/// Who the webhook is to the API server.
const WEBHOOK: &str = "system:serviceaccount:weir-system:weir-webhook";

/// A number of the environment.
pub(crate) fn scale(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

on_both!(a_replica_is_killed_and_comes_back, all_replicas_are_killed_and_pods_wait);

/// Two replicas, and a namespace in the mesh.
fn mesh(cluster: &Cluster, args: &[&str]) -> Option<Mesh> {
    let mesh = Mesh::install_with(cluster, "", args)?;
    mesh.wait_ready();
    cluster.namespace("shop", &json!({"istio-injection": "enabled"}));
    Some(mesh)
}

pub(crate) fn told(what: &str, tally: &Tally, recovered: Duration) {
    eprintln!("{what}: well again after {recovered:.1?}; {tally}");
    tally.assert_nothing_slipped_through();
}

fn a_replica_is_killed_and_comes_back(cluster: &Cluster) {
    let Some(mesh) = mesh(cluster, &[]) else { return };
    let load = Load::start(&mesh.cluster, "shop", 8);
    load.wait(100);
    let killed = Instant::now();
    mesh.replicas()[0].kill();
    load.wait(100);
    mesh.replicas()[0].start();
    until("it is ready again", || mesh.replicas()[0].ready());
    let back = killed.elapsed();
    load.wait(100);
    let tally = load.end();
    told("a replica killed", &tally, tally.recovered(killed));
    eprintln!("  it served again {back:.1?} after it was killed");
    // What was under way in it, and what was sent before its endpoint was gone.
    assert!(tally.failures.keys().all(|text| text.starts_with("500 ") || text.contains("EOF")), "{tally}");
}

fn all_replicas_are_killed_and_pods_wait(cluster: &Cluster) {
    let Some(mesh) = mesh(cluster, &[]) else { return };
    let load = Load::start(&mesh.cluster, "shop", 4);
    load.wait(50);
    mesh.replicas().iter_mut().for_each(super::replica::Replica::kill);
    let refused = until("nobody answers", || {
        let said = mesh.cluster.post(SHOP, &pod("web"));
        if said.code == 500 { Ok(said) } else { Err(said.body.to_string()) }
    });
    assert!(refused.message().starts_with("Internal error occurred: failed calling webhook"), "{}", refused.body);
    mesh.cluster.namespace("plain", &json!({}));
    assert_eq!(mesh.cluster.post("/api/v1/namespaces/plain/pods", &pod("web")).code, 201, "no other pod notices");
    let started = Instant::now();
    mesh.replicas().iter_mut().for_each(super::replica::Replica::start);
    load.wait(50);
    let tally = load.end();
    told("all replicas killed", &tally, tally.recovered(started));
}

#[test]
fn the_configuration_is_broken_and_mended() {
    let Some(mesh) = mesh(&Cluster::fake(), &["--reload-interval=100ms"]) else { return };
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{SERVICE}");
    let good = mesh.cluster.get(&path).good()["data"]["values"].as_str().unwrap().to_owned();
    let write = |values: &str| {
        mesh.cluster.merge(&path, &json!({"data": {"values": values}})).good();
        mesh.replicas().iter().for_each(|replica| replica.mount(&mesh.cluster));
    };
    let load = Load::start(&mesh.cluster, "shop", 4);
    load.wait(50);
    write("global: [this, is, not, what, it, was]\n");
    until("the error is shown", || {
        let shown = weir_lab::http::get(mesh.replicas()[0].http, "/readyz").map_err(|error| error.to_string())?.body;
        if shown.contains("global") { Ok(()) } else { Err(shown) }
    });
    load.wait(100);
    let mended = Instant::now();
    write(&good.replace("tag: ", "tag: mended-"));
    let proxy = |pod: &Value| pod.to_string().contains("proxyv2:mended-");
    until("both have the new values", || {
        // One after the other is asked.
        let both = (0..4).all(|_| proxy(&mesh.cluster.post(SHOP, &pod("web")).body));
        if both { Ok(()) } else { Err("old values".to_owned()) }
    });
    eprintln!("configuration mended: in use after {:.1?}", mended.elapsed());
    let tally = load.end();
    told("configuration broken", &tally, Duration::ZERO);
    assert_eq!(tally.failed(), 0, "the last good one stays in use: {tally}");
}

#[test]
fn the_api_server_is_away_for_the_webhook_while_it_is_asked() {
    let Some(mesh) = mesh(&Cluster::fake(), &[]) else { return };
    let server = mesh.cluster.own().unwrap();
    let load = Load::start(&mesh.cluster, "shop", 4);
    load.wait(50);
    for trouble in [Trouble::Status(503), Trouble::Hang] {
        server.misbehave(When::User(WEBHOOK), trouble, usize::MAX);
        server.drop_watches();
        load.wait(100);
        for replica in mesh.replicas().iter() {
            assert_eq!(replica.ready(), Ok(()), "it serves what it has");
        }
        server.behave();
        server.drop_watches();
        load.wait(50);
    }
    let tally = load.end();
    told("API server away for the webhook", &tally, Duration::ZERO);
    assert_eq!(tally.failed(), 0, "{tally}");
}

#[test]
fn the_api_server_goes_away_altogether_and_comes_back() {
    let Some(mesh) = mesh(&Cluster::fake(), &[]) else { return };
    let server = mesh.cluster.own().unwrap();
    let load = Load::start(&mesh.cluster, "shop", 4);
    load.wait(50);
    server.disappear();
    // One replica does not live through it.
    mesh.replicas()[0].kill();
    mesh.replicas()[0].start();
    thread::sleep(Duration::from_secs(1));
    let back = Instant::now();
    server.appear().unwrap();
    load.wait(50);
    let tally = load.end();
    mesh.wait_ready();
    told("API server away", &tally, tally.recovered(back));
}

#[test]
fn many_pods_are_created_at_once() {
    let Some(mesh) = mesh(&Cluster::fake(), &[]) else { return };
    let pods = usize::try_from(scale("WEIR_STORM_PODS", 200)).unwrap();
    let begun = Instant::now();
    let tally = storm(&mesh.cluster, "shop", 64, pods);
    let took = begun.elapsed();
    told(&format!("{pods} pods at once, in {took:.1?}"), &tally, Duration::ZERO);
    let stored = mesh.cluster.own().unwrap().list("pods");
    assert_eq!(stored.iter().filter(|pod| injected(pod)).count(), pods);
    let memory: Vec<u64> = mesh.replicas().iter().map(super::replica::Replica::memory).collect();
    eprintln!("  memory of the replicas: {memory:?} KiB");
    assert!(memory.iter().all(|kib| *kib < 256 << 10), "below the limit of the Deployment: {memory:?}");
}

#[test]
fn hostile_clients_do_not_hold_up_honest_ones() {
    let Some(mesh) = mesh(&Cluster::fake(), &[]) else { return };
    let replicas: Vec<SocketAddr> = mesh.replicas().iter().map(|replica| replica.https).collect();
    let load = Load::start(&mesh.cluster, "shop", 4);
    load.wait(50);
    // Connections that say nothing, and some that say one byte at a time.
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
    // A review of ten megabytes, by way of nobody who would limit it.
    let bundle =
        mesh.cluster.get(CONFIGURATION).good()["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap().to_owned();
    for &replica in &replicas {
        assert_eq!(huge(replica, &bundle), 413);
    }
    load.wait(100);
    let tally = load.end();
    told("hostile clients", &tally, Duration::ZERO);
    assert_eq!(tally.failed(), 0, "{tally}");
}

/// The status of the answer to a body of ten megabytes, from who trusts the bundle.
fn huge(replica: SocketAddr, bundle: &str) -> u16 {
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

/// Every name is this address.
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
