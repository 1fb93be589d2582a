//! One process of the webhook, started as a kubelet starts the pod of its Deployment: with its arguments, environment and files, on
//! addresses of this machine.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use weir_lab::http;
use weir_lab::process::ChildGuard;
use weir_tests::wait_until;

use super::api_server::Cluster;

/// A replica of the webhook. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) name: String,
    /// Address for reviews.
    pub(crate) https: SocketAddr,
    /// Address for health and metrics.
    pub(crate) http: SocketAddr,
    args: Vec<String>,
    namespace: String,
    volumes: Vec<Volume>,
    dir: PathBuf,
    process: Option<ChildGuard>,
}

/// A mounted ConfigMap or Secret.
#[derive(Debug)]
struct Volume {
    /// `configmaps` or `secrets`.
    resource: &'static str,
    object: String,
    path: PathBuf,
}

fn free_address(ip: IpAddr) -> SocketAddr {
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

impl Replica {
    /// Creates a replica of a Deployment in `dir`, not yet started.
    pub(crate) fn new(cluster: &Cluster, deployment: &Value, name: &str, dir: &Path) -> Self {
        let (https, http) = (free_address(cluster.webhook_address()), free_address(Ipv4Addr::LOCALHOST.into()));
        let namespace = deployment["metadata"]["namespace"].as_str().unwrap().to_owned();
        let spec = &deployment["spec"]["template"]["spec"];
        let container = &spec["containers"][0];
        let dir = dir.join(name);
        fs::create_dir_all(&dir).unwrap();
        let mut args: Vec<String> = Vec::new();
        let mut volumes = Vec::new();
        let mounts: Vec<(String, PathBuf)> = container["volumeMounts"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|mount| (mount["mountPath"].as_str().unwrap().to_owned(), dir.join(mount["name"].as_str().unwrap())))
            .collect();
        for volume in spec["volumes"].as_array().into_iter().flatten() {
            let path = dir.join(volume["name"].as_str().unwrap());
            let (resource, object) =
                match (volume["configMap"]["name"].as_str(), volume["secret"]["secretName"].as_str()) {
                    (Some(map), _) => ("configmaps", map),
                    (_, Some(secret)) => ("secrets", secret),
                    _ => panic!("unsupported volume: {volume}"),
                };
            volumes.push(Volume { resource, object: object.to_owned(), path });
        }
        for arg in container["args"].as_array().unwrap() {
            let mut arg = arg.as_str().unwrap().to_owned();
            for (mount_path, path) in &mounts {
                arg = arg.replace(mount_path, path.to_str().unwrap());
            }
            args.push(match arg.as_str() {
                "--https-addr=:15017" => format!("--https-addr={https}"),
                "--http-addr=:15014" => format!("--http-addr={http}"),
                _ => arg,
            });
        }
        if spec["automountServiceAccountToken"] == true {
            let token = cluster.service_account_token(&namespace, spec["serviceAccountName"].as_str().unwrap());
            let kubeconfig = cluster.kubeconfig_with(&format!("{name}.kubeconfig"), &token);
            args.push(format!("--kubeconfig={}", kubeconfig.display()));
        }
        let replica = Self { name: name.to_owned(), https, http, args, namespace, volumes, dir, process: None };
        replica.update_volumes(cluster);
        replica
    }

    /// Adds arguments of the webhook.
    pub(crate) fn with_args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// Updates the mounted files as a kubelet does: a new directory and a swapped symbolic link.
    pub(crate) fn update_volumes(&self, cluster: &Cluster) {
        for Volume { resource, object, path } in &self.volumes {
            let found = cluster.get(&format!("/api/v1/namespaces/{}/{resource}/{object}", self.namespace)).expect_ok();
            let version = format!("..{}", found["metadata"]["resourceVersion"].as_str().unwrap());
            let dir = path.join(&version);
            fs::create_dir_all(&dir).unwrap();
            for (key, value) in found["data"].as_object().into_iter().flatten() {
                let text = value.as_str().unwrap();
                let bytes =
                    if *resource == "secrets" { STANDARD.decode(text).unwrap() } else { text.as_bytes().to_vec() };
                fs::write(dir.join(key), bytes).unwrap();
                let link = path.join(key);
                if link.symlink_metadata().is_err() {
                    std::os::unix::fs::symlink(format!("..data/{key}"), link).unwrap();
                }
            }
            let next = path.join("..data_tmp");
            let _ = fs::remove_file(&next);
            std::os::unix::fs::symlink(&version, &next).unwrap();
            fs::rename(&next, path.join("..data")).unwrap();
        }
    }

    /// Starts or restarts the process, without waiting until it is ready.
    pub(crate) fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let child = Command::new(weir_tests::bin("weir-webhook"))
            .args(&self.args)
            .env_clear()
            .env("POD_NAMESPACE", &self.namespace)
            .env("POD_NAME", &self.name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(ChildGuard(child));
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Probes `/readyz`; the error is its response.
    pub(crate) fn probe(&self) -> Result<(), String> {
        match http::get(self.http, "/readyz") {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(answer.body),
            Err(error) => Err(error.to_string()),
        }
    }

    #[track_caller]
    pub(crate) fn wait_ready(&mut self) {
        let what = format!("{} is ready", self.name);
        wait_until(&what, || {
            let status = self.process.as_mut().and_then(|process| process.0.try_wait().unwrap());
            assert!(status.is_none(), "{} has exited: {status:?}\n{}", self.name, self.log());
            self.probe().map_err(|why| format!("{why}\n{}", self.log()))
        });
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Returns a counter without labels, or zero.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let text = http::get(self.http, "/metrics").map(|answer| answer.body).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or_default()
    }

    /// Returns its resident memory in KiB.
    pub(crate) fn memory(&self) -> u64 {
        let Some(ChildGuard(child)) = &self.process else { return 0 };
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or_default()
    }
}
