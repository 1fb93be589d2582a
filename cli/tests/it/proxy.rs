//! Connections to a cluster through a proxy.

use std::path::Path;

use weir_apiserver::{ApiServer, ForwardProxy};

use crate::run::Run;

/// A name of the server that only the proxy can reach.
const SERVER: &str = "https://kubernetes.default.svc:6443";

fn version(kubeconfig: &Path, environment: &[(&str, &str)]) -> Run {
    let output = assert_cmd::cargo::cargo_bin_cmd!("weir")
        .args(["version", "--kubeconfig", kubeconfig.to_str().expect("UTF-8")])
        .env_remove("HTTPS_PROXY")
        .env_remove("NO_PROXY")
        .envs(environment.iter().copied())
        .output()
        .expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Run { code: output.status.code().expect("no signal"), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn cluster_is_reached_through_the_proxy_that_is_set() {
    let server = ApiServer::cluster().unwrap();
    let proxy = ForwardProxy::start(server.addr()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let requests = || proxy.targets().len();
    let assert_proxied = |kubeconfig: &Path, environment: &[(&str, &str)]| {
        let before = requests();
        let run = version(kubeconfig, environment);
        assert_eq!(run.code, 0, "{environment:?}: {}", run.stderr);
        assert!(requests() > before, "{environment:?}");
        assert_eq!(proxy.targets().pop().as_deref(), Some("kubernetes.default.svc:6443"));
    };
    let (http, socks5) = (proxy.http_url(), proxy.socks5_url());
    for url in [&http, &socks5] {
        let kubeconfig = server.kubeconfig_through(dir.path(), SERVER, Some(url)).unwrap();
        assert_proxied(&kubeconfig, &[]);
        // As with kubectl, NO_PROXY is about the environment only.
        assert_proxied(&kubeconfig, &[("NO_PROXY", "*")]);
    }
    let kubeconfig = server.kubeconfig_through(dir.path(), SERVER, None).unwrap();
    for url in [&http, &socks5] {
        assert_proxied(&kubeconfig, &[("HTTPS_PROXY", url)]);
        assert_proxied(&kubeconfig, &[("HTTPS_PROXY", url), ("NO_PROXY", "localhost,127.0.0.1,other.svc")]);
    }
    for direct in ["*", ".svc", "kubernetes.default.svc"] {
        let before = requests();
        let run = version(&kubeconfig, &[("HTTPS_PROXY", &http), ("NO_PROXY", direct)]);
        assert!(run.code == 2 && run.stderr.contains(SERVER), "{direct}: {}", run.stderr);
        assert_eq!(requests(), before, "{direct}");
    }
    // A server on loopback never goes through the proxy of the environment.
    let other_dir = tempfile::tempdir().unwrap();
    let local = server.kubeconfig(other_dir.path()).unwrap();
    assert_eq!(version(&local, &[("HTTPS_PROXY", "http://127.0.0.1:9")]).code, 0);
    let run = version(&kubeconfig, &[("HTTPS_PROXY", "ftp://u:secret@proxy")]);
    assert!(run.code == 2 && run.stderr.contains("HTTPS_PROXY") && !run.stderr.contains("secret"), "{}", run.stderr);
}

#[test]
fn missing_credential_plugin_is_named() {
    let server = ApiServer::cluster().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = server.kubeconfig(dir.path()).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let exec = serde_json::json!({"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-auth-plugin", "interactiveMode": "Never"});
    config["users"][0]["user"] = serde_json::json!({ "exec": exec });
    std::fs::write(&path, config.to_string()).unwrap();
    let run = version(&path, &[]);
    assert!(run.code == 2 && run.stderr.contains("credential plugin no-such-auth-plugin"), "{}", run.stderr);
}
