//! A real kube-apiserver with an etcd of its own. `scripts/build-go-tools` builds the binaries.
//!
//! `KUBEBUILDER_ASSETS` names the directory with `kube-apiserver` and `etcd` (the convention of controller-runtime's envtest).

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rcgen::KeyPair;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use weir_lab::process::ChildGuard;

use super::kubeconfig;
use super::tls::{Authority, provider};

/// Bound until etcd and the server are ready, far above the two seconds that they take.
const START_TIMEOUT: Duration = Duration::from_mins(2);
const TOKEN: &str = "admin-token";

/// A running server. Stops when dropped, and its data is gone with it.
#[derive(Debug)]
pub struct KubeApiserver {
    url: String,
    kubeconfig: PathBuf,
    ca: String,
    /// The server is stopped before etcd: it would retry for seconds without it.
    server: Process,
    etcd: Process,
    _dir: tempfile::TempDir,
}

/// Flags beside those that every server gets.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExtraFlags<'a> {
    /// Flags of kube-apiserver.
    pub server: &'a [String],
    /// Flags of etcd.
    pub etcd: &'a [String],
}

/// A child process and its log.
#[derive(Debug)]
struct Process {
    child: ChildGuard,
    log: PathBuf,
}

impl Process {
    fn start(binary: &Path, args: &[String], dir: &Path) -> anyhow::Result<Self> {
        let name = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = dir.join(format!("{name}.log"));
        let child = Command::new(binary)
            .args(args)
            .current_dir(dir)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        Ok(Self { child: ChildGuard(child), log })
    }

    /// Polls until `ready` succeeds; fails with the end of the log when the process exits or `timeout` is over.
    fn wait(&mut self, timeout: Duration, mut ready: impl FnMut() -> Result<(), String>) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let ended = self.child.0.try_wait()?;
            let Err(why) = ready() else { return Ok(()) };
            if ended.is_some() || begun.elapsed() > timeout {
                let mut log = String::new();
                let _ = File::open(&self.log).and_then(|mut file| file.read_to_string(&mut log));
                let end: Vec<&str> = log.lines().rev().take(20).collect();
                let end: Vec<&str> = end.into_iter().rev().collect();
                let what =
                    ended.map_or_else(|| format!("not ready within {timeout:?}"), |status| format!("exited: {status}"));
                bail!("{}: {what}: {why}\n{}", self.log.display(), end.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl KubeApiserver {
    /// Starts the `etcd` and `kube-apiserver` in a directory.
    ///
    /// # Errors
    /// When one of them is missing, exits, or is not ready within `timeout`; the error has the end of its log.
    pub fn start(assets: &Path, timeout: Duration) -> anyhow::Result<Self> {
        Self::start_with(assets, timeout, ExtraFlags::default())
    }

    /// Like [`start`](Self::start), with further flags.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub fn start_with(assets: &Path, timeout: Duration, flags: ExtraFlags<'_>) -> anyhow::Result<Self> {
        // Another process may take a port before etcd or the server does.
        for _ in 0..4 {
            match Self::try_start(assets, timeout, flags) {
                Err(error) if format!("{error:#}").contains("address already in use") => {}
                result => return result,
            }
        }
        Self::try_start(assets, timeout, flags)
    }

    fn try_start(assets: &Path, timeout: Duration, flags: ExtraFlags<'_>) -> anyhow::Result<Self> {
        let temporary = tempfile::tempdir()?;
        let dir = temporary.path();
        let authority = Authority::new("kubernetes")?;
        let pair = authority.issue("kube-apiserver", &["127.0.0.1", "localhost", "kubernetes.default.svc"])?;
        let accounts = KeyPair::generate()?;
        let file = |name: &str, text: &str| fs::write(dir.join(name), text).with_context(|| name.to_owned());
        file("ca.crt", &authority.cert())?;
        file("tls.crt", &pair.cert)?;
        file("tls.key", &pair.key)?;
        file("accounts.pub", &accounts.public_key_pem())?;
        file("accounts.key", &accounts.serialize_pem())?;
        file("tokens.csv", &format!("{TOKEN},kubernetes-admin,admin,\"system:masters\"\n"))?;

        let [clients, peers, serving] = free_ports()?;
        let mut etcd = Process::start(&assets.join("etcd"), &[&etcd_flags(clients, peers), flags.etcd].concat(), dir)?;
        etcd.wait(timeout, || health(&plain(), &format!("http://127.0.0.1:{clients}/health")))?;
        let all = [&server_flags(clients, serving), flags.server].concat();
        let mut server = Process::start(&assets.join("kube-apiserver"), &all, dir)?;
        let url = format!("https://127.0.0.1:{serving}");
        let agent = trusting(&authority.cert())?;
        server.wait(timeout, || health(&agent, &format!("{url}/readyz")))?;

        let path = dir.join("kubeconfig");
        kubeconfig(&path, &url, Some(&authority.cert()), Some(TOKEN))?;
        let ca = authority.cert();
        Ok(Self { url, kubeconfig: path, ca, server, etcd, _dir: temporary })
    }

    /// Returns `https://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the path of a kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Returns the process ids of kube-apiserver and etcd.
    pub fn pids(&self) -> [u32; 2] {
        [&self.server, &self.etcd].map(|process| process.child.0.id())
    }

    /// Returns the CA certificate that its own is signed by, PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }
}

fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    let sockets: Vec<TcpListener> =
        (0..N).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, socket) in ports.iter_mut().zip(&sockets) {
        *port = socket.local_addr()?.port();
    }
    Ok(ports)
}

