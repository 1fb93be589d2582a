use clap::Parser as _;

use super::*;
use crate::args::Cli;

fn host(files: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect()
}

fn find(flags: &[&str], files: &[(&str, &str)]) -> NodeDirs {
    let args = Cli::try_parse_from(["weir-agent"].iter().chain(flags)).unwrap().run.install;
    discover(&args, &host(files))
}

fn dirs(node_dirs: &NodeDirs) -> (String, Vec<String>) {
    let bins = node_dirs.bins.iter().map(|bin| bin.mounted.display().to_string()).collect();
    (node_dirs.conf.mounted.display().to_string(), bins)
}

fn pair(conf: &str, bin: &str) -> (String, Vec<String>) {
    (conf.to_owned(), vec![bin.to_owned()])
}

#[test]
fn defaults_apply_without_configuration() {
    let node_dirs = find(&[], &[]);
    assert_eq!(dirs(&node_dirs), pair("/host/etc/cni/net.d", "/host/opt/cni/bin"));
    assert_eq!(node_dirs.findings, []);
}

#[test]
fn every_version_of_containerds_file_is_read() {
    let v1 = "[plugins.cri.cni]\nbin_dir = '/b1'\nconf_dir = '/c1/'\n";
    let v2 = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/b2'\nconf_dir = '/c2'\n";
    let v3 = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dir = ''\nbin_dirs = ['/b3', '/b4']\nconf_dir = '/c3'\n";
    let read = |text| dirs(&find(&["--host-root=/h"], &[("/etc/containerd/config.toml", text)]));
    assert_eq!(read(v1), pair("/h/c1", "/h/b1"));
    assert_eq!(read(v2), pair("/h/c2", "/h/b2"));
    assert_eq!(read(v3), ("/h/c3".into(), vec!["/h/b3".into(), "/h/b4".into()]));
    assert_eq!(read("version = 2\n"), pair("/h/etc/cni/net.d", "/h/opt/cni/bin"));
}

#[test]
fn imports_are_followed() {
    let node_dirs = find(
        &[],
        &[
            (
                "/etc/containerd/config.toml",
                "imports = ['/etc/containerd/conf.d/*.toml', 'own.toml']\n[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/b'\nconf_dir = '/c'\n",
            ),
            (
                "/etc/containerd/conf.d/10-a.toml",
                "[plugins.'io.containerd.grpc.v1.cri'.cni]\nconf_dir = '/from-import'\n",
            ),
            (
                "/etc/containerd/conf.d/20-b.txt",
                "[plugins.'io.containerd.grpc.v1.cri'.cni]\nconf_dir = '/not-imported'\n",
            ),
            ("/etc/containerd/own.toml", "[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/from-own'\n"),
        ],
    );
    assert_eq!(dirs(&node_dirs), pair("/host/from-import", "/host/from-own"));
}

#[test]
fn crio_drop_ins_are_read() {
    let node_dirs = find(
        &[],
        &[
            ("/etc/crio/crio.conf", "[crio.network]\nnetwork_dir = '/c'\nplugin_dirs = ['/b/', '/opt/cni/bin']\n"),
            ("/etc/crio/crio.conf.d/10.conf", "[crio.network]\nnetwork_dir = '/later'\n"),
        ],
    );
    assert_eq!(dirs(&node_dirs), ("/host/later".into(), vec!["/host/b".into(), "/host/opt/cni/bin".into()]));
    assert_eq!(node_dirs.source, "/etc/crio");
}

#[test]
fn platforms_are_set_by_flag_or_detected() {
    for (platform, marker, conf, bin) in [
        ("gke", Some("/home/kubernetes/bin/x"), "/etc/cni/net.d", "/home/kubernetes/bin"),
        (
            "k3s",
            Some("/var/lib/rancher/k3s/agent/x"),
            "/var/lib/rancher/k3s/agent/etc/cni/net.d",
            "/var/lib/rancher/k3s/data/cni",
        ),
        ("k3d", None, "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/bin"),
        (
            "microk8s",
            Some("/var/snap/microk8s/current/x"),
            "/var/snap/microk8s/current/args/cni-network",
            "/var/snap/microk8s/current/opt/cni/bin",
        ),
        ("openshift", Some("/etc/cni/multus/net.d/x"), "/etc/cni/multus/net.d", "/var/lib/cni/bin"),
        ("minikube", None, "/etc/cni/net.d", "/opt/cni/bin"),
        ("bottlerocket", None, "/etc/cni/net.d", "/opt/cni/bin"),
        ("talos", None, "/etc/cni/net.d", "/opt/cni/bin"),
    ] {
        let expected = pair(&format!("/host{conf}"), &format!("/host{bin}"));
        assert_eq!(dirs(&find(&[&format!("--platform={platform}")], &[])), expected, "{platform}");
        if let Some(marker) = marker {
            assert_eq!(dirs(&find(&[], &[(marker, "")])), expected, "{platform}");
        }
    }
}

#[test]
fn paths_with_variables_are_ignored() {
    let file = "[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '${SNAP_DATA}/opt/cni/bin'\nconf_dir = '${SNAP_DATA}/args/cni-network'\n";
    let node_dirs = find(&["--platform=microk8s"], &[("/var/snap/microk8s/current/args/containerd.toml", file)]);
    assert_eq!(node_dirs.conf.host, "/var/snap/microk8s/current/args/cni-network");
}

#[test]
fn flags_take_precedence_and_contradictions_are_reported() {
    let file = "[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/b'\nconf_dir = '/c'\n";
    let files = [("/etc/containerd/config.toml", file)];
    let node_dirs =
        find(&["--mounted-cni-net-dir=/host/etc/cni/net.d", "--mounted-cni-bin-dir=/host/opt/cni/bin"], &files);
    assert_eq!(dirs(&node_dirs), pair("/host/etc/cni/net.d", "/host/opt/cni/bin"));
    let findings: Vec<String> = node_dirs.findings.iter().map(ToString::to_string).collect();
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(findings[0].contains("--mounted-cni-net-dir is /etc/cni/net.d, but the runtime reads /c"), "{findings:?}");
    // Mounted elsewhere, but the runtime's directory.
    let node_dirs = find(&["--mounted-cni-net-dir=/conf", "--cni-net-dir=/c", "--mounted-cni-bin-dir=/host/b"], &files);
    assert_eq!(node_dirs.findings, []);
    assert_eq!(node_dirs.conf, HostDir { mounted: "/conf".into(), host: "/c".into() });
}

#[test]
fn a_malformed_file_is_reported() {
    let node_dirs = find(&[], &[("/etc/containerd/config.toml", "version = \n")]);
    assert_eq!(node_dirs.findings.iter().map(Finding::name).collect::<Vec<_>>(), ["runtime-configuration"]);
    assert_eq!(node_dirs.conf.host, "/etc/cni/net.d");
}
