//! The admission webhook on loopback, called as the API server does: over TLS, with verification of its certificate.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::tls::Certificate;

use crate::LabError;
use crate::http::{self, client};
use crate::process::ChildGuard;

/// Time within which the webhook has to become ready.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A running `weir-webhook` with a self-made certificate; it ends with the value.
#[derive(Debug)]
pub struct Webhook {
    process: ChildGuard,
    client: Client,
}

/// A client that calls a webhook as the API server does.
#[derive(Debug)]
pub struct Client {
    http: ureq::Agent,
    url: String,
}

impl Webhook {
    /// Starts `binary` with additional arguments. Its CA certificate and log are written to `dir`.
    ///
    /// # Errors
    /// Returns an error with the log if the webhook is not ready in time.
    pub fn start(binary: &Path, dir: &Path, args: &[&str]) -> Result<Self, LabError> {
        let (ca, log) = (dir.join("webhook-ca.crt"), dir.join("webhook.log"));
        let failed =
            |what: &str, source: std::io::Error| LabError::new(format!("start {}: {what}", binary.display()), source);
        let (https, http) = free_ports().map_err(|source| failed("find a free port", source))?;
        let log_file = fs::File::create(&log).map_err(|source| failed("create the log", source))?;
        let process = Command::new(binary)
            .args(["--https-addr", &https.to_string(), "--http-addr", &http.to_string(), "--ca-out"])
            .arg(&ca)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .map_err(|source| failed("spawn", source))?;
        let process = ChildGuard(process);
        let started = Instant::now();
        loop {
            let why = match http::get(http, "/readyz") {
                Ok(answer) if answer.status == 200 => break,
                Ok(answer) => answer.body,
                Err(error) => error.to_string(),
            };
            if started.elapsed() > START_TIMEOUT {
                let log = fs::read_to_string(&log).unwrap_or_default();
                return Err(failed("wait until ready", std::io::Error::other(format!("{why}\n{log}"))));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { process, client: Client::new(&format!("https://{https}/inject"), &ca)? })
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Returns the URL.
    pub fn url(&self) -> &str {
        &self.client.url
    }

    /// Posts an `AdmissionReview` and returns the response.
    pub fn review(&self, review: &Value) -> Result<Value, LabError> {
        self.client.review(review)
    }
}

impl Client {
    /// Creates a client for the webhook at `url` that trusts only the certificate authority in the PEM file `ca`.
    pub fn new(url: &str, ca: &Path) -> Result<Self, LabError> {
        let failed = |source| LabError::new(format!("read CA certificate {}", ca.display()), source);
        let pem = fs::read(ca).map_err(failed)?;
        let root = Certificate::from_pem(&pem).map_err(|error| failed(std::io::Error::other(error)))?;
        Ok(Self { http: client(Some(root)), url: url.to_owned() })
    }

    /// Posts an `AdmissionReview` and returns the response.
    ///
    /// # Errors
    /// Returns an error for failed connections, untrusted certificates, statuses other than 200 and invalid JSON.
    pub fn review(&self, review: &Value) -> Result<Value, LabError> {
        let failed = |error: String| LabError::new(format!("POST {}", self.url), std::io::Error::other(error));
        let sent = self.http.post(&self.url).header("content-type", "application/json").send(review.to_string());
        let mut answer = sent.map_err(|error| failed(error.to_string()))?;
        let body = answer.body_mut().read_to_string().map_err(|error| failed(error.to_string()))?;
        if answer.status() != 200 {
            return Err(failed(format!("{}: {body}", answer.status())));
        }
        serde_json::from_str(&body).map_err(|error| failed(format!("{error}: {body}")))
    }
}

/// Returns the review that the API server sends when a pod is created.
pub fn admission_review(pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "requestKind": { "group": "", "version": "v1", "kind": "Pod" },
            "requestResource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": pod["metadata"]["namespace"].as_str().unwrap_or("default"),
            "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller" },
            "object": pod, "oldObject": null, "dryRun": false,
            "options": { "apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions" },
        },
    })
}

/// Returns two free ports. Another process may bind them before the webhook does, but its log need not be parsed for the ports.
fn free_ports() -> std::io::Result<(SocketAddr, SocketAddr)> {
    let sockets = [TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?];
    Ok((sockets[0].local_addr()?, sockets[1].local_addr()?))
}
