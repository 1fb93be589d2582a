//! Certificates and the CA bundle under load: rotated, overwritten, deleted. The webhook has its built-in CA, as in the manifests.
//!
//! The CA is rotated until `WEIR_ROTATION_REVIEWS` (200) reviews have been answered. For a million, use release builds (`WEIR_BIN_DIR`,
//! `cargo test --release`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_apiserver::tls::Authority;
use weir_tests::wait_until;

use super::api_server::{Cluster, on_both};
use super::chaos::{SHOP, report, scale};
use super::load::Load;
use super::mesh::{CONFIGURATION, Mesh, NAMESPACE};
use super::workload::{is_injected, pod};

on_both!(
    ca_rotation_under_load_fails_no_review,
    overwritten_bundle_is_restored,
    deleted_ca_secret_is_recreated,
    deleted_configuration_is_not_recreated,
);

/// How long another writer overwrites the bundle.
const CONTENTION_TIME: Duration = Duration::from_secs(3);
const SECRET: &str = "/api/v1/namespaces/weir-system/secrets/weir-webhook-ca";

/// Installs two replicas with the built-in CA and creates a meshed namespace.
fn mesh(cluster: &Cluster, args: &[&str]) -> Option<Mesh> {
    let mesh = Mesh::install_with(cluster, "", args)?;
    mesh.wait_ready();
    cluster.create_namespace("shop", &json!({"istio-injection": "enabled"}));
    Some(mesh)
}

fn bundles(cluster: &Cluster) -> Vec<String> {
    let configuration = cluster.get(CONFIGURATION).expect_ok();
    let hooks = configuration["webhooks"].as_array().unwrap().iter();
    hooks.map(|hook| hook["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned()).collect()
}

fn ca_rotation_under_load_fails_no_review(cluster: &Cluster) {
    // Leaf certificates that outlive any pause of a busy machine, and the shortest overlap.
    let Some(mesh) = mesh(cluster, &["--leaf-lifetime=60s", "--ca-settle=1s", "--ca-retire-after=5s"]) else { return };
    let goal = scale("WEIR_ROTATION_REVIEWS", 200);
    let reviews = |mesh: &Mesh| -> u64 {
        mesh.replicas().iter().map(|replica| replica.counter("sidecar_injection_requests_total")).sum()
    };
    let begun = Instant::now();
    let load = Load::start(cluster, "shop", 8);
    let mut rotations = 0;
    while rotations == 0 || reviews(&mesh) < goal {
        let before = cluster.get(SECRET).expect_ok()["data"]["current.crt"].clone();
        rotations += 1;
        let order = json!({"metadata": {"annotations": {"weir.dev/rotate-ca": format!("{rotations}")}}});
        cluster.merge_patch(SECRET, &order).expect_ok();
        let after = wait_until("the CA has been rotated", || {
            let data = cluster.get(SECRET).expect_ok()["data"].clone();
            let done = data["current.crt"] != before && data["previous.crt"].is_null() && data["next.crt"].is_null();
            if done { Ok(data) } else { Err(format!("{:?}", data.as_object().unwrap().keys())) }
        });
        wait_until("only the new CA is in the bundles", || {
            let found = bundles(cluster);
            if found.iter().all(|bundle| after["ca.crt"] == bundle.as_str()) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        });
        load.wait(20);
    }
    let tally = load.stop();
    let memory: Vec<u64> = mesh.replicas().iter().map(super::replica::Replica::memory).collect();
    let took = begun.elapsed();
    report(
        &format!("{rotations} rotations of the CA, {} reviews in {took:.1?}, memory {memory:?} KiB", reviews(&mesh)),
        &tally,
        Duration::ZERO,
    );
    assert_eq!(tally.failed(), 0, "{tally}");
}

fn overwritten_bundle_is_restored(cluster: &Cluster) {
    let Some(mesh) = mesh(cluster, &[]) else { return };
    let right = bundles(cluster);
    let load = Load::start(cluster, "shop", 4);
    load.wait(20);
    let stop = AtomicBool::new(false);
    let stopped = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut writes = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut configuration = cluster.get(CONFIGURATION).expect_ok();
                for hook in configuration["webhooks"].as_array_mut().unwrap() {
                    hook["clientConfig"].as_object_mut().unwrap().shift_remove("caBundle");
                }
                // A conflict means that the webhook has written in between.
                let response = cluster.put(&format!("{CONFIGURATION}?fieldManager=gitops"), &configuration);
                assert!(matches!(response.code, 200 | 409), "{}", response.body);
                writes += 1;
                thread::sleep(Duration::from_millis(200));
            }
            eprintln!("overwritten {writes} times");
        });
        thread::sleep(CONTENTION_TIME);
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        Instant::now()
    });
    wait_until("the bundle is restored", || {
        if bundles(cluster) == right { Ok(()) } else { Err("another bundle".to_owned()) }
    });
    let restored = stopped.elapsed();
    load.wait(20);
    let tally = load.stop();
    report(
        &format!("bundle overwritten, restored {restored:.1?} after the last time"),
        &tally,
        tally.recovery_time(stopped),
    );
    mesh.wait_ready();
}

