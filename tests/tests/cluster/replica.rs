//! One process of the webhook, started as a kubelet starts the pod of its Deployment: with the arguments, the environment and the files
//! that stand there, on addresses of this machine.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use weir_lab::http;
use weir_lab::process::Guarded;

use super::cluster::{Cluster, until};

/// See the module. The process ends with the value.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) name: String,
    /// Where reviews go.
    pub(crate) https: SocketAddr,
    /// Health and metrics.
    pub(crate) http: SocketAddr,
    args: Vec<String>,
    namespace: String,
    volumes: Vec<Volume>,
    dir: PathBuf,
    process: Option<Guarded>,
}

/// A ConfigMap or Secret that is mounted.
#[derive(Debug)]
struct Volume {
    /// `configmaps` or `secrets`.
    resource: &'static str,
    object: String,
    here: PathBuf,
}

fn free(ip: IpAddr) -> SocketAddr {
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

impl Replica {
    /// Prepares a replica of a Deployment in `dir`; it is not started yet.
    pub(crate) fn of(cluster: &Cluster, deployment: &Value, name: &str, dir: &Path) -> Self {
        let (https, http) = (free(cluster.address()), free(Ipv4Addr::LOCALHOST.into()));
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
            let here = dir.join(volume["name"].as_str().unwrap());
            let (resource, object) =
                match (volume["configMap"]["name"].as_str(), volume["secret"]["secretName"].as_str()) {
                    (Some(map), _) => ("configmaps", map),
                    (_, Some(secret)) => ("secrets", secret),
                    _ => panic!("a volume that is not known here: {volume}"),
                };
            volumes.push(Volume { resource, object: object.to_owned(), here });
        }
        for arg in container["args"].as_array().unwrap() {
            let mut arg = arg.as_str().unwrap().to_owned();
            for (there, here) in &mounts {
                arg = arg.replace(there, here.to_str().unwrap());
            }
            args.push(match arg.as_str() {
                "--https-addr=:15017" => format!("--https-addr={https}"),
                "--http-addr=:15014" => format!("--http-addr={http}"),
                _ => arg,
            });
        }
        if spec["automountServiceAccountToken"] == true {
            let token = cluster.token_of(&namespace, spec["serviceAccountName"].as_str().unwrap());
            let kubeconfig = cluster.kubeconfig_with(&format!("{name}.kubeconfig"), &token);
            args.push(format!("--kubeconfig={}", kubeconfig.display()));
        }
        let replica = Self { name: name.to_owned(), https, http, args, namespace, volumes, dir, process: None };
        replica.mount(cluster);
        replica
    }

    /// Further arguments, as somebody who edits the Deployment adds them.
    pub(crate) fn with(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// Brings the mounted files up to date, as a kubelet does: a new folder, and a link that is swapped.
    pub(crate) fn mount(&self, cluster: &Cluster) {
        for Volume { resource, object, here } in &self.volumes {
            let found = cluster.get(&format!("/api/v1/namespaces/{}/{resource}/{object}", self.namespace)).good();
            let version = format!("..{}", found["metadata"]["resourceVersion"].as_str().unwrap());
            let folder = here.join(&version);
            fs::create_dir_all(&folder).unwrap();
            for (key, value) in found["data"].as_object().into_iter().flatten() {
                let text = value.as_str().unwrap();
                let bytes =
                    if *resource == "secrets" { STANDARD.decode(text).unwrap() } else { text.as_bytes().to_vec() };
                fs::write(folder.join(key), bytes).unwrap();
                let link = here.join(key);
                if link.symlink_metadata().is_err() {
                    std::os::unix::fs::symlink(format!("..data/{key}"), link).unwrap();
                }
            }
            let next = here.join("..data_tmp");
            let _ = fs::remove_file(&next);
            std::os::unix::fs::symlink(&version, &next).unwrap();
            fs::rename(&next, here.join("..data")).unwrap();
        }
    }

    /// Starts the process, or starts it again; not yet ready.
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
        self.process = Some(Guarded(child));
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Whether its readiness probe succeeds; the error is what the probe says.
    pub(crate) fn ready(&self) -> Result<(), String> {
        match http::get(self.http, "/readyz") {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(answer.body),
            Err(error) => Err(error.to_string()),
        }
    }

    #[track_caller]
    pub(crate) fn wait_ready(&mut self) {
        let what = format!("{} is ready", self.name);
        until(&what, || {
            let ended = self.process.as_mut().and_then(|process| process.0.try_wait().unwrap());
            assert!(ended.is_none(), "{} has ended: {ended:?}\n{}", self.name, self.log());
            self.ready().map_err(|why| format!("{why}\n{}", self.log()))
        });
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// A counter without labels; zero where there is none.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let text = http::get(self.http, "/metrics").map(|answer| answer.body).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or_default()
    }

    /// Resident memory in KiB.
    pub(crate) fn memory(&self) -> u64 {
        let Some(Guarded(child)) = &self.process else { return 0 };
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or_default()
    }
}
