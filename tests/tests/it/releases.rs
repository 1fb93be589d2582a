//! The runtimes that other tests use: every release starts, survives a kill of the daemon, and reboots.

use weir_tests::cri_runtime::{CriRuntime, RuntimeRelease};

fn survives_a_kill_and_a_reboot(release: RuntimeRelease) {
    if !release.available_or_skip() {
        return;
    }
    let conflist = serde_json::json!({ "cniVersion": release.cni_version(), "name": "test", "plugins": [
        { "type": "bridge", "bridge": "cni0", "ipam": { "type": "host-local", "subnet": "10.77.0.0/24" } },
    ] });
    let runtime = CriRuntime::start_release(release, &[("10-test.conflist", &conflist.to_string())], None).unwrap();
    let loaded = runtime.cri.loaded_plugins().unwrap();
    assert!(matches!(&loaded[..], [one] if one.kind == "bridge"), "{loaded:?}");
    let id = runtime.cri.run_pod_sandbox(&runtime.pod("before", [])).unwrap();
    let path = runtime.cri.sandbox_status(&id).unwrap().netns;
    let netns = || runtime.host_path(&path);

    runtime.kill_daemon().unwrap();
    runtime.wait_for_network().unwrap();
    assert!(weir_kernel::netns::run_in(&netns(), || ()).is_ok(), "the pod goes on without the daemon");

    runtime.power_off().unwrap();
    runtime.power_on().unwrap();
    runtime.wait_for_network().unwrap();
    assert_eq!(runtime.cri.sandboxes().unwrap(), std::slice::from_ref(&id), "the daemon remembers the pod");
    assert!(weir_kernel::netns::run_in(&netns(), || ()).is_err(), "but its namespace is gone");
    let second = runtime.cri.run_pod_sandbox(&runtime.pod("after", [])).unwrap();
    for id in [id, second] {
        runtime.cri.stop_pod_sandbox(&id).unwrap();
        runtime.cri.remove_pod_sandbox(&id).unwrap();
    }
}

#[test]
fn installed_containerd_survives_a_kill_and_a_reboot() {
    survives_a_kill_and_a_reboot(RuntimeRelease::Installed);
}

#[test]
fn containerd_1_7_survives_a_kill_and_a_reboot() {
    survives_a_kill_and_a_reboot(RuntimeRelease::V1_7);
}

#[test]
fn containerd_2_1_survives_a_kill_and_a_reboot() {
    survives_a_kill_and_a_reboot(RuntimeRelease::V2_1);
}
