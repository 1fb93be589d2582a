use clap::Parser as _;

use super::*;
use crate::args::Cli;

fn host(files: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect()
}

fn find(flags: &[&str], files: &[(&str, &str)]) -> Places {
    let args = Cli::try_parse_from(["weir-agent"].iter().chain(flags)).unwrap().run.install;
    discover(&args, &host(files))
}

fn folders(places: &Places) -> (String, Vec<String>) {
    let bins = places.bins.iter().map(|bin| bin.here.display().to_string()).collect();
    (places.conf.here.display().to_string(), bins)
}

fn pair(conf: &str, bin: &str) -> (String, Vec<String>) {
    (conf.to_owned(), vec![bin.to_owned()])
}

#[test]
fn without_any_hint_the_folders_are_the_usual_ones() {
    let places = find(&[], &[]);
    assert_eq!(folders(&places), pair("/host/etc/cni/net.d", "/host/opt/cni/bin"));
    assert_eq!(places.findings, []);
}

#[test]
fn reads_every_version_of_containerds_file() {
    let v1 = "[plugins.cri.cni]\nbin_dir = '/b1'\nconf_dir = '/c1/'\n";
    let v2 = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/b2'\nconf_dir = '/c2'\n";
    let v3 = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dir = ''\nbin_dirs = ['/b3', '/b4']\nconf_dir = '/c3'\n";
    let read = |text| folders(&find(&["--host-root=/h"], &[("/etc/containerd/config.toml", text)]));
    assert_eq!(read(v1), pair("/h/c1", "/h/b1"));
    assert_eq!(read(v2), pair("/h/c2", "/h/b2"));
    assert_eq!(read(v3), ("/h/c3".into(), vec!["/h/b3".into(), "/h/b4".into()]));
    assert_eq!(read("version = 2\n"), pair("/h/etc/cni/net.d", "/h/opt/cni/bin"));
}

#[test]
fn follows_imports() {
    let places = find(
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
    assert_eq!(folders(&places), pair("/host/from-import", "/host/from-own"));
}

#[test]
fn reads_crio() {
    let places = find(
        &[],
        &[
            ("/etc/crio/crio.conf", "[crio.network]\nnetwork_dir = '/c'\nplugin_dirs = ['/b/', '/opt/cni/bin']\n"),
            ("/etc/crio/crio.conf.d/10.conf", "[crio.network]\nnetwork_dir = '/later'\n"),
        ],
    );
    assert_eq!(folders(&places), ("/host/later".into(), vec!["/host/b".into(), "/host/opt/cni/bin".into()]));
    assert_eq!(places.source, "/etc/crio");
}

#[test]
fn knows_the_usual_platforms_by_name_and_by_what_is_on_them() {
    for (platform, mark, conf, bin) in [
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
        assert_eq!(folders(&find(&[&format!("--platform={platform}")], &[])), expected, "{platform}");
        if let Some(mark) = mark {
            assert_eq!(folders(&find(&[], &[(mark, "")])), expected, "{platform}");
        }
    }
}

#[test]
fn a_path_with_a_variable_says_nothing() {
    let file = "[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '${SNAP_DATA}/opt/cni/bin'\nconf_dir = '${SNAP_DATA}/args/cni-network'\n";
    let places = find(&["--platform=microk8s"], &[("/var/snap/microk8s/current/args/containerd.toml", file)]);
    assert_eq!(places.conf.host, "/var/snap/microk8s/current/args/cni-network");
}

#[test]
fn flags_win_and_what_they_miss_is_told() {
    let file = "[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/b'\nconf_dir = '/c'\n";
    let files = [("/etc/containerd/config.toml", file)];
    let places =
        find(&["--mounted-cni-net-dir=/host/etc/cni/net.d", "--mounted-cni-bin-dir=/host/opt/cni/bin"], &files);
    assert_eq!(folders(&places), pair("/host/etc/cni/net.d", "/host/opt/cni/bin"));
    let told: Vec<String> = places.findings.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("--mounted-cni-net-dir is /etc/cni/net.d, but the runtime reads /c"), "{told:?}");
    // Mounted elsewhere, but the right folder of the host.
    let places = find(&["--mounted-cni-net-dir=/conf", "--cni-net-dir=/c", "--mounted-cni-bin-dir=/host/b"], &files);
    assert_eq!(places.findings, []);
    assert_eq!(places.conf, Folder { here: "/conf".into(), host: "/c".into() });
}

#[test]
fn a_file_that_cannot_be_understood_is_told() {
    let places = find(&[], &[("/etc/containerd/config.toml", "version = \n")]);
    assert_eq!(places.findings.iter().map(Finding::name).collect::<Vec<_>>(), ["runtime-configuration"]);
    assert_eq!(places.conf.host, "/etc/cni/net.d");
}
