//! Runs the binary and parses its output.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use serde_json::{Value, json};
use weir_injector::yaml;

/// Result of a run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `weir` with these arguments and this text on standard input.
pub(crate) fn weir(args: &[&str], stdin: &str) -> Run {
    let output = assert_cmd::cargo::cargo_bin_cmd!("weir")
        .env_remove("COMPLIANCE_POLICY")
        .args(args)
        .write_stdin(stdin)
        .output()
        .expect("the binary runs");
    Run {
        code: output.status.code().expect("no signal"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Runs `weir inject` on a text, successfully.
pub(crate) fn inject(args: &[&str], manifest: &str) -> Run {
    let args = [&["inject", "-f", "-"], args].concat();
    let run = weir(&args, manifest);
    assert_eq!(run.code, 0, "{}", run.stderr);
    run
}

/// Parses the documents of an output.
pub(crate) fn documents(output: &str) -> Vec<Value> {
    let texts = output.split("\n---\n").filter(|text| !text.is_empty());
    texts.map(|text| yaml::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"))).collect()
}

/// Parses documents with a YAML 1.1 parser; `None` if there is none.
pub(crate) fn documents_of_yaml_1_1(text: &str) -> Option<Vec<Value>> {
    let script = "import json, sys, yaml; json.dump([d for d in yaml.safe_load_all(sys.stdin.buffer) if d is not None], sys.stdout)";
    let output = assert_cmd::Command::new("python3").args(["-c", script]).write_stdin(text).output().ok()?;
    if String::from_utf8_lossy(&output.stderr).contains("No module named 'yaml'") {
        weir_lab::skip_or_fail("python3 with PyYAML is not installed");
        return None;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// Writes a file of a test.
pub(crate) fn file(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("a file can be written");
    path.to_str().expect("UTF-8").to_owned()
}

/// Returns the names of the containers at a path of an object.
pub(crate) fn containers<'a>(object: &'a Value, pointer: &str) -> Vec<&'a str> {
    let list = object.pointer(pointer).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
}

/// Serves a list of pods (namespace, name, state) as the agent of a node does; returns its address.
pub(crate) fn serve_pods(node: &str, pods: &[(&str, &str, &str)]) -> SocketAddr {
    let pods: Vec<Value> = pods
        .iter()
        .map(|(namespace, name, state)| {
            json!({"namespace": namespace, "name": name, "uid": "1", "state": state, "repairs": 0})
        })
        .collect();
    serve("/pods", json!({"node": node, "synced": true, "pods": pods}).to_string())
}

/// Serves one path as an agent does.
pub(crate) fn serve(path: &str, body: String) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let request = format!("GET {path} ");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let head: Vec<String> =
                BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let is_found = head.first().is_some_and(|line| line.starts_with(&request));
            let code = if is_found { "200 OK" } else { "404 Not Found" };
            let text = format!("HTTP/1.1 {code}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            let _ = stream.write_all(text.as_bytes());
        }
    });
    addr
}
