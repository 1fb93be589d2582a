//! Calls the binary as a runtime does.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// Limit for a call, which never waits long.
const BOUND: Duration = Duration::from_secs(20);

/// Name of the capability, spelled out because it is part of the interface.
pub(crate) const CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";

/// Status annotation of a pod injected for use with a CNI plugin.
pub(crate) const STATUS: (&str, &str) = (
    "sidecar.istio.io/status",
    r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"],"volumes":null,"imagePullSecrets":null,"revision":"default"}"#,
);

/// A call to make.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    env: BTreeMap<String, String>,
    stdin: Vec<u8>,
}

/// Result of a call.
#[derive(Debug)]
pub(crate) struct CallResult {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Call {
    /// Creates a call with the environment of a Kubernetes runtime, without configuration and network namespace.
    pub(crate) fn new(verb: &str) -> Self {
        let call = Self { env: BTreeMap::new(), stdin: Vec::new() };
        call.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "c0ffee")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni")
            .env("CNI_NETNS", "/run/netns/weir-no-such-namespace")
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=1-2-3")
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    pub(crate) fn netns(self, path: &Path) -> Self {
        self.env("CNI_NETNS", path.to_str().unwrap())
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    pub(crate) fn conf(self, conf: &Value) -> Self {
        self.stdin(conf.to_string())
    }

    pub(crate) fn run(&self) -> CallResult {
        self.output_of(assert_cmd::Command::new(env!("CARGO_BIN_EXE_weir-cni")))
    }

    /// Runs the call under a program that takes a command behind its own arguments.
    pub(crate) fn run_under(&self, program: &str, arguments: &[&str]) -> CallResult {
        let mut command = assert_cmd::Command::new(program);
        command.args(arguments).arg(env!("CARGO_BIN_EXE_weir-cni"));
        self.output_of(command)
    }

    fn output_of(&self, mut command: assert_cmd::Command) -> CallResult {
        let output =
            command.env_clear().envs(&self.env).write_stdin(self.stdin.clone()).timeout(BOUND).output().unwrap();
        CallResult {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Call {
    /// Starts the call and kills it after this time.
    pub(crate) fn run_and_kill(&self, after: Duration) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weir-cni"))
            .env_clear()
            .envs(&self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&self.stdin).unwrap();
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl CallResult {
    /// Returns the error object; checks its form.
    pub(crate) fn error(&self) -> Value {
        assert_eq!(self.code, Some(1), "{self:?}");
        let error: Value = serde_json::from_str(&self.stdout).unwrap();
        let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["cniVersion", "code", "msg", "details"]);
        assert!(error["msg"].as_str().is_some_and(|msg| !msg.is_empty()));
        self.check_log();
        error
    }

    /// Asserts success with exactly this on stdout.
    #[track_caller]
    pub(crate) fn assert_success(&self, stdout: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(0), stdout), "{}", self.stderr);
        self.check_log();
    }

    /// Asserts an error with this code and all of these parts in its message.
    #[track_caller]
    pub(crate) fn assert_error(&self, code: u64, parts: &[&str]) {
        let error = self.error();
        assert_eq!(error["code"], code, "{error}");
        let msg = error["msg"].as_str().unwrap();
        for part in parts {
            assert!(msg.contains(part), "{part:?} is not in {msg:?}");
        }
    }

    /// Asserts that every line of stderr is a JSON object with time, level and message.
    fn check_log(&self) {
        for line in self.stderr.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            for key in ["time", "level", "msg"] {
                assert!(line[key].is_string(), "{line}");
            }
        }
    }
}

/// Returns the configuration of the last plugin of a list, as libcni derives it.
pub(crate) fn conf(version: &str, annotations: &[(&str, &str)]) -> Value {
    let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
    json!({
        "cniVersion": version,
        "name": "testnet",
        "type": "weir-cni",
        "capabilities": { CAPABILITY: true },
        "exclude_namespaces": ["kube-system"],
        "runtimeConfig": { CAPABILITY: annotations },
        "prevResult": { "cniVersion": version, "interfaces": [{ "name": "eth0", "sandbox": "/x" }], "ips": [], "dns": {} },
    })
}

/// Returns the previous result of a configuration, as ADD has to return it.
pub(crate) fn prev_result(conf: &Value) -> String {
    conf["prevResult"].to_string()
}