fn etcd_flags(clients: u16, peers: u16) -> Vec<String> {
    let (clients, peers) = (format!("http://127.0.0.1:{clients}"), format!("http://127.0.0.1:{peers}"));
    vec![
        "--data-dir=etcd".to_owned(),
        "--unsafe-no-fsync".to_owned(),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        "--log-level=warn".to_owned(),
    ]
}

fn server_flags(etcd: u16, port: u16) -> Vec<String> {
    vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        "--tls-cert-file=tls.crt".to_owned(),
        "--tls-private-key-file=tls.key".to_owned(),
        "--cert-dir=certs".to_owned(),
        "--token-auth-file=tokens.csv".to_owned(),
        "--authorization-mode=RBAC".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        "--service-account-key-file=accounts.pub".to_owned(),
        "--service-account-signing-key-file=accounts.key".to_owned(),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        "--allow-privileged=true".to_owned(),
        // There is no kube-proxy: Services of webhooks are resolved to the addresses of their EndpointSlices.
        "--enable-aggregator-routing=true".to_owned(),
        // The endpoints of the Service `kubernetes` must not be loopback addresses; tests do not need them.
        "--endpoint-reconciler-type=none".to_owned(),
    ]
}

fn agent(tls: Option<TlsConfig>) -> ureq::Agent {
    let mut config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5)));
    if let Some(tls) = tls {
        config = config.tls_config(tls);
    }
    config.build().into()
}

fn plain() -> ureq::Agent {
    agent(None)
}

fn trusting(ca: &str) -> anyhow::Result<ureq::Agent> {
    let root = Certificate::from_pem(ca.as_bytes())?;
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&[root]))
        .unversioned_rustls_crypto_provider(Arc::clone(&provider()))
        .build();
    Ok(agent(Some(tls)))
}

fn health(agent: &ureq::Agent, url: &str) -> Result<(), String> {
    let response = agent.get(url).header("authorization", format!("Bearer {TOKEN}")).call();
    response.map(drop).map_err(|error| error.to_string())
}

/// Returns the directory of `KUBEBUILDER_ASSETS`, or [skips](weir_lab::skip_or_fail) the test where it does not have the binaries.
pub fn assets_or_skip() -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let assets = assets.filter(|dir| ["etcd", "kube-apiserver"].iter().all(|name| dir.join(name).is_file()));
    if assets.is_none() {
        weir_lab::skip_or_fail("KUBEBUILDER_ASSETS has no etcd and kube-apiserver; `make test-tools` builds them");
    }
    assets
}

/// Starts a real API server, or [skips](weir_lab::skip_or_fail) the test where `KUBEBUILDER_ASSETS` does not have the binaries.
///
/// # Panics
/// When it does not start.
pub fn kube_apiserver_or_skip() -> Option<KubeApiserver> {
    let started = KubeApiserver::start(&assets_or_skip()?, START_TIMEOUT);
    Some(started.unwrap_or_else(|error| panic!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A directory with two executables that record their flags and then run the scripts.
    fn assets(etcd: &str, server: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, script) in [("etcd", etcd), ("kube-apiserver", server)] {
            let path = dir.path().join(name);
            let noted = dir.path().join(format!("{name}.flags"));
            fs::write(&path, format!("#!/bin/sh\nprintf '%s\\n' \"$@\" >{}\n{script}\n", noted.display())).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir
    }

    /// Responds to `/health` on the port that etcd is told to listen on.
    const HEALTHY: &str = "port=$(printf '%s\\n' \"$@\" | sed -n 's|^--listen-client-urls=.*:||p')\n\
        exec /usr/bin/python3 -c \"import http.server, sys\n\
class H(http.server.BaseHTTPRequestHandler):\n    def do_GET(self):\n        self.send_response(200); self.end_headers()\n\
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\" \"$port\"";

    #[test]
    fn exit_of_the_server_is_reported_with_its_log() {
        let dir = assets(HEALTHY, "echo 'E1 cannot do that' >&2; exit 3");
        let error = format!("{:#}", KubeApiserver::start(dir.path(), Duration::from_mins(1)).unwrap_err());
        assert!(
            error.contains("kube-apiserver.log: exited: exit status: 3") && error.contains("cannot do that"),
            "{error}"
        );
        let flags = |name: &str| fs::read_to_string(dir.path().join(format!("{name}.flags"))).unwrap();
        let client =
            flags("etcd").lines().find_map(|flag| flag.strip_prefix("--advertise-client-urls=").map(str::to_owned));
        assert!(flags("kube-apiserver").contains(&format!("--etcd-servers={}\n", client.unwrap())));
    }

    #[test]
    fn taken_ports_are_replaced_by_others() {
        let taken =
            "[ -e \"$0.tried\" ] || { touch \"$0.tried\"; echo 'listen: bind: address already in use' >&2; exit 1; }";
        let dir = assets(&format!("{taken}\n{HEALTHY}"), "exit 3");
        let error = format!("{:#}", KubeApiserver::start(dir.path(), Duration::from_mins(1)).unwrap_err());
        assert!(error.contains("kube-apiserver.log: exited: exit status: 3"), "{error}");
    }

    #[test]
    fn etcd_that_never_responds_is_a_timeout() {
        let dir = assets("exec sleep 600", "");
        let error = format!("{:#}", KubeApiserver::start(dir.path(), Duration::from_millis(300)).unwrap_err());
        assert!(error.contains("etcd.log: not ready within 300ms"), "{error}");
        assert!(!dir.path().join("kube-apiserver.flags").exists(), "the server is not started without etcd");
    }

    #[test]
    fn missing_binaries_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = format!("{:#}", KubeApiserver::start(dir.path(), START_TIMEOUT).unwrap_err());
        assert!(error.contains(&format!("cannot start {}/etcd", dir.path().display())), "{error}");
    }
}
