//! ADD with an agent on a real socket: one that answers, a slow one, a dead one, and none.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use weir_lab::{Netns, privilege};

use crate::call::{Call, STATUS, conf, prev_result};

/// An agent that gives one answer to every query.
struct Agent {
    dir: tempfile::TempDir,
    reports: UnixDatagram,
    asked: Arc<AtomicUsize>,
}

impl Agent {
    /// Creates an agent that receives reports, but answers no queries.
    fn silent() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let reports = UnixDatagram::bind(dir.path().join("report.sock")).unwrap();
        reports.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { dir, reports, asked: Arc::default() }
    }

    fn saying(answer: &Value) -> Self {
        let agent = Self::silent();
        let listener = UnixListener::bind(agent.socket()).unwrap();
        let (asked, line) = (Arc::clone(&agent.asked), format!("{answer}\n"));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut query = String::new();
                BufReader::new(&stream).read_line(&mut query).unwrap();
                let query: Value = serde_json::from_str(&query).unwrap();
                assert_eq!(query, json!({"v": 1, "uid": "1-2-3", "namespace": "shop", "name": "web-1"}));
                asked.fetch_add(1, Ordering::SeqCst);
                stream.write_all(line.as_bytes()).unwrap();
            }
        });
        agent
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn report(&self) -> Value {
        let mut bytes = vec![0; 64 << 10];
        let count = self.reports.recv(&mut bytes).unwrap();
        serde_json::from_slice(&bytes[..count]).unwrap()
    }

    /// Returns a configuration with this agent. Without `annotations` the runtime passes none.
    fn conf(&self, annotations: Option<&[(&str, &str)]>) -> Value {
        let mut conf = conf("1.1.0", annotations.unwrap_or_default());
        conf["agent_socket"] = self.socket().to_str().unwrap().into();
        if annotations.is_none() {
            conf["runtimeConfig"] = json!({});
        }
        conf
    }
}