fn deleted_ca_secret_is_recreated(cluster: &Cluster) {
    let Some(mesh) = mesh(cluster, &[]) else { return };
    let load = Load::start(cluster, "shop", 4);
    load.wait(20);
    let deleted = Instant::now();
    cluster.delete(SECRET).expect_ok();
    wait_until("the Secret exists again", || {
        let response = cluster.get(SECRET);
        if response.code == 200 { Ok(()) } else { Err(response.body.to_string()) }
    });
    let back = deleted.elapsed();
    load.wait(50);
    let tally = load.stop();
    report(&format!("Secret deleted, recreated after {back:.1?}"), &tally, tally.recovery_time(deleted));
    mesh.wait_ready();
    let response = cluster.post(SHOP, &pod("web")).expect_ok();
    assert!(is_injected(&response));
}

fn deleted_configuration_is_not_recreated(cluster: &Cluster) {
    let Some(mesh) = mesh(cluster, &[]) else { return };
    let own = |object: &Value| -> Vec<String> {
        let entries = object["metadata"]["managedFields"].as_array().unwrap().iter();
        let of_webhook = entries.filter(|entry| entry["manager"] == "weir-webhook");
        of_webhook.map(|entry| format!("{} {}", entry["operation"].as_str().unwrap(), entry["fieldsV1"])).collect()
    };
    let fields = own(&cluster.get(CONFIGURATION).expect_ok());
    assert!(fields.len() == 1 && fields[0].starts_with("Apply "), "{fields:?}");
    for other in ["failurePolicy", "rules", "f:service", "namespaceSelector"] {
        assert!(!fields[0].contains(other), "only the bundle: {fields:?}");
    }
    cluster.delete(CONFIGURATION).expect_ok();
    for replica in mesh.replicas().iter() {
        wait_until("the replica has noticed the deletion", || {
            let response =
                weir_lab::http::get(replica.http, "/readyz?format=json").map_err(|error| error.to_string())?;
            if response.body.contains("NoWebhookConfiguration") { Ok(()) } else { Err(response.body) }
        });
    }
    assert_eq!(cluster.get(CONFIGURATION).code, 404, "what an administrator deletes stays deleted");
    assert!(!is_injected(&cluster.post(SHOP, &pod("web")).expect_ok()));
    let applied = Instant::now();
    mesh.apply();
    wait_until("pods are injected again", || {
        let response = cluster.post(SHOP, &pod("web"));
        if is_injected(&response.body) { Ok(()) } else { Err(format!("{} {}", response.code, response.body)) }
    });
    eprintln!("configuration applied again: pods injected after {:.1?}", applied.elapsed());
    // Applying the manifests again is no conflict with the webhook.
    mesh.apply();
    mesh.wait_ready();
    assert_eq!(cluster.get(&format!("/api/v1/namespaces/{NAMESPACE}")).code, 200);
}

#[test]
fn client_without_trusted_certificate_is_rejected() {
    let cluster = Cluster::fake();
    let server = cluster.fake_server().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [right, wrong] = ["front", "stranger"].map(|name| Authority::new(name).unwrap());
    let file = dir.path().join("clients.pem");
    std::fs::write(&file, right.cert()).unwrap();
    let [ours, theirs] = [&right, &wrong].map(|authority| authority.issue("kube-apiserver", &[]).unwrap());
    server.set_client_certificate(Some(ours.clone()));
    let Some(mesh) = mesh(&cluster, &[&format!("--client-ca-file={}", file.display())]) else { return };
    for other in [None, Some(theirs)] {
        server.set_client_certificate(other);
        let refused = cluster.post(SHOP, &pod("web"));
        assert_eq!(refused.code, 500, "{}", refused.body);
    }
    server.set_client_certificate(Some(ours));
    assert!(is_injected(&cluster.post(SHOP, &pod("web")).expect_ok()));
    mesh.wait_ready();
}
