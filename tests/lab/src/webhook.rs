//! The real admission webhook on loopback, asked as an API server asks it: over TLS, its certificate verified against its CA.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::tls::Certificate;

use crate::LabError;
use crate::http::{self, agent};
use crate::process::Guarded;

/// How long the webhook may take to answer its first probe.
const START: Duration = Duration::from_secs(10);

/// A running `weir-webhook` with a certificate it made for itself; ends with the value.
#[derive(Debug)]
pub struct Webhook {
    process: Guarded,
    client: Client,
}

/// Somebody who asks a webhook, as an API server does.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
    url: String,
}

impl Webhook {
    /// Starts `binary` with further arguments. `dir` takes its CA certificate and its log.
    ///
    /// # Errors
    /// When it does not start or is not ready in time; the end of its log is in the text.
    pub fn start(binary: &Path, dir: &Path, args: &[&str]) -> Result<Self, LabError> {
        let (ca, log) = (dir.join("webhook-ca.crt"), dir.join("webhook.log"));
        let failed =
            |what: &str, source: std::io::Error| LabError::new(format!("{}: {what}", binary.display()), source);
        let (https, http) = free_ports().map_err(|source| failed("no free port on loopback", source))?;
        let log_file = fs::File::create(&log).map_err(|source| failed("log", source))?;
        let process = Command::new(binary)
            .args(["--https-addr", &https.to_string(), "--http-addr", &http.to_string(), "--ca-out"])
            .arg(&ca)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .map_err(|source| failed("start", source))?;
        let process = Guarded(process);
        let started = Instant::now();
        loop {
            let why = match http::get(http, "/readyz") {
                Ok(answer) if answer.status == 200 => break,
                Ok(answer) => answer.body,
                Err(error) => error.to_string(),
            };
            if started.elapsed() > START {
                let log = fs::read_to_string(&log).unwrap_or_default();
                return Err(failed("not ready", std::io::Error::other(format!("{why}\n{log}"))));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { process, client: Client::new(&format!("https://{https}/inject"), &ca)? })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Where it answers.
    pub fn url(&self) -> &str {
        &self.client.url
    }

    /// Posts an `AdmissionReview` and returns the answer.
    ///
    /// # Errors
    /// See [`Client::review`].
    pub fn review(&self, review: &Value) -> Result<Value, LabError> {
        self.client.review(review)
    }
}

impl Client {
    /// For the webhook at `url`, trusting the certificate authority in the PEM file `ca` and nobody else.
    ///
    /// # Errors
    /// When there is no certificate in the file.
    pub fn new(url: &str, ca: &Path) -> Result<Self, LabError> {
        let failed = |source| LabError::new(format!("CA certificate {}", ca.display()), source);
        let pem = fs::read(ca).map_err(failed)?;
        let root = Certificate::from_pem(&pem).map_err(|error| failed(std::io::Error::other(error)))?;
        Ok(Self { agent: agent(Some(root)), url: url.to_owned() })
    }

    /// Posts an `AdmissionReview` and returns the answer.
    ///
    /// # Errors
    /// When there is none: connection, certificate, HTTP status, or what came back is no JSON.
    pub fn review(&self, review: &Value) -> Result<Value, LabError> {
        let failed = |error: String| LabError::new(format!("POST {}", self.url), std::io::Error::other(error));
        let sent = self.agent.post(&self.url).header("content-type", "application/json").send(review.to_string());
        let mut answer = sent.map_err(|error| failed(error.to_string()))?;
        let body = answer.body_mut().read_to_string().map_err(|error| failed(error.to_string()))?;
        if answer.status() != 200 {
            return Err(failed(format!("{}: {body}", answer.status())));
        }
        serde_json::from_str(&body).map_err(|error| failed(format!("{error}: {body}")))
    }
}

/// The review an API server sends when a pod is created.
pub fn review_of(pod: &Value) -> Value {
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

/// Two ports that were free a moment ago: the webhook is told its ports, so that nothing has to be read from its log.
fn free_ports() -> std::io::Result<(SocketAddr, SocketAddr)> {
    let sockets = [TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?];
    Ok((sockets[0].local_addr()?, sockets[1].local_addr()?))
}