fn ruleset(netns: &Netns) -> String {
    let output = netns.run(|| Command::new("nft").args(["list", "ruleset"]).output()).unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

const CAPTURE: (&str, &str) = ("weir.dev/capture", r#"{"v":1,"proxyUids":[1400]}"#);

#[test]
fn capture_annotation_needs_no_agent() {
    if !privilege::available_or_skip() {
        return;
    }
    let agent = Agent::saying(&json!({"decision": "skip", "reason": "nonsense"}));
    let conf = agent.conf(Some(&[STATUS, CAPTURE]));
    let pod = Netns::new("annotated").unwrap();
    for outcome in ["installed", "unchanged"] {
        Call::new("ADD").netns(&pod.path()).conf(&conf).run().assert_success(&prev_result(&conf));
        let report = agent.report();
        assert_eq!(report["outcome"], outcome, "{report}");
        assert_eq!(report["netns"], pod.path().to_str().unwrap());
        for (key, value) in
            [("verb", "ADD"), ("namespace", "shop"), ("name", "web-1"), ("uid", "1-2-3"), ("container", "c0ffee")]
        {
            assert_eq!(report[key], value, "{report}");
        }
        assert_eq!((&report["capture"], &report["version"]), (&json!(CAPTURE.1), &json!(env!("CARGO_PKG_VERSION"))));
        assert!(report["us"]["kernel"].as_u64() > Some(0) && report["us"]["agent"] == 0, "{report}");
    }
    assert!(ruleset(&pod).contains("1400"));
    assert_eq!(agent.asked(), 0);
}

#[test]
fn a_pod_outside_the_mesh_needs_no_agent() {
    for agent in [Agent::silent(), Agent::saying(&json!({"decision": "unknown", "reason": "x"}))] {
        let conf = agent.conf(Some(&[("app", "web")]));
        Call::new("ADD").conf(&conf).run().assert_success(&prev_result(&conf));
        let report = agent.report();
        assert_eq!((&report["outcome"], &report["code"]), (&json!("passed"), &Value::Null), "{report}");
        assert_eq!(agent.asked(), 0);
        drop(agent.dir);
        Call::new("ADD").conf(&conf).run().assert_success(&prev_result(&conf));
    }
    // Also without annotations, if its namespace is excluded.
    let agent = Agent::silent();
    let conf = agent.conf(None);
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=web-1;K8S_POD_UID=1-2-3";
    Call::new("ADD").env("CNI_ARGS", args).conf(&conf).run().assert_success(&prev_result(&conf));
}

#[test]
fn answer_of_the_agent_is_followed() {
    if !privilege::available_or_skip() {
        return;
    }
    for annotations in [Some(&[STATUS][..]), None] {
        let agent = Agent::saying(&json!({"decision": "capture", "capture": CAPTURE.1}));
        let conf = agent.conf(annotations);
        let pod = Netns::new("asked").unwrap();
        let call = |verb: &str| Call::new(verb).netns(&pod.path()).conf(&conf);
        call("ADD").run().assert_success(&prev_result(&conf));
        assert!(ruleset(&pod).contains("1400"));
        assert!(agent.report()["us"]["agent"].as_u64() > Some(0));
        call("CHECK").run().assert_success("");
        assert_eq!(agent.asked(), 2);

        let agent = Agent::saying(&json!({"decision": "skip", "reason": "its proxy is a gateway"}));
        let conf = agent.conf(annotations);
        let answer = Call::new("ADD").conf(&conf).run();
        answer.assert_success(&prev_result(&conf));
        assert!(answer.stderr.contains("its proxy is a gateway (according to the node agent)"), "{}", answer.stderr);

        let agent = Agent::saying(&json!({"decision": "refuse", "findings": ["port 80x", "port 90x"]}));
        Call::new("ADD")
            .conf(&agent.conf(annotations))
            .run()
            .assert_error(100, &["shop/web-1", "port 80x", "port 90x"]);
    }
}

#[test]
fn without_an_answer_the_pod_fails_with_code_11() {
    for (annotations, text) in [(Some(&[STATUS][..]), "is in the mesh"), (None, "cannot tell whether")] {
        let agent = Agent::saying(&json!({"decision": "unknown", "reason": "the agent has not seen it yet"}));
        Call::new("ADD").conf(&agent.conf(annotations)).run().assert_error(11, &[text, "has not seen it yet"]);
        assert_eq!(agent.report()["code"], 11);

        let agent = Agent::silent();
        let conf = agent.conf(annotations);
        Call::new("ADD").conf(&conf).run().assert_error(11, &["shop/web-1", text, "not running", "agent.sock"]);
        // DEL needs no agent.
        Call::new("DEL").conf(&conf).run().assert_success("");

        // The socket is bound, but nothing accepts connections.
        let _listener = UnixListener::bind(agent.socket()).unwrap();
        let mut conf = conf;
        conf["agent_timeout_ms"] = 50.into();
        Call::new("ADD").conf(&conf).run().assert_error(11, &[text, "did not answer within 50 ms"]);
    }
}

#[test]
fn without_an_agent_istios_defaults_apply() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = Netns::new("alone").unwrap();
    let conf = conf("1.0.0", &[STATUS]);
    Call::new("ADD").netns(&pod.path()).conf(&conf).run().assert_success(&prev_result(&conf));
    assert!(ruleset(&pod).contains("1337"));
}

#[test]
fn status_fails_only_until_its_first_success() {
    if !privilege::available_or_skip() {
        return;
    }
    let agent = Agent::silent();
    let good = agent.conf(None);
    let mut bad = good.clone();
    bad["plugin_log_level"] = "loud".into();
    Call::new("STATUS").conf(&bad).run().assert_error(7, &["loud"]);
    Call::new("STATUS").conf(&good).run().assert_success("");
    let answer = Call::new("STATUS").conf(&bad).run();
    answer.assert_success("");
    assert!(answer.stderr.contains("loud"), "{}", answer.stderr);
    // After a reboot /run is empty.
    std::fs::remove_file(agent.dir.path().join("status-ok")).unwrap();
    Call::new("STATUS").conf(&bad).run().assert_error(7, &["loud"]);
}

#[test]
fn gc_reports_the_valid_sandboxes() {
    let agent = Agent::silent();
    let mut conf = agent.conf(None);
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    Call::new("GC").conf(&conf).run().assert_success("");
    assert_eq!(agent.report()["valid"], json!(["a"]));
    conf["cni.dev/valid-attachments"] = json!("nonsense");
    Call::new("GC").conf(&conf).run().assert_success("");
    assert_eq!(agent.report()["valid"], Value::Null);
}
