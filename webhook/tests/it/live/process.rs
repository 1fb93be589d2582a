//! The binary as a process: exit codes, signals, what it writes.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use hyper::StatusCode;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::client::{Client, get};
use super::{H1, TIMEOUT, review};

fn webhook(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-webhook"));
    command.args(args).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn output(args: &[&str]) -> Output {
    timeout(TIMEOUT, webhook(args).output()).await.expect("it ends").unwrap()
}

pub(super) struct Running {
    child: Child,
    https: SocketAddr,
    pub(super) http: SocketAddr,
    log: tokio::task::JoinHandle<Vec<serde_json::Value>>,
}

/// Starts the process and reads its addresses from its log.
pub(super) async fn start(args: &[&str]) -> Running {
    let fixed = ["--https-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--log-format", "json"];
    let mut child = webhook(&[&fixed[..], args].concat()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let listening = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the process runs");
            let event: serde_json::Value = serde_json::from_str(&line).expect("a JSON log");
            if event["message"] == "listening" {
                return event;
            }
        }
    };
    let event = timeout(TIMEOUT, listening).await.expect("it listens");
    let addr = |key: &str| event[key].as_str().unwrap().parse().unwrap();
    let (https, http) = (addr("https"), addr("http"));
    let log = tokio::spawn(async move {
        let mut events = Vec::new();
        while let Ok(Some(line)) = lines.next_line().await {
            events.push(serde_json::from_str(&line).expect("a JSON log"));
        }
        events
    });
    Running { child, https, http, log }
}

impl Running {
    /// Returns the highest resident memory so far, in KiB.
    pub(super) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    async fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().await.unwrap().success());
    }
}

#[tokio::test]
async fn sigterm_drains_and_a_second_one_skips_the_delay() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let mut running = start(&["--ca-out", ca.to_str().unwrap(), "--shutdown-delay", "10m"]).await;
    let client = Client::new(running.https, &[&std::fs::read_to_string(&ca).unwrap()], H1);
    let body = review("v1").to_string();
    let (first_half, second_half) = body.split_at(20);
    let mut in_flight = client.connect().await.unwrap();
    let head = format!(
        "POST /inject HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{first_half}",
        body.len()
    );
    in_flight.write_all(head.as_bytes()).await.unwrap();

    running.signal("TERM").await;
    let unready = async {
        while get(running.http, "/readyz").await.0 != StatusCode::SERVICE_UNAVAILABLE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIMEOUT, unready).await.expect("unready first");
    assert_eq!(client.post("/inject", body.clone()).await.0, StatusCode::OK, "still served during the delay");

    // A second signal skips the delay; requests in flight are finished all the same.
    running.signal("TERM").await;
    let closed = async { while client.connect().await.is_ok() {} };
    timeout(TIMEOUT, closed).await.expect("no new connections");
    in_flight.write_all(second_half.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(TIMEOUT, in_flight.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"allowed\":true"), "{answer}");
    let status = timeout(TIMEOUT, running.child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(0));
    let log = running.log.await.unwrap();
    assert_eq!(log.last().unwrap()["message"], "shut down");
    assert_eq!(log.last().unwrap()["aborted_connections"], 0);
    assert!(log.iter().any(|event| event["message"] == "second termination signal; skipping the shutdown delay"));
}

#[tokio::test]
async fn drain_timeout_aborts_stuck_connections() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let flags = ["--ca-out", ca.to_str().unwrap(), "--drain-timeout", "1s", "--request-timeout", "10m"];
    let mut running = start(&flags).await;
    let client = Client::new(running.https, &[&std::fs::read_to_string(&ca).unwrap()], H1);
    let mut stuck = client.connect().await.unwrap();
    let head =
        "POST /inject HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    stuck.write_all(head.as_bytes()).await.unwrap();
    let seen = async {
        while !get(running.http, "/metrics").await.1.contains("sidecar_injection_requests_total 1") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIMEOUT, seen).await.expect("the request is in flight");
    running.signal("INT").await;
    let status = timeout(TIMEOUT, running.child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(running.log.await.unwrap().last().unwrap()["aborted_connections"], 1);
}

#[tokio::test]
async fn reviews_are_logged_with_their_fields() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let mut running = start(&["--ca-out", ca.to_str().unwrap()]).await;
    let client = Client::new(running.https, &[&std::fs::read_to_string(&ca).unwrap()], H1);
    client.post("/inject", review("v1").to_string()).await;
    client.post("/inject", "{").await;
    running.signal("TERM").await;
    timeout(TIMEOUT, running.child.wait()).await.expect("it ends").unwrap();
    let log = running.log.await.unwrap();
    let reviews: Vec<_> = log.iter().filter(|event| event["message"] == "review").collect();
    let [injected, failed] = reviews[..] else { panic!("{log:?}") };
    for (key, value) in [("namespace", "shop"), ("pod", "web-"), ("uid", "uid-1"), ("decision", "injected")] {
        assert_eq!(injected[key], value, "{injected}");
    }
    assert!(injected["patch_bytes"].is_u64() && injected["duration_us"].is_u64(), "{injected}");
    assert_eq!((&failed["decision"], &failed["reason"]), (&"failed".into(), &"bad_request".into()));
}

#[tokio::test]
async fn bad_configuration_is_rejected_before_binding() {
    let dir = tempfile::tempdir().unwrap();
    let values = dir.path().join("values");
    std::fs::write(&values, "global: 7\n").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let values = values.to_str().unwrap();
    // The port is taken: had it been bound first, this would be another error.
    let got = output(&["--https-addr", &addr, "--values", values]).await;
    assert_eq!(got.status.code(), Some(2));
    let text = String::from_utf8_lossy(&got.stderr).into_owned();
    assert!(text.contains("weir-webhook: ") && text.contains("global"), "{text}");

    let missing = dir.path().join("tls.crt");
    let missing = missing.to_str().unwrap();
    let got = output(&["--https-addr", &addr, "--tls-cert-file", missing, "--tls-key-file", missing]).await;
    assert_eq!(got.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&got.stderr).contains(missing));

    let got = output(&["--https-addr", &addr, "--http-addr", ""]).await;
    assert_eq!(got.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&got.stderr).contains(&format!("cannot listen on {addr}")));

    assert_eq!(output(&["--https-addr", "nonsense"]).await.status.code(), Some(2));
}

#[tokio::test]
async fn generated_certificates_serve() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("certs");
    let out_text = out.to_str().unwrap();
    let args = ["certs", "--out", out_text, "--dns", "localhost", "--days", "2"];
    let got = output(&args).await;
    assert_eq!(got.status.code(), Some(0));
    let listed = String::from_utf8(got.stdout).unwrap();
    assert_eq!(listed.lines().filter(|line| Path::new(line).is_file()).count(), 3, "{listed}");

    let again = output(&args).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("--force"));

    let running = start(&["--cert-dir", out_text]).await;
    let ca = std::fs::read_to_string(out.join("ca.crt")).unwrap();
    let client = Client::new(running.https, &[&ca], H1);
    assert_eq!(client.post("/inject", review("v1").to_string()).await.0, StatusCode::OK);
}
