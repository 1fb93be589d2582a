use serde_json::json;

use super::*;
use crate::pods::facts;

const UID: &str = "3f1c0a52-8f6e-4f43-9d51-0f3a2b1c4d5e";

#[test]
fn cgroup_names_contain_pod_uid_or_container_id() {
    let underscored = UID.replace('-', "_");
    for (word, expected) in [
        (format!("pod{UID}"), Some(UID.to_owned())),
        (format!("kubepods-burstable-pod{underscored}.slice"), Some(UID.to_owned())),
        (format!("kubepods-pod{}.slice", "a".repeat(32)), Some("a".repeat(32))),
        ("kubepods.slice".to_owned(), None),
        ("podman".to_owned(), None),
        (format!("tripod{UID}"), None),
    ] {
        assert_eq!(pod_uid(&word), expected, "{word}");
    }
    let id = "ab".repeat(32);
    for word in [id.clone(), format!("cri-containerd-{id}.scope"), format!("crio-{id}.scope")] {
        assert_eq!(container_id(&word).as_ref(), Some(&id), "{word}");
    }
    assert_eq!(container_id("init.scope"), None);
}

#[test]
fn configs_of_both_runtimes_are_parsed() {
    let namespaces = json!({"namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/cni-1"}]});
    let records = [
        json!({"io.kubernetes.cri.sandbox-uid": UID}),
        json!({"io.kubernetes.cri-o.Labels": format!(r#"{{"io.kubernetes.pod.uid":"{UID}"}}"#)}),
        json!({"io.kubernetes.cri-o.Metadata": format!(r#"{{"name":"web","uid":"{UID}"}}"#)}),
    ];
    for annotations in records {
        let record = json!({"annotations": annotations, "linux": namespaces}).to_string();
        assert_eq!(sandbox_netns(record.as_bytes()), Some((UID.to_owned(), "/var/run/netns/cni-1".into())), "{record}");
    }
    for record in [
        "",
        "{}",
        r#"{"annotations":{"io.kubernetes.cri.sandbox-uid":"u"},"linux":{"namespaces":[{"type":"network"}]}}"#,
    ] {
        assert_eq!(sandbox_netns(record.as_bytes()), None);
    }
}

#[test]
fn candidates_are_found_lazily_in_order_of_trust() {
    let dir = tempfile::tempdir().unwrap();
    let place = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let record = json!({
        "annotations": {"io.kubernetes.cri.sandbox-uid": UID},
        "linux": {"namespaces": [{"type": "network", "path": "/run/netns/by-record"}]},
    });
    place("run/task/abc/config.json", &record.to_string());
    place("run/task/half/config.json", "{\"annot");
    place("run/netns/no-namespace", "");
    let id = "cd".repeat(32);
    place("proc/7/cgroup", &format!("0::/kubepods/besteffort/pod{UID}/{}\n", "ef".repeat(32)));
    place("proc/8/cgroup", &format!("0::/../cri-containerd-{id}.scope\n"));
    place("proc/self/cgroup", &format!("0::/pod{UID}\n"));
    let paths = NetnsPaths {
        host_proc: dir.path().join("proc"),
        host_root: dir.path().to_owned(),
        netns_dirs: vec!["/run/netns".into(), "/no/such".into()],
        runtime_dirs: vec!["/run/task".into()],
    };
    let attachments = Attachments::default();
    attachments.apply(&weir_protocol::agent::CallReport {
        v: 1,
        verb: "ADD".to_owned(),
        uid: UID.to_owned(),
        netns: "/proc/99/ns/net".to_owned(),
        ..weir_protocol::agent::CallReport::default()
    });
    let pod = facts(json!({
        "metadata": {"uid": UID, "annotations": {"sidecar.istio.io/status": "{}"}},
        "spec": {"containers": [{"name": "istio-proxy"}]},
        "status": {"containerStatuses": [{"name": "a", "containerID": format!("containerd://{id}")}]},
    }));
    let visits = Visits::default();
    let lookup = NetnsLookup::new(&paths, &attachments, &visits);
    assert_eq!(lookup.candidates(&pod).next().map(|found| found.1), Some(NetnsSource::Report));
    assert!(lookup.runtime.get().is_none() && lookup.processes.get().is_none(), "not looked for yet");
    let found: Vec<(String, NetnsSource)> = lookup
        .candidates(&pod)
        .map(|(path, source)| (path.strip_prefix(dir.path()).unwrap_or(&path).display().to_string(), source))
        .collect();
    let expected = [
        ("proc/99/ns/net", NetnsSource::Report),
        ("/run/netns/by-record", NetnsSource::Runtime),
        ("proc/7/ns/net", NetnsSource::Process),
        ("proc/8/ns/net", NetnsSource::Process),
    ];
    assert_eq!(found, expected.map(|(path, source)| (path.to_owned(), source)));
}
