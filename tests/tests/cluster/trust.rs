//! Certificates and the CA bundle under load: rotated, overwritten, deleted. The webhook has its built-in CA, as the manifests have it.
//!
//! `WEIR_ROTATION_REVIEWS` (200): rotations follow each other until so many reviews have been answered. With a million, binaries that were
//! built for release (`WEIR_BIN_DIR`), `cargo test --release` and a machine without other work keep it short.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_apiserver::tls::Authority;

use super::chaos::{SHOP, scale, told};
use super::cluster::{Cluster, on_both, until};
use super::load::Load;
use super::mesh::{CONFIGURATION, Mesh, NAMESPACE};
use super::workload::{injected, pod};

on_both!(
    the_ca_is_rotated_under_load_without_a_failure,
    another_writer_of_the_bundle_is_corrected_within_seconds,
    the_secret_of_the_ca_is_deleted,
    a_configuration_that_was_deleted_stays_so_until_it_is_applied_again,
);

const SECRET: &str = "/api/v1/namespaces/weir-system/secrets/weir-webhook-ca";

/// Two replicas with the built-in CA, and a namespace in the mesh.
fn mesh(cluster: &Cluster, args: &[&str]) -> Option<Mesh> {
    let mesh = Mesh::install_with(cluster, "", args)?;
    mesh.wait_ready();
    cluster.namespace("shop", &json!({"istio-injection": "enabled"}));
    Some(mesh)
}

fn bundles(cluster: &Cluster) -> Vec<String> {
    let configuration = cluster.get(CONFIGURATION).good();
    let hooks = configuration["webhooks"].as_array().unwrap().iter();
    hooks.map(|hook| hook["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned()).collect()
}

fn the_ca_is_rotated_under_load_without_a_failure(cluster: &Cluster) {
    // Leaves that live longer than any pause of a busy machine; the overlap as short as can be.
    let Some(mesh) = mesh(cluster, &["--leaf-lifetime=60s", "--ca-settle=1s", "--ca-retire-after=5s"]) else { return };
    let goal = scale("WEIR_ROTATION_REVIEWS", 200);
    let reviews = |mesh: &Mesh| -> u64 {
        mesh.replicas().iter().map(|replica| replica.counter("sidecar_injection_requests_total")).sum()
    };
    let begun = Instant::now();
    let load = Load::start(cluster, "shop", 8);
    let mut rotations = 0;
    while rotations == 0 || reviews(&mesh) < goal {
        let before = cluster.get(SECRET).good()["data"]["current.crt"].clone();
        rotations += 1;
        let order = json!({"metadata": {"annotations": {"weir.dev/rotate-ca": format!("{rotations}")}}});
        cluster.merge(SECRET, &order).good();
        let after = until("the CA is another, and the one before is gone", || {
            let data = cluster.get(SECRET).good()["data"].clone();
            let done = data["current.crt"] != before && data["previous.crt"].is_null() && data["next.crt"].is_null();
            if done { Ok(data) } else { Err(format!("{:?}", data.as_object().unwrap().keys())) }
        });
        until("only the new one is trusted", || {
            let found = bundles(cluster);
            if found.iter().all(|bundle| after["ca.crt"] == bundle.as_str()) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        });
        load.wait(20);
    }
    let tally = load.end();
    let memory: Vec<u64> = mesh.replicas().iter().map(super::replica::Replica::memory).collect();
    let took = begun.elapsed();
    told(
        &format!("{rotations} rotations of the CA, {} reviews in {took:.1?}, memory {memory:?} KiB", reviews(&mesh)),
        &tally,
        Duration::ZERO,
    );
    assert_eq!(tally.failed(), 0, "{tally}");
}

fn another_writer_of_the_bundle_is_corrected_within_seconds(cluster: &Cluster) {
    let Some(mesh) = mesh(cluster, &[]) else { return };
    let right = bundles(cluster);
    let load = Load::start(cluster, "shop", 4);
    load.wait(20);
    let over = AtomicBool::new(false);
    let stopped = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut writes = 0;
            while !over.load(Ordering::Relaxed) {
                let mut configuration = cluster.get(CONFIGURATION).good();
                for hook in configuration["webhooks"].as_array_mut().unwrap() {
                    hook["clientConfig"].as_object_mut().unwrap().shift_remove("caBundle");
                }
                // A conflict is the webhook having been there first.
                let said = cluster.put(&format!("{CONFIGURATION}?fieldManager=gitops"), &configuration);
                assert!(matches!(said.code, 200 | 409), "{}", said.body);
                writes += 1;
                thread::sleep(Duration::from_millis(200));
            }
            eprintln!("{writes} times overwritten");
        });
        thread::sleep(Duration::from_secs(3));
        over.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        Instant::now()
    });
    until("it is put right", || if bundles(cluster) == right { Ok(()) } else { Err("not the bundle".to_owned()) });
    let put_right = stopped.elapsed();
    load.wait(20);
    let tally = load.end();
    told(
        &format!("bundle overwritten, put right {put_right:.1?} after the last time"),
        &tally,
        tally.recovered(stopped),
    );
    mesh.wait_ready();
}

fn the_secret_of_the_ca_is_deleted(cluster: &Cluster) {
    let Some(mesh) = mesh(cluster, &[]) else { return };
    let load = Load::start(cluster, "shop", 4);
    load.wait(20);
    let deleted = Instant::now();
    cluster.delete(SECRET).good();
    until("there is a Secret again", || {
        let said = cluster.get(SECRET);
        if said.code == 200 { Ok(()) } else { Err(said.body.to_string()) }
    });
    let back = deleted.elapsed();
    load.wait(50);
    let tally = load.end();
    told(&format!("Secret deleted, there again after {back:.1?}"), &tally, tally.recovered(deleted));
    mesh.wait_ready();
    let said = cluster.post(SHOP, &pod("web")).good();
    assert!(injected(&said));
}

fn a_configuration_that_was_deleted_stays_so_until_it_is_applied_again(cluster: &Cluster) {
    let Some(mesh) = mesh(cluster, &[]) else { return };
    let own = |object: &Value| -> Vec<String> {
        let entries = object["metadata"]["managedFields"].as_array().unwrap().iter();
        let of_webhook = entries.filter(|entry| entry["manager"] == "weir-webhook");
        of_webhook.map(|entry| format!("{} {}", entry["operation"].as_str().unwrap(), entry["fieldsV1"])).collect()
    };
    let fields = own(&cluster.get(CONFIGURATION).good());
    assert!(fields.len() == 1 && fields[0].starts_with("Apply "), "{fields:?}");
    for other in ["failurePolicy", "rules", "f:service", "namespaceSelector"] {
        assert!(!fields[0].contains(other), "only the bundle: {fields:?}");
    }
    cluster.delete(CONFIGURATION).good();
    // Longer than it takes to put a bundle right.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(cluster.get(CONFIGURATION).code, 404, "what an administrator deleted is deleted");
    assert!(!injected(&cluster.post(SHOP, &pod("web")).good()));
    let applied = Instant::now();
    mesh.apply();
    until("pods are injected again", || {
        let said = cluster.post(SHOP, &pod("web"));
        if injected(&said.body) { Ok(()) } else { Err(format!("{} {}", said.code, said.body)) }
    });
    eprintln!("configuration applied again: pods are injected after {:.1?}", applied.elapsed());
    // As it was, and nobody has a conflict with us: an apply of the manifests is no fight.
    mesh.apply();
    mesh.wait_ready();
    assert_eq!(cluster.get(&format!("/api/v1/namespaces/{NAMESPACE}")).code, 200);
}

#[test]
fn who_shows_no_certificate_of_the_api_server_is_not_answered() {
    let cluster = Cluster::fake();
    let server = cluster.own().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [right, wrong] = ["front", "stranger"].map(|name| Authority::new(name).unwrap());
    let file = dir.path().join("clients.pem");
    std::fs::write(&file, right.cert()).unwrap();
    let [ours, theirs] = [&right, &wrong].map(|authority| authority.issue("kube-apiserver", &[]).unwrap());
    server.identify(Some(ours.clone()));
    let Some(mesh) = mesh(&cluster, &[&format!("--client-ca-file={}", file.display())]) else { return };
    for other in [None, Some(theirs)] {
        server.identify(other);
        let refused = cluster.post(SHOP, &pod("web"));
        assert_eq!(refused.code, 500, "{}", refused.body);
    }
    server.identify(Some(ours));
    assert!(injected(&cluster.post(SHOP, &pod("web")).good()));
    mesh.wait_ready();
}
